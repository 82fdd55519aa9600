"""What a report may say at all, known from study, order and census before it is read.

Every number of a report has a name that the study and the order decide, and a largest value that
follows from what the site said it holds. Whatever has no name here is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from common import metrics
from common.comparisons import HEAD
from common.label_sums import MEDIAN
from common.protocol.orders import Order, Report
from common.schemes import MOST_REPEATS
from common.seams import LABELS, SHARED, TERM
from common.sections import CALIBRATED, FineTuning, Target, calibrated
from common.study import Study
from server.federation.census import POOLED

HELD: Final = "scans"  # group of a census that holds everything
INCOMPLETE: Final = "incomplete"  # group of those that lack a column, where a study lets them
LARGEST: Final = float(np.finfo(np.float32).max)  # of any value that a network may have made
WITH_ROWS: Final = (
    "train",
    "finetune",
    "protocol",
    "judge",
    "explain",
    "cross",
    "evaluate",
)  # orders that measure
TUNED: Final = ("finetune", "judge")  # those of them about models of one task, one a draw
COUNTED: Final = {"train": ("loss", "validation-loss")}  # what comes as mergeable sums
_TEXT: Final = 1 << 20  # bytes of a report without a row
_TEXT_OF_ROW: Final = 1 << 10
_AT_CHOSEN: Final = "balanced_accuracy" + metrics.CHOSEN
# lowest values of what is at most 1
_SHARES: Final = {
    "auc": 0.0, "accuracy": 0.0, "balanced_accuracy": 0.0, "r": -1.0, metrics.AGREEMENT: -1.0,
    "f1": 0.0, **dict.fromkeys(metrics.F1S, 0.0), "brier": 0.0, "ece": 0.0, "r2": -LARGEST,
    _AT_CHOSEN: 0.0,
    metrics.SAID: 0.0,
    **{
        metrics.without(share) + way: 0.0
        for share in metrics.DELETED for way in ("", metrics.AT_RANDOM)
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Most:
    """How many scans and people a site may speak of, by group: its census, or the study's limit."""

    study: Study
    site: str
    census: Report | None

    def scans(self, group: str) -> int:
        """Scans of the site; of a group of labels, those that are labelled."""
        return self._of(self.census.support if self.census else None, group)

    def people(self, group: str) -> int:
        """The people whom they are of."""
        return self._of(self.census.participants if self.census else None, group)

    def _of(self, held: Mapping[str, int] | None, group: str) -> int:
        if held is not None:
            return held.get(HELD if group == SHARED or group.startswith(TERM) else group, 0)
        several = len(self.study.sites.train) if self.site == POOLED else 1
        return self.study.sites.most_scans * several


def role_of(study: Study, site: str) -> str:
    """A site's role; one that the study does not name was asked to judge later."""
    return "train" if site in (*study.sites.train, POOLED) else "heldout"


def targets_of(study: Study, order: Order) -> Mapping[str, Target]:
    """The targets that an order's answer may speak of."""
    task = _task(study, order)
    return study.targets if task is None else {task.target: study.targets[task.target]}


def models_of(study: Study, order: Order) -> tuple[str, ...]:
    """The models that an order has measured, beside its own those that nobody trained with it."""
    if order.kind == "cross":
        return tuple(f"{HEAD}{site}" for site in study.sites.train if site != order.site)
    found = [order.model]
    if order.kind == "evaluate":
        found += [f"{order.model}+head"] * (order.model in ("federated", POOLED))
        found += ["constant", "site-mean", "site-linear"] * (order.model == "federated")
        counts = study.evaluation.calibration if order.model == "federated" else ()
        found += [calibrated(order.model, k) for k in counts]
    if order.kind in TUNED and not order.against:  # the same for all ways of a task
        found.append(MEDIAN)
    return tuple(found)


def metrics_of(study: Study, order: Order, target: Target, model: str) -> tuple[str, ...]:
    """Every metric that may be told of one model and target; differences of the order's own."""
    if order.kind == "explain":
        task = _task(study, order)
        return metrics.of_maps(target, by_relevance=task is not None and task.maps == "relevance")
    if order.kind == "train":
        return metrics.of_rounds(target)
    told, first = metrics.names(target), metrics.primary(target)
    if order.kind == "evaluate" and target.kind == "binary":
        told = (*told, _AT_CHOSEN)
    if order.kind == "protocol":
        alone = (first, first + metrics.MEDIAN, first + metrics.OVER_DRAWS, metrics.REPEATS)
        ends = ("", metrics.FLIPPED, metrics.WITHIN)
        return (*alone, *(f"{first}_minus_{rival}{end}" for rival in order.against for end in ends))
    if model.startswith(f"{order.model}{CALIBRATED}"):
        return (*told, f"{first}_minus_{order.model}")
    if order.kind in TUNED:
        told = _of_tuned(target, model)
    if model != order.model:
        return told
    return (*told, *(f"{first}_minus_{rival}" for rival in order.against))


def _of_tuned(target: Target, model: str) -> tuple[str, ...]:
    """Of a tuned model, or of the median beside it, which only numbers have."""
    told, first = metrics.names(target), metrics.primary(target)
    if model == MEDIAN:
        return (*told, first + metrics.OVER_DRAWS) if target.kind == "regression" else ()
    more = {"regression": f"{first}_minus_{MEDIAN}", "binary": _AT_CHOSEN}
    beside = [more[target.kind]] if target.kind in more else []
    return (*told, first + metrics.OVER_DRAWS, *beside)


def repeats_of(study: Study, order: Order, metric: str = "") -> int:
    """How often each number is measured; what is told of all draws at once, once."""
    task, protocol = _task(study, order), study.protocol(order.task)
    if task is None or order.kind == "cross" or metrics.is_of_all_draws(metric):
        return 1
    if protocol is not None:
        return protocol.total
    return task.repeats * (task.draws if order.k else 1)


def bounds_of(target: Target, metric: str) -> tuple[float, float]:
    """The least and the largest value of a metric, or of a difference of two models in it."""
    if metric == metrics.REPEATS or metric.endswith(metrics.WITHIN):
        return 0.0, float(MOST_REPEATS) if metric == metrics.REPEATS else 1.0
    plain = metric.removesuffix(metrics.OVER_DRAWS).removesuffix(metrics.MEDIAN)
    name, _, rival = plain.partition("_minus_")
    if name in _SHARES:
        return (-1.0 if rival else _SHARES[name]), 1.0
    return (-LARGEST if rival or name in metrics.OF_A_LINE else 0.0), LARGEST


def most_rows(study: Study, order: Order) -> int:
    """Measurements in a full answer to `order`."""
    if order.kind not in WITH_ROWS:
        return 0
    return sum(
        repeats_of(study, order, metric)
        for target in targets_of(study, order).values()
        for model in models_of(study, order)
        for metric in metrics_of(study, order, target, model)
    )


def longest_text(study: Study, order: Order) -> int:
    """Bytes that the text of an answer to `order` may have; a row of ours has about 350."""
    return _TEXT + _TEXT_OF_ROW * most_rows(study, order)


def groups_of(study: Study, order: Order) -> frozenset[str]:
    """Groups whose scans and people an answer may count, where no plan of arrays says it."""
    if order.kind != "census":
        return frozenset()
    lacking = (INCOMPLETE,) if getattr(study.data, "missing_columns", 0) else ()
    return frozenset((HELD, *lacking, *(LABELS + name for name in study.targets)))


def _task(study: Study, order: Order) -> FineTuning | None:
    protocol = study.protocol(order.task)
    name = order.task if protocol is None else protocol.task
    return next((task for task in study.finetuning if task.name == name), None)
