"""Kind `connectome`: how the signals of a brain's regions go together over one run."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from common.seams import Layout
from common.settings import Table

FileDigest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Measure = Literal["pearson", "fisher-z", "partial", "ledoit-wolf", "covariance"]


class Connectome:
    """One matrix a run, (R, R) float32 and symmetric; row and column r are region r's.

    A region without a signal is a row and a column of 0. The number of time points that a matrix is
    made of is kept beside it as column `time_points`, and what BIDS names say of the task as column
    `task`, which a site file may name as any other.
    """

    dtype: ClassVar[str] = "float32"
    targets: ClassVar[dict[str, dict[str, Any]]] = {
        "age": {
            "kind": "regression", "unit": "years", "centre": 40.0, "scale": 20.0, "low": 0.0,
            "high": 120.0,
        },
        "sex": {"kind": "binary", "classes": ["female", "male"]},
    }  # fmt: skip

    class Study(Table):
        """Which regions, and what is measured between them; the same at every site."""

        kind: Literal["connectome"] = Field(description="Connectomes, of time series by region.")
        regions: Annotated[int, Field(ge=2, le=1500)] = Field(
            description="Regions of the atlas, in its order.", examples=[116]
        )
        names: tuple[str, ...] = Field(
            (),
            description="Names of the regions, in order: a table whose header has them is read by "
            "name, and one with other names is left out. Empty: the order of columns counts.",
            max_length=1500,
        )
        measure: Measure = Field(
            "fisher-z",
            description="pearson: correlations. fisher-z: their inverse hyperbolic tangent, 0 from "
            "a region to itself. partial, ledoit-wolf: partial correlations, and correlations, of "
            "the covariance shrunk after Ledoit and Wolf. covariance: that of z-scored series "
            "itself, shrunk; what a tangent space is made of.",
            examples=["fisher-z"],
        )
        least_points: Annotated[int, Field(ge=4, le=100_000)] = Field(
            60,
            description="Fewest time points of a run, without those that hold no number; shorter "
            "runs are left out.",
            examples=[60],
        )
        most_silent: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.2,
            description="Largest share of regions without a signal (constant, or without numbers) "
            "that a run may have; their correlations are 0.",
            examples=[0.2],
        )

        atlas: FileDigest = Field(
            "",
            description="SHA-256, as sha256sum prints it, of a NIfTI file in which regions are "
            "numbered: sites with functional runs and no series yet make them by it. Empty: series "
            "only.",
        )
        high_pass_s: Annotated[float, Field(ge=0, le=1000)] = Field(
            100.0,
            description="Runs: slower changes than one in so many seconds are taken out; 0: none.",
        )
        low_pass_s: Annotated[float, Field(ge=0, le=1000)] = Field(
            10.0,
            description="Runs: faster changes than one in so many seconds are taken out; 0: none.",
        )
        confounds: tuple[str, ...] = Field(
            (),
            description="Runs: columns of each run's confounds table that are regressed out; a run "
            "without them is left out.",
        )
        most_motion_mm: Annotated[float, Field(ge=0, le=100)] = Field(
            0.5,
            description="Runs: largest mean framewise displacement; those that moved more are left "
            "out, as far as a confounds table tells. 0 sets no limit.",
        )

        @model_validator(mode="after")
        def _every_region_has_one_name(self) -> Self:
            twice = [name for name, times in Counter(self.names).items() if times > 1]
            if twice:
                raise ValueError(f"names lists {twice[0]} more than once")
            if self.names and len(self.names) != self.regions:
                raise ValueError(f"names lists {len(self.names)}; regions is {self.regions}")
            if self.low_pass_s and self.high_pass_s and self.low_pass_s >= self.high_pass_s:
                raise ValueError(
                    f"low_pass_s is {self.low_pass_s:g} and high_pass_s {self.high_pass_s:g}; "
                    "nothing lies between them"
                )
            return self

    class Site(Table):
        """Where the site's time series are, and what is known of the people."""

        kind: Literal["connectome"] = Field(description="Connectomes, of time series by region.")
        root: str = Field(
            description="Folder of the series and of participants.tsv, relative to the site file.",
            examples=["timeseries"],
        )
        files: str = Field(
            "sub-*/func/*_timeseries.tsv",
            description="The files below root, / between folders: {participant} stands for a "
            "person, {session} for a visit, * for anything else within a name. Without "
            "{participant}, people are named as BIDS names them, and in .npz by the arrays. Read "
            "are .1D, .tsv, .csv (.gz or not) and .npy, of one run each, and .npz.",
            examples=["sub-{participant}/func/*_timeseries.tsv", "*.npz"],
        )
        time: Literal["rows", "columns"] = Field(
            "rows", description="Whether time goes down the rows of a file or along its columns."
        )
        rows: dict[str, str] = Field(
            {},
            description="Only people with these entries in participants.tsv.",
            examples=[{"site": "our-hospital"}],
        )
        links: tuple[str, ...] = Field(
            (),
            description="Other folders that links among the series may lead to, relative to the "
            "site file.",
        )
        atlas: str = Field(
            "",
            description="In place of files: root is a BIDS folder of functional runs in MNI152's "
            "space, and this the study's atlas, such as atlas.nii.gz, relative to the site file.",
        )
        derivative: str = Field(
            "",
            description="With atlas: folder below root to read runs from, with their masks and "
            'confounds, such as "derivatives/fmriprep".',
        )
        entities: dict[str, str] = Field(
            {}, description="With atlas: only runs named so, such as {task = 'rest'}."
        )

        @model_validator(mode="after")
        def _files_are_below_root(self) -> Self:
            if self.atlas and "files" in self.model_fields_set:
                raise ValueError("files and atlas are given; series are read, or made by an atlas")
            if self.files.startswith("/") or ".." in self.files.split("/"):
                raise ValueError(f'files is "{self.files}"; it must be below root')
            for name in ("{participant}", "{session}"):
                if self.files.count(name) > 1:
                    raise ValueError(f"files has {name} more than once")
            rest = self.files.replace("{participant}", "").replace("{session}", "")
            if "{" in rest or "}" in rest:
                raise ValueError(
                    f'files is "{self.files}"; {{participant}} and {{session}} are what may stand '
                    "in braces"
                )
            return self

    @staticmethod
    def shape(study: Connectome.Study) -> tuple[int, ...]:
        """(R, R) regions by regions."""
        return (study.regions, study.regions)

    @staticmethod
    def layout(study: Connectome.Study) -> Layout:
        """A matrix, regions by regions."""
        return "matrix"
