"""Kind `features`: rows of a table of regional measures, one row a scan."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Final, Literal

from pydantic import Field, model_validator

from common.seams import Layout
from common.settings import Table

_OVER: Final = " / "
MEAN: Final = "mean"  # of a person's own plain columns


def ratio_of(name: str) -> tuple[str, str]:
    """A feature's column, and the column it is divided by; none for a plain one.

    >>> ratio_of("Left-Hippocampus / eTIV"), ratio_of("eTIV")
    (('Left-Hippocampus', 'eTIV'), ('eTIV', ''))
    """
    column, _, by = name.partition(_OVER)
    return column, by


class Features:
    """Named numbers of a scan, such as cortical thickness by region; shape (columns,).

    NaN where a study lets columns be missing, and one is.
    """

    dtype: ClassVar[str] = "float32"

    class Study(Table):
        """Which numbers; every site must have all of them under these names."""

        kind: Literal["features"] = Field(description="Rows of a table.")
        columns: tuple[str, ...] = Field(
            description="Names of the features, in order; sites rename their own to these. "
            "'A / B' is the ratio of two columns, 'A / mean' of one to the mean of a person's own "
            "plain ones.",
            min_length=1,
            examples=[["Left-Hippocampus", "Right-Hippocampus", "Left-Hippocampus / eTIV"]],
        )
        missing_columns: float = Field(
            0.0,
            description="Largest share of the columns that a site's table, or one row, may lack; "
            "the training sites' mean stands in for them, and it is told whose.",
            ge=0,
            lt=1,
        )

        @model_validator(mode="after")
        def _once_each(self) -> Features.Study:
            seen: set[str] = set()
            twice = {name for name in self.columns if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
            if twice:
                raise ValueError(f"columns lists {', '.join(sorted(twice))} more than once")
            if not all(name.strip() for name in self.columns):
                raise ValueError("columns holds an empty name")
            parts = [ratio_of(name) for name in self.columns]
            if any(by == MEAN for _, by in parts) and all(by for _, by in parts):
                raise ValueError("columns has no plain one, of which a person has a mean")
            return self

        @property
        def needed(self) -> tuple[str, ...]:
            """The columns that a site's table must have, each once."""
            parts = (part for name in self.columns for part in ratio_of(name))
            return tuple(dict.fromkeys(part for part in parts if part and part != MEAN))

        def may_lack(self, absent: Collection[str]) -> bool:
            """Whether a table without these of the needed columns may take part."""
            lost = sum(any(part in absent for part in ratio_of(name)) for name in self.columns)
            return lost <= self.missing_columns * len(self.columns)

    class Site(Table):
        """Where the site's table is."""

        kind: Literal["features"] = Field(description="Rows of a table.")
        table: str = Field(
            description="CSV or TSV file (.gz or not), relative to the site file.",
            examples=["features.csv"],
        )
        participant: str = Field(
            "participant_id",
            description="Column that names the person.",
            examples=["participant_id"],
        )
        session: str = Field(
            "",
            description="Column that names the visit, where a person has several rows.",
            examples=["visit"],
        )
        rows: dict[str, str] = Field(
            {},
            description="Only rows with these entries, such as {site = 'Baltimore'}.",
            examples=[{"site": "our-hospital"}],
        )
        rename: dict[str, str] = Field(
            {},
            description="The study's column name to the site's, where they differ.",
            examples=[{"Left-Hippocampus": "lh_hippo"}],
        )

    @staticmethod
    def shape(study: Features.Study) -> tuple[int, ...]:
        """(columns,)."""
        return (len(study.columns),)

    @staticmethod
    def layout(study: Features.Study) -> Layout:
        """A table: one row of numbers."""
        return "table"
