"""Mirror a sample along axes, each with a chance of its own."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Flip:
    """(*shape) to the same sample, mirrored or not along each of the axes."""

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["flip"] = Field(description="Mirror along axes.")
        axes: tuple[Annotated[int, Field(ge=0, le=8)], ...] = Field(
            (0,), description="Axes; 0 of a volume is left and right.", examples=[(0,)]
        )
        chance: Annotated[float, Field(gt=0, le=1)] = Field(
            0.5, description="Chance of each axis.", examples=[0.5]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        if max(settings.axes, default=-1) >= len(shape):
            raise ValueError(f"axes is {list(settings.axes)}; a sample has {len(shape)} axes")
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        chance = self._settings.chance
        turned = tuple(axis for axis in self._settings.axes if generator.random() < chance)
        return np.flip(sample, turned) if turned else sample
