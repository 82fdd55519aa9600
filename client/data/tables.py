"""CSV and TSV files as hospitals write them: any delimiter, BOM, CRLF, gzip; cells are text.

A table is read row by row and kept as text, so that it never takes more memory than its file has
bytes; a file beyond the limits below is refused by one error that names it.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Final

from common.errors import DataError, reason

_LARGEST_TEXT: Final = 1 << 30  # bytes, unpacked
_MOST_PACKED: Final = 100  # bytes of text for one of gzip; tables of numbers have 3 to 20
_FREE: Final = 4 << 20  # bytes of text, however well they are packed
_APART: Final = "\0"  # stands in no cell
_MOST_ROWS: Final = 1_000_000
_LARGEST_CELL: Final = 1 << 16
_MOST_COLUMNS: Final = 200_000  # a connectome of 600 regions has 179,700 edges
_LONGEST_NAME: Final = 100  # letters of a name that is looked for
_LONGEST_HEADER: Final = 8 << 20
_DELIMITERS: Final = "\t;,"
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row below the header: its line in the file, and its cells in the header's order.

    `fault` says why the cells cannot be trusted (another number of them than in the header).
    """

    number: int
    cells: tuple[str, ...]
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table whose header is read and whose rows are read anew on each pass."""

    path: Path
    columns: tuple[str, ...]
    delimiter: str
    inside: Path | None = None  # folder that a link must not lead out of

    def __iter__(self) -> Iterator[Line]:
        lines = _parsed(self.path, self.delimiter, self.inside)
        next(lines, None)
        rows = 0
        for number, cells in lines:
            if any(cells):
                rows += 1
                if rows > _MOST_ROWS:
                    raise DataError(f"{self.path} has over {_MOST_ROWS:,} rows; fewer are read")
                yield _line(number, cells, len(self.columns))

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

    def row(self, line: Line, without: frozenset[str] = frozenset()) -> Row:
        """Cells by column name; a name that stands twice in the header is left out."""
        numbers, places = _kept(self.columns, without)
        return Row(numbers, _APART.join([line.cells[place] for place in places]))


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


@lru_cache(maxsize=16)
def _kept(
    columns: tuple[str, ...], without: frozenset[str]
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Columns whose name stands once, by their order, and their places in a line."""
    once = {name for name, times in Counter(columns).items() if times == 1} - without
    places = tuple(place for place, name in enumerate(columns) if name in once)
    return {columns[place]: number for number, place in enumerate(places)}, places


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
    first = _first_line(path, inside)
    # the header decides: names of columns hold neither tabs nor semicolons
    counts = {mark: first.count(mark) for mark in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda mark: counts[mark])
    if not counts[delimiter]:
        delimiter = "\t" if ".tsv" in path.name else ","
    if counts[delimiter] >= _MOST_COLUMNS:
        raise DataError(
            f"{path} has {counts[delimiter] + 1:,} columns; at most {_MOST_COLUMNS:,} are read"
        )
    _, header = next(_parsed(path, delimiter, inside))
    columns = tuple(cell.strip() for cell in header)
    return TextTable(path=path, columns=columns, delimiter=delimiter, inside=inside)


def nearest(name: str, known: Sequence[str]) -> str:
    """Half a sentence that leads from a wrong name to the right one.

    >>> nearest("Age", ["age", "sex"])
    'did you mean "age"?'
    >>> nearest("iq", ["age", "sex"])
    'there are: age, sex'
    """
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


def passes(row: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a row belongs to the site: every wanted column holds the wanted entry."""
    return all(plain(row.get(name, "")) == plain(value) for name, value in wanted.items())


def _line(line: int, cells: list[str], width: int) -> Line:
    stripped = [cell.strip() for cell in cells]
    while len(stripped) > width and not stripped[-1]:
        stripped.pop()  # spreadsheets end rows with empty cells
    if len(stripped) == width:
        return Line(number=line, cells=tuple(stripped))
    fault = f"{len(stripped)} cells where the header has {width}"
    padded = (stripped + [""] * width)[:width]
    return Line(number=line, cells=tuple(padded), fault=fault)


def _first_line(path: Path, inside: Path | None) -> str:
    with _text(path, inside) as stream:
        try:
            first = stream.readline(_LONGEST_HEADER)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from None
    if not first.strip():
        raise DataError(f"{path} is empty; a header line and rows are needed")
    if "\0" in first:
        raise DataError(f"{path} is not text; CSV or TSV in UTF-8 is needed")
    if len(first) >= _LONGEST_HEADER:
        raise DataError(f"{path} has a first line of over 8 MiB; a header line is needed")
    return first


def _parsed(path: Path, delimiter: str, inside: Path | None) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells, header included."""
    csv.field_size_limit(_LARGEST_CELL)
    with _text(path, inside) as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}") from None
            except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
                raise _unreadable(path, error) from None
            if len(cells) > _MOST_COLUMNS:
                raise DataError(
                    f"{path}, line {reader.line_num} has {len(cells):,} cells; "
                    f"at most {_MOST_COLUMNS:,} are read"
                )
            if "\0" in "".join(cells):
                raise DataError(f"{path}, line {reader.line_num} holds a NUL byte; text is needed")
            yield reader.line_num, cells


def _text(path: Path, inside: Path | None) -> io.TextIOWrapper:
    try:
        if not path.is_file():
            raise DataError(f"{path} does not exist or is not a file")
        _refuse_link_out(path, inside)
        raw = path.open("rb")
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        binary = gzip.GzipFile(fileobj=raw) if compressed else raw
        bounded = io.BufferedReader(_Bounded(binary, path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return io.TextIOWrapper(bounded, "utf-8-sig", newline="")


def _refuse_link_out(path: Path, inside: Path | None) -> None:
    real, home = path.resolve(), path.parent.resolve()
    if inside is not None and home.is_relative_to(inside.resolve()):
        home = inside.resolve()
    if not real.is_relative_to(home):
        raise DataError(f"{path} is a link out of {home}, to {real}; it is not followed")


class _Bounded(io.RawIOBase):
    """Hands on as much text as a table has, then refuses: a few kB of gzip can be many GB."""

    def __init__(self, binary: io.BufferedIOBase | gzip.GzipFile, path: Path) -> None:
        self._binary = binary
        self._path = path
        packed = _MOST_PACKED * path.stat().st_size
        self._most = min(_LARGEST_TEXT, max(_FREE, packed))
        self._left = self._most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self._binary.read(len(view))
        view[: len(part)] = part
        self._left -= len(part)
        if self._left < 0:
            raise DataError(
                f"{self._path} holds over {self._most:,} bytes of text; this is no table of people"
            )
        return len(part)

    def close(self) -> None:
        self._binary.close()
        super().close()


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{path} is not text in UTF-8; save it as CSV or TSV in UTF-8")
    told = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
    return DataError(f"{path} cannot be read: {told}")
