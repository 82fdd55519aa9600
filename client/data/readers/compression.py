"""gzip around an image: whether a file's name and content agree, and how a packed file ends."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import IO, Final, cast

from common.errors import ScanError

_GZIP: Final = b"\x1f\x8b"
_BLOCK: Final = 1 << 24  # bytes that are unpacked at once
# how files begin that people rename, or that a portal sends instead of an image
_OTHERS: Final = (
    (_GZIP, "gzip, so it was packed twice"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ", "packed by xz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
    (b"\x89HDF", "HDF5 (MINC 2, perhaps)"),
    (b"CDF", "NetCDF (MINC 1, perhaps)"),
    (b"<", "a web page or XML"),
    (b"{", "JSON"),
)


def compressed(path: Path) -> bool:
    """Whether a file is gzip, by its name."""
    return path.name.endswith((".gz", ".mgz"))


def opened(path: Path) -> IO[bytes]:
    """The image's own bytes, unpacked on the way."""
    return cast("IO[bytes]", gzip.open(path, "rb") if compressed(path) else path.open("rb"))


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of the image, unpacked.

    Raises
    ------
    ScanError
        If the name says gzip and the content does not, or the other way round; if nothing can be
        unpacked.
    """
    with path.open("rb") as stream:
        start = stream.read(count)
    if not compressed(path):
        if start.startswith(_GZIP):
            raise ScanError("its file is gzip; name it .nii.gz, or unpack it")
        return start
    if not start.startswith(_GZIP):
        what = kind_of(start)
        remedy = f"it is {what}" if what else "name it .nii if it is the plain image"
        raise ScanError(f"its file is not gzip, whatever its name says; {remedy}")
    try:
        with opened(path) as stream:
            return stream.read(count)
    except EOFError:
        raise ScanError("its file is cut off: the gzip data end in the header") from None
    except (gzip.BadGzipFile, zlib.error):
        raise ScanError("its file is damaged: its gzip data cannot be unpacked") from None


def kind_of(start: bytes) -> str:
    """What a file that begins so is, in words; nothing if it is no file that we know."""
    if start[257:262] == b"ustar":
        return "a tar archive"
    if start[128:132] == b"DICM":
        return "a DICOM file"
    return next((name for begins, name in _OTHERS if start.startswith(begins)), "")


def refuse_rest(path: Path) -> None:
    """Raise `ScanError` for a packed file whose end is damaged, and say how."""
    try:
        foreign = _foreign_bytes(path)
    except zlib.error:
        foreign = 0
    if not foreign:
        raise ScanError("its file is damaged: gzip's checksum is not that of the image") from None
    raise ScanError(
        f"{foreign:,} bytes follow the image that are no part of it; copy the file again, or "
        "unpack it and pack it anew"
    ) from None


def _foreign_bytes(path: Path) -> int:
    """How many bytes behind the last gzip member belong to none."""
    unpacker, waiting = zlib.decompressobj(wbits=31), b""
    with path.open("rb") as stream:
        while waiting := waiting or stream.read(_BLOCK):
            unpacker.decompress(waiting, _BLOCK)
            waiting = unpacker.unconsumed_tail
            if unpacker.eof:
                waiting = unpacker.unused_data
                if not waiting.lstrip(b"\0").startswith(_GZIP):
                    return len(waiting) + path.stat().st_size - stream.tell()
                unpacker, waiting = zlib.decompressobj(wbits=31), waiting.lstrip(b"\0")
    return 0
