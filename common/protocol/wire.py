"""Orders and reports on Flower's wire and on disk: JSON text beside named arrays, nothing else.

What comes in is untrusted: sizes, types and names are checked before anything is believed, and any
fault is a `Refusal` with a code. Arrays are plain numbers in C order; no pickle is ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from types import EllipsisType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib.format import (
    header_data_from_array_1_0,
    read_array_header_1_0,
    read_magic,
    write_array_header_1_0,
)
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from common.arrays import Arrays, Rows
from common.errors import FolderError, Refusal
from common.protocol.bounded_json import LONGEST_TEXT, MOST_ROWS, told
from common.protocol.orders import Order, Report, read_report
from common.protocol.signing import Sealed, read_envelope
from common.runtime.durable import write_atomically

_TEXT: Final = "callosum"  # the record that holds the JSON text
_ARRAYS: Final = "arrays"
_LONGEST_HEADER: Final = 10 + 0xFFFF  # bytes; of npy 1.0
_LONGEST_REFUSAL: Final = 64 << 10  # bytes; a report that declines holds next to nothing
_MOST_ARRAYS: Final = 100_000
_CODES: Final = {  # in the order in which safetensors lays them out: the widest first
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
}
_NAMES: Final = {code: name for name, code in _CODES.items()}
_TYPES: Final = frozenset(_CODES)


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Named arrays as Flower carries them; make it once for a round and pack it for every site."""
    record = ArrayRecord()
    for name, array in arrays.items():
        shape = tuple(array.shape)
        record[name] = Array(str(array.dtype), shape, "numpy.ndarray", npy_bytes(array))
    return record


def pack_order(sealed: Sealed, arrays: ArrayRecord) -> RecordDict:
    """A sealed order as a Flower record."""
    text = ConfigRecord({"json": sealed.text, "signature": sealed.signature})
    return RecordDict({_TEXT: text, _ARRAYS: arrays})


def pack_report(report: Report, arrays: ArrayRecord) -> RecordDict:
    """A report as a Flower record."""
    text = ConfigRecord({"json": report.model_dump_json()})
    return RecordDict({_TEXT: text, _ARRAYS: arrays})


def unpack_sealed(content: RecordDict) -> tuple[Sealed, list[tuple[str, bytes]]]:
    """The sealed order in a Flower record and its arrays' npy bytes, believed by nobody yet."""
    text = _text(content, "ORDER_MALFORMED")
    signature = content.config_records[_TEXT].get("signature", "")
    arrays = content.array_records.get(_ARRAYS, ArrayRecord())
    named = [(name, array.data) for name, array in arrays.items()]
    return Sealed(text, signature if isinstance(signature, str) else ""), named


def unpack_order(content: RecordDict) -> tuple[Order, Arrays]:
    """The order in a Flower record whoever signed it, or `Refusal`."""
    order = read_envelope(_text(content, "ORDER_MALFORMED")).order
    return order, _arrays(content, "ORDER_MALFORMED")


def unpack_report(
    content: RecordDict, longest: int = LONGEST_TEXT, most_rows: int = MOST_ROWS
) -> tuple[Report, Arrays]:
    """The report in a Flower record, or `Refusal`; a text above `longest` bytes is not read."""
    text = _text(content, "REPORT_MALFORMED", longest)
    return read_report(text, most_rows), _arrays(content, "REPORT_MALFORMED")


def refusal_of(content: RecordDict) -> str:
    """The code of a report that declines, or nothing; the report is otherwise not looked at."""
    try:
        report = json.loads(_text(content, "REPORT_MALFORMED", _LONGEST_REFUSAL))
    except (Refusal, ValueError, RecursionError):
        return ""
    code = report.get("refusal") if isinstance(report, dict) else None
    return code if isinstance(code, str) else ""


def forward(text: str, arrays: Iterable[tuple[str, bytes]]) -> RecordDict:
    """A report's text and its arrays' npy bytes as a Flower record, as a courier passes them on."""
    record = ArrayRecord()
    for name, data in arrays:
        found = view_npy(data)
        record[name] = Array(str(found.dtype), tuple(found.shape), "numpy.ndarray", data)
    return RecordDict({_TEXT: ConfigRecord({"json": text}), _ARRAYS: record})


def npy_parts(array: NDArray[Any]) -> tuple[bytes, memoryview]:
    """An array as NumPy's npy 1.0: its header, and its own memory without a copy."""
    plain = np.asarray(array, order="C")
    stream = BytesIO()
    write_array_header_1_0(stream, header_data_from_array_1_0(plain))
    return stream.getvalue(), plain.reshape(-1).view(np.uint8).data


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as npy 1.0 in one piece, the form in which Flower carries it."""
    return b"".join(npy_parts(array))


def view_npy(data: bytes) -> NDArray[Any]:
    """Received npy bytes as an array, read-only and without a copy.

    Raises
    ------
    ValueError
        If the header promises more than was sent, or objects; nothing has been made of it then.
    """
    stream = BytesIO(data[:_LONGEST_HEADER])
    # version 1.0 is what NumPy writes for every type that may travel
    if read_magic(stream) != (1, 0):
        raise ValueError("another format than NumPy's npy 1.0")
    try:
        shape, fortran, dtype = read_array_header_1_0(stream)
    except Exception as error:  # noqa: BLE001  NumPy's tokenizer has exceptions of its own
        raise ValueError(f"its header cannot be read: {error}") from None
    start = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its header says {dtype}{shape}, it has {len(data)} bytes")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


def spool(path: Path, report: Report, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep a report and its arrays in one file, whole or not at all."""
    write_arrays(path, arrays, {"report": report.model_dump_json()})


def read_spooled(path: Path) -> Report:
    """The report of a spooled file; its arrays are read one by one through `open_arrays`."""
    with open_arrays(path) as file:
        return read_report(file.text("report"))


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Named arrays and text as safetensors: the same content gives the same bytes.

    Byte for byte what `safetensors.numpy.save` makes, without its copies of all arrays: a lazy
    mapping is asked for one array at a time.
    """
    about = {name: (str(array.dtype), array.shape, array.nbytes) for name, array in arrays.items()}
    ranks = list(_CODES)
    ordered = sorted(about, key=lambda name: (ranks.index(about[name][0]), name))
    # one metadata entry: safetensors writes several in an order that differs from run to run
    text = json.dumps(dict(metadata), sort_keys=True)
    header: dict[str, Any] = {"__metadata__": {"json": text}}
    end = 0
    for name in ordered:
        dtype, shape, size = about[name]
        offsets = [end, end + size]
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": offsets}
        end += size
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    bodies = (np.asarray(arrays[name], order="C").reshape(-1).view(np.uint8) for name in ordered)
    parts = (body.data for body in bodies)
    write_atomically(path, chain([len(head).to_bytes(8, "little"), head], parts))


class open_arrays:  # noqa: N801  reads as the context manager it is
    """A safetensors file, one array at a time.

    Raises
    ------
    FolderError
        If the file is not one that Callosum wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._file = safe_open(str(self._path), framework="numpy")
            metadata = json.loads((self._file.metadata() or {})["json"])
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise self._damaged(error) from None
        if not isinstance(metadata, dict):
            raise self._damaged("its metadata is no table")
        self._metadata: dict[str, Any] = metadata
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    def text(self, name: str) -> str:
        """One of the texts kept beside the arrays."""
        found = self._metadata.get(name)
        if not isinstance(found, str):
            raise self._damaged(f"it holds no {name}")
        return found

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._file.keys())

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            array: NDArray[Any] = self._file.get_tensor(name)
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise self._damaged(error) from None
        return array

    def all(self) -> Arrays:
        """Every array at once."""
        return {name: self[name] for name in self.names()}

    def _damaged(self, why: object) -> FolderError:
        return FolderError(f"{self._path} is damaged or not Callosum's: {why}")


class Stored(Mapping[str, NDArray[Any]]):
    """A file's arrays below a prefix, each read when it is asked for and not kept.

    The file is read, not mapped: averaging keeps a reader for every site, and mapped pages would
    count as memory once they are read.

    Raises
    ------
    FolderError
        If the file is not one that Callosum wrote, or is cut short.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        with open_arrays(path):  # says what is wrong with a damaged file
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for name, about in header.items():
            if name != "__metadata__" and about["dtype"] not in _NAMES:
                raise FolderError(
                    f"{path} is damaged or not Callosum's: {name} is {about['dtype']}"
                )
        self._places = {
            name.removeprefix(prefix): _Place(
                np.dtype(_NAMES[about["dtype"]]),
                tuple(about["shape"]),
                8 + length + about["data_offsets"][0],
            )
            for name, about in header.items()
            if name != "__metadata__" and name.startswith(prefix)
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        return self.rows(name, slice(0, place.shape[0]) if place.shape else ...)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, name: str, part: slice | EllipsisType) -> NDArray[Any]:
        """A part of one array along its first axis, or the whole of one without axes."""
        dtype, shape, offset = self._places[name]
        if part is not ...:
            start, stop, _ = part.indices(shape[0])
            offset += start * math.prod(shape[1:]) * dtype.itemsize
            shape = (stop - start, *shape[1:])
        count = math.prod(shape)
        try:
            found = np.fromfile(self._path, dtype, count, offset=offset)
        except OSError as error:
            raise FolderError(f"{self._path} cannot be read: {error}") from None
        if found.size != count:
            raise FolderError(f"{self._path} is cut short at array {name}")
        return found.reshape(shape)

    def by_rows(self) -> dict[str, Rows]:
        """The same arrays, to be read by parts of their first axis."""
        return {name: _StoredRows(self, name) for name in self._places}


class _Place(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class _StoredRows:
    file: Stored
    name: str

    def __getitem__(self, part: slice | EllipsisType) -> NDArray[Any]:
        return self.file.rows(self.name, part)


def _text(content: RecordDict, code: str, longest: int = LONGEST_TEXT) -> str:
    record = content.config_records.get(_TEXT)
    text = record.get("json") if record is not None else None
    if not isinstance(text, str):
        raise Refusal(code, "the text record is missing or no text")
    if len(text) > longest or len(text.encode(errors="surrogatepass")) > longest:
        raise Refusal(code, f"the text has {len(text)} characters, {longest} bytes may be")
    return text


def _arrays(content: RecordDict, code: str) -> Arrays:
    record = content.array_records.get(_ARRAYS)
    if record is None or len(record) > _MOST_ARRAYS:
        raise Refusal(code, "the array record is missing or holds too many arrays")
    return {name: _array(name, array, code) for name, array in record.items()}


def _array(name: str, array: Array, code: str) -> NDArray[Any]:
    try:
        if array.stype != "numpy.ndarray":
            raise ValueError(f"it is {array.stype}, not NumPy's")
        found = view_npy(array.data)
    except Exception as error:  # noqa: BLE001  whatever a hostile header provokes
        raise Refusal(code, f"array {told(name)} cannot be read: {told(str(error))}") from None
    if str(found.dtype) not in _TYPES:
        raise Refusal("ARRAYS_MISTYPED", f"array {told(name)} is {told(str(found.dtype))}")
    return found
