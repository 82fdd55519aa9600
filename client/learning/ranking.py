"""How surely an area under the ROC curve is known: DeLong's covariance, Newcombe's interval.

The unit is the participant: of several scans the covariance is Obuchowski's, by people, and sizes
are people. Letters: K models, N samples, P people.

References
----------
DeLong, DeLong, Clarke-Pearson 1988, Biometrics 44:837. Obuchowski 1997, Biometrics 53:567.
Newcombe 2006, Statistics in Medicine 25:559, method 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

_LEAST: Final = 1e-14  # from an end of the scale, where the root of a perfect area is trivial


@dataclass(frozen=True, slots=True, kw_only=True)
class Areas:
    """The areas of K models on the same samples, and how they vary together.

    areas: (K,). covariance: (K, K), by people. positives, negatives: people with such a sample.
    """

    areas: Float64
    covariance: Float64
    positives: int
    negatives: int

    def mean(self, z: float) -> tuple[float, float]:
        """The interval of the areas' mean.

        Exponential scores vary too little where scores of the rarer class spread more than the
        others' (Newcombe's interval alone then covers .89), so their variance is moved to DeLong's
        of one model; and the mean of several varies as much less as by DeLong's covariance.
        """
        area, of_one = float(self.areas.mean()), float(np.diag(self.covariance).mean())
        people = self.positives, self.negatives
        factor = moved(of_one, exponential(area, *people), min(people))
        if of_one > 0:
            factor *= float(self.covariance.mean()) / of_one
        return newcombe(area, *people, z, max(factor, 0.0))


def areas(label: Floats, predicted: Sequence[Floats], people: NDArray[np.int64]) -> Areas:
    """Areas and their covariance; `people` (N,) are numbers from 0, equal for one participant.

    With one sample of each person this is DeLong's covariance exactly.
    """
    ill = label > 0.5
    m, n = int(ill.sum()), int((~ill).sum())
    placed = np.stack([_placements(ill, scores) for scores in predicted])  # (K, N)
    found = placed[:, ill].mean(1)
    apart = placed - found[:, None]
    several = int(people.max()) + 1
    of_ill, of_well = (_by_person(apart * part, people, several) / size
                       for part, size in ((ill, m), (~ill, n)))  # fmt: skip
    with_ill, with_well = (len(np.unique(people[part])) for part in (ill, ~ill))
    both = of_ill @ of_well.T
    covariance = (
        _corrected(with_ill) * (of_ill @ of_ill.T)
        + _corrected(with_well) * (of_well @ of_well.T)
        + _corrected(several) * (both + both.T)
    )
    return Areas(areas=found, covariance=covariance, positives=with_ill, negatives=with_well)


def newcombe(
    area: float, positives: int, negatives: int, z: float, factor: float = 1.0
) -> tuple[float, float]:
    """Score interval, `z` standard errors wide, of an area between so many people of each class.

    factor: on its variance, which is that of exponential scores.

    >>> low, high = newcombe(1.0, 10, 10, 1.96)
    >>> round(low, 2), high
    (0.8, 1.0)
    """

    def half(true: float) -> float:
        return z * math.sqrt(factor * exponential(true, positives, negatives))

    low = high = area
    if area > 0:
        low = optimize.brentq(lambda t: area - t - half(t), 0, min(area, 1 - _LEAST))
    if area < 1:
        high = optimize.brentq(lambda t: t - area - half(t), max(area, _LEAST), 1)
    return float(low), float(high)


def moved(variance: float | None, expected: float, fewest: int) -> float:
    """The factor from a variance that a model expects towards the one that was found.

    The further, the more people tell it; and down more slowly, since what is found of few people
    near the end of a scale is itself too small. `fewest` are the people of the rarest class.

    >>> moved(2.0, 1.0, 6), moved(0.5, 1.0, 6), moved(None, 1.0, 6), moved(9.0, 1.0, 1)
    (1.5, 0.9038461538461539, 1.0, 1.0)
    """
    if variance is None or not np.isfinite(variance) or expected <= 0:
        return 1.0
    excess = variance / expected - 1
    return float(1 + excess * (fewest - 1) / (fewest + (4 if excess > 0 else 20)))


def exponential(area: float, positives: int, negatives: int) -> float:
    """Hanley and McNeil's variance of an area, with the classes' mean size for both (Newcombe)."""
    more = (positives + negatives) / 2 - 1
    apart = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
    return area * (1 - area) * apart / (positives * negatives)


def _placements(ill: NDArray[np.bool_], scores: Floats) -> Float64:
    """(N,) the share of the other class that a sample is on the right side of, ties half."""
    found = np.empty(len(ill))
    ranks = stats.rankdata(scores)
    for own, sign in ((ill, 1), (~ill, -1)):
        inside = stats.rankdata(scores[own])
        below = (ranks[own] - inside) / (~own).sum()
        found[own] = below if sign > 0 else 1 - below
    return found


def _by_person(values_KN: Float64, people: NDArray[np.int64], several: int) -> Float64:
    """(K, P) sums over each participant's samples."""
    return np.stack([np.bincount(people, weights=row, minlength=several) for row in values_KN])


def _corrected(people: int) -> float:
    return people / max(people - 1, 1)
