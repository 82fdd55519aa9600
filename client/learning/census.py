"""What a site holds for a study, in counts; and the sums that a network's constants are made of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from client.answer import Answer
from client.data.cohort import Cohort
from client.data.loading import batches, split_evenly
from client.learning.support import learnt_from, people_among, support_of
from client.learning.training import lay_out
from client.site import Site
from common.arrays import Arrays
from common.errors import Refusal
from common.network.settling import added, settling, sums_of, sums_plan
from common.study import Study

HELD = "scans"  # group of a census: everything that is usable
_AT_ONCE = 256  # samples


def census(study: Study, site: Site, cohort: Cohort) -> Answer:
    """Counts of scans, people and labels; nothing of what the labels are.

    Raises
    ------
    Refusal
        NO_DATA if a training site has nothing to train on.
    """
    if site.role == "train":
        training = cohort.indices("train", study.splits)
        if len(training) < 2:
            raise Refusal("NO_DATA", f"{len(training)} training samples")
    support, participants = support_of(cohort, np.arange(len(cohort)), HELD, study.targets)
    return Answer(support=support, participants=participants)


def settle(study: Study, cohort: Cohort, network: Any, number: int, device: torch.device) -> Answer:
    """Sums over the training samples for the network's modules that settle, in float64."""
    modules, training = settling(network), cohort.indices("train", study.splits)
    lay_out(network, device)
    network.eval()
    total: Arrays = {}
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(training, _AT_ONCE), device):
            sums = sums_of(modules, batch.x, batch.labels, number)
            total = added([total, {name: value.cpu().numpy() for name, value in sums.items()}])
    network.to("cpu")
    plan = sums_plan(study, modules, number)
    people = people_among(cohort, training)
    return Answer(
        arrays=total,
        expected=plan,
        behind=dict.fromkeys(total, people),
        reveals=max(1, sum(math.prod(r.shape) for r in plan.values()) // math.prod(study.shape)),
    )


def lacking_labels(study: Study, site: Site, cohort: Cohort) -> str:
    """What to tell a training site whose samples have no label that is learnt; or nothing."""
    everyone = cohort.indices("train", study.splits)
    _, learnt = learnt_from(study, cohort, site.policy.minimum_support)
    if site.role != "train" or len(learnt) == len(everyone):
        return ""
    names = " or ".join(study.pretraining_targets)
    found = (
        f"{len(everyone) - len(learnt)} of {len(everyone)} training samples have no label of "
        f"{names} that is learnt; nothing is learnt from them, and they weigh nothing"
    )
    return found if len(learnt) else f"{found}. This site cannot train; see callosum-site check"
