"""Blank some cubes of a sample: what is told must stand elsewhere too (DeVries and Taylor 2017)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from common.seams import Sample
from common.settings import Table


class Cutout:
    """(*shape) to the same sample with some boxes, as wide along each axis as along any, blank.

    Blank is 0 as outside the head, which is the mean of a standardised scan too; or the mean of
    what is not 0, where a kind scales scans otherwise.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["cutout"] = Field(description="Blank some cubes.")
        cubes: Annotated[int, Field(ge=1, le=100)] = Field(
            2, description="How many; they may overlap.", examples=[2]
        )
        largest: Annotated[float, Field(gt=0, le=1)] = Field(
            0.3, description="Largest edge, as a share of each axis.", examples=[0.3]
        )
        fill: Literal["zero", "mean"] = Field(
            "zero", description="What is put there: 0, or the mean of what is not 0."
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._settings = settings

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        settings, made = self._settings, sample.copy()
        known = sample[sample != 0] if settings.fill == "mean" else sample[:0]
        blank = known.mean() if known.size else 0
        for _ in range(settings.cubes):
            edge = generator.uniform(0, settings.largest)
            sides = np.maximum(1, np.rint(edge * np.array(sample.shape))).astype(int)
            first = generator.integers(0, np.array(sample.shape) - sides, endpoint=True)
            made[tuple(map(slice, first, first + sides))] = blank
        return made
