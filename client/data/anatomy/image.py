"""A scan as SimpleITK holds it, and SimpleITK held to one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def one_thread() -> Iterator[None]:
    """Let ITK work in one thread: sums of several come in another order each time.

    A filter's own number of threads does not reach the metric inside it: with that alone two
    registrations of one scan differed in the ninth digit.
    """
    import SimpleITK

    process = SimpleITK.ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    process.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        process.SetGlobalDefaultNumberOfThreads(before)
