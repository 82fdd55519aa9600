"""Decodes pictures within bounds: grey values of each frame, cut and scaled to rows and columns.

Pillow reads them, and of its formats only those named here; what it says of a damaged picture
becomes one sentence. Letters in shapes: T frames, Y rows from the top, X columns from the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import ScanError
from common.kinds.video import Intensity
from common.printable import name_as_text

FRAMES: Final = (".png", ".jpg", ".jpeg")  # one picture of a clip
CLIPS: Final = (".gif", ".apng", ".webp", ".tif", ".tiff")  # all of them
MOST_FRAMES: Final = 20_000  # of a clip; eleven minutes at 30 a second
_FRAME_FORMATS: Final = ("PNG", "JPEG")
_CLIP_FORMATS: Final = ("GIF", "PNG", "WEBP", "TIFF")
_MOST_PIXELS: Final = 1 << 25  # of a frame; 8K has 33.2 million
_MOST_DECODED: Final = 1 << 31  # pixels of one clip
_LARGEST_FILE: Final = 1 << 28  # bytes; WebP is read whole
_WHITE: Final = 65535  # of 16 bits
_SEEN_THROUGH: Final = ("RGBA", "LA", "PA")
_FLAT: Final = 1e-4  # deviation of grey values from 0 to 1 in which nothing can be seen

Grey = NDArray[np.float32]

# a header that claims so much is refused here, not warned of in passing
warnings.simplefilter("error", Image.DecompressionBombWarning)


def chosen(total: int, frames: int, stride: int) -> list[int]:
    """Which of a clip's frames are taken: spread evenly, or every `stride` around the middle.

    >>> chosen(10, 4, 0), chosen(3, 4, 0), chosen(10, 4, 2)
    ([1, 3, 6, 8], [0, 1, 1, 2], [1, 3, 5, 7])

    Raises
    ------
    ScanError
        If there are too few, or more than are read.
    """
    if total < 2:
        raise ScanError(f"has {total} frame{'' if total == 1 else 's'}; a clip needs two or more")
    if total > MOST_FRAMES:
        raise ScanError(f"has {total:,} frames; at most {MOST_FRAMES:,} are read")
    if not stride:
        return [(2 * place + 1) * total // (2 * frames) for place in range(frames)]
    needed = (frames - 1) * stride + 1
    if total < needed:
        raise ScanError(f"has {total} frames; {frames} of every {stride} need {needed}")
    first = (total - needed) // 2
    return list(range(first, first + needed, stride))


def read_frames(paths: Sequence[Path], rows: int, columns: int) -> Grey:
    """(T, Y, X) grey values from 0 to 1 of a clip whose frames are files, one path each.

    Raises
    ------
    ScanError
        Naming the frame that cannot be used.
    """
    clip = np.empty((len(paths), rows, columns), dtype=np.float32)
    size = _size_of(paths[0])
    if size[0] * size[1] * len(paths) > _MOST_DECODED:
        raise ScanError(_too_much(size, len(paths)))
    for place, path in enumerate(paths):
        if place and path == paths[place - 1]:
            clip[place] = clip[place - 1]
            continue
        with _opened(path, _FRAME_FORMATS) as picture:
            _check_frame(picture, name_as_text(path.name), size)
            clip[place] = _fitted(_grey(picture, name_as_text(path.name)), rows, columns)
    return clip


def check_frames(paths: Sequence[Path]) -> None:
    """The same from the frames' headers alone.

    Raises
    ------
    ScanError
        Naming the frame that cannot be used.
    """
    size = _size_of(paths[0])
    for path in paths:
        with _opened(path, _FRAME_FORMATS) as picture:
            _check_frame(picture, name_as_text(path.name), size)


def read_file(path: Path, shape: tuple[int, int, int], stride: int) -> tuple[Grey, int]:
    """(T, Y, X) grey values from 0 to 1 of a clip in one file, and how many frames it has.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    """
    frames, rows, columns = shape
    clip = np.empty(shape, dtype=np.float32)
    with _opened(path, _CLIP_FORMATS) as film:
        total, size = _length(film), film.size
        at = -1
        for place, wanted in enumerate(chosen(total, frames, stride)):
            if wanted == at:
                clip[place] = clip[place - 1]
                continue
            film.seek(wanted)
            _check_frame(film, f"frame {wanted}", size, alone=False)
            clip[place], at = _fitted(_grey(film, f"frame {wanted}"), rows, columns), wanted
    return clip, total


def length_of(path: Path) -> int:
    """How many frames a clip in one file has, by its structure alone.

    Raises
    ------
    ScanError
        If it cannot be read at all, or would take too long.
    """
    with _opened(path, _CLIP_FORMATS) as film:
        return _length(film)


def scaled(clip: Grey, intensity: Intensity) -> Grey:
    """Grey values from 0 to 1 as a study wants them: as they are, or of mean 0 and deviation 1.

    Raises
    ------
    ScanError
        If nothing can be seen in the clip.
    """
    spread = float(clip.std(dtype=np.float64))
    if spread < _FLAT:
        raise ScanError("is of one grey throughout; nothing can be seen in it")
    if intensity == "unit":
        return clip
    return np.asarray((clip - clip.mean(dtype=np.float64)) / spread, dtype=np.float32)


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A picture whose pixels are not decoded yet; whatever Pillow finds wrong is a `ScanError`."""
    name = name_as_text(path.name)
    if path.stat().st_size > _LARGEST_FILE:
        raise ScanError(f"{name} is larger than {_LARGEST_FILE >> 20} MiB")
    try:
        with Image.open(path, formats=formats) as picture:
            yield picture
    except ScanError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ScanError(
            f"{name} claims to have far more pixels than the {_MOST_PIXELS:,} of a frame"
        ) from None
    except UnidentifiedImageError:
        raise ScanError(f"{name} is no {', '.join(formats)} picture") from None
    except Exception as error:  # Pillow's decoders raise whatever they meet
        if isinstance(error, OSError) and error.errno:
            raise  # the disk's, and may pass
        told = str(error) or type(error).__name__
        raise ScanError(f"{name} cannot be decoded: {told}") from None


def _size_of(path: Path) -> tuple[int, int]:
    with _opened(path, _FRAME_FORMATS) as picture:
        return picture.size


def _length(film: Image.Image) -> int:
    total = int(getattr(film, "n_frames", 1))
    if film.width * film.height * total > _MOST_DECODED:
        raise ScanError(_too_much(film.size, total))
    return total


def _too_much(size: tuple[int, int], total: int) -> str:
    pixels = size[0] * size[1] * total
    return (
        f"has {total:,} frames of {size[0]} x {size[1]}, {pixels:,} pixels; at most "
        f"{_MOST_DECODED:,} are decoded"
    )


def _check_frame(
    picture: Image.Image, name: str, size: tuple[int, int], *, alone: bool = True
) -> None:
    """Refuse a frame of another size than the first, too large, or a clip in a frame's place."""
    width, height = picture.size
    if width * height > _MOST_PIXELS:
        raise ScanError(
            f"{name} has {width} x {height} pixels; a frame has at most {_MOST_PIXELS:,}"
        )
    if picture.size != size:
        raise ScanError(
            f"{name} has {width} x {height} pixels, the first frame {size[0]} x {size[1]}; frames "
            "of one clip must be of one size"
        )
    if alone and getattr(picture, "is_animated", False):
        raise ScanError(f"{name} is a clip by itself; name it .apng, in a folder without frames")


def _grey(picture: Image.Image, name: str) -> Grey:
    """(Y, X) from 0 to 1; what is transparent shows black."""
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, dtype=np.float32)
        if picture.mode == "F" or values.min() < 0 or values.max() > _WHITE:
            raise ScanError(
                f"{name} has values beyond 16 bits or fractions of them ({picture.mode})"
            )
        return values / np.float32(_WHITE)
    if picture.mode in _SEEN_THROUGH or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen)
    luminance = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
    return np.asarray(luminance, dtype=np.float32) / np.float32(255)


def _fitted(grey: Grey, rows: int, columns: int) -> Grey:
    """The largest middle part of these proportions, averaged to (rows, columns)."""
    height, width = grey.shape
    scale = min(height / rows, width / columns)
    high, wide = min(rows * scale, height), min(columns * scale, width)
    left, top = (width - wide) / 2, (height - high) / 2
    part = (left, top, min(left + wide, width), min(top + high, height))
    picture = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BILINEAR, box=part)
    return np.asarray(picture, dtype=np.float32)
