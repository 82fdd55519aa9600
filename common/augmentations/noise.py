"""Add Gaussian noise to a sample."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Noise:
    """(*shape) to the same sample with independent noise on each of its numbers."""

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["noise"] = Field(description="Add noise.")
        deviation: Annotated[float, Field(gt=0)] = Field(
            0.1, description="Largest standard deviation; drawn anew for each.", examples=[0.1]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        deviation = np.float32(generator.uniform(0, self._settings.deviation))
        return sample + deviation * generator.standard_normal(sample.shape, dtype=np.float32)
