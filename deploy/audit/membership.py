"""Who was trained on, guessed from what a model says of her, beside models whose people are known.

The likelihood ratio attack (LiRA, Carlini et al. 2022, arXiv 2112.03570): of each person, what
models with her and without her say is taken for normal; how much likelier is what this model says
under the one than under the other? Variances are of all people together, as the paper has them for
few shadows. Each shadow is attacked in turn, by all others. Two simple rivals are thresholds on the
loss (Yeom et al. 2018), and on the loss beside its mean in other models (Watson et al. 2022), which
needs fewer shadows than means with and without each person.

Letters in shapes: K shadows, P people, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from client.learning.ranking import areas
from common.sections import Target
from deploy.audit.bounds import SMALL_DELTA, best_guesses, by_one_run
from deploy.audit.shadows import Shadows

Floats = NDArray[np.float64]

FEWEST: Final = 6  # shadows: two of each sort that are left when one is attacked, most likely
ALARMS: Final = (0.01, 0.1)  # rates of false alarms at which hits are told
_LEAST: Final = 2  # shadows with a person, and without her, that a mean is of
_CALIBRATE: Final = 3  # one shadow of so many says where to cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A figure, and between which numbers it lies with the confidence of the audit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """How well one way to score tells members from others: over n pairs of shadow and person."""

    auc: Told
    hits: dict[float, Told]
    epsilon: float
    n: int


def likelihoods(shadows: Shadows) -> Floats:
    """(K, P) the log-likelihood ratio of each person in each shadow, by all other shadows."""
    several = range(len(shadows.said))
    return np.stack(
        [ratios(shadows, shadows.said[k], np.arange(len(several)) != k) for k in several]
    )


def ratios(shadows: Shadows, said: Floats, others: NDArray[np.bool_]) -> Floats:
    """(P,) the log-likelihood ratio of what a model said (P, O), by some of the shadows (K,)."""
    known, inside = shadows.said[others], shadows.inside[others]
    total = np.zeros(len(said))
    for o in range(said.shape[1]):
        with_her, without = (_moments(known[..., o], sort) for sort in (inside, ~inside))
        ratio = _density(said[:, o], *with_her) - _density(said[:, o], *without)
        total += np.where(np.isfinite(ratio), ratio, 0.0)
    return total


def losses(shadows: Shadows) -> Floats:
    """(K, P) minus the loss of each person in each shadow."""
    return minus_loss(shadows.targets, shadows.said)


def calibrated(shadows: Shadows) -> Floats:
    """The same beside what it is in all other shadows: some people are hard for every model."""
    found = losses(shadows)
    others: Floats = (found.sum(axis=0) - found) / max(1, len(found) - 1)
    return found - others


def minus_loss(targets: Sequence[Target], said: Floats) -> Floats:
    """Minus squared errors, or cross-entropy, summed over what is known (..., O)."""
    parts = []
    for o, target in enumerate(targets):
        told = said[..., o]
        loss = told**2 / 2 if target.kind == "regression" else np.logaddexp(0.0, -told)
        parts.append(-target.weight * np.where(np.isnan(told), 0.0, loss))
    total: Floats = np.sum(parts, axis=0)
    return total


def attacked(
    scores: Floats, shadows: Shadows, whom: NDArray[np.bool_], confidence: float, of_bound: float
) -> Attack:
    """How well scores (K, P) tell who of the people `whom` (P,) was in; intervals over shadows.

    The bound of epsilon rests on shadows that did not say where to cut, and asks for no
    independence (`bounds.by_one_run`): people who are in one model are guessed together.
    """
    score, inside = scores[:, whom], shadows.inside[:, whom]
    by_shadow = [
        float(areas(i.astype(float), [s], np.arange(len(s))).areas[0])
        for s, i in zip(score, inside, strict=True)
        if i.any() and not i.all()
    ]
    calibrating = np.arange(len(score)) % _CALIBRATE == 0
    first = score[calibrating].ravel(), inside[calibrating].ravel()
    later = score[~calibrating].ravel(), inside[~calibrating].ravel()
    guesses = best_guesses(*first, later[0].size)
    return Attack(
        auc=_mean(by_shadow, confidence),
        hits={rate: _hits(score, inside, rate, confidence) for rate in ALARMS},
        epsilon=by_one_run(*later, SMALL_DELTA, guesses, of_bound),
        n=score.size,
    )


def area(scores: Floats, members: NDArray[np.bool_], confidence: float) -> Told:
    """The area of one model's scores, with Newcombe's interval over people."""
    found = areas(members.astype(float), [scores], np.arange(len(scores)))
    low, high = found.mean(float(stats.norm.ppf((1 + confidence) / 2)))
    return Told(value=float(found.areas[0]), low=low, high=high)


def _moments(known: Floats, sort: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Each person's mean (P,) over the shadows of a sort, and the variance of all around theirs."""
    values = np.where(sort, known, np.nan)
    times = np.sum(~np.isnan(values), axis=0)
    sums = np.nansum(values, axis=0)
    means = np.where(times >= _LEAST, sums / np.maximum(times, 1), np.nan)
    squares = np.nansum((values - means) ** 2)
    freedom = float(np.maximum(times - 1, 0)[times >= _LEAST].sum())
    return means, squares / freedom if freedom else np.nan


def _density(said: Floats, means: Floats, variance: float) -> Floats:
    """Logarithm of the normal density, but for what is the same for all."""
    if not variance > 0:
        return np.full(len(said), np.nan)
    found: Floats = -((said - means) ** 2) / (2 * variance) - np.log(variance) / 2
    return found


def _hits(score: Floats, inside: NDArray[np.bool_], rate: float, confidence: float) -> Told:
    """The share of members that is guessed where so many of the others are guessed as well."""
    at = np.quantile(score[~inside], 1 - rate, method="higher")
    by_shadow = [float((s[i] > at).mean()) for s, i in zip(score, inside, strict=True) if i.any()]
    return _mean(by_shadow, confidence)


def _mean(values: list[float], confidence: float) -> Told:
    """Mean over shadows, with Student's interval, between 0 and 1."""
    mean = float(np.mean(values)) if values else np.nan
    if len(values) < 2:
        return Told(value=mean, low=0.0, high=1.0)
    error = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Told(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))
