"""Reports become the next arrays: pure functions, one array at a time, in float64, in site order.

Each array is averaged by its group's support (scans for the backbone, labels held for a head), so a
site without labels of a target leaves that target's head alone. Parameters then pass through the
server optimiser; statistics of normalisation layers never do, since momentum makes variances
negative. Formulas follow Reddi et al. 2021 as in Flower's strategies, which are the tests' oracles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays, weighted_mean
from common.network import Plan, Rule
from common.study import Aggregation

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One accepted report: its site, support by group, and how to read one of its arrays."""

    site: str
    support: Mapping[str, float]
    read: Callable[[str], NDArray[Any]]


def aggregate(
    plan: Plan,
    current: Arrays,
    contributions: Sequence[Contribution],
    settings: Aggregation,
    state: Arrays,
    round_number: int,
) -> tuple[Arrays, Arrays]:
    """The next global arrays and the server optimiser's next state.

    Parameters
    ----------
    current : the round's global arrays
    contributions : accepted reports, any order
    state : the optimiser's moments by ``"m/NAME"`` and ``"v/NAME"``; empty before the first round
    round_number : from 1
    """
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    following: Arrays = {}
    moments = dict(state)
    for name in sorted(plan):
        rule = plan[name]
        mean = _mean(rule, name, ordered)
        if mean is None:
            following[name] = current[name]
            continue
        if rule.role == "parameter":
            mean = _optimised(settings, name, current[name], mean, moments, round_number)
        following[name] = mean.astype(rule.dtype)
    return following, moments


def _mean(rule: Rule, name: str, contributions: Sequence[Contribution]) -> Float64 | None:
    if not rule.travels:
        return None
    return weighted_mean(
        (share, contribution.read(name))
        for contribution in contributions
        if (share := contribution.support.get(rule.group, 0)) > 0
    )


def _optimised(
    settings: Aggregation,
    name: str,
    current: NDArray[Any],
    mean: Float64,
    moments: Arrays,
    round_number: int,
) -> Float64:
    """The server optimiser's step from `current` along the averaged update; `moments` move on."""
    if settings.server_optimiser == "fedavg":
        return mean
    start = current.astype(np.float64)
    update = mean - start
    if settings.server_optimiser == "fedavgm":
        earlier = moments.get(f"m/{name}")
        first = update if earlier is None else settings.momentum * earlier + update
        moments[f"m/{name}"] = first
        return start + settings.learning_rate * first
    beta_1 = 0.0 if settings.server_optimiser == "fedadagrad" else settings.beta_1
    first = beta_1 * moments.get(f"m/{name}", np.zeros_like(update)) + (1 - beta_1) * update
    earlier = moments.get(f"v/{name}", np.zeros_like(update))
    second = _second_moment(settings, earlier, update**2)
    moments[f"m/{name}"], moments[f"v/{name}"] = first, second
    rate = settings.learning_rate
    if settings.server_optimiser == "fedadam":  # Flower corrects the bias with round + 1
        step = round_number + 1.0
        rate *= np.sqrt(1 - settings.beta_2**step) / (1 - settings.beta_1**step)
    return start + rate * first / (np.sqrt(second) + settings.tau)


def _second_moment(settings: Aggregation, earlier: Float64, square: Float64) -> Float64:
    if settings.server_optimiser == "fedadagrad":
        return earlier + square
    if settings.server_optimiser == "fedyogi":
        return earlier - (1 - settings.beta_2) * square * np.sign(earlier - square)
    return settings.beta_2 * earlier + (1 - settings.beta_2) * square
