"""Tables of people: read row by row; of a row only the columns that are used are kept, as text."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

from client.data.delimited import bare, read_header, read_rows
from client.data.finding import Finding
from common.errors import DataError

_APART: Final = "\0"  # stands in no cell
_MOST_ROWS: Final = 1_000_000
_MOST_SEEN: Final = 5000  # entries of a column, for hints
_LONGEST_NAME: Final = 100  # letters of a name that is looked for
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Line:
    """One row below the header; `line[place]` is the text of one cell, without spaces around it.

    `number` is its (first) line in the file. `fault` says why its cells cannot be trusted: it has
    another number of them than the header, or a quotation mark joins it with the lines below it.
    """

    __slots__ = ("_raw", "fault", "number")

    def __init__(self, number: int, raw: list[str], width: int, fault: str = "") -> None:
        while len(raw) > width and not bare(raw[-1]):
            raw.pop()  # spreadsheets end rows with empty cells
        if not fault and len(raw) != width:
            fault = f"{len(raw)} cells where the header has {width}"
        self.number, self.fault = number, fault
        self._raw = raw + [""] * (width - len(raw))

    def __getitem__(self, place: int) -> str:
        return bare(self._raw[place])

    def cells(self, places: Sequence[int]) -> list[str]:
        """The cells at some places; most columns of a wide table are never looked at."""
        return [bare(self._raw[place]) for place in places]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table whose header is read and whose rows are read anew on each pass."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str
    inside: Path | None = None  # folder that a link must not lead out of

    def __iter__(self) -> Iterator[Line]:
        lines = read_rows(self.path, self.delimiter, self.inside)
        next(lines, None)
        width = len(self.columns)
        for rows, (number, raw, fault) in enumerate(lines):
            if rows >= _MOST_ROWS:
                raise DataError(f"{self.path} has over {_MOST_ROWS:,} rows; fewer are read")
            yield Line(number, raw, width, fault)

    def column(self, name: str) -> int:
        """Index of the column `name`.

        Raises
        ------
        DataError
            If there is none (the nearest is named) or more than one.
        """
        if self.columns.count(name) > 1:
            raise DataError(f'{self.path} has more than one column "{name}"; one is needed')
        if name not in self.columns:
            raise DataError(f'{self.path} has no column "{name}"; {nearest(name, self.columns)}')
        return self.columns.index(name)

    def picker(self, keep: frozenset[str] | None = None) -> Callable[[Line], Row]:
        """What makes a line a `Row` of the columns to keep; a name that stands twice is no key."""
        times = Counter(self.columns)
        places = [
            place
            for place, name in enumerate(self.columns)
            if times[name] == 1 and (keep is None or name in keep)
        ]
        numbers = {self.columns[place]: number for number, place in enumerate(places)}
        return lambda line: Row(numbers, _APART.join(line.cells(places)))


class Row(Mapping[str, str]):
    """One row's cells by column, kept as one text: a dict takes fifty bytes for an empty cell.

    `numbers` says which part of the text a column is; all rows of a table share it.
    """

    __slots__ = ("_numbers", "_text")

    def __init__(self, numbers: Mapping[str, int], text: str) -> None:
        self._numbers, self._text = numbers, text

    def __getitem__(self, name: str) -> str:
        return _cells(self._text)[self._numbers[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


@lru_cache(maxsize=4)  # whoever asks for one cell of a row asks for the next
def _cells(text: str) -> list[str]:
    return text.split(_APART)


def open_table(path: Path, inside: Path | None = None) -> TextTable:
    """Read the header of a CSV or TSV file (`.gz` or not).

    A link is followed as scans' links are: not out of the folder that the path names, nor out of
    `inside`, if that holds this folder.

    Raises
    ------
    DataError
        If the file is absent, empty, no text in UTF-8, too large to be a table of people, or a link
        to elsewhere.
    """
    delimiter, columns = read_header(path, inside)
    return TextTable(path=path, columns=columns, delimiter=delimiter, inside=inside)


def nearest(name: str, known: Sequence[str]) -> str:
    """Half a sentence that leads from a wrong name to the right one.

    >>> nearest("Age", ["age", "sex"])
    'did you mean "age"?'
    >>> nearest("iq", ["age", "sex"])
    'there are: age, sex'
    """
    if len(known) == 1 and any(mark in known[0] for mark in "| "):
        return f'its header is one name, "{known[0][:40]}": commas, semicolons or tabs are needed'
    folded = {other[:_LONGEST_NAME].casefold(): other for other in islice(known, 5000)}
    near = difflib.get_close_matches(name[:_LONGEST_NAME].casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{folded[near[0]]}"?'
    shown = ", ".join(islice(known, 12))
    return f"there are: {shown}{', ...' if len(known) > 12 else ''}"


def number(text: str) -> float | None:
    """The number that `text` writes in plain decimal notation, or None.

    Python's own `float` also takes "nan", "1_000" and "infinity", which in a table are mistakes.

    >>> number(" 41.50 "), number("nan"), number("1_000"), number("39,5")
    (41.5, None, None, None)
    """
    stripped = text.strip()
    return float(stripped) if _NUMBER.fullmatch(stripped) else None


def plain(text: str) -> str:
    """One spelling for one code: spaces stripped, numbers without needless digits.

    >>> plain(" 1.0 "), plain("01"), plain("-9999.00"), plain("male")
    ('1', '1', '-9999', 'male')
    """
    value = number(text)
    if value is None or abs(value) >= 1e15:
        return text.strip()
    return str(int(value)) if value == int(value) else repr(value)


class Filtered:
    """The rows of a table that belong to the site: every wanted column holds the wanted entry.

    `wanted` is the entry by the column's place. Keeps count, and what else stands there.
    """

    def __init__(self, wanted: Mapping[int, str], columns: Sequence[str]) -> None:
        self._wanted, self._columns = wanted, columns
        self._plain = {place: plain(entry) for place, entry in wanted.items()}
        self._seen: dict[int, dict[str, None]] = {place: {} for place in wanted}
        self.rows, self.passed = 0, 0

    def passes(self, line: Line) -> bool:
        """Whether a row belongs to the site."""
        self.rows += 1
        whole = True
        for place, entry in self._plain.items():
            cell = line[place]
            if len(self._seen[place]) < _MOST_SEEN:
                self._seen[place][cell[:_LONGEST_NAME]] = None
            whole = whole and plain(cell) == entry
        self.passed += whole
        return whole

    def findings(self, what: str) -> Iterator[Finding]:
        """An error where nothing passes; other spellings of a wanted entry, which do not."""
        for place, entry in self._wanted.items():
            name, seen = self._columns[place], list(self._seen[place])
            if not self.passed:
                problem = f'no row of {self.rows:,} has {name} = "{entry}"; {nearest(entry, seen)}'
                yield Finding(what=what, problem=problem, error=True)
                continue
            alike = [
                cell
                for cell in seen
                if cell.casefold() == entry.casefold() and plain(cell) != self._plain[place]
            ]
            if alike:
                problem = (
                    f'rows with {name} = "{alike[0]}" are not those with "{entry}" and are not '
                    f"read; spell them alike if they are"
                )
                yield Finding(what=what, problem=problem, error=True)
