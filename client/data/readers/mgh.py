"""One image of FreeSurfer's or FastSurfer's (.mgh, .mgz), within the limits of NIfTI files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader

from client.data.readers.compression import first_bytes, kind_of
from client.data.readers.nifti import (
    UNREADABLE,
    Header,
    axes_of,
    credible_size,
    not_a_stand_in,
    three_axes,
    usable_affine,
)
from common.errors import ScanError

_VOXELS_AT: Final = 284  # bytes of the header, always
_START: Final = struct.Struct(
    ">7ih"
)  # version, four axes, type, degrees of freedom, whether placed
_VERSION: Final = 1


def is_mgh(path: Path) -> bool:
    """Whether a file is one of FreeSurfer's, by its name."""
    return path.name.endswith((".mgh", ".mgz"))


def read_header(path: Path) -> Header:
    """Check everything that can be told without reading voxels.

    Raises
    ------
    ScanError
        With what was found and what was needed.
    OSError
        If the disk or its permissions do not let the file be read: that may pass.
    """
    try:
        not_a_stand_in(path)
        start = _credible_start(path)
        # of the header's bytes alone: nibabel's own loader unpacks all voxels to see what follows
        size = MGHHeader._hdrdtype.itemsize  # noqa: SLF001
        header: Any = MGHHeader(start[:size])  # type: ignore[no-untyped-call]
        affine = np.array(header.get_affine(), dtype=np.float64)
        shape = tuple(int(n) for n in header.get_data_shape())
        dtype = np.dtype(header.get_data_dtype())
    except (*UNREADABLE, MGHError):
        raise ScanError(
            "its header cannot be read: it holds what no image has; export the scan again"
        ) from None
    spatial = three_axes(shape)
    credible_size(path, spatial, dtype, _VOXELS_AT)
    usable_affine(affine)
    placed = bool(_START.unpack_from(start)[-1])
    note = f"orientation unknown (goodRASFlag is 0); taken as {axes_of(affine)}"
    return Header(
        path=path,
        shape=spatial,
        dtype=dtype.newbyteorder(">"),
        affine=affine,
        offset=_VOXELS_AT,
        slope=1.0,
        intercept=0.0,
        notes=() if placed else (note,),
        unsure=not placed,
    )


def _credible_start(path: Path) -> bytes:
    """The header's bytes; what is none of FreeSurfer's is refused."""
    start = first_bytes(path, _VOXELS_AT)
    if len(start) < _VOXELS_AT or _START.unpack_from(start)[0] != _VERSION:
        what = kind_of(start)
        raise ScanError(
            f"it is no FreeSurfer image{f', but {what}' if what else ''}; export it again"
        )
    return start
