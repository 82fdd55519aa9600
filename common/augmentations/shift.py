"""Move a volume by whole voxels; what comes in from outside is 0."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Shift:
    """(*shape) to the same sample, moved along each axis by up to so many places."""

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["shift"] = Field(description="Move by whole voxels.")
        voxels: Annotated[int, Field(ge=1, le=64)] = Field(
            2, description="Largest way along each axis.", examples=[2]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        if settings.voxels >= min(shape):
            raise ValueError(f"voxels is {settings.voxels}; a sample has {list(shape)}")
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        most = self._settings.voxels
        ways = generator.integers(-most, most + 1, size=sample.ndim)
        moved = np.zeros_like(sample)
        moved[tuple(_part(way) for way in ways)] = sample[tuple(_part(-way) for way in ways)]
        return moved


def _part(way: int) -> slice:
    """Where a sample lies that was moved by `way` places, along one axis."""
    return slice(way, None) if way >= 0 else slice(None, way)
