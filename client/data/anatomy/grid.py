"""From a scan's own voxels to the study's grid: orient, shrink, interpolate, normalise.

Frames: voxel indices (i, j, k); world mm, RAS+ (x to the Right, y Anterior, z Superior).
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

# Middle of the box around the brain in the MNI152 2009a template that nilearn ships, world mm
MNI_CENTRE_MM: Final = (0.0, -17.0, 5.0)
_HEAD_MM: Final = 170.0  # from the crown down: keeps neck and shoulders out of the centre of mass
_FOREGROUND: Final = 0.1  # of the range between 2nd and 98th percentile, as in Smith 2002 (BET)


def grid_affine(
    shape: tuple[int, int, int], spacing_mm: float, centre_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Affine (4, 4) of a RAS grid whose middle lies at `centre_mm`.

    >>> grid_affine((3, 3, 3), 2.0, (0.0, -18.0, 8.0))[:3, 3].tolist()
    [-2.0, -20.0, 6.0]
    """
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = np.asarray(centre_mm) - spacing_mm * (np.asarray(shape) - 1) / 2
    return affine


def to_ras(
    voxels: NDArray[np.float32], affine: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The same image with axes nearest to R, A, S; flips and permutations only, no copy."""
    orientation = io_orientation(affine)  # type: ignore[no-untyped-call]
    turned = apply_orientation(voxels, orientation)  # type: ignore[no-untyped-call]
    back = inv_ornt_aff(orientation, voxels.shape)  # type: ignore[no-untyped-call]
    return turned, affine @ back


def shrunk(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Average whole blocks of voxels up to nearly `spacing_mm`, then blur the rest.

    Without it, interpolating at distant points would turn fine detail into noise (aliasing).
    A block mean costs a tenth of a Gaussian of the same width over the full image.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    blocks = [max(1, int(spacing_mm / step + 1e-3)) for step in steps]
    for axis, block in enumerate(blocks):
        if block > 1:
            voxels = _block_means(voxels, axis, block)
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] * blocks
    moved[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((np.asarray(blocks) - 1) / 2)
    ratios = np.maximum(spacing_mm / (steps * blocks), 1.0)
    # a Gaussian whose full width at half maximum makes up the rest; 2.355 sigma = that width
    sigmas = np.sqrt(ratios**2 - 1) / 2.355
    if sigmas.max() > 0.2:
        voxels = ndimage.gaussian_filter(voxels, sigmas, mode="nearest", truncate=3.0)
    return voxels, moved


def resampled(
    voxels: NDArray[np.float32],
    affine: NDArray[np.float64],
    target: NDArray[np.float64],
    shape: tuple[int, int, int],
) -> NDArray[np.float32]:
    """The image on the grid `target`, trilinear, 0 outside the field of view."""
    between = np.linalg.inv(affine) @ target  # grid index -> voxel index
    matrix = between[:3, :3]
    diagonal = np.abs(matrix - np.diag(np.diag(matrix))).max() < 1e-9
    result: NDArray[np.float32] = ndimage.affine_transform(
        voxels,
        np.diag(matrix) if diagonal else matrix,  # a vector takes a separable path, 4 times faster
        offset=between[:3, 3],
        output_shape=shape,
        output=np.float32,
        order=1,
        mode="constant",
        cval=0.0,
        prefilter=False,
    )
    return result


def foreground(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Head or brain: above a tenth of the robust range, largest piece, holes filled."""
    low, high = np.percentile(voxels, (2, 98))
    if not high > low:
        low, high = float(voxels.min()), float(voxels.max())
    return one_piece(voxels > low + _FOREGROUND * (high - low))


def one_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest piece of a mask, holes filled."""
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    return _filled(mask)


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask without holes, as `ndimage.binary_fill_holes` has it, in a third of its time."""
    pieces, count = ndimage.label(~mask)
    reached = np.zeros(count + 1, dtype=np.bool_)
    for axis in range(mask.ndim):
        for face in (0, -1):
            reached[pieces.take(face, axis)] = True
    reached[0] = False  # of the mask itself
    return np.asarray(~reached[pieces])


def box_around(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest box that holds a mask, which must hold something."""
    ends = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    x, y, z = (slice(int(found[0]), int(found[-1]) + 1) for found in ends)
    return x, y, z


def head_centre(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Centre of mass of a foreground in world mm, of its top 170 mm only.

    mask: (X, Y, Z) bool with axes near R, A, S.
    """
    heights = np.flatnonzero(mask.any(axis=(0, 1)))
    step = float(np.linalg.norm(affine[:3, 2]))
    lowest = max(0, int(heights[-1] - _HEAD_MM / step))
    kept = np.zeros_like(mask)
    kept[:, :, lowest:] = mask[:, :, lowest:]
    middle = np.array([axis.mean() for axis in np.nonzero(kept)])
    x, y, z = affine[:3, :3] @ middle + affine[:3, 3]
    return float(x), float(y), float(z)


def normalised(
    voxels: NDArray[np.float32],
    mask: NDArray[np.bool_],
    intensity: Literal["zscore", "mean"],
) -> NDArray[np.float32]:
    """Scale intensities by those inside the mask; 0 outside it.

    zscore: mean 0 and standard deviation 1 inside. mean: mean 1 inside (Peng et al. 2021).
    """
    inside = voxels[mask].astype(np.float64)
    mean, spread = inside.mean(), inside.std()
    scaled = (inside - mean) / spread if intensity == "zscore" else inside / mean
    result = np.zeros(voxels.shape, dtype=np.float32)
    result[mask] = scaled
    return result


def _block_means(voxels: NDArray[np.float32], axis: int, block: int) -> NDArray[np.float32]:
    """Mean of each `block` neighbours along an axis; an incomplete last block is dropped."""
    whole = voxels.shape[axis] // block * block
    before = (slice(None),) * axis
    total = voxels[(*before, slice(0, whole, block))].copy(order="K")
    for first in range(1, block):
        total += voxels[(*before, slice(first, whole, block))]
    total /= block
    return total
