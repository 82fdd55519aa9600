"""Pictures of clips that rot, or claim what they do not hold."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from client.data.readers.frames import (
    CLIPS,
    FRAMES,
    check_frames,
    length_of,
    read_file,
    read_frames,
)
from common.errors import ScanError
from tests.fuzz.border import Border
from tests.fuzz.made import folder, of_this_process
from tests.fuzz.mutation import mutated

_FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".apng": "PNG", ".webp": "WEBP", ".tif": "TIFF",
}  # fmt: skip
_MODES = ("L", "RGB", "RGBA", "P", "CMYK", "1", "I;16")


def _picture(mode: str, number: int) -> Image.Image:
    grey = np.random.default_rng(number).integers(0, 255, (12, 16), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    return Image.fromarray(grey).convert(mode)


@of_this_process
def _sound() -> dict[str, bytes]:
    """A whole file of each format and mode that it can hold, by a name with its ending."""
    found: dict[str, bytes] = {}
    for ending, form in _FORMATS.items():
        for mode in _MODES:
            pictures = [_picture(mode, number) for number in range(4)]
            more = {} if ending in FRAMES else {"save_all": True, "append_images": pictures[1:]}
            stream = io.BytesIO()
            try:
                pictures[0].save(stream, format=form, **more)
            except (OSError, ValueError):  # a mode that the format lacks
                continue
            found[f"{mode.replace(';', '')}{ending}"] = stream.getvalue()
    return found


def image(random: Random) -> tuple[str, bytes]:
    """A file that rots; or a PNG with another header under a checksum that fits."""
    name = random.choice(list(_sound()))
    data = _sound()[name]
    if name.endswith("png") and random.random() < 0.4:
        sizes = [random.choice((0, 1, 12, 16, 5000, 40_000, 2**31 - 1, 2**32 - 1)) for _ in "wh"]
        form = [random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5)]
        header = b"IHDR" + struct.pack(">II5B", *sizes, *form)
        return name, data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    return name, mutated(random, data)


def read_image(value: tuple[str, bytes]) -> None:
    """As a site checks and prepares a clip."""
    name, data = value
    path: Path = folder("images") / name
    path.write_bytes(data)
    if path.suffix in CLIPS:
        with suppress(ScanError):
            length_of(path)
        read_file(path, (4, 8, 8), 0)
    else:
        with suppress(ScanError):
            check_frames([path, path])
        read_frames([path, path], 8, 8)


def borders() -> Iterator[Border]:
    yield Border(name="images", share=6, make=image, read=read_image)
