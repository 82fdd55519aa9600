"""CSV and TSV files as hospitals write them: any delimiter, BOM, CRLF, gzip; rows of raw cells.

A file beyond the limits below, or one that is no text in UTF-8, is refused by one error that names
it. A row that cannot be trusted says so, and never lends its cells to another.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common.errors import DataError, reason

_LARGEST_TEXT: Final = 1 << 30  # bytes, unpacked
_MOST_PACKED: Final = 100  # bytes of text for one of gzip; tables of numbers have 3 to 20
_FREE: Final = 4 << 20  # bytes of text, however well they are packed
_LARGEST_CELL: Final = 1 << 16
_MOST_COLUMNS: Final = 200_000  # a connectome of 600 regions has 179,700 edges
_LONGEST_LINE: Final = 8 << 20
_DELIMITERS: Final = "\t;,"

Raw = tuple[int, list[str], str]  # line in the file, cells as they stand there, fault


def read_header(path: Path, inside: Path | None) -> tuple[str, tuple[str, ...]]:
    """What stands between cells, and the names of the columns.

    Raises
    ------
    DataError
        If the file is no table; with what it is instead, where that can be told.
    """
    first = _first_line(path, inside)
    delimiter = _delimiter(path, first)
    number, header, fault = next(read_rows(path, delimiter, inside), (0, [], ""))
    if fault or number != 1:
        raise DataError(f"{path}, line 1: {fault or 'no names'}; a header line is needed")
    return delimiter, tuple(bare(cell) for cell in header)


def read_rows(path: Path, delimiter: str, inside: Path | None) -> Iterator[Raw]:
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
            if len(text) > 2 * _MOST_COLUMNS and text.count(delimiter) >= 2 * _MOST_COLUMNS:
                raise DataError(f"{path}, line {number} has more cells than a table has columns")
            if delimiter == "\t" or '"' not in text:
                yield number, text.rstrip("\r\n").split(delimiter), ""
            else:
                yield _quoted(number, text, lines, delimiter, path)


def bare(cell: str) -> str:
    """A cell without spaces and quotation marks around it.

    >>> bare(' "5 ""mm"" slices" '), bare('5"'), bare('"')
    ('5 "mm" slices', '5"', '"')
    """
    cell = cell.strip()
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"').strip()
    return cell


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


def _first_line(path: Path, inside: Path | None) -> str:
    with _text(path, inside) as stream:
        try:
            first = stream.readline(_LONGEST_LINE)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error, 1) from None
    if not first.strip():
        raise DataError(f"{path} is empty; a header line and rows are needed")
    if "\0" in first:
        raise DataError(f"{path} is not text; CSV or TSV in UTF-8 is needed")
    if len(first) >= _LONGEST_LINE:
        raise DataError(f"{path} has a first line of over 8 MiB; a header line is needed")
    return first


def _marked(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _quoted(
    number: int, text: str, below: Iterator[tuple[int, str]], delimiter: str, path: Path
) -> Raw:
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
        if "unexpected end" in str(error):
            raise DataError(
                f"{path}, line {number}: a quotation mark opens a cell that does not end"
            ) from None
        return number, [], f"a quotation mark stands amid a cell ({error}){_span(number, last)}"
    # csv took one pair of marks away; a cell that shows another pair is to keep it
    cells = [_marked(cell) if '"' in cell else cell for cell in cells]
    opens = "" if last == number else f"a quotation mark opens here{_span(number, last)}"
    return number, cells, opens


def _span(number: int, last: int) -> str:
    """How far a row goes that does not end in its line."""
    if last == number:
        return ""
    return (
        f" and closes in line {last}, so that {last - number + 1} lines are one row; none of them "
        f"is read"
    )


def _lines(stream: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, each of bearable length and without what is no text."""
    number = 0
    while True:
        number += 1
        try:
            text = stream.readline(_LONGEST_LINE)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error, number) from None
        if not text:
            return
        if len(text) >= _LONGEST_LINE:
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
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        binary = gzip.GzipFile(fileobj=raw) if compressed else raw
        bounded = io.BufferedReader(_Bounded(binary, path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, 1) from None
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


def _unreadable(path: Path, error: Exception, line: int) -> DataError:
    if not isinstance(error, UnicodeDecodeError):
        told = reason(error) if isinstance(error, OSError) else str(error) or type(error).__name__
        return DataError(f"{path} cannot be read: {told}")
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") and line == 1:
        what = 'is UTF-16, as Excel writes "Unicode text"'
    else:
        byte = error.object[error.start]
        what = f"is not text in UTF-8: it holds the byte 0x{byte:02X}, as old programs write"
    return DataError(f"{path} {what}; save it as CSV or TSV in UTF-8")
