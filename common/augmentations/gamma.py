"""Raise a sample's intensities to a power: another contrast between its tissues."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.augmentations.head import changed_inside
from common.seams import Sample
from common.settings import Table


class Gamma:
    """(*shape) to the same sample, its order of intensities kept, its 0 outside the head too.

    Inside, from the darkest to the brightest, i becomes i ** gamma; mean and deviation stay.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["gamma"] = Field(description="Raise intensities to a power.")
        largest: Annotated[float, Field(gt=1, le=10)] = Field(
            1.5,
            description="The power lies between this and its inverse, evenly on a log scale.",
            examples=[1.5],
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._largest = settings.largest

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        power = np.float32(self._largest ** generator.uniform(-1, 1))
        return changed_inside(sample, lambda values, _: values**power)
