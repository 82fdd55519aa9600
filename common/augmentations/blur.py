"""Blur a sample by a Gaussian: another resolution."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Blur:
    """(*shape) to the same sample, smoothed alike along every axis.

    Outside the border is 0, as outside the head: the head's edge softens as in a scan of larger
    voxels, and what is further outside stays 0.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["blur"] = Field(description="Smooth by a Gaussian.")
        voxels: Annotated[float, Field(gt=0, le=16)] = Field(
            1.0,
            description="Largest standard deviation in voxels; drawn anew for each.",
            examples=[1.0],
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        if settings.voxels >= min(shape):
            raise ValueError(f"voxels is {settings.voxels:g}; a sample has {list(shape)}")
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        from scipy import ndimage

        deviation = generator.uniform(0, self._settings.voxels)
        made: Sample = ndimage.gaussian_filter(sample, deviation, mode="constant", truncate=3.0)
        return made
