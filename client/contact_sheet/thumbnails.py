"""Three middle slices of a volume as one small grey picture, written into the page itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SIDE: Final = 80  # pixels of a slice at most: 5,000 scans are a page of about 60 MB
_LEVELS: Final = 32  # of grey; noise that nobody can see packs badly


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture as an address that holds it (`data:`), and its size in pixels."""

    address: str
    width: int
    height: int


def thumbnail(volume: NDArray[Any]) -> Thumbnail:
    """The middle slices of a volume (X, Y, Z), axes R, A, S: sagittal, coronal, axial.

    What is exactly 0 is outside the head, and black. Sagittal: front to the right. The others: the
    person's right to the right.
    """
    from PIL import Image

    grey = _grey(np.asarray(volume, dtype=np.float32))
    x, y, z = (n // 2 for n in grey.shape)
    # rows of a picture run downwards, A and S upwards
    views = [np.rot90(view) for view in (grey[x], grey[:, y], grey[:, :, z])]
    room = max(view.shape[0] for view in views)
    whole = np.concatenate([_on_black(view, room) for view in views], axis=1)
    picture = Image.fromarray(np.ascontiguousarray(whole))
    shrink = min(1.0, _SIDE / max(grey.shape))
    size = tuple(max(1, round(n * shrink)) for n in picture.size)
    small = np.asarray(picture.resize((size[0], size[1]), Image.Resampling.BOX))
    step = 256 // _LEVELS
    stream = io.BytesIO()
    Image.fromarray(small // step * step).save(stream, "PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(address=address, width=size[0], height=size[1])


def _grey(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    inside = volume[volume != 0]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 1.0)
    scaled = (volume - low) / (max(float(high - low), 1e-6))
    grey = np.where(volume == 0, 0, 24 + np.clip(scaled, 0, 1) * 231)
    return grey.astype(np.uint8)


def _on_black(view: NDArray[np.uint8], room: int) -> NDArray[np.uint8]:
    """A slice in a field of `room` rows."""
    above = (room - view.shape[0]) // 2
    return np.pad(view, ((above, room - view.shape[0] - above), (0, 0)))
