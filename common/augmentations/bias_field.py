"""Brighten and darken a volume smoothly from place to place, as a coil does."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

import numpy as np
from numpy.polynomial.legendre import leggrid3d
from numpy.typing import NDArray
from pydantic import Field

from common.augmentations.head import changed_inside
from common.seams import Sample
from common.settings import Table


class BiasField:
    """(X, Y, Z) to the same volume times exp(f), f a polynomial of the place (Van Leemput 1999).

    The darkest place of the head counts as no signal; the head's mean and deviation stay, as if it
    had been standardised with the field in it, and what is 0 outside stays 0.
    """

    class Settings(Table):
        """Keys of `[[augmentation]]`."""

        name: Literal["bias-field"] = Field(description="Brighten smoothly from place to place.")
        degree: Annotated[int, Field(ge=1, le=6)] = Field(
            3, description="Degree of the polynomial.", examples=[3]
        )
        strength: Annotated[float, Field(gt=0, le=2)] = Field(
            0.3,
            description="Its coefficients lie within plus or minus this.",
            examples=[0.3],
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(f"name is bias-field, of volumes; a sample has {list(shape)}")
        self._strength, size = settings.strength, settings.degree + 1
        self._terms = [
            term for term in product(range(size), repeat=3) if 0 < sum(term) <= settings.degree
        ]
        self._size = size
        self._places = [np.linspace(-1, 1, length, dtype=np.float32) for length in shape]

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        field = self.field(generator.uniform(-self._strength, self._strength, len(self._terms)))
        return changed_inside(sample, lambda values, inside: values * np.exp(field[inside]))

    def field(self, coefficients: NDArray[np.float64]) -> NDArray[np.float32]:
        """(X, Y, Z) the polynomial of Legendre products of the degrees from 1 to the largest."""
        of = np.zeros((self._size,) * 3, dtype=np.float32)
        of[tuple(np.transpose(self._terms))] = coefficients
        x, y, z = self._places
        return np.asarray(leggrid3d(x, y, z, of), dtype=np.float32)
