"""Heads that other sites tuned and agreed to send, judged on this site's test participants.

A head stands on what every site has: features of the shared backbone, or regional measures. Arrays
of an order are called `SITE/linear/TARGET/PART`.
"""

from __future__ import annotations

import numpy as np

from client.answer import Answer, Measured
from client.learning.finetuning import Tuning
from client.learning.linear import Features, Indices, LinearModel
from client.learning.measurement import Floats, measure
from client.learning.tuned_models import TunedModel
from common.arrays import Arrays
from common.comparisons import HEAD
from common.errors import Refusal
from common.network.plan import rules_of
from common.sections import Target


def by_site(heads: Arrays) -> dict[str, Arrays]:
    """Each site's arrays, under the names that it gave them."""
    found: dict[str, Arrays] = {}
    for name, array in heads.items():
        site, _, own = name.partition("/")
        found.setdefault(site, {})[own] = array
    return found


def sent_head(tuning: Tuning, model: TunedModel) -> Answer:
    """A kept head, as it goes to others: of each feature its mean, its spread and the weights."""
    people = tuning.learnt_from(tuning.order.repeat)
    return Answer(
        arrays=model.arrays,
        expected=rules_of(model.arrays),
        behind=dict.fromkeys(model.arrays, people),
        reveals=2 + tuning.task.target.outputs,
    )


def judge_heads(tuning: Tuning, heads: Arrays) -> list[Measured]:
    """Every metric of each head but this site's own, which it has measured when it was tuned.

    Raises
    ------
    Refusal
        ORDER_MALFORMED if a head is none for these features, NO_DATA without labels to judge by.
    """
    task, cohort, order = tuning.task, tuning.cohort, tuning.order
    name, test = task.target_name, tuning.tested
    if not len(test):
        raise Refusal("NO_DATA", f"no labelled test scans for {name}")
    features = tuning.features()
    rows: list[Measured] = []
    for site, arrays in sorted(by_site(heads).items()):
        if site == tuning.site.name:
            continue
        told = _told(name, task.target, arrays, features, test)
        if told is None:
            raise Refusal("ORDER_MALFORMED", f"the head of {site} is none for these features")
        rows += measure(
            tuning.study, tuning.site, cohort, order, name, test, told, task.name, f"{HEAD}{site}"
        )
    own = {"init": order.init, "method": order.method, "k": order.k}
    return [Measured(one.row.model_copy(update=own), one.people) for one in rows]


def _told(
    name: str, target: Target, arrays: Arrays, features: Features, test: Indices
) -> Floats | None:
    """What a head says of the samples `test`; None if it is none, whoever made it."""
    try:
        head = LinearModel.from_arrays(name, target, arrays)
    except KeyError:
        return None
    if not head.takes(features.shape[1]):
        return None
    with np.errstate(all="ignore"):
        told = head.predict(features, test)
    return told if np.isfinite(told).all() else None
