"""Which differences of a page may be called better or worse: all of them judged together.

Of a hundred models that are equal, five differ at 5 % each. A page's p-values are therefore
adjusted together (Holm 1979), whatever they depend on; and a site tells none where too few people
stand behind it (`client/learning/intervals.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from common import metrics
from common.protocol.orders import Measurement
from common.sections import Target

Verdict = Literal[
    "", "federated better", "federated worse", "not distinguishable", "too few people"
]
LEVEL: Final = 0.05


def adjusted(rows: Iterable[Measurement]) -> Mapping[Measurement, float]:
    """Every row of a run that has a p-value, with it as adjusted for all the others.

    All models, targets, sites and tasks are one family: whoever reads a page for what is better
    reads all of it. Of repeats' signs no verdict is made: they take draws for independent.
    """
    tested = {
        row: row.p for row in rows if row.p is not None and not row.metric.endswith(metrics.FLIPPED)
    }
    return dict(zip(tested, holm(list(tested.values())), strict=True))


def verdict(target: Target, difference: float | None, p: float | None) -> Verdict:
    """Of a model that is the rival's value less the federated one, by the adjusted `p`."""
    if difference is None:
        return ""
    if p is None:
        return "too few people"
    if p >= LEVEL or difference == 0:
        return "not distinguishable"
    lower_is_better = target.kind == "regression"
    return "federated better" if (difference > 0) == lower_is_better else "federated worse"


def holm(p: Sequence[float]) -> list[float]:
    """p-values that may each be compared with a level that holds for all together (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        found[place] = highest
    return found
