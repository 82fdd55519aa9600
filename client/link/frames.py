"""What courier and agent say to each other: JSON headers, and arrays' bytes in chunks.

    courier   {"text": text, "signature": hex, "arrays": [[name, bytes], ...]}
    agent     {"working": seconds}      again and again: alive, and busy with this or another order
    agent     {"send": true}            the order is admitted; until here no array has moved
    courier   chunks                    the arrays' bytes, one array after the other
    agent     {"working": seconds}
    agent     {"report": text, "arrays": [[name, bytes], ...]}
    agent     chunks
    courier   {"received": bytes}       only now does the agent take the report as handed over

An asking that cannot be answered by a report, because no order can be read from it, ends with
{"refusal": code} from the agent in place of any of its headers. A chunk is full but for the last:
whoever sends drops would otherwise keep the other end busy for as long as it likes. A header that
asks is no longer than a chunk, so 32 askings hold 32 MiB before anybody knows who asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any, Final

from common.errors import Refusal
from common.protocol.bounded_json import parsed

SERVICE: Final = "callosum.Agent"
METHOD: Final = f"/{SERVICE}/Answer"
CHUNK: Final = 1 << 20  # bytes; gRPC takes messages of up to 4 MiB unless told otherwise
LONGEST_ASKING: Final = CHUNK  # bytes of its header: ten thousand arrays with names of 80 letters
MOST_BYTES: Final = 16 << 30  # four thousand million numbers; a declared size beyond is a mistake
_MOST_ARRAYS: Final = 10_000
_LONGEST_NAME: Final = 1_000

Sizes = tuple[tuple[str, int], ...]


def header(**fields: object) -> bytes:
    """A frame of JSON."""
    return json.dumps(fields).encode()


def read_header(frame: bytes, code: str) -> dict[str, Any]:
    """The fields of a JSON frame, or `Refusal(code)`."""
    try:
        fields = parsed(frame)
    except ValueError as error:
        raise Refusal(code, f"the header is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise Refusal(code, "the header is no JSON object")
    return fields


def text_of(fields: dict[str, Any], name: str, code: str) -> str:
    """One of a header's texts, or `Refusal(code)`."""
    found = fields.get(name)
    if not isinstance(found, str):
        raise Refusal(code, f"the header holds no text {name!r}")
    return found


def sizes_of(fields: dict[str, Any], code: str) -> Sizes:
    """Names and bytes of the arrays that a header announces, or `Refusal(code)`."""
    entries = fields.get("arrays")
    if not isinstance(entries, list) or len(entries) > _MOST_ARRAYS:
        raise Refusal(code, f"the header must list arrays, {_MOST_ARRAYS} at most")
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        raise Refusal(code, "an array must be announced as [name, bytes]")
    for name, size in entries:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
            raise Refusal(code, "an array's name must be a text")
        if type(size) is not int or not 0 <= size <= MOST_BYTES:  # a bool is an int, but no size
            raise Refusal(code, f"array {name!r} cannot have {size!r} bytes")
    if len({name for name, _ in entries}) != len(entries):
        raise Refusal(code, "two arrays have the same name")
    if sum(size for _, size in entries) > MOST_BYTES:
        raise Refusal(code, f"the arrays have more than {MOST_BYTES} bytes")
    return tuple((name, size) for name, size in entries)


def chunks(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """`parts`, one after the other, cut into chunks that are full but for the last.

    >>> [len(chunk) for chunk in chunks([b"a" * 10, b"b" * CHUNK])]
    [1048576, 10]
    """
    started = bytearray()
    for part in parts:
        rest = memoryview(part)
        if started:
            taken = min(CHUNK - len(started), len(rest))
            started += rest[:taken]
            rest = rest[taken:]
            if len(started) == CHUNK:
                yield bytes(started)
                started.clear()
        while len(rest) >= CHUNK:
            yield bytes(rest[:CHUNK])
            rest = rest[CHUNK:]
        started += rest
    if started:
        yield bytes(started)


def gather(sizes: Sizes, frames: Iterator[bytes], code: str) -> Iterator[tuple[str, bytes]]:
    """The arrays that `sizes` announced, out of chunks; `Refusal(code)` if these do not fit.

    Memory is taken as bytes arrive, not as they are announced, and nothing is held twice.
    """
    left = sum(size for _, size in sizes)
    rest = memoryview(b"")
    for name, size in sizes:
        array = BytesIO()  # it grows in place, and its value is no copy: `bytes` can do neither
        while array.tell() < size:
            if not rest:
                frame = next(frames, b"")
                if len(frame) != min(CHUNK, left):
                    raise Refusal(code, f"a chunk has {len(frame)} bytes, {left} were to come")
                left -= len(frame)
                rest = memoryview(frame)
            taken = size - array.tell()
            array.write(rest[:taken])
            rest = rest[taken:]
        yield name, array.getvalue()
