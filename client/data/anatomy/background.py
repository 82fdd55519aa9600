"""The head in a scan whose background is not dark: noise over the full range, or bright.

MP2RAGE divides two images; where there is no signal it gives noise between the darkest and the
brightest value. Taken for tissue, that noise would decide what the whole scan is scaled by.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from common.errors import ScanError

BRIGHT: Final = "its background is brighter than the head, its placing is not checked; look at it"
# Share of the field of view. 98 real heads and brains (3 sites, native and at 2 mm; shrunk to 2, 4
# and 10 mm) fill 0.10 to 0.58 of it, 0.61 at most when cropped to their last voxel; a slab through
# the middle of a head, cropped so, fills 0.79. With noise around them they seem to fill 0.95 to 1.
_MOST: Final = 0.8
# What is left of a mask without all that is one voxel thin: 0.94 to 1 in the same scans; half of
# their noise beside them leaves 0.5 to 0.85, or fills more than the share above.
_SOLID: Final = 0.85
# Mean difference of neighbours over the robust range: 1/3 in even noise. With noise around 7 of
# these, at 1 to 10 mm, what lies below is the head with a Dice coefficient of 0.91 to 0.98.
_ROUGH: Final = 0.22
_LEAST_ML: Final = 150.0  # of a head or brain; what is less is a speck in noise


def head_of(
    plain: NDArray[np.float32],
    voxels: NDArray[np.float32],
    affine: NDArray[np.float64],
    spacing_mm: float,
) -> tuple[NDArray[np.bool_], str]:
    """The head or brain, and a note where only a closer look could tell it from its background.

    Parameters
    ----------
    plain : (X, Y, Z) as acquired, with its `affine`
    voxels : the same, shrunk to about `spacing_mm`; the mask is of its shape

    Raises
    ------
    ScanError
        If everything seems to be head.
    """
    dark = grid.foreground(voxels)
    if _is_plausible(dark):
        return dark, ""
    least = _LEAST_ML * 1000 / abs(np.linalg.det(affine[:3, :3])) / plain.size  # as a share
    head = grid.one_piece(_roughness(plain, affine, spacing_mm) < _ROUGH)
    if head.mean() > least and _is_plausible(head):
        return head, "its background is noise as bright as the head (MP2RAGE?), told apart by it"
    share = dark.mean()
    if share <= _MOST:
        return dark, f"noise seems to be part of its foreground ({share:.0%} of it all); look at it"
    head = grid.foreground(-voxels)
    if head.mean() > least and _is_plausible(head):
        return head, BRIGHT
    raise ScanError(
        f"its foreground fills {share:.0%} of the field of view, no background was found; noise "
        "outside the head must be removed first (MP2RAGE: take the denoised image)"
    )


def _is_plausible(mask: NDArray[np.bool_]) -> bool:
    """Whether a mask leaves a background, and is not torn as noise is."""
    held = mask.sum()
    if not held or held > _MOST * mask.size:
        return False
    return bool(ndimage.binary_opening(mask).sum() >= _SOLID * held)


def _roughness(
    plain: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: float
) -> NDArray[np.float32]:
    """Mean difference of neighbours over the robust range, shrunk to about `spacing_mm`."""
    low, high = np.percentile(plain, (2, 98))
    total = np.zeros_like(plain)
    for axis in range(3):
        total += np.abs(np.diff(plain, axis=axis, append=np.take(plain, [-1], axis)))
    total /= 3 * max(float(high - low), 1e-30)
    return grid.shrunk(total, affine, spacing_mm)[0]
