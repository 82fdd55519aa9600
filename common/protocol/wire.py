"""Orders and reports on Flower's wire and on disk: JSON text beside named arrays, nothing else.

What comes in is untrusted: sizes, types and names are checked before anything is believed, and any
fault is a `Refusal` with a code. Arrays are plain numbers in C order; no pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from threading import Lock
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

from common.arrays import Arrays, Rows
from common.errors import DamagedError, Refusal
from common.protocol.bounded_json import LONGEST_TEXT, MOST_ROWS, parsed, told
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
_BLANK: Final = "0" * 64  # where the header's own digest stands, while that is made
_BEGINNING: Final = b'{"__metadata__":{"json":"{\\"sha256\\":\\"'  # the digest comes next
_BLOCK: Final = 1 << 20  # bytes


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
        report = parsed(_text(content, "REPORT_MALFORMED", _LONGEST_REFUSAL))
    except (Refusal, ValueError):
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
    return stream.getvalue(), _memory(plain)


# NumPy reads a header by `ast`, whose depth counter all threads of Python 3.11 share: two at once
# are "recursion depth mismatch", and a sound report would be malformed
_PARSING: Final = Lock()


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as npy 1.0 in one piece, the form in which Flower carries it."""
    return b"".join(npy_parts(array))


def view_npy(data: bytes, code: str = "REPORT_MALFORMED") -> NDArray[Any]:
    """Received npy bytes as an array, read-only and without a copy.

    Raises
    ------
    Refusal
        With `code`, if the header promises more than was sent, or objects, or cannot be read;
        nothing has been made of it then.
    """
    try:
        return _viewed(data)
    except Exception as error:  # noqa: BLE001  NumPy's parser has exceptions of its own
        raise Refusal(code, f"npy bytes cannot be read: {error}") from None


def _viewed(data: bytes) -> NDArray[Any]:
    stream = BytesIO(data[:_LONGEST_HEADER])
    # version 1.0 is what NumPy writes for every type that may travel
    if read_magic(stream) != (1, 0):
        raise ValueError("another format than NumPy's npy 1.0")
    with _PARSING:
        shape, fortran, dtype = read_array_header_1_0(stream)
    start = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its header says {dtype}{shape}, it has {len(data)} bytes")
    flat = np.frombuffer(data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


def spool(path: Path, report: Report, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Keep a report and its arrays in one file, whole or not at all."""
    write_arrays(path, arrays, {"report": report.model_dump_json()})


def read_spooled(path: Path) -> Report:
    """The report of a spooled file whose arrays are all what was written; they are not kept."""
    return read_report(Stored(path).check().text("report"))


def write_arrays(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Named arrays and text as safetensors: the same content gives the same bytes.

    Byte for byte what `safetensors.numpy.save` makes, without its copies of all arrays: a lazy
    mapping is asked for one array at a time, twice. The metadata hold the SHA-256 of each array,
    and begin with that of the whole header, so that a reader notices any bit that changed.
    """
    about = {name: _described(array) for name, array in arrays.items()}
    ranks = list(_CODES)
    ordered = sorted(about, key=lambda name: (ranks.index(about[name][0]), name))
    digests = [about[name][3] for name in ordered]
    # one metadata entry: safetensors writes several in an order that differs from run to run
    told = {"sha256": _BLANK, "arrays": digests, "texts": dict(sorted(metadata.items()))}
    header: dict[str, Any] = {"__metadata__": {"json": json.dumps(told, separators=(",", ":"))}}
    end = 0
    for name in ordered:
        dtype, shape, size, _ = about[name]
        offsets = [end, end + size]
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": offsets}
        end += size
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    head = head.replace(_BLANK.encode(), hashlib.sha256(head).hexdigest().encode(), 1)
    parts = (_memory(arrays[name]) for name in ordered)
    write_atomically(path, chain([len(head).to_bytes(8, "little"), head], parts))


class Stored(Mapping[str, NDArray[Any]]):
    """A file's arrays below a prefix, each read when it is asked for and not kept.

    The file is read, not mapped: averaging keeps a reader for every site, and mapped pages would
    count as memory once they are read. What is read whole is compared with its digest the first
    time; what is to be read by parts, when that begins.

    Raises
    ------
    DamagedError
        If the file is not one that Callosum wrote, or no longer what was written.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self._path = path
        self._texts, places = _read_head(path)
        begins = len(prefix)
        self._places = {
            name[begins:]: place for name, place in places.items() if name.startswith(prefix)
        }
        self._sound: set[str] = set()  # names of arrays that were compared with their digests

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self._places[name]
        found = self.rows(name, slice(0, place.shape[0]) if place.shape else ...)
        if name not in self._sound:
            self._compare(name, hashlib.sha256(_memory(found)).hexdigest())
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def text(self, name: str) -> str:
        """One of the texts kept beside the arrays."""
        found = self._texts.get(name)
        if not isinstance(found, str):
            raise _damaged(self._path, f"it holds no {name}")
        return found

    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._places)

    def all(self) -> Arrays:
        """Every array at once."""
        return dict(self)

    def check(self) -> Self:
        """Compare all arrays with their digests, reading through the file with little memory."""
        for name in self._places.keys() - self._sound:
            self._compare(name, self._digest(self._places[name]))
        return self

    def rows(self, name: str, part: slice | EllipsisType) -> NDArray[Any]:
        """A part of one array along its first axis, or the whole of one without axes; unchecked."""
        place = self._places[name]
        offset, shape = place.offset, place.shape
        if part is not ...:
            start, stop, _ = part.indices(shape[0])
            offset += start * math.prod(shape[1:]) * place.dtype.itemsize
            shape = (stop - start, *shape[1:])
        count = math.prod(shape)
        try:
            found = np.fromfile(self._path, place.dtype, count, offset=offset)
        except OSError as error:
            raise DamagedError(f"{self._path} cannot be read: {error}") from None
        if found.size != count:
            raise DamagedError(f"{self._path} is cut short at array {name}")
        return found.reshape(shape)

    def by_rows(self) -> dict[str, Rows]:
        """The same arrays, to be read by parts of their first axis; all are checked now."""
        self.check()
        return {name: _StoredRows(self, name) for name in self._places}

    def _digest(self, place: _Place) -> str:
        hasher, left = hashlib.sha256(), place.nbytes
        try:
            with self._path.open("rb", buffering=0) as stream:
                stream.seek(place.offset)
                while left and (part := stream.read(min(left, _BLOCK))):
                    hasher.update(part)
                    left -= len(part)
        except OSError as error:
            raise DamagedError(f"{self._path} cannot be read: {error}") from None
        return hasher.hexdigest()

    def _compare(self, name: str, digest: str) -> None:
        if digest != self._places[name].digest:
            raise _damaged(self._path, f"array {name} is no longer what was written")
        self._sound.add(name)


@contextmanager
def open_arrays(path: Path) -> Iterator[Stored]:
    """A file's arrays and texts, for a block."""
    yield Stored(path)


class _Place(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    digest: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _StoredRows:
    file: Stored
    name: str

    def __getitem__(self, part: slice | EllipsisType) -> NDArray[Any]:
        return self.file.rows(self.name, part)


def _described(array: NDArray[Any]) -> tuple[str, tuple[int, ...], int, str]:
    digest = hashlib.sha256(_memory(array)).hexdigest()
    return str(array.dtype), array.shape, array.nbytes, digest


def _memory(array: NDArray[Any]) -> memoryview:
    return np.asarray(array, order="C").reshape(-1).view(np.uint8).data


def _read_head(path: Path) -> tuple[dict[str, Any], dict[str, _Place]]:
    """Texts and places of a file's arrays, from a header that is what was written."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if 8 + length > size:
                raise _damaged(path, "it is cut short in its header")
            head = stream.read(length)
    except OSError as error:
        raise _damaged(path, error) from None
    if not head.startswith(_BEGINNING):
        raise _damaged(path, "it holds no digest of its content; another program wrote it, or an "
                             "older Callosum")  # fmt: skip
    start, end = len(_BEGINNING), len(_BEGINNING) + len(_BLANK)
    blank = head[:start] + _BLANK.encode() + head[end:]
    if hashlib.sha256(blank).hexdigest().encode() != head[start:end]:
        raise _damaged(path, "its header is no longer what was written")
    try:
        return _parsed(head, 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"its header makes no sense: {error}") from None


def _parsed(head: bytes, begin: int, size: int) -> tuple[dict[str, Any], dict[str, _Place]]:
    """What a header says, which must account for every byte from `begin` to `size`."""
    header = parsed(head)
    told = parsed(header.pop("__metadata__")["json"])
    places: dict[str, _Place] = {}
    for (name, one), digest in zip(header.items(), told["arrays"], strict=True):
        shape = tuple(one["shape"])
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"array {name} has the shape {shape}")
        place = _Place(np.dtype(_NAMES[one["dtype"]]), shape, begin, digest)
        places[name], begin = place, begin + place.nbytes
    if begin != size:
        raise ValueError(f"its arrays end at byte {begin}, the file at {size}")
    return dict(told["texts"]), places


def _damaged(path: Path, why: object) -> DamagedError:
    return DamagedError(f"{path} is damaged or not Callosum's: {why}")


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
    if array.stype != "numpy.ndarray":
        raise Refusal(code, f"array {told(name)} is {told(array.stype)}, not NumPy's")
    found = view_npy(array.data, code)
    if str(found.dtype) not in _TYPES:
        raise Refusal("ARRAYS_MISTYPED", f"array {told(name)} is {told(str(found.dtype))}")
    return found
