"""Maps on a study's grid as NIfTI, and as a glass brain of what stands out in them."""

from __future__ import annotations

import gzip
import io
import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy.grid import MNI_CENTRE_MM, grid_affine
from common.runtime.garbage import old_objects_kept

SHOWN_PERCENT: Final = 95.0  # of absolute values inside the brain: what lies below is not drawn


def in_a_path(group: str) -> str:
    """A class's name as part of a file's: studies name classes as they like.

    >>> in_a_path("MCI / AD"), in_a_path("")
    ('MCI-AD', 'everyone')
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", group).strip("-") or "everyone"


def image_of(volume: NDArray[np.float32], spacing_mm: float, about: str) -> Any:
    """(X, Y, Z) on the grid around MNI152's brain; `about` goes into the header."""
    import nibabel

    shape = (volume.shape[0], volume.shape[1], volume.shape[2])
    affine = grid_affine(shape, spacing_mm, MNI_CENTRE_MM)
    image = nibabel.Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = about.encode()
    return image


def packed(image: Any) -> bytes:
    """What a .nii.gz file of it holds: the same map, the same bytes."""
    found: bytes = gzip.compress(image.to_bytes(), 6, mtime=0)
    return found


def drawn(image: Any) -> bytes:
    """A PNG of what stands out: from left, back, right and above, red for and blue against."""
    import matplotlib as mpl
    from nilearn import plotting

    volume = np.asarray(image.dataobj)
    values = np.abs(volume[volume != 0])
    least = float(np.percentile(values, SHOWN_PERCENT)) if values.size else 0.0
    with mpl.rc_context({"backend": "agg"}), old_objects_kept():
        figure = plotting.plot_glass_brain(
            image, display_mode="lyrz", threshold=least, plot_abs=False, colorbar=True,
            cmap="RdBu_r", symmetric_cbar=True,
        )  # fmt: skip
        stream = io.BytesIO()
        figure.savefig(stream, dpi=80)
        figure.close()
    return stream.getvalue()
