"""Kind `t1w`: T1-weighted head scans of a BIDS folder, on one grid for all sites."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from common.seams import Layout
from common.settings import Table

Extent = Annotated[int, Field(ge=4, le=512)]


class T1w:
    """One volume a scan: (X, Y, Z) float16, axes R, A, S, 0 outside the head."""

    dtype: ClassVar[str] = "float16"

    class Study(Table):
        """The grid and the intensities that all sites agree on."""

        kind: Literal["t1w"] = Field(description="T1-weighted scans.")
        shape: tuple[Extent, Extent, Extent] = Field(
            description="Voxels to the right, anterior, superior.", examples=[(96, 112, 96)]
        )
        spacing_mm: Annotated[float, Field(ge=0.5, le=16)] = Field(
            description="Edge of a voxel in mm.", examples=[2.0]
        )
        align: Literal["world", "centre"] = Field(
            "centre",
            description="world: the grid lies around the MNI152 brain, for scans registered to "
            "it. centre: around the middle of each head, for scans as acquired.",
            examples=["centre"],
        )
        intensity: Literal["zscore", "mean"] = Field(
            "zscore",
            description="Inside the head: mean 0 and deviation 1, or mean 1.",
            examples=["zscore"],
        )
        registration: Literal["none", "rigid", "affine"] = Field(
            "none",
            description="Lay each scan on the MNI152 brain: rigid turns and shifts it, affine "
            "scales and shears it, too; needs align = 'world'.",
        )
        bias_correction: bool = Field(
            False, description="Take the coil's uneven brightness out of each scan (N4)."
        )
        brain: Literal["none", "template", "derivative"] = Field(
            "none",
            description="What is not brain becomes 0. template: by the MNI152 brain that a scan "
            "was laid on. derivative: by the site's own masks. none: the whole head stays.",
        )
        regions: tuple[str, ...] = Field(
            (),
            description="Regional measures for the linear model, by name, that sites hold; "
            "empty: all that a site has.",
        )

    class Site(Table):
        """Where the site's scans are."""

        kind: Literal["t1w"] = Field(description="T1-weighted scans.")
        root: str = Field(description="BIDS folder, relative to the site file.", examples=["bids"])
        derivative: str = Field(
            "",
            description='Folder below root to read scans from, such as "derivatives/fmriprep".',
            examples=["derivatives/fmriprep"],
        )
        links: tuple[str, ...] = Field(
            (),
            description="Other folders that links in the data folder may lead to, such as scratch "
            "storage, relative to the site file.",
        )
        suffix: str = Field(
            "T1w",
            description="Last part of the scans' names; of FreeSurfer subjects the image in mri, "
            'such as "T1" or "orig".',
        )
        masks: str = Field(
            "",
            description="Folder below root with brain masks as fMRIPrep, FreeSurfer, FastSurfer, "
            'HD-BET or SynthStrip name them, for studies that ask for them; ".": beside the scans.',
            examples=["derivatives/fmriprep"],
        )
        entities: dict[str, str] = Field(
            {}, description="Only scans named so, such as {space = 'MNI152NLin2009cAsym'}."
        )
        rows: dict[str, str] = Field(
            {},
            description="Only participants with these entries in participants.tsv.",
            examples=[{"site": "our-hospital"}],
        )
        regions: str = Field(
            "",
            description="CSV or TSV file with participant_id, perhaps session, and regional "
            "measures for the linear model, relative to the site file.",
            examples=["derivatives/regions.tsv"],
        )
        unsure_orientation: Literal["keep", "leave out"] = Field(
            "keep", description="Scans whose header does not say, or contradicts itself."
        )

    @staticmethod
    def shape(study: T1w.Study) -> tuple[int, ...]:
        """(X, Y, Z) voxels.

        Raises
        ------
        ValueError
            If keys contradict each other.
        """
        if study.registration != "none" and study.align != "world":
            raise ValueError(
                f'registration is "{study.registration}", which lays scans in MNI space; '
                'align must be "world"'
            )
        if study.brain == "template" and study.registration == "none":
            raise ValueError('brain is "template"; registration must be "rigid" or "affine"')
        return study.shape

    @staticmethod
    def layout(study: T1w.Study) -> Layout:
        """A volume, axes R, A, S."""
        return "volume"
