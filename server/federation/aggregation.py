"""Reports become the next arrays: pure functions, one array at a time, in float64, in site order.

Each array is averaged by its group's support (what entered a loss for the backbone, labels for a
head; scans or people, as the study says), so a
site without labels of a target leaves that target's head alone. Parameters then pass through the
server optimiser; statistics of normalisation layers never do, since momentum makes variances
negative: they become those of all sites' samples together, so that a variance is the mean of the
sites' and that of their means besides. Formulas follow Reddi et al. 2021 as in Flower's strategies,
which are the tests' oracles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays, Rows, blocks, weighted_mean
from common.network.plan import Plan
from common.sections import Aggregation

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One accepted report: its site, support by group, and how to reach one of its arrays."""

    site: str
    support: Mapping[str, float]
    read: Callable[[str], Rows]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The next arrays and moments, and how far the arrays moved (Euclidean norm)."""

    arrays: Arrays
    state: Arrays
    moved: float


def aggregate(
    plan: Plan,
    current: Mapping[str, Rows],
    contributions: Sequence[Contribution],
    settings: Aggregation,
    state: Mapping[str, Rows],
    round_number: int,
) -> Aggregated:
    """The next global arrays and the server optimiser's next state.

    Beside its results it holds a few blocks of one array, however many sites and however large.

    Parameters
    ----------
    current : the round's global arrays
    contributions : accepted reports, any order
    state : the optimiser's moments by ``"m/NAME"`` and ``"v/NAME"``; empty before the first round
    round_number : from 1
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    following: Arrays = {}
    moments: Arrays = {}
    squares = 0.0
    for name in sorted(plan):
        rule = plan[name]
        terms = [
            (share, contribution.read)
            for contribution in ordered
            if rule.travels and (share := contribution.support.get(rule.group, 0)) > 0
        ]
        step = _Step(settings, name, round_number, state, moments)
        following[name] = np.empty(rule.shape, rule.dtype)
        for part in blocks(rule.shape):
            now = current[name][part]
            if not terms:
                following[name][part] = now
                continue
            mean = weighted_mean((share, read(name)[part]) for share, read in terms)
            assert mean is not None  # every share is above zero
            if rule.role == "parameter":
                mean = step.taken(now, mean, part, rule.shape)
            elif (centre := _centre_of(plan, name)) is not None:
                mean += _between([(share, read(centre)[part]) for share, read in terms])
            following[name][part] = mean
            moved = np.subtract(following[name][part], now, dtype=np.float64)
            squares += float(np.sum(np.square(moved)))
    for name in set(state) - set(moments):  # of arrays that nobody sent in this round
        moments[name] = np.array(state[name][...])
    return Aggregated(following, moments, math.sqrt(squares))


def _centre_of(plan: Plan, name: str) -> str | None:
    """The running mean that belongs to a running variance."""
    layer, dot, kind = name.rpartition(".")
    centre = f"{layer}{dot}running_mean"
    return centre if kind == "running_var" and centre in plan else None


def _between(terms: Sequence[tuple[float, NDArray[Any]]]) -> Float64:
    """The variance of sites' means: 0 of one site, to the bit."""
    centre = weighted_mean(terms)
    assert centre is not None  # every share is above zero
    between = weighted_mean((share, np.square(mean - centre)) for share, mean in terms)
    assert between is not None
    return between


@dataclass(frozen=True, slots=True)
class _Step:
    """The server optimiser's step for one array, by parts; its moments are filled on the way."""

    settings: Aggregation
    name: str
    round_number: int
    state: Mapping[str, Rows]
    moments: Arrays

    def taken(
        self,
        current: NDArray[Any],
        mean: Float64,
        part: slice | EllipsisType,
        shape: tuple[int, ...],
    ) -> Float64:
        """From `current` along the averaged update."""
        settings = self.settings
        if settings.server_optimiser == "fedavg":
            return mean
        start = current.astype(np.float64)
        update = mean - start
        earlier = self._earlier("m", part)
        if settings.server_optimiser == "fedavgm":
            first = update if earlier is None else settings.momentum * earlier + update
            self._keep("m", part, shape, first)
            return start + settings.learning_rate * first
        beta_1 = 0.0 if settings.server_optimiser == "fedadagrad" else settings.beta_1
        zero = np.zeros_like(update)
        first = beta_1 * (zero if earlier is None else earlier) + (1 - beta_1) * update
        before = self._earlier("v", part)
        second = _second_moment(settings, zero if before is None else before, update**2)
        self._keep("m", part, shape, first)
        self._keep("v", part, shape, second)
        rate = settings.learning_rate
        if settings.server_optimiser == "fedadam":  # Flower corrects the bias with round + 1
            step = self.round_number + 1.0
            rate *= np.sqrt(1 - settings.beta_2**step) / (1 - settings.beta_1**step)
        return start + rate * first / (np.sqrt(second) + settings.tau)

    def _earlier(self, which: str, part: slice | EllipsisType) -> Float64 | None:
        rows = self.state.get(f"{which}/{self.name}")
        return None if rows is None else np.asarray(rows[part], dtype=np.float64)

    def _keep(
        self, which: str, part: slice | EllipsisType, shape: tuple[int, ...], moment: Float64
    ) -> None:
        whole = self.moments.setdefault(f"{which}/{self.name}", np.empty(shape))
        whole[part] = moment


def _second_moment(settings: Aggregation, earlier: Float64, square: Float64) -> Float64:
    if settings.server_optimiser == "fedadagrad":
        return earlier + square
    if settings.server_optimiser == "fedyogi":
        return earlier - (1 - settings.beta_2) * square * np.sign(earlier - square)
    return settings.beta_2 * earlier + (1 - settings.beta_2) * square
