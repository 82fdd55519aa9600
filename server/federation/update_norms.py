"""How far sites moved a round's arrays, and which of them moved further than the others can have.

Every site's update foretells how far another would have come: as far, and where that one made more
local steps, further in proportion, since each step is at most as long. So a hospital with ten times
the scans may move ten times as far, and one with few is measured by what it moved at all. The
lower median of what all foretell, times ten, is the bound: of two sites the shorter update decides.
That alone would let one of two sites shut the other out by moving nothing, so nobody is refused for
what the study's own optimiser reaches in as many steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from common.arrays import Rows, blocks
from common.network.plan import Plan
from common.protocol.orders import Report
from common.seams import SHARED
from common.study import Study

_MULTIPLE: Final = 10.0
_STATISTICS_MULTIPLE: Final = 1e3  # of their first values: activations may be of any scale
_ADAM_STEP: Final = 3.2  # learning rates that Adam moves a number at most: (1 - b1) / sqrt(1 - b2)


@dataclass(frozen=True, slots=True)
class Moved:
    """Euclidean norms of a difference: over what an optimiser moves, and over statistics."""

    parameters: float
    statistics: float

    @classmethod
    def to(
        cls,
        plan: Plan,
        arrays: Mapping[str, Rows],
        current: Mapping[str, Rows] | None = None,
    ) -> Self:
        """From `current`, or from nothing, to `arrays`, over what sites send."""
        squares = {"parameter": 0.0, "statistic": 0.0}
        for name, rule in plan.items():
            if rule.travels:
                after, before = arrays[name], current[name] if current is not None else None
                for part in blocks(rule.shape):
                    start = before[part] if before is not None else 0.0
                    squares[rule.role] += _square(after[part], start)
        return cls(math.sqrt(squares["parameter"]), math.sqrt(squares["statistic"]))


def overlong(
    study: Study,
    plan: Plan,
    reports: Mapping[str, Report],
    moved: Mapping[str, Moved],
    lengths: Moved,
) -> list[str]:
    """The sites whose updates are too long to be averaged.

    Parameters
    ----------
    reports, moved : accepted reports, and how far their arrays are from the round's, by site
    lengths : norms of the round's arrays themselves
    """
    sites = sorted(reports)
    steps = np.array([_steps(study, reports[site]) for site in sites])
    parameters = np.array([moved[site].parameters for site in sites])
    statistics = np.array([moved[site].statistics for site in sites])
    size = sum(math.prod(r.shape) for r in plan.values() if r.travels and r.role == "statistic")
    still = _STATISTICS_MULTIPLE * (lengths.statistics + math.sqrt(size))
    found = []
    for number, site in enumerate(sites):
        foretold = parameters * np.maximum(1.0, steps[number] / steps)
        least = _reach(study, plan, int(steps[number]), lengths)
        too_far = parameters[number] > max(_MULTIPLE * _lower_median(foretold), least)
        too_strange = statistics[number] > max(_MULTIPLE * _lower_median(statistics), still)
        if too_far or too_strange:
            found.append(site)
    return found


def _square(array: NDArray[Any], before: NDArray[Any] | float) -> float:
    return float(np.sum(np.square(np.subtract(array, before, dtype=np.float64))))


def _lower_median(values: NDArray[np.float64]) -> float:
    middle = (len(values) - 1) // 2
    return float(np.partition(values, middle)[middle])


def _steps(study: Study, report: Report) -> int:
    """Local steps that the scans of a report's losses take."""
    settings = study.pretraining
    return settings.local_epochs * max(1, -(-report.support[SHARED] // settings.batch_size))


def _reach(study: Study, plan: Plan, steps: int, lengths: Moved) -> float:
    """How far the study's local optimiser can move all parameters in so many steps.

    Where nothing bounds a step, as with sgd without clipping: as far as the arrays are long.
    """
    settings = study.pretraining
    if settings.optimiser != "sgd":
        size = sum(math.prod(r.shape) for r in plan.values() if r.travels and r.role == "parameter")
        return settings.learning_rate * steps * _ADAM_STEP * math.sqrt(size)
    if settings.gradient_clip:
        longest = settings.gradient_clip / (1 - settings.momentum)
        return settings.learning_rate * steps * longest
    return lengths.parameters
