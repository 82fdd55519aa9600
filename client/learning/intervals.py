"""How surely a metric is known, and whether two models differ: intervals over people that cover.

Each was chosen by simulation (`make bench coverage`), where the percentile bootstrap covers .52 to
.93 of nominal .95. Areas have Newcombe's score interval, shares and F1 Wilson's; mean errors have
Student's t and all else the bootstrap-t, on a scale where each is about normal, with the
jackknife's standard error; differences Student's, or the method of variance estimates recovery.
People are left out, and drawn, never scans. Letters: G groups of people, K models of whom the mean
is told, N samples, S sums.

References
----------
Newcombe 2006, Statistics in Medicine 25:559. Wilson 1927, JASA 22:209. Zou and Donner 2008,
Statistics in Medicine 27:1693. Efron and Tibshirani 1993, An Introduction to the Bootstrap, 11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from client.learning.ranking import Areas, areas, moved
from client.learning.studentised import studentised
from common import metrics
from common.sections import Target

Floats = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Bounds = tuple[float, float]

_MOST_GROUPS: Final = 1000  # people of larger sites are left out by groups of equal size
_AT_ONCE: Final = 1 << 24  # weights of samples, 128 MiB
_SURE: Final = (1e-3, 38.0)  # standard errors between which a p-value is sought

# scales on which a metric's jackknife is about normal, and the ways back
_SCALES: Final[Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    "mae": (np.log, np.exp),
    "rmse": (np.log, np.exp),
    "brier": (np.log, np.exp),
    "r": (np.arctanh, np.tanh),
    "r2": (lambda r2: -np.log(1 - r2), lambda x: 1 - np.exp(-x)),
    "slope": (np.asarray, np.asarray),
    "bias_slope": (np.asarray, np.asarray),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two models lie apart in a metric, and the p-value of their being equal."""

    value: float
    bounds: Bounds | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What K models said of the same labelled samples; a metric of theirs is the mean over them.

    people: (N,) numbers from 0, equal for one participant. The calibration error has no interval:
    in few samples it is too high by itself, and in resamplings twice.
    """

    target: Target
    label: Floats
    predicted: Sequence[Floats]
    people: NDArray[np.int64]

    @staticmethod
    def of(
        target: Target, label: Floats, predicted: Sequence[Floats], participants: Sequence[str]
    ) -> Judged:
        """Of participants by name."""
        _, people = np.unique(np.asarray(participants), return_inverse=True)
        return Judged(target=target, label=label, predicted=predicted, people=people)

    def value(self, metric: str) -> float:
        """The mean of the models' values; NaN where it is not defined."""
        return float(np.mean([one.get(metric, np.nan) for one in self._exact]))

    @property
    def metrics(self) -> list[str]:
        """Every metric that is told, defined or not."""
        return list(self._exact[0])

    def bounds(self, metric: str, z: float) -> Bounds | None:
        """The interval of `metric` that is `z` normal standard errors wide to each side."""
        value = self.value(metric)
        if not np.isfinite(value) or self._several < metrics.FEWEST:
            return None
        if metric == "auc":
            return self.areas.mean(z)
        if metric in ("accuracy", "balanced_accuracy"):
            return self._of_shares(metric, z)
        if metric == "f1":
            return self._of_overlap(value, z)
        if metric in metrics.F1S:
            return self._of_overlaps(metric, z)
        return self._of_sums(metric, value, z) if metric in _SCALES else None

    @cached_property
    def areas(self) -> Areas:
        """The models' areas under the curve."""
        return areas(self.label, self.predicted, self.people)

    @cached_property
    def left_out(self) -> dict[str, Float64]:
        """(G,) every metric without each group of people: one person each, where they are few."""
        groups = min(self._several, _MOST_GROUPS)
        group_of = self.people % groups
        at_once = max(1, _AT_ONCE // len(self.label))
        parts = []
        for first in range(0, groups, at_once):
            out = np.arange(first, min(first + at_once, groups))
            weights = (group_of != out[:, None]).astype(np.float64)
            told = [metrics.resampled(self.target, self.label, one, weights)
                    for one in self.predicted]  # fmt: skip
            parts.append({name: np.mean([one[name] for one in told], axis=0)
                          for name in told[0] if all(name in one for one in told)})  # fmt: skip
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @property
    def _several(self) -> int:
        return int(self.people.max()) + 1

    @cached_property
    def _exact(self) -> list[dict[str, float]]:
        return [metrics.exact(self.target, self.label, one) for one in self.predicted]

    def _of_sums(self, metric: str, value: float, z: float) -> Bounds | None:
        """By the bootstrap-t; a mean error, a few people, or no errors at all by Student's t.

        Student's holds a mean error as often as it says, and one odd person of twenty widens it by
        less.
        """
        there, back = _SCALES[metric]
        tail = float(stats.norm.sf(z))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            error = jackknifed(there(self.left_out[metric]))
            student = _student(z, len(self.left_out[metric]))
            drawn = studentised(
                lambda sums: metrics.of_sums(self.target, sums)[metric], there,
                self._sums_of_people, tail,
            ) if error > 0 and metric != "mae" else None  # fmt: skip
            below, above = drawn or (-student, student)
            low, high = (float(back(there(value) - far * error)) for far in (above, below))
        # of few people the logarithm goes beyond the largest error that a probability can have
        found = low, min(high, 1.0) if metric == "brier" else high
        return found if np.isfinite(found).all() else None

    @cached_property
    def _sums_of_people(self) -> list[Float64]:
        """(G, S) of each model."""
        groups = min(self._several, _MOST_GROUPS)
        group_of = self.people % groups
        found = []
        for told in self.predicted:
            of_samples = metrics.sample_sums(self.target, self.label, told)
            of_groups = np.zeros((groups, of_samples.shape[1]))
            np.add.at(of_groups, group_of, of_samples)
            found.append(of_groups)
        return found

    def _of_shares(self, metric: str, z: float) -> Bounds:
        """Mean recall over the classes that are there, or the one share of all.

        As if all classes were recalled alike, of as many people as the mean is as sure as. Put
        together from each class's own interval, recalls of four classes near 1 would cover .90.
        """
        one = self.label > 0.5 if self.target.kind == "binary" else self.label
        classes = np.unique(one) if metric == "balanced_accuracy" else [None]
        parts = [one == each if each is not None else np.ones(len(one), bool) for each in classes]
        people = np.array([len(np.unique(self.people[part])) for part in parts])
        n = _as_sure_as(people, np.full(len(parts), 1 / len(parts)))
        return self._of_mean_share(metric, n, int(people.min()), z)

    def _of_mean_share(self, metric: str, people: float, fewest: int, z: float) -> Bounds:
        """Wilson's interval; `fewest` people tell how much the mean varies."""
        value, error = self.value(metric), jackknifed(self.left_out[metric])
        factor = moved(error * error, value * (1 - value) / people, fewest)
        return wilson(value, people / factor, z)

    def _said(self, told: Floats) -> NDArray[np.int64]:
        """(N,) the class that a model names."""
        said = told >= 0.5 if self.target.kind == "binary" else told.argmax(1)
        return said.astype(np.int64)

    @property
    def _held(self) -> NDArray[np.int64]:
        """(N,) the class that a sample is of."""
        held = self.label > 0.5 if self.target.kind == "binary" else self.label
        return held.astype(np.int64)

    def _of_overlap(self, value: float, z: float) -> Bounds:
        """F1 is 2 J / (1 + J) of J, the share of hits among all who are ill or called so."""
        among = (self.label > 0.5) | (self.predicted[0] >= 0.5)
        people = len(np.unique(self.people[among]))
        share = value / (2 - value)
        left = self.left_out["f1"] / (2 - self.left_out["f1"])
        factor = moved(jackknifed(left) ** 2, share * (1 - share) / people, people)
        low, high = wilson(share, people / factor, z)
        return 2 * low / (1 + low), 2 * high / (1 + high)

    def _of_overlaps(self, metric: str, z: float) -> Bounds:
        """Over classes F1 is nearly a mean of shares: an error costs the one and the other class.

        As if all classes were told alike, of as many people as their weights come to, of those who
        are of a class or called so. From each class's own interval it would cover .82 near 1.
        """
        held, said = self._held, [self._said(told) for told in self.predicted]
        classes = np.unique([held, *said])
        among = [np.any([own == one for own in (held, *said)], axis=0) for one in classes]
        people = np.array([len(np.unique(self.people[part])) for part in among])
        if metric == "f1_weighted":
            n = _as_sure_as(people, np.array([(held == one).mean() for one in classes]))
            return self._of_mean_share(metric, n, int(n), z)
        n = _as_sure_as(people, np.full(len(classes), 1 / len(classes)))
        # of the few people of a rare class more is believed, and Student's quantile: else .91
        return self._of_mean_share(metric, n, int(3 * n), _student(z, int(n) + 1))


def difference(
    ours: Judged, theirs: Judged, metric: str, confidence: float, *, tested: bool = True
) -> Difference:
    """`ours` minus `theirs` in `metric`, of the same samples; without p unless it is `tested`.

    The p-value is that of the widest interval which leaves out zero, so that it is below 5 % where
    a 95 % interval does.
    """
    value = ours.value(metric) - theirs.value(metric)
    if metric in ("auc", "accuracy", "balanced_accuracy"):
        return _recovered(ours, theirs, metric, value, confidence, tested=tested)
    apart = ours.left_out[metric] - theirs.left_out[metric]
    error, z = jackknifed(apart), z_of(confidence)
    if not np.isfinite(error) or len(apart) < metrics.FEWEST:
        return Difference(value=value, bounds=None, p=None)
    half = _student(z, len(apart)) * error
    p = None
    if tested:
        p = float(value == 0) if not error or not value else \
            2 * float(stats.t.sf(abs(value) / error, len(apart) - 1))  # fmt: skip
    return Difference(value=value, bounds=(value - half, value + half), p=p)


def _recovered(
    ours: Judged, theirs: Judged, metric: str, value: float, confidence: float, *, tested: bool
) -> Difference:
    """From each model's own interval, and how they vary together."""
    together = _correlation(ours, theirs, metric)
    one, other = ours.value(metric), theirs.value(metric)

    def bounds(z: float) -> Bounds | None:
        of_one, of_other = ours.bounds(metric, z), theirs.bounds(metric, z)
        if of_one is None or of_other is None:
            return None
        below = _reach(one - of_one[0], of_other[1] - other, together)
        above = _reach(of_one[1] - one, other - of_other[0], together)
        return value - below, value + above

    found = bounds(z_of(confidence))
    if found is None or not tested:
        return Difference(value=value, bounds=found, p=None)

    def nearest(z: float) -> float:
        low, high = bounds(z) or (0.0, 0.0)
        return low if value > 0 else -high

    least, most = _SURE
    z = least if nearest(least) <= 0 else most if nearest(most) >= 0 else \
        optimize.brentq(nearest, least, most)  # fmt: skip
    p = 1.0 if z == least else 2 * float(stats.norm.sf(z))
    return Difference(value=value, bounds=found, p=p)


def _correlation(ours: Judged, theirs: Judged, metric: str) -> float:
    """How two models' metrics vary together, less where few people of a class tell it.

    Of two ill people among twenty it is mostly chance; believed, intervals of areas at .6 cover
    .88, and with this factor .96 to .98.
    """
    if metric == "auc":
        both = areas(ours.label, [*ours.predicted, *theirs.predicted], ours.people)
        first, second = len(ours.predicted), len(theirs.predicted)
        of = np.zeros((2, first + second))
        of[0, :first], of[1, first:] = 1 / first, 1 / second
        covariance = of @ both.covariance @ of.T
    else:
        covariance = np.cov(ours.left_out[metric], theirs.left_out[metric])
    spread = float(covariance[0, 0] * covariance[1, 1]) ** 0.5
    if not spread > 0:  # nor where it is not defined
        return 0.0
    fewest = min(len(np.unique(ours.people[ours.label == one])) for one in np.unique(ours.label))
    return float(np.clip(covariance[0, 1] / spread, -1, 1)) * (fewest - 1) / (fewest + 1)


def _reach(one: float, other: float, together: float) -> float:
    return float(np.sqrt(max(one * one + other * other - 2 * together * one * other, 0.0)))


def _as_sure_as(people: NDArray[np.int64], weights: Float64) -> float:
    """Of how many people one share is as sure as the weighted mean of shares of so many each."""
    return float(1 / (np.square(weights) / people).sum())


def wilson(share: float, people: float, z: float) -> Bounds:
    """Score interval of a share of so many people, who may be a fraction.

    >>> low, high = wilson(0.5, 10, 1.96)
    >>> round(low, 3), round(high, 3)
    (0.237, 0.763)
    """
    shrunk = (share + z * z / (2 * people)) / (1 + z * z / people)
    half = z / (1 + z * z / people) * (
        share * (1 - share) / people + z * z / (4 * people * people)
    ) ** 0.5  # fmt: skip
    return max(shrunk - half, 0.0), min(shrunk + half, 1.0)


def jackknifed(left_out: Float64) -> float:
    """Standard error of a metric, from its values without each of G equal groups; NaN if any is.

    Of a mean it is the usual one times (G / (G - 1)) ** 0.5: without that, intervals of slopes over
    20 people cover .93.

    >>> round(jackknifed(np.array([2.5, 2.0, 1.5])), 4) == round(0.5**0.5, 4)
    True
    """
    return float(np.sqrt(np.square(left_out - left_out.mean()).sum()))


def z_of(confidence: float) -> float:
    """Normal standard errors to each side of an interval."""
    return float(stats.norm.ppf((1 + confidence) / 2))


def _student(z: float, groups: int) -> float:
    """As many of Student's as leave the same out."""
    return float(stats.t.isf(stats.norm.sf(z), groups - 1))
