"""Kind `synthetic-video`: moving textured blobs, drawn when they are asked for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from common.kinds.video import Frames, Intensity, Pixels
from common.seams import Layout
from common.settings import Table

MOTIONS: Final = (
    "left",
    "right",
    "up",
    "down",
    "expand",
    "shrink",
    "clockwise",
    "anticlockwise",
)


class SyntheticVideo:
    """One volume a clip, as `video` has it: (T, Y, X) float16; its motion is its label.

    A stand-in for real films that needs none. It says nothing about what real films would teach.
    """

    dtype: ClassVar[str] = "float16"
    targets: ClassVar[dict[str, dict[str, Any]]] = {
        "motion": {"kind": "categorical", "classes": list(MOTIONS)}
    }

    class Study(Table):
        """How large a clip is; the same at every site."""

        kind: Literal["synthetic-video"] = Field(description="Drawn clips of moving blobs.")
        shape: tuple[Frames, Pixels, Pixels] = Field(
            description="Frames, rows and columns.", examples=[(32, 32, 32)]
        )
        intensity: Intensity = Field(
            "zscore",
            description="Grey values of a clip: mean 0 and deviation 1, or 0 (black) to 1 (white).",
            examples=["zscore"],
        )

    class Site(Table):
        """Which clips a site draws; the same seed is the same clips."""

        kind: Literal["synthetic-video"] = Field(description="Drawn clips of moving blobs.")
        seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
            description="Which clips; another at each site.", examples=[1]
        )
        clips: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
            description="How many.", examples=[400]
        )

    @staticmethod
    def shape(study: SyntheticVideo.Study) -> tuple[int, ...]:
        """(T, Y, X) frames, rows, columns."""
        return study.shape

    @staticmethod
    def layout(study: SyntheticVideo.Study) -> Layout:
        """A volume, time in the first place."""
        return "volume"
