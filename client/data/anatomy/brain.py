"""What of a whole head is brain, told without a template: dark fluid and bone lie around it.

Tissue that is brighter than fluid is opened with a ball until nothing but the brain hangs together,
which is so where the next larger ball takes little more: scalp and neck go in large pieces.
What is left is closed over the furrows. It is an estimate, to register by and to judge a
registration by, and no mask to train inside.

Measured on 33 whole heads (IXI, 2 mm) against their DLMUSE labels: Dice 0.70 to 0.96, median 0.944;
the one below 0.87 is then left out, for it overlaps with the template by 0.82.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.data.anatomy import grid
from client.data.anatomy.image import one_thread

_RADII_MM: Final = (3.0, 4.0, 5.0, 6.0, 7.0)
_KEPT: Final = (
    0.88  # of a ball's brain by the next one; a piece of scalp or neck costs 14 % or more
)
_FURROW_MM: Final = 10.0
_HEAD_MM: Final = 190.0  # from the crown down: below is neck
# Brain over foreground: 0.28 to 0.55 in 45 whole heads, 0.89 to 1.0 in 53 that came without skull
_STRIPPED: Final = 0.7

Mask = NDArray[np.bool_]


def brain_of(voxels: NDArray[np.float32], affine: NDArray[np.float64], head: Mask) -> Mask:
    """The brain in a foreground (X, Y, Z) bool; all of it where the scan came without skull.

    voxels: T1-weighted, axes near R, A, S, steps of about 2 mm. Nothing where no brain is found.
    """
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    box = _box(head, steps)
    with one_thread():
        inside = _core(_tissue(voxels[box], head[box]), steps) & head[box]
    if inside.sum() > _STRIPPED * head.sum():
        return head
    brain = np.zeros_like(head)
    brain[box] = inside
    return brain


def _tissue(voxels: NDArray[np.float32], head: Mask) -> Mask:
    """Brighter than fluid: above the lower of Otsu's two thresholds inside the head."""
    import SimpleITK

    values = np.clip(voxels[head], None, np.percentile(voxels[head], 99))
    otsu = SimpleITK.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.Execute(SimpleITK.GetImageFromArray(values[None]))
    tissue: Mask = head & (voxels > otsu.GetThresholds()[0])
    return tissue


def _core(tissue: Mask, steps: NDArray[np.float64]) -> Mask:
    """The largest piece that a ball leaves, grown back into the tissue and closed."""
    depth = _distance_mm(~tissue, steps)
    before = _closed(tissue, steps)
    for radius in _RADII_MM:
        piece = _largest(depth > radius)
        grown = tissue & (_distance_mm(piece, steps) <= radius + 1)
        closed = _closed(grown, steps)  # a larger ball costs furrows, and no more than these
        if closed.sum() >= _KEPT * before.sum():
            break
        before = closed
    return before


def _largest(mask: Mask) -> Mask:
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece: Mask = labels == sizes.argmax()
    return piece


def _closed(mask: Mask, steps: NDArray[np.float64]) -> Mask:
    """A mask with its furrows and holes filled."""
    if not mask.any():
        return mask
    room = [int(_FURROW_MM / step) + 2 for step in steps]
    wide = np.pad(mask, [(n, n) for n in room])
    around = _distance_mm(wide, steps) <= _FURROW_MM
    filled = ndimage.binary_fill_holes((_distance_mm(~around, steps) > _FURROW_MM) | wide)
    inner: Mask = filled[tuple(slice(n, -n) for n in room)]
    return inner


def _distance_mm(mask: Mask, steps: NDArray[np.float64]) -> NDArray[np.float32]:
    """How far each voxel is from a mask; everything is far from an empty one."""
    import SimpleITK

    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    image: Any = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(steps[::-1].tolist())
    found = SimpleITK.SignedMaurerDistanceMapImageFilter()
    found.SetSquaredDistance(False)
    found.SetUseImageSpacing(True)
    distance: NDArray[np.float32] = SimpleITK.GetArrayFromImage(found.Execute(image))
    return np.maximum(distance, 0)


def _box(head: Mask, steps: NDArray[np.float64]) -> tuple[slice, ...]:
    """The smallest box around the head's upper part."""
    box = grid.box_around(head)
    lowest = max(box[2].start, int(box[2].stop - _HEAD_MM / steps[2]))
    return (*box[:2], slice(lowest, box[2].stop))
