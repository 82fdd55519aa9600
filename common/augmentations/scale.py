"""Multiply a sample's numbers, and add to them: another contrast and another brightness."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Scale:
    """(*shape) to a * sample + b where the sample is not 0: what lies outside the head stays 0."""

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["scale"] = Field(description="Change contrast and brightness.")
        factor: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.1, description="The factor lies within 1 plus or minus this.", examples=[0.1]
        )
        offset: Annotated[float, Field(ge=0)] = Field(
            0.1, description="What is added lies within plus or minus this.", examples=[0.1]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        factor = np.float32(1 + generator.uniform(-1, 1) * self._settings.factor)
        offset = np.float32(generator.uniform(-1, 1) * self._settings.offset)
        return np.where(sample == 0, sample, factor * sample + offset)
