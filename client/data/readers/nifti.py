"""One NIfTI file from a hospital: header first, voxels only if the header is credible."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import nibabel
import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from client.data.readers.compression import (
    compressed,
    first_bytes,
    kind_of,
    opened,
    refuse_rest,
)
from common.errors import ScanError

_MOST_VOXELS: Final = 2**28  # 640 cubed; whole heads at 0.4 mm have 2**27
_MOST_OF_SERIES: Final = 2**31  # voxels of all volumes; an hour of the HCP has 2**30
_FEWEST_ALONG_AXIS: Final = 8
_SPACING_MM: Final = (0.1, 20.0)
_UNITS: Final = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}  # of xyzt_units, in mm
_TIMES: Final = {16: 1e-3, 24: 1e-6}  # of xyzt_units, in seconds; whatever else is taken as these
_ALL_UNITS: Final = (*_UNITS.values(), ("centimetres", 10.0))  # the last has no code
_DEFLATE: Final = 200  # gzip shrinks heads to a half or a fifth, an empty image to a thousandth
_FREE: Final = 64 << 20  # bytes, however well they are packed
_SHORTEST: Final = 352  # bytes of a NIfTI-1 header, with the word for extensions behind it
_LARGEST_EXTENSION: Final = 16 << 20  # bytes between header and voxels; scanners write kilobytes
_LARGEST_TAIL: Final = 1 << 20  # bytes behind the voxels
_BLOCK: Final = 1 << 24  # bytes that are unpacked at once
_CORNER_MM: Final = 5.0  # tilt below this is what registration tools leave between the two forms

UNREADABLE = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    AttributeError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header of a usable scan says.

    affine: (4, 4) float64, voxel indices (i, j, k) to world mm, RAS+. shape: (X, Y, Z) voxels.
    notes: what a person should know. unsure: the orientation is guessed or contradicted.
    volumes: of a series; repetition_time_s: between two of them, 0 where the header does not say.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    offset: int
    slope: float
    intercept: float
    notes: tuple[str, ...]
    unsure: bool
    volumes: int = 1
    repetition_time_s: float = 0.0


def read_header(path: Path, *, series: bool = False) -> Header:
    """Check everything that can be told without reading voxels; `series` allows many volumes.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    OSError
        If the disk or its permissions do not let the file be read: that may pass.
    """
    try:
        not_a_stand_in(path)
        _credible_start(path)
        image: Any = nibabel.load(path)
        affine = np.array(image.affine, dtype=np.float64)
        shape, dtype = tuple(int(n) for n in image.shape), np.dtype(image.get_data_dtype())
        # nibabel clears both in the header of a loaded image; the array keeps them
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        offset = int(image.dataobj.offset)
    except UNREADABLE:
        raise ScanError(
            "its header cannot be read: it holds what no image has; export the scan again"
        ) from None
    except OSError as error:
        if error.errno is not None:  # the disk's, which may pass
            raise
        raise ScanError("its file cannot be read; export the scan again") from None
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is derived from it
        found = type(image).__name__.removesuffix("Image")
        raise ScanError(f"it is a {found} file; one NIfTI file (.nii, .nii.gz) is needed")
    spatial, volumes = _series_axes(shape) if series else (three_axes(shape), 1)
    if dtype.kind not in "iuf":
        raise ScanError(f"its voxels are {_kind_of(dtype)}; real numbers are needed")
    credible_size(path, spatial, dtype, offset, volumes)
    units = int(image.header["xyzt_units"])
    mm, told = _in_mm(units, affine)
    affine[:3] *= mm
    usable_affine(affine)
    notes, unsure = _orientation_notes(image, affine, mm, spatial)
    return Header(
        path=path,
        shape=spatial,
        dtype=dtype,
        affine=affine,
        offset=offset,
        slope=slope,
        intercept=intercept,
        notes=(*told, *notes),
        unsure=unsure,
        volumes=volumes,
        repetition_time_s=_seconds(float(image.header["pixdim"][4]), units) if series else 0.0,
    )


def read_voxels(header: Header) -> NDArray[np.float32]:
    """Voxels (X, Y, Z) float32 in the file's axis order, with the header's scaling applied.

    Raises
    ------
    ScanError
        If the file ends early, is damaged, or holds NaN, infinity or one value throughout.
    """
    with _told(), opened(header.path) as stream:
        stream.seek(header.offset)
        voxels = _read_volume(stream, header)
        _read_on(stream, header.path)
    _usable_voxels(voxels)
    return voxels.reshape(header.shape, order="F")


def read_volumes(header: Header) -> Iterator[NDArray[np.float32]]:
    """The volumes of a series one by one, as `read_voxels` gives a single one.

    Raises
    ------
    ScanError
        As there, with the number of the volume, from 1.
    """
    with _told(), opened(header.path) as stream:
        stream.seek(header.offset)
        for number in range(1, header.volumes + 1):
            try:
                voxels = _read_volume(stream, header)
                _usable_voxels(voxels)
            except ScanError as error:
                raise ScanError(f"volume {number} of {header.volumes}: {error}") from None
            yield voxels.reshape(header.shape, order="F")
        _read_on(stream, header.path)


@contextmanager
def _told() -> Iterator[None]:
    """What a damaged file makes of reading, in words."""
    try:
        yield
    except EOFError:
        raise ScanError("its file is cut off: its gzip data end early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise ScanError("its file is damaged: its gzip data cannot be unpacked") from None
    except OSError as error:
        if error.errno is not None:  # the disk's, which may pass
            raise
        raise ScanError("its file cannot be read; export the scan again") from None


def _read_volume(stream: IO[bytes], header: Header) -> NDArray[np.float32]:
    """The next volume's voxels in the file's order, scaled."""
    voxels = np.empty(math.prod(header.shape), dtype=np.float32)
    _read_into(voxels, stream, header.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if (header.slope, header.intercept) != (1.0, 0.0):
            voxels *= np.float32(header.slope)
            voxels += np.float32(header.intercept)
    return voxels


def _read_into(voxels: NDArray[np.float32], stream: IO[bytes], dtype: np.dtype[Any]) -> None:
    """Fill `voxels` by blocks: what is stored as float64 is never held whole beside them."""
    at_once, done = _BLOCK // dtype.itemsize, 0
    while done < voxels.size:
        wanted = min(at_once, voxels.size - done) * dtype.itemsize
        block = stream.read(wanted)
        if len(block) < wanted:
            read, needed = done * dtype.itemsize + len(block), voxels.size * dtype.itemsize
            raise ScanError(f"its file is cut off: {read:,} of {needed:,} bytes of voxels")
        with np.errstate(over="ignore", invalid="ignore"):
            voxels[done : done + wanted // dtype.itemsize] = np.frombuffer(block, dtype=dtype)
        done += wanted // dtype.itemsize


def _read_on(stream: IO[bytes], path: Path) -> None:
    """Read to the end, which makes gzip compare its checksum: nibabel stops before it."""
    try:
        tail = stream.read(_LARGEST_TAIL + 1)
    except gzip.BadGzipFile:
        refuse_rest(path)
    else:
        if len(tail) > _LARGEST_TAIL:
            raise ScanError("its file goes on for over 1 MiB behind the voxels")


def not_a_stand_in(path: Path) -> None:
    """Refuse a file that stands for another one, or for nothing."""
    size = path.stat().st_size
    if size == 0:
        raise ScanError("its file is empty (0 bytes); fetch the data set's content")
    if size < 1024:
        with path.open("rb") as stream:
            start = stream.read(1024)
        if b"annex/objects" in start or b"git-lfs" in start:
            raise ScanError(
                "its file is a git-annex or LFS pointer, not the image; fetch it (datalad get)"
            )


def _credible_start(path: Path) -> None:
    """Refuse what is no NIfTI, and a header that says its extensions are huge.

    nibabel would read these whole. An Analyze header begins as a NIfTI's does, and a pair's image
    as anything: what they are nibabel says.
    """
    start = first_bytes(path, 540)
    offset = _voxel_offset(start)
    if offset is None and path.suffix != ".img":
        what = kind_of(start)
        raise ScanError(
            f"it is no NIfTI image{f', but {what}' if what else ''}; one NIfTI file "
            "(.nii, .nii.gz) is needed"
        )
    # NaN is in no range; from a lower number nibabel would read extensions up to the file's end
    if offset is not None and not _SHORTEST <= offset <= _LARGEST_EXTENSION:
        raise ScanError(
            f"its header cannot be read: it says that voxels begin at byte {offset:.0f}; "
            f"{_SHORTEST} to {_LARGEST_EXTENSION:,} are read"
        )


def _voxel_offset(start: bytes) -> float | None:
    """Where a NIfTI-1 or NIfTI-2 header, of either byte order, says that voxels begin."""
    for order in "<>":
        if len(start) >= 348 and struct.unpack_from(f"{order}i", start)[0] == 348:
            return float(struct.unpack_from(f"{order}f", start, 108)[0])
        if len(start) >= 540 and struct.unpack_from(f"{order}i", start)[0] == 540:
            return float(struct.unpack_from(f"{order}q", start, 168)[0])
    return None


def three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of one volume; whatever else a header says is refused."""
    found = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise ScanError(f"its header says {found} voxels; at least one along each axis is needed")
    if any(n > 1 for n in shape[3:]):
        raise ScanError(f"it has {found} voxels, a series; one volume is needed")
    x, y, z = (*shape[:3], 1, 1, 1)[:3]
    spatial = (x, y, z)
    if min(spatial) < _FEWEST_ALONG_AXIS:
        raise ScanError(
            f"it has {found} voxels; a volume of at least {_FEWEST_ALONG_AXIS} along each axis "
            "is needed"
        )
    return spatial


def _series_axes(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """The shape of one volume of a series, and how many there are; slices may be few."""
    found = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise ScanError(f"its header says {found} voxels; at least one along each axis is needed")
    if any(n > 1 for n in shape[4:]):
        raise ScanError(f"it has {found} voxels; volumes over one axis of time are needed")
    x, y, z, volumes = (*shape[:4], 1, 1, 1, 1)[:4]
    return (x, y, z), volumes


def _seconds(step: float, units: int) -> float:
    """The time between volumes by the header; 0 where it says none, or what is no time."""
    return step * _TIMES.get(units & 0x38, 1.0) if math.isfinite(step) and step > 0 else 0.0


def credible_size(
    path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], offset: int, volumes: int = 1
) -> None:
    """Refuse a header that promises more than the file can hold, before anything is allocated."""
    voxels, size = math.prod(shape), path.stat().st_size
    most = _MOST_VOXELS if volumes == 1 else _MOST_OF_SERIES
    if voxels > _MOST_VOXELS or voxels * volumes > most:
        raise ScanError(f"its header says {voxels * volumes:,} voxels; at most {most:,} are read")
    voxels *= volumes
    needed = offset + voxels * dtype.itemsize
    if offset < 0 or needed > (max(size * _DEFLATE, _FREE) if compressed(path) else size):
        raise ScanError(
            f"its header says {needed:,} bytes; the file of {size:,} cannot hold them (cut off, "
            "or a false header)"
        )


def _in_mm(units: int, affine: NDArray[np.float64]) -> tuple[float, tuple[str, ...]]:
    """What makes mm of the affine's lengths, and a note if its header says other units.

    The header is believed where its units make a credible voxel; mm are taken where these do. A
    thousandth or a thousand times a credible voxel is none, so it is never both.
    """
    name, factor = _UNITS.get(units & 7, ("", 1.0))  # the upper bits are the unit of time
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not name:
        return 1.0, ()
    if _is_credible(spacing * factor):
        return factor, (f"its header is in {name}, converted to mm",)
    if _is_credible(spacing):
        found = f"its header says {name}, but its voxels are {_lengths(spacing)}"
        return 1.0, (f"{found}, as in mm; taken as mm",)
    return 1.0, ()


def _is_credible(spacing_mm: NDArray[np.float64]) -> bool:
    low, high = _SPACING_MM
    return bool(low <= spacing_mm.min() and spacing_mm.max() <= high)  # a NaN is neither


def _lengths(spacing: NDArray[np.float64]) -> str:
    return " x ".join(f"{step:.3g}" for step in spacing)


def usable_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine (4, 4) to mm that places no head."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ScanError("its header's affine is not finite; a place in mm for each voxel is needed")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not _is_credible(spacing):
        low, high = _SPACING_MM
        fitting = [name for name, mm in _ALL_UNITS if _is_credible(spacing * mm)]
        hint = f"; they would fit {fitting[0]}: correct the header's units" if fitting else ""
        raise ScanError(
            f"its voxels are {_lengths(spacing)} mm; {low:g} to {high:g} mm are needed{hint}"
        )
    # volume of the voxel over that of a box with its edges: 1 for right angles, 0 if flat
    if abs(np.linalg.det(affine[:3, :3])) < 0.3 * spacing.prod():
        raise ScanError("its header's affine is singular or sheared flat; three axes are needed")
    if np.abs(affine[:3, 3]).max() > 5000:
        raise ScanError("its header places it more than 5 m from the scanner's centre")


def _orientation_notes(
    image: Any, affine: NDArray[np.float64], mm: float, shape: tuple[int, int, int]
) -> tuple[tuple[str, ...], bool]:
    header = image.header
    q_code, s_code = int(header["qform_code"]), int(header["sform_code"])
    axes = axes_of(affine)
    if not q_code and not s_code:
        return (f"orientation unknown (qform and sform codes are 0); taken as {axes}",), True
    if not q_code or not s_code:
        return (), False
    try:
        qform = np.array(image.get_qform(), dtype=np.float64)
        qform[:3] *= mm
    except UNREADABLE:
        return ("its qform cannot be read; the sform is used",), True
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    between = (qform - affine)[:3]  # of affines: the difference of the places they lead to
    places = between[:, :3] @ (corners * (np.array(shape) - 1)).T + between[:, 3:]
    apart = np.linalg.norm(places, axis=0).max()
    if apart <= _CORNER_MM:
        return (), False
    found = f"qform ({axes_of(qform)}) and sform ({axes}) disagree by {apart:.0f} mm"
    return (f"{found}; the sform is used",), True


def axes_of(affine: NDArray[np.float64]) -> str:
    """Where the axes of an image point to, such as RAS."""
    codes = aff2axcodes(affine)  # type: ignore[no-untyped-call]
    return "".join(code or "?" for code in codes)


def _usable_voxels(voxels: NDArray[np.float32]) -> None:
    low, high = float(voxels.min()), float(voxels.max())  # NaN and infinity show in either
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(voxels.size - np.isfinite(voxels).sum())
        raise ScanError(f"{bad:,} of its {voxels.size:,} voxels are NaN or infinite")
    if low == high:
        raise ScanError(f"all its voxels are {low:g}; an image is needed")


def _kind_of(dtype: np.dtype[Any]) -> str:
    return {"c": "complex", "V": "colours (RGB)", "b": "truth values"}.get(dtype.kind, str(dtype))
