"""A site's location and scale of each column, shrunk towards what its other columns say.

The parametric empirical Bayes of ComBat (Johnson, Li and Rabinovic, Biostatistics 2007). A site's
priors are of its own columns alone, so neither rows nor other sites are needed: number, mean and
variance of each standardised column are enough. Letter: F columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STILL: Final = 1e-13  # change of an iteration that is the last; the reference stops at 1e-4
_MOST: Final = 10_000  # iterations
_ALIKE: Final = 1e-12  # variances of columns that differ less are one and the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a site adds to each column and by how much it spreads it, (F,) both.

    location: in pooled deviations. scale: a variance, in pooled variances.
    """

    location: Floats
    scale: Floats


def effects_of(n: int, mean: Floats, variance: Floats) -> Effects:
    """Posterior location and scale of `n` rows of standardised columns.

    Parameters
    ----------
    n
        Rows, at least 2.
    mean, variance
        (F,) of each column; the variance divides by n - 1.

    Of a single column there is no prior, and both are what they are.

    >>> found = effects_of(50, np.array([0.2, 0.4, 0.6]), np.array([0.9, 1.0, 1.1]))
    >>> found.location.round(3).tolist(), found.scale.round(3).tolist()
    ([0.266, 0.4, 0.533], [0.977, 0.996, 1.016])
    """
    # a column that does not vary here has no scale of its own, as in neuroCombat
    variance = np.where(variance == 0, 1.0, variance)
    if len(mean) < 2:
        return Effects(location=mean, scale=variance)
    centre, spread = mean.mean(), mean.var(ddof=1)
    m, s = variance.mean(), variance.var(ddof=1)
    s = max(s, _ALIKE * m * m)
    shape, rate = 2 + m * m / s, m + m**3 / s
    location, scale = mean, variance
    for _ in range(_MOST):
        before = location, scale
        location = (spread * n * mean + scale * centre) / (spread * n + scale)
        squares = (n - 1) * variance + n * np.square(mean - location)
        scale = (squares / 2 + rate) / (n / 2 + shape - 1)
        moved = max(np.abs(location - before[0]).max(), np.abs(scale / before[1] - 1).max())
        if moved <= _STILL:
            break
    return Effects(location=location, scale=scale)
