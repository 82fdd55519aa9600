"""A figure with its words and its numbers: what is seen, what is read aloud, what is downloaded.

Both files of a figure lie in the page itself, as links that a browser saves without asking anybody.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from common.printable import csv_cell
from server.report.charts import Pen
from server.report.svg import on_paper

Value = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One drawing of a page, with the numbers that it shows.

    name: its id in the page, and what its files are called. beside: whether a table of the page
    holds the same numbers in words.
    """

    name: str
    title: str
    drawn: Markup
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    key: Sequence[tuple[str, Pen]] = ()
    note: str = ""
    beside: bool = False

    @property
    def file(self) -> str:
        """What its files are called, without an ending."""
        return re.sub(r"[^\w-]+", "-", self.name)

    @property
    def svg(self) -> str:
        """The drawing as an address that holds all of it."""
        return _address("image/svg+xml", on_paper(self.drawn))

    @property
    def csv(self) -> str:
        """The numbers as an address that holds all of them; floats in full."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(self.columns)
        table.writerows([_written(value) for value in row] for row in self.rows)
        return _address("text/csv;charset=utf-8", text.getvalue())


def _written(value: Value) -> Value:
    return csv_cell(value) if isinstance(value, str) else "" if value is None else value


def _address(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
