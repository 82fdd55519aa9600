"""What the median of a site's own training labels gives: the rival that every tuned model has.

It is the median over all training participants of the task, however few a model learnt from: of
five people's labels it would nearly be one person's label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.answer import Measured
from client.data.cohort import Cohort
from client.learning.measurement import Floats, difference, mean_over_draws, measure
from client.learning.support import people_among
from client.site import Site
from common.label_sums import MEDIAN
from common.protocol.orders import Order
from common.study import Study


def beside_median(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    name: str,
    test: NDArray[np.int64],
    told: Sequence[Floats],
    task: str,
) -> list[Measured]:
    """How far models lie from it on the test participants; and it alone, in the first way's answer.

    Nothing of classes, where it says chance, nor of fewer people than the site's minimum.
    """
    train = cohort.indices("train", study.splits)
    label = cohort.labels[name][train]
    learnt = train[~np.isnan(label)]
    if study.targets[name].kind != "regression":
        return []
    if people_among(cohort, learnt) < site.policy.minimum_support:
        return []
    said = np.full(len(test), float(np.median(cohort.labels[name][learnt])))
    found = (study, site, cohort, order, name, test)
    rows = difference(*found, list(told), [said] * len(told), MEDIAN, task)
    if order.against:
        return rows
    rows += measure(*found, said, task, model=MEDIAN)
    if len(told) > 1:
        rows += [
            Measured(one.row.model_copy(update={"model": MEDIAN}), one.people)
            for one in mean_over_draws(*found, [said], task)
        ]
    return rows
