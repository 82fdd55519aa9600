"""Correlations between the signals of regions, of the time points and regions that have any.

Letters in shapes: T time points, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import ScanError
from common.kinds.connectome import Measure

Matrix = NDArray[np.float64]

_FLAT: Final = 1e-6  # deviation over the largest value, below which a signal only rounds
_LARGEST: Final = 1 - 1e-6  # correlation; two equal signals would have an infinite Fisher z


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What of a run can be correlated.

    series: (T, R) z-scores over time; a silent region is 0 throughout. silent: (R,) bool.
    padded, gaps: time points that were dropped: zeros at the end, and such without a number.
    """

    series: Matrix
    silent: NDArray[np.bool_]
    padded: int
    gaps: int


def signals(series_TR: Matrix) -> Signals:
    """The part of a run that was measured: zeros behind its end would correlate with each other.

    A region that lacks more than half of its numbers is silent; then a time point that lacks any
    of another region's is dropped for all.
    """
    end = len(series_TR)
    measured = np.flatnonzero((series_TR != 0).any(1))
    if len(measured) and measured[-1] + 1 < end - 1:  # one line of zeros may be a coincidence
        end = int(measured[-1]) + 1
    series = series_TR[:end]
    lacking = ~np.isfinite(series)
    silent = lacking.mean(0) > 0.5 if end else np.ones(series.shape[1], dtype=bool)
    whole = ~lacking[:, ~silent].any(1)
    series = np.where(silent, 0.0, series[whole])
    silent = silent | _flat(series)
    return Signals(
        series=_z_scored(series, silent),
        silent=silent,
        padded=len(series_TR) - end,
        gaps=int((~whole).sum()),
    )


def matrix(found: Signals, measure: Measure) -> Matrix:
    """(R, R), symmetric; 0 in the row and column of a silent region.

    Raises
    ------
    ScanError
        If the covariance has no inverse, which `partial` needs.
    """
    if measure in ("pearson", "fisher-z"):
        values = np.clip(found.series.T @ found.series / len(found.series), -1, 1)
        if measure == "fisher-z":
            values = np.arctanh(np.clip(values, -_LARGEST, _LARGEST))
    else:
        values = _shrunk(found, measure)
    values = (values + values.T) / 2
    heard = ~found.silent
    np.fill_diagonal(values, 0.0 if measure == "fisher-z" else heard.astype(np.float64))
    return np.where(np.outer(heard, heard), values, 0.0)


def edges(values_RR: Matrix) -> Matrix:
    """(R (R - 1) / 2,) what stands above the diagonal, row by row.

    >>> edges(np.arange(9.0).reshape(3, 3))
    array([1., 2., 5.])
    """
    upper: Matrix = values_RR[np.triu_indices(len(values_RR), 1)]
    return upper


def _shrunk(found: Signals, measure: Measure) -> Matrix:
    """Correlations of the covariance after Ledoit and Wolf (2004), or partial ones of its inverse.

    Series are z-scored and so is what they shrink to: the diagonal stays 1.
    """
    from sklearn.covariance import ledoit_wolf

    heard = ~found.silent
    values = np.zeros((len(heard), len(heard)))
    shrunk, _ = ledoit_wolf(found.series[:, heard], assume_centered=True)
    if measure == "partial":
        try:
            precision = np.linalg.inv(shrunk)
        except np.linalg.LinAlgError:
            raise ScanError("its regions' covariance has no inverse; are some equal?") from None
        scale = np.sqrt(np.diag(precision))
        shrunk = -precision / np.outer(scale, scale)
    values[np.ix_(heard, heard)] = shrunk
    return values


def _flat(series: Matrix) -> NDArray[np.bool_]:
    if not len(series):
        return np.ones(series.shape[1], dtype=bool)
    spread: NDArray[np.bool_] = series.std(0) <= _FLAT * np.abs(series).max(0)
    return spread


def _z_scored(series: Matrix, silent: NDArray[np.bool_]) -> Matrix:
    if not len(series):
        return series
    deviation = np.where(silent, 1.0, series.std(0))
    return np.where(silent, 0.0, (series - series.mean(0)) / deviation)
