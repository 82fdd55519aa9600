"""CSV and TSV files as hospitals write them: any delimiter, BOM, CRLF, gzip; cells are text.

A table is read row by row, and of a row only the columns that are used are kept, as text; a file
beyond the limits below is refused by one error that names it.
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

from client.data.finding import Finding
from common.errors import DataError

_LARGEST_TEXT: Final = 1 << 30  # bytes, unpacked
_MOST_PACKED: Final = 100  # bytes of text for one of gzip; tables of numbers have 3 to 20
_FREE: Final = 4 << 20  # bytes of text, however well they are packed
_APART: Final = "\0"  # stands in no cell
_MOST_ROWS: Final = 1_000_000
_LARGEST_CELL: Final = 1 << 16
_MOST_COLUMNS: Final = 200_000  # a connectome of 600 regions has 179,700 edges
_MOST_SEEN: Final = 5000  # entries of a column, for hints
_LONGEST_NAME: Final = 100  # letters of a name that is looked for
_LONGEST_HEADER: Final = 8 << 20
_DELIMITERS: Final = "\t;,"
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Line:
    """One row below the header; `line[place]` is the text of one cell, without spaces around it.

    `number` is its (first) line in the file. `fault` says why its cells cannot be trusted: it has
    another number of them than the header, or a quotation mark joins it with the lines below it.
    """

    __slots__ = ("_raw", "fault", "number")

    def __init__(self, number: int, raw: list[str], width: int, fault: str = "") -> None:
        while len(raw) > width and not _bare(raw[-1]):
            raw.pop()  # spreadsheets end rows with empty cells
        if not fault and len(raw) != width:
            fault = f"{len(raw)} cells where the header has {width}"
        self.number, self.fault = number, fault
        self._raw = raw + [""] * (width - len(raw))

    def __getitem__(self, place: int) -> str:
        return _bare(self._raw[place])

    def cells(self, places: Sequence[int]) -> list[str]:
        """The cells at some places; most columns of a wide table are never looked at."""
        return [_bare(self._raw[place]) for place in places]


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

    def row(self, line: Line, keep: frozenset[str] | None = None) -> Row:
        """Cells by column name, of the columns to keep; a name that stands twice is left out."""
        numbers, places = _kept(self.columns, keep)
        return Row(numbers, _APART.join(line.cells(places)))


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
    columns: tuple[str, ...], keep: frozenset[str] | None
) -> tuple[dict[str, int], tuple[int, ...]]:
    """Columns whose name stands once, by their order, and their places in a line."""
    once = {name for name, times in Counter(columns).items() if times == 1}
    once = once if keep is None else once & keep
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
    delimiter = _delimiter(path, first)
    _, header, fault = next(_parsed(path, delimiter, inside))
    if fault:
        raise DataError(f"{path}, line 1: {fault}; a header line is needed")
    columns = tuple(_bare(cell) for cell in header)
    return TextTable(path=path, columns=columns, delimiter=delimiter, inside=inside)


def _delimiter(path: Path, first: str) -> str:
    """What stands between cells: the header decides, whose names hold neither tabs nor semicolons.

    Raises
    ------
    DataError
        If there are more columns than are read, or the first line is no header.
    """
    excel = re.fullmatch(r'"?sep=(.)"?', first.strip("\r\n"))
    if excel:
        raise DataError(
            f'{path} begins with the line "sep={excel[1]}", which only Excel understands; delete '
            f"it, so that the line of column names comes first"
        )
    counts = {mark: first.count(mark) for mark in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda mark: counts[mark])
    if counts[delimiter] >= _MOST_COLUMNS:
        raise DataError(
            f"{path} has {counts[delimiter] + 1:,} columns; at most {_MOST_COLUMNS:,} are read"
        )
    if counts[delimiter]:
        return delimiter
    return "\t" if ".tsv" in path.name else ","


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


class Filtered:
    """The rows of a table that belong to the site: every wanted column holds the wanted entry.

    `wanted` is the entry by the column's place. Keeps count, and what else stands there.
    """

    def __init__(self, wanted: Mapping[int, str], columns: Sequence[str]) -> None:
        self._wanted, self._columns = wanted, columns
        self._seen: dict[int, dict[str, None]] = {place: {} for place in wanted}
        self.rows, self.passed = 0, 0

    def passes(self, line: Line) -> bool:
        """Whether a row belongs to the site."""
        self.rows += 1
        whole = True
        for place, entry in self._wanted.items():
            cell = line[place]
            if len(self._seen[place]) < _MOST_SEEN:
                self._seen[place][cell] = None
            whole = whole and plain(cell) == plain(entry)
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
                if cell.casefold() == entry.casefold() and plain(cell) != plain(entry)
            ]
            if alike:
                problem = (
                    f'rows with {name} = "{alike[0]}" are not those with "{entry}" and are not '
                    f"read; spell them alike if they are"
                )
                yield Finding(what=what, problem=problem, error=True)


def _first_line(path: Path, inside: Path | None) -> str:
    with _text(path, inside) as stream:
        try:
            first = stream.readline(_LONGEST_HEADER)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error, 1) from None
    if not first.strip():
        raise DataError(f"{path} is empty; a header line and rows are needed")
    if "\0" in first:
        raise DataError(f"{path} is not text; CSV or TSV in UTF-8 is needed")
    if len(first) >= _LONGEST_HEADER:
        raise DataError(f"{path} has a first line of over 8 MiB; a header line is needed")
    return first


def _bare(cell: str) -> str:
    """A cell without spaces and quotation marks around it.

    >>> _bare(' "5 ""mm"" slices" '), _bare('5"'), _bare('"')
    ('5 "mm" slices', '5"', '"')
    """
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"').strip()
    return cell


def _marked(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


_Parsed = tuple[int, list[str], str]  # line in the file, cells as they stand there, fault


def _parsed(path: Path, delimiter: str, inside: Path | None) -> Iterator[_Parsed]:
    """Every row that holds something, header included.

    Cells are taken apart at the delimiter. Only a comma or semicolon may stand inside a cell, if
    quotation marks stand around it; a tab may not, so a mark in a TSV joins nothing.
    """
    blank = f'{delimiter}" \t\r\n'
    with _text(path, inside) as stream:
        lines = _lines(stream, path)
        for number, text in lines:
            if not text.strip(blank):
                continue
            if text.count(delimiter) >= 2 * _MOST_COLUMNS:
                raise DataError(f"{path}, line {number} has more cells than a table has columns")
            if delimiter == "\t" or '"' not in text:
                yield number, text.rstrip("\r\n").split(delimiter), ""
            else:
                yield _quoted(number, text, lines, delimiter, path)


def _quoted(
    number: int, text: str, below: Iterator[tuple[int, str]], delimiter: str, path: Path
) -> _Parsed:
    """A row with quotation marks; one that goes on below its line is a row that nobody meant."""
    csv.field_size_limit(_LARGEST_CELL)
    last = number

    def lines() -> Iterator[str]:
        nonlocal last
        yield text
        for last, following in below:  # noqa: B007  how far the row goes
            yield following

    try:
        cells = next(csv.reader(lines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error) or last > number:
            raise DataError(
                f"{path}, line {number}: a quotation mark opens a cell that does not end"
            ) from None
        return number, [], f"a quotation mark stands amid a cell ({error})"
    # csv took one pair of marks away; a cell that shows another pair is to keep it
    cells = [_marked(cell) if '"' in cell else cell for cell in cells]
    if last == number:
        return number, cells, ""
    return (
        number,
        cells,
        (
            f"a quotation mark opens here and closes in line {last}, so that {last - number + 1} "
            f"lines are one row; none of them is read"
        ),
    )


def _lines(stream: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, each of bearable length and without what is no text."""
    number = 0
    while True:
        number += 1
        try:
            text = stream.readline(_LONGEST_HEADER)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error, number) from None
        if not text:
            return
        if len(text) >= _LONGEST_HEADER:
            raise DataError(f"{path}, line {number} is longer than 8 MiB; this is no row of cells")
        if "\0" in text:
            raise DataError(f"{path}, line {number} holds a NUL byte; text is needed")
        yield number, text


def _text(path: Path, inside: Path | None) -> io.TextIOWrapper:
    try:
        if not path.is_file():
            raise DataError(f"{path} does not exist or is not a file")
        _refuse_link_out(path, inside)
        raw = path.open("rb")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    compressed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    binary = gzip.GzipFile(fileobj=raw) if compressed else raw
    return io.TextIOWrapper(io.BufferedReader(_Bounded(binary, path)), "utf-8-sig", newline="")


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


def _unreadable(path: Path, error: Exception, line: int) -> DataError:
    if not isinstance(error, UnicodeDecodeError):
        return DataError(f"{path} cannot be read: {error or type(error).__name__}")
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") and line == 1:
        what = 'is UTF-16, as Excel writes "Unicode text"'
    else:
        byte = error.object[error.start]
        what = (
            f"is not text in UTF-8: it holds the byte 0x{byte:02X}, as old Windows programs write"
        )
    return DataError(f"{path} {what}; save it as CSV or TSV in UTF-8")
