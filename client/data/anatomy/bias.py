"""The coil's uneven brightness taken out of a scan: N4 (Tustison et al. 2010), by SimpleITK."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy import grid
from client.data.anatomy.image import image_of, one_thread

_SPACING_MM: Final = 4.0  # the field is smooth: it is fitted here, and drawn on the scan's own grid
_ITERATIONS: Final = (50, 50, 50)


def evened(
    voxels: NDArray[np.float32], affine: NDArray[np.float64], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """A scan (X, Y, Z) divided by the field that N4 finds inside a mask; darkest stays darkest.

    One thread, so that the same scan gives the same bits beside any number of others.
    """
    import SimpleITK

    darkest = min(0.0, float(voxels.min()))  # a product has its zero where there is no signal
    bright = voxels - np.float32(darkest)
    small, moved = grid.shrunk(bright, affine, _SPACING_MM)
    held, _ = grid.shrunk(inside.astype(np.float32), affine, _SPACING_MM)
    method = SimpleITK.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations(_ITERATIONS)
    with one_thread():
        method.Execute(image_of(small, moved), image_of((held > 0.5).astype(np.uint8), moved))
        field: Any = method.GetLogBiasFieldAsImage(image_of(bright, affine))
    log = SimpleITK.GetArrayFromImage(field).T
    even: NDArray[np.float32] = bright / np.exp(log, dtype=np.float32) + np.float32(darkest)
    return even
