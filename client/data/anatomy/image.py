"""A scan as SimpleITK holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def image_of(voxels: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """An image of SimpleITK in our frame, R, A, S: it need not know that ITK's is L, P, S."""
    import SimpleITK

    steps = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(steps.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / steps).ravel().tolist())
    return image
