"""Kind `features`: rows of a table of regional measures, one row a scan."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from common.seams import Layout
from common.settings import Table


class Features:
    """Named numbers of a scan, such as cortical thickness by region; shape (columns,)."""

    dtype: ClassVar[str] = "float32"

    class Study(Table):
        """Which numbers; every site must have all of them under these names."""

        kind: Literal["features"] = Field(description="Rows of a table.")
        columns: tuple[str, ...] = Field(
            description="Names of the features, in order; sites rename their own to these.",
            min_length=1,
            examples=[["Left-Hippocampus", "Right-Hippocampus"]],
        )

        @model_validator(mode="after")
        def _once_each(self) -> Features.Study:
            seen: set[str] = set()
            twice = {name for name in self.columns if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
            if twice:
                raise ValueError(f"columns lists {', '.join(sorted(twice))} more than once")
            if not all(name.strip() for name in self.columns):
                raise ValueError("columns holds an empty name")
            return self

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
