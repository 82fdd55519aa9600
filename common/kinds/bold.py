"""Kind `bold`: volumes of functional runs of a BIDS folder, each with the state of its person."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

from common.seams import Layout
from common.settings import Table

TRIAL_TYPE: Final = "trial_type"  # what the site itself calls the state of a sample
Extent = Annotated[int, Field(ge=1, le=512)]
States = Annotated[tuple[str, ...], Field(min_length=2, max_length=1000)]


class Bold:
    """One labelled volume, or the mean over one event: (X, Y, Z) float16, axes R, A, S.

    Every voxel of the brain has mean 0 and deviation 1 over its run; outside it is 0.
    """

    dtype: ClassVar[str] = "float16"
    # runs have hundreds of samples: one long run must not outweigh many people
    aggregation: ClassVar[dict[str, str]] = {"weight": "participants"}
    targets: ClassVar[dict[str, dict[str, Any]]] = {
        "state": {"kind": "categorical", "classes": ["face", "house", "shoe"]}
    }

    class Study(Table):
        """The grid, the states, and what is done to a run, which all sites agree on."""

        kind: Literal["bold"] = Field(description="Volumes of functional runs.")
        shape: tuple[Extent, Extent, Extent] = Field(
            description="Voxels to the right, anterior, superior.", examples=[(48, 56, 48)]
        )
        spacing_mm: Annotated[float, Field(ge=0.5, le=16)] = Field(
            description="Edge of a voxel in mm.", examples=[4.0]
        )
        align: Literal["world", "centre"] = Field(
            "world",
            description="world: the grid lies around the MNI152 brain, for runs laid on it. "
            "centre: around the middle of each run's brain mask, for runs as acquired.",
            examples=["world"],
        )
        states: dict[str, States] = Field(
            {},
            description="States by vocabulary, such as {memory = ['face', 'place']}. A sample is "
            "labelled in a column of each vocabulary's name; volumes of no state are no samples. "
            "Empty: every trial type that a site's events name, in a column trial_type.",
            examples=[{"state": ("face", "house", "shoe")}],
        )
        sample: Literal["volume", "event"] = Field(
            "volume",
            description="volume: one sample a labelled volume. event: one an event, the mean of "
            "its volumes.",
            examples=["volume"],
        )
        shift_s: Annotated[float, Field(ge=0, le=20)] = Field(
            5.0,
            description="Seconds by which the response is later than the event.",
            examples=[5.0],
        )
        smoothing_mm: Annotated[float, Field(ge=0, le=20)] = Field(
            3.0, description="Full width at half maximum of the Gaussian; 0 smooths nothing."
        )
        high_pass_s: Annotated[float, Field(ge=0, le=1000)] = Field(
            128.0, description="Slower changes than one in so many seconds are taken out; 0: none."
        )
        confounds: tuple[str, ...] = Field(
            (),
            description="Columns of each run's confounds table that are regressed out; a run "
            "without them is left out.",
        )
        least_volumes: Annotated[int, Field(ge=20, le=100_000)] = Field(
            50, description="Fewest volumes of a run; shorter ones are left out."
        )
        most_motion_mm: Annotated[float, Field(ge=0, le=100)] = Field(
            0.5,
            description="Largest mean framewise displacement of a run; those that moved more are "
            "left out, as far as a confounds table tells. 0 sets no limit.",
        )
        most_jump_mm: Annotated[float, Field(ge=0, le=100)] = Field(
            0.0,
            description="Largest framewise displacement of a volume that is a sample, or in one; "
            "0 sets no limit.",
        )

        @field_validator("states")
        @classmethod
        def _columns_of_their_own(cls, states: dict[str, States]) -> dict[str, States]:
            for name, words in states.items():
                if not name.strip() or name == TRIAL_TYPE:
                    raise ValueError(f'has a vocabulary "{name}"; give it a name of its own')
                if len(set(words)) < len(words) or not all(word.strip() for word in words):
                    raise ValueError(f"{name} lists a state twice, or an empty one")
            return states

    class Site(Table):
        """Where the site's runs are, and its words for the study's states."""

        kind: Literal["bold"] = Field(description="Volumes of functional runs.")
        root: str = Field(description="BIDS folder, relative to the site file.", examples=["bids"])
        derivative: str = Field(
            "",
            description='Folder below root to read runs from, such as "derivatives/fmriprep", with '
            "their masks and confounds; events are looked for there and in root.",
            examples=["derivatives/fmriprep"],
        )
        links: tuple[str, ...] = Field(
            (),
            description="Other folders that links in the data folder may lead to, such as scratch "
            "storage, relative to the site file.",
        )
        entities: dict[str, str] = Field(
            {},
            description="Only runs named so, such as {task = 'motor', space = "
            "'MNI152NLin2009cAsym'}.",
        )
        rows: dict[str, str] = Field(
            {},
            description="Only participants with these entries in participants.tsv.",
            examples=[{"site": "our-hospital"}],
        )
        event_column: str = Field(
            TRIAL_TYPE, description="Column of the events tables that names the state."
        )
        states: dict[str, str] = Field(
            {},
            description="Our trial types in the study's words; what is not listed keeps its name.",
            examples=[{"Faces": "face"}],
        )
        mask: str = Field(
            "",
            description="One brain mask for all runs, relative to root; empty: each run's own, as "
            "fMRIPrep names it, or else one that is made of the run's mean.",
        )

    @staticmethod
    def shape(study: Bold.Study) -> tuple[int, ...]:
        """(X, Y, Z) voxels."""
        return study.shape

    @staticmethod
    def layout(study: Bold.Study) -> Layout:
        """A volume, axes R, A, S."""
        return "volume"
