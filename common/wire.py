"""Orders and reports on Flower's wire and on disk: JSON text beside named arrays, nothing else.

What comes in is untrusted: sizes, types and names are checked before anything is believed, and any
fault is a `Refusal` with a code. Arrays are plain numbers in C order; no pickle is ever read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_magic
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.arrays import Arrays
from common.durable import write_atomically
from common.errors import FolderError, Refusal
from common.orders import Order, Report, read_order, read_report

_TEXT: Final = "callosum"  # the record that holds the JSON text
_ARRAYS: Final = "arrays"
_LONGEST_TEXT: Final = 64 << 20  # bytes; a report with 10,000 measurements stays far below
_MOST_ARRAYS: Final = 100_000
_TYPES: Final = frozenset({"float32", "float64", "float16", "int64", "int32"})


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Named arrays as Flower carries them; make it once for a round and pack it for every site."""
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def pack(message: Order | Report, arrays: ArrayRecord) -> RecordDict:
    """An order or report as a Flower record."""
    text = message.model_dump_json()
    return RecordDict({_TEXT: ConfigRecord({"json": text}), _ARRAYS: arrays})


def unpack_order(content: RecordDict) -> tuple[Order, Arrays]:
    """The order in a Flower record, or `Refusal`."""
    return read_order(_text(content, "ORDER_MALFORMED")), _arrays(content, "ORDER_MALFORMED")


def unpack_report(content: RecordDict) -> tuple[Report, Arrays]:
    """The report in a Flower record, or `Refusal`."""
    return read_report(_text(content, "REPORT_MALFORMED")), _arrays(content, "REPORT_MALFORMED")


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
    """Named arrays and text as safetensors: the same content gives the same bytes."""
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    text = json.dumps(dict(metadata), sort_keys=True)
    # one metadata entry: safetensors writes several in an order that differs from run to run
    write_atomically(path, save(ordered, {"json": text}))


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


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One array of a file that is mapped no longer than it takes.

    Averaging keeps a reader for every site; mapped files would count as memory once they are read.
    """
    with open_arrays(path) as file:
        return file[name]


def _text(content: RecordDict, code: str) -> str:
    record = content.config_records.get(_TEXT)
    text = record.get("json") if record is not None else None
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise Refusal(code, "the text record is missing, too long or no text")
    return text


def _arrays(content: RecordDict, code: str) -> Arrays:
    record = content.array_records.get(_ARRAYS)
    if record is None or len(record) > _MOST_ARRAYS:
        raise Refusal(code, "the array record is missing or holds too many arrays")
    return {name: _array(name, array, code) for name, array in record.items()}


def _array(name: str, array: Array, code: str) -> NDArray[Any]:
    try:
        found = _viewed(array)
    except Exception as error:  # noqa: BLE001  whatever a hostile header provokes
        raise Refusal(code, f"array {name!r} cannot be read: {error}") from None
    if str(found.dtype) not in _TYPES:
        raise Refusal("ARRAYS_MISTYPED", f"array {name!r} is {found.dtype}")
    return found


def _viewed(array: Array) -> NDArray[Any]:
    """The message's own bytes as an array, read-only and without a copy.

    A header that promises more than was sent, or objects, is refused before anything is made of it.
    """
    stream = BytesIO(array.data)
    # version 1.0 is what NumPy writes for every type that may travel
    if array.stype != "numpy.ndarray" or read_magic(stream) != (1, 0):
        raise ValueError("another format than NumPy's npy 1.0")
    shape, fortran, dtype = read_array_header_1_0(stream)
    start = stream.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(array.data) - start:
        raise ValueError(f"its header says {dtype}{shape}, it has {len(array.data)} bytes")
    flat = np.frombuffer(array.data, dtype=dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")
