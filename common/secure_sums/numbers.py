"""What a training report tells in numbers, as one row to be masked and summed with the others'.

Scans and people by group, sums of losses, metrics of validation times the scans behind them: the
coordinator merges all of these over sites anyway, and of one site it now learns none. A number that
the site withholds, because too few people stand behind it, is 0 of 0 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common import metrics
from common.network.plan import Plan, Rule
from common.protocol.orders import Report
from common.seams import SHARED
from common.secure_sums.ring import from_fractions, in_fractions
from common.secure_sums.updates import scale_of
from common.study import Study

NUMBERS: Final = "secure-sums/numbers"  # beside the network's arrays; none of them has a slash
_LOSSES: Final = ("loss", "validation-loss")
_METRIC: Final = "metric"


@dataclass(frozen=True, slots=True)
class Row:
    """The row's places, by name, as study and network decide them.

    groups: of arrays that are averaged alike; losses: terms of the loss; measured: target and
    metric.
    """

    groups: tuple[str, ...]
    losses: tuple[str, ...]
    measured: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One for each place, or two: a sum, and how many are in it."""
        counted = [f"{what}/{group}" for group in self.groups for what in ("support", "people")]
        sums = [f"{what}/{term}" for term in self.losses for what in _LOSSES]
        sums += [f"{_METRIC}/{target}/{metric}" for target, metric in self.measured]
        return (*counted, *(f"{name}/{end}" for name in sums for end in ("sum", "n")))


@dataclass(frozen=True, slots=True)
class Sums:
    """The row of several sites together."""

    support: Mapping[str, int]
    participants: Mapping[str, int]
    counts: Mapping[str, tuple[float, float]]
    validation: Mapping[str, dict[str, float]]


def row_of(study: Study, plan: Plan, terms: Sequence[str]) -> Row:
    """The row of a study's rounds; `terms` are those of its network's loss."""
    groups = {rule.group for rule in plan.values() if rule.travels} | {SHARED}
    measured = [
        (name, metric)
        for name, target in sorted(study.targets.items())
        for metric in metrics.of_rounds(target)
        if metrics.together(metric, [0.5], [1.0]) is not None
    ]
    return Row(tuple(sorted(groups)), tuple(sorted(terms)), tuple(measured))


def plan_of_masked(study: Study, plan: Plan, row: Row) -> Plan:
    """What a masked training report holds: every array as steps, and the row."""
    found = {
        name: _rule(rule.shape, str(scale_of(study, rule).dtype))
        for name, rule in plan.items()
        if rule.travels
    }
    return {**found, NUMBERS: _rule((len(row.names),), "int64")}


def written(report: Report, row: Row) -> NDArray[np.int64]:
    """A report's numbers as they passed the gate, in the row's order."""
    found: dict[str, int] = {}
    for group in row.groups:
        found[f"support/{group}"] = report.support.get(group, 0)
        found[f"people/{group}"] = report.participants.get(group, 0)
    for name, (total, n) in report.counts.items():
        _enter(found, name, total, int(n))
    for one in report.measurements:
        if (one.target, one.metric) in row.measured and one.value is not None:
            value = one.value ** _power(one.metric) * one.n_scans
            _enter(found, f"{_METRIC}/{one.target}/{one.metric}", value, one.n_scans)
    return np.array([found.get(name, 0) for name in row.names], dtype=np.int64)


def read(total: NDArray[Any], row: Row) -> Sums:
    """What the sum of several sites' rows says."""
    told = dict(zip(row.names, (int(each) for each in total), strict=True))
    counts = {
        f"{what}/{term}": (from_fractions(told[f"{what}/{term}/sum"]), float(n))
        for term in row.losses
        for what in _LOSSES
        if (n := told[f"{what}/{term}/n"]) > 0
    }
    validation: dict[str, dict[str, float]] = {}
    for target, metric in row.measured:
        name = f"{_METRIC}/{target}/{metric}"
        if (n := told[f"{name}/n"]) > 0:
            mean = from_fractions(told[f"{name}/sum"]) / n
            of = validation.setdefault(target, {"n": 0})
            of["n"] = max(of["n"], n)
            of[metric] = max(0.0, mean) ** (1 / _power(metric))
    return Sums(
        support={group: told[f"support/{group}"] for group in row.groups},
        participants={group: told[f"people/{group}"] for group in row.groups},
        counts=counts,
        validation=validation,
    )


def _enter(found: dict[str, int], name: str, total: float, n: int) -> None:
    steps = in_fractions(total)
    if steps is not None:  # else it stays here, as what too few people stand behind
        found[f"{name}/sum"], found[f"{name}/n"] = steps, n


def _power(metric: str) -> int:
    return 2 if metric == "rmse" else 1


def _rule(shape: tuple[int, ...], dtype: str) -> Rule:
    return Rule(shape=shape, dtype=dtype, group=SHARED, role="statistic", kept=False)
