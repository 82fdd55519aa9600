"""How surely many trainings on overlapping draws tell two ways apart.

Draws of the same people overlap, so that repeats vary less than new people would: a variance of the
mean that takes them for independent is too small. Nadeau and Bengio's correction adds what the
share of people who judge tells of it.

References
----------
Nadeau and Bengio 2003, Machine Learning 52:239. Bouckaert and Frank 2004, PAKDD: for repeats.
Fisher 1935, The Design of Experiments, 21: the signs of paired differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common import metrics

Floats = NDArray[np.floating[Any]]
FLIPS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The mean over repeats, its interval, and the p-value of its being zero."""

    value: float
    bounds: tuple[float, float] | None
    p: float | None


def corrected_mean(values: Floats, ratio: float, confidence: float) -> Mean:
    """Nadeau and Bengio's: `ratio` is how many judge for each who is learnt from.

    >>> found = corrected_mean(np.array([1.0, 2.0, 3.0]), 0.2, 0.95)
    >>> found.value, [round(end, 3) for end in found.bounds]
    (2.0, [-1.142, 5.142])
    """
    several, value = len(values), float(np.mean(values))
    if several < metrics.FEWEST:
        return Mean(value=value, bounds=None, p=None)
    error = float(np.sqrt((1 / several + ratio) * np.var(values, ddof=1)))
    half = float(stats.t.isf((1 - confidence) / 2, several - 1)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, several - 1)) if error else float(value == 0)
    return Mean(value=value, bounds=(value - half, value + half), p=p)


def sign_flip(differences: Floats, seed: int) -> float:
    """Two-sided p-value of paired differences whose signs may as well be the other ones.

    Of few repeats all signs are tried, of more than 13 so many drawn ones as `FLIPS`.

    >>> sign_flip(np.array([0.1, 0.2, 0.3]), seed=0)
    0.25
    """
    if len(differences) < 2:
        return 1.0
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=FLIPS,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(min(1.0, found.pvalue))
