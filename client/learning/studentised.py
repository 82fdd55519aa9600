"""How a metric strays from itself when people are drawn anew, in standard errors: the bootstrap-t.

Student's quantiles say it of what is normal. Mean squares of heavy tails, correlations and slopes
of skewed ages are not, of 20 to 50 people: with them intervals cover .88 to .93. Here each metric
is made of sums over people, so that a resampling's own standard error is that of its influence
function, by the derivative to each sum. Letters: R resamplings, P people, S sums.

References
----------
Efron and Tibshirani 1993, An Introduction to the Bootstrap, 12.5 (bootstrap-t) and 22.6 (the
influence function's standard error). Squire and Trapp 1998, SIAM Review 40:110 (complex step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
# sums along the first axis, real or complex, become the metric
Made = Callable[[Any], Any]

FEWEST: Final = 10  # people of whom resamplings are made: of fewer, too many are of one or two
_BEYOND: Final = 25  # resamplings that lie beyond each end of an interval
_MOST: Final = 5000  # resamplings, of intervals that are to be surer than .99
_STEP: Final = 1e-20  # of the complex step: nothing is subtracted, so the smaller the better
_USABLE: Final = 0.9  # of resamplings, or the metric is hardly defined


def studentised(
    made: Made,
    scale: Callable[[Any], Any],
    sums_of_people: Sequence[Float64],
    tail: float,
) -> tuple[float, float] | None:
    """The quantiles of (resampled - found) / its standard error that leave out `tail` at each end.

    Parameters
    ----------
    made : the metric of S sums; multiplying all sums alike must not change it
    scale : what the mean over models is told on, analytic
    sums_of_people : of each model (P, S), each participant's sums
    tail : above 0, below one half

    Returns
    -------
    None where there are too few people, or the metric is undefined in too many resamplings
    """
    people = len(sums_of_people[0])
    if people < FEWEST:
        return None
    weights_RP = _drawn(people, min(round(_BEYOND / tail), _MOST))
    found, _ = _with_error(made, scale, sums_of_people, np.ones((1, people)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        resampled, error = _with_error(made, scale, sums_of_people, weights_RP)
        strayed = (resampled - found) / error
    strayed = strayed[np.isfinite(strayed)]
    if len(strayed) < _USABLE * len(weights_RP):
        return None
    low, high = np.quantile(strayed, [tail, 1 - tail])
    return float(low), float(high)


def _with_error(
    made: Made, scale: Callable[[Any], Any], sums_of_people: Sequence[Float64], weights_RP: Float64
) -> tuple[Float64, Float64]:
    """(R,) the mean over models on its scale, and its standard error from its influence."""
    totals = [(weights_RP @ of_model).T.astype(np.complex128) for of_model in sums_of_people]
    value = np.mean([made(sums_SR).real for sums_SR in totals], axis=0)
    influence_RP = sum(
        _derivatives(made, sums_SR).T @ of_model.T
        for sums_SR, of_model in zip(totals, sums_of_people, strict=True)
    ) / len(totals)
    slope = np.asarray(scale(value + 1j * _STEP)).imag / _STEP
    error = np.abs(slope) * np.sqrt((weights_RP * np.square(influence_RP)).sum(1))
    people = weights_RP.shape[1]
    on_scale: Float64 = np.asarray(scale(value))
    return on_scale, error * (people / (people - 1)) ** 0.5


def _derivatives(made: Made, sums_SR: NDArray[np.complex128]) -> Float64:
    """(S, R) of the metric to each sum."""
    found = np.empty(sums_SR.shape)
    for place in range(len(sums_SR)):
        moved = sums_SR.copy()
        moved[place] += 1j * _STEP
        found[place] = made(moved).imag / _STEP
    return found


@lru_cache(maxsize=8)
def _drawn(people: int, resamplings: int) -> Float64:
    """(R, P) how often each is drawn: the same for every metric and model of as many people.

    So that models are compared on the same draws, and what is judged again has the same interval.
    """
    generator = np.random.default_rng(people)
    chances = np.full(people, 1 / people)
    return generator.multinomial(people, chances, size=resamplings).astype(np.float64)
