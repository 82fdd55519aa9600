"""Reads one run's time series, (T, R) numbers: text, NumPy's arrays, and archives of these.

Nothing is unpickled, and what a header promises is held against the bytes that are there before
any memory is asked for.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.data.readers.compression import kind_of
from common.errors import ScanError

TEXTS: Final = (".1D", ".tsv", ".csv", ".1D.gz", ".tsv.gz", ".csv.gz")
ARRAY: Final = ".npy"
ARCHIVE: Final = ".npz"
ENDINGS: Final = (*TEXTS, ARRAY, ARCHIVE)
_LARGEST: Final = 1 << 28  # bytes of one run, unpacked: 20,000 points of 1,500 regions as text
_MOST_POINTS: Final = 1_000_000  # lines of a text
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
_LACKING: Final = frozenset({"", "n/a", "na", "nan"})

Series = NDArray[np.float64]


def ending_of(name: str) -> str:
    """The ending of a file of series, or "" if it is none.

    >>> ending_of("sub-01_timeseries.tsv.gz"), ending_of("sub-01_bold.nii.gz")
    ('.tsv.gz', '')
    """
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def members_of(path: Path) -> dict[str, str]:
    """Arrays of an archive by name, each with what changes when its content does.

    Raises
    ------
    ScanError
        If the file is no archive of NumPy's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            inside = archive.infolist()
    except _BROKEN:
        raise ScanError(f"is no .npz archive{_but(path)}") from None
    arrays = [one for one in inside if one.filename.endswith(ARRAY)]
    found = {one.filename.removesuffix(ARRAY): f"{one.CRC:08x}-{one.file_size}" for one in arrays}
    if len(found) < len(arrays):
        raise ScanError("holds two arrays of one name; nobody can say which is meant")
    return found


def read_series(path: Path, member: str, names: tuple[str, ...]) -> Series:
    """(T, R) as the file has it; NaN where a cell says that there is no number.

    `member` names an array of an archive. With `names`, a header of a text decides the order.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    """
    ending = ending_of(path.name)
    if ending == ARCHIVE:
        return _array(_member(path, member))
    if path.stat().st_size > _LARGEST:
        raise ScanError(f"is larger than {_LARGEST >> 20} MiB")
    if ending == ARRAY:
        return _array(path.read_bytes())
    return _table(_text(path), names, by_blanks=".1D" in ending)


def _member(path: Path, member: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(member + ARRAY).file_size
            if size > _LARGEST:
                raise ScanError(f"its array is larger than {_LARGEST >> 20} MiB")
            return archive.read(member + ARRAY)
    except KeyError:
        raise ScanError("is gone from the archive since that was listed") from None
    except _BROKEN:
        raise ScanError(f"is damaged: it cannot be unpacked{_but(path)}") from None


def _array(content: bytes) -> Series:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_columns, dtype = read(stream)
    except (ValueError, KeyError, EOFError):
        what = kind_of(content[:512])
        raise ScanError(f"is no array of NumPy's (.npy){f'; it is {what}' if what else ''}") from (
            None
        )
    if dtype.kind not in "fiu":
        raise ScanError(f"holds {dtype}, which is never read; plain numbers are needed")
    if len(shape) != 2:
        raise ScanError(f"has shape {shape}; time by regions is needed")
    found = len(content) - stream.tell()
    if min(shape) < 0 or found != shape[0] * shape[1] * dtype.itemsize:
        raise ScanError(f"is cut off or longer than it says: {found:,} bytes for {shape} {dtype}")
    flat = np.frombuffer(content, dtype=dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if by_columns else "C").astype(np.float64)


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise ScanError("is damaged: its gzip data cannot be unpacked") from None
    if len(content) > _LARGEST:
        raise ScanError(f"holds more than {_LARGEST >> 20} MiB of text")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        what = kind_of(content[:512])
        raise ScanError(f"is no text in UTF-8{f'; it is {what}' if what else ''}") from None


def _table(text: str, names: tuple[str, ...], *, by_blanks: bool) -> Series:
    if text.count("\n") > _MOST_POINTS:
        raise ScanError(f"has more than {_MOST_POINTS:,} lines; a line is a time point")
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    header: list[str] = []
    while by_blanks and lines and lines[0][1].lstrip().startswith("#"):
        header = re.split(r"\s+", lines.pop(0)[1].strip())
    mark = "\t" if lines and "\t" in lines[0][1] else "," if lines and "," in lines[0][1] else ";"

    def cells_of(line: str) -> list[str]:
        return line.split() if by_blanks else next(csv.reader([line], delimiter=mark))

    if lines and not by_blanks and not _all_numbers(cells_of(lines[0][1])):
        header = [cell.strip() for cell in cells_of(lines.pop(0)[1])]
    if not lines:
        raise ScanError("holds no time point")
    width = len(cells_of(lines[0][1]))
    values = np.empty((len(lines), width))
    for place, (n, line) in enumerate(lines):
        cells = cells_of(line)
        if len(cells) != width:
            raise ScanError(f"line {n} has {len(cells)} cells; the first has {width}")
        values[place] = [_number(cell, n) for cell in cells]
    return values[:, _order(header, names)] if names and header and not by_blanks else values


def _order(header: list[str], names: tuple[str, ...]) -> list[int]:
    lacking = [name for name in names if header.count(name) != 1]
    if lacking:
        raise ScanError(
            f'has no one column "{lacking[0]}", which the study\'s data.names lists; its header '
            f"begins {', '.join(header[:3])}"
        )
    return [header.index(name) for name in names]


def _all_numbers(cells: list[str]) -> bool:
    try:
        for cell in cells:
            _number(cell, 0)
    except ScanError:
        return False
    return any(cell.strip().casefold() not in _LACKING for cell in cells)


def _number(cell: str, line: int) -> float:
    stripped = cell.strip()
    if stripped.casefold() in _LACKING:
        return float("nan")
    try:
        return float(stripped)
    except ValueError:
        raise ScanError(f'line {line} holds "{stripped[:40]}"; a number is needed') from None


def _but(path: Path) -> str:
    with path.open("rb") as stream:
        what = kind_of(stream.read(512))
    return f"; it is {what}" if what and "ZIP" not in what else ""
