"""Kind `video`: clips of moving pictures, each a small volume of time by height by width."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.seams import Layout
from common.settings import Table

Frames = Annotated[int, Field(ge=2, le=512)]
Pixels = Annotated[int, Field(ge=4, le=512)]
Intensity = Literal["zscore", "unit"]


class Video:
    """One volume a clip: (T, Y, X) float16, frames in order, rows from the top, columns from left.

    3D networks take it for a volume: what a scan has from left to right, a clip has in time. So an
    augmentation that mirrors axis 0 would let a clip run backwards.
    """

    dtype: ClassVar[str] = "float16"
    targets: ClassVar[dict[str, dict[str, Any]]] = {
        "action": {"kind": "categorical", "classes": ["push", "pull", "turn"]}
    }
    columns: ClassVar[dict[str, str]] = {"action": "folder"}

    class Study(Table):
        """How a clip of any length and size becomes one volume; the same at every site."""

        kind: Literal["video"] = Field(description="Clips of moving pictures.")
        shape: tuple[Frames, Pixels, Pixels] = Field(
            description="Frames, rows and columns; a picture is cut to these proportions around "
            "its middle.",
            examples=[(32, 64, 64)],
        )
        stride: Annotated[int, Field(ge=0, le=1000)] = Field(
            0,
            description="0: frames are spread evenly over the whole clip. Above: every so many "
            "frames, around the clip's middle; shorter clips are left out.",
            examples=[0],
        )
        intensity: Intensity = Field(
            "zscore",
            description="Grey values of a clip: mean 0 and deviation 1, or 0 (black) to 1 (white).",
            examples=["zscore"],
        )

    class Site(Table):
        """Where the site's clips are, and what is known of them."""

        kind: Literal["video"] = Field(description="Clips of moving pictures.")
        root: str = Field(
            description="Folder of the clips, relative to the site file. A clip is a folder of "
            "PNG or JPEG frames, numbered in their names, or one GIF, APNG, WebP or TIFF file.",
            examples=["clips"],
        )
        table: str = Field(
            "",
            description="CSV or TSV file with a row for each clip, relative to the site file. "
            "Empty: all that is known is the folder that a clip lies in, as column `folder`.",
            examples=["clips.tsv"],
        )
        clip: str = Field(
            "clip",
            description="Column that names the clip as it lies below root, such as push/clip_7.",
            examples=["clip"],
        )
        participant: str = Field(
            "",
            description="Column that names the person in the clip; empty: each clip is of another.",
            examples=["person"],
        )
        rows: dict[str, str] = Field(
            {},
            description="Only clips with these entries in the table.",
            examples=[{"site": "our-hospital"}],
        )
        links: tuple[str, ...] = Field(
            (),
            description="Other folders that links among the clips may lead to, relative to the "
            "site file.",
        )

        @model_validator(mode="after")
        def _columns_have_a_table(self) -> Self:
            if not self.table and (self.participant or self.rows):
                raise ValueError("table is empty; participant and rows are columns of it")
            return self

    @staticmethod
    def shape(study: Video.Study) -> tuple[int, ...]:
        """(T, Y, X) frames, rows, columns."""
        return study.shape

    @staticmethod
    def layout(study: Video.Study) -> Layout:
        """A volume, time in the first place."""
        return "volume"
