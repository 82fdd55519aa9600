"""What a site holds for a study, in counts; and the sums that a network's constants are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from client.data.cohort import Cohort
from client.data.loading import batches, person_codes, split_evenly
from client.learning.answer import Answer, support_of
from client.learning.training import lay_out
from client.site import Site
from common.arrays import Arrays
from common.errors import Refusal
from common.network.settling import added, settling, sums_of, sums_plan
from common.study import Study

HELD = "scans"  # group of a census: everything that is usable
_AT_ONCE = 256  # samples


def census(study: Study, site: Site, cohort: Cohort) -> Answer:
    """Counts of scans, people and labels; of a site that trains also its labels' sums.

    Raises
    ------
    Refusal
        NO_DATA if a training site has nothing to train on.
    """
    everyone = np.arange(len(cohort))
    support, participants = support_of(cohort, everyone, HELD, study.targets)
    counts: dict[str, tuple[float, ...]] = {}
    if site.role == "train":
        training = cohort.indices("train", study.splits)
        if len(training) < 2:
            raise Refusal("NO_DATA", f"{len(training)} training samples")
        people = person_codes(cohort.participants)
        for name in study.targets:
            labelled = training[~np.isnan(cohort.labels[name][training])]
            known = cohort.labels[name][labelled].astype(np.float64)
            counts[f"label/{name}"] = (float(len(known)), float(known.sum()))
            participants[f"label/{name}"] = len(np.unique(people[labelled]))
    return Answer(support=support, participants=participants, counts=counts)


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
    people = person_codes(cohort.participants)[training]
    return Answer(
        arrays=total,
        expected=sums_plan(study, modules, number),
        participants={"settle": len(np.unique(people))},
    )
