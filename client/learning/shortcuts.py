"""A site's sums by which features tell its people from others' (`common.site_shortcuts`)."""

from __future__ import annotations

import math
from typing import Any

import torch

from client.answer import Answer
from client.data.cohort import Cohort
from client.learning.census import people_needed, summed
from client.learning.prediction import features_of
from client.learning.support import people_among, without_rare_columns
from client.site import Site
from common import site_shortcuts
from common.errors import Refusal
from common.network.settling import settling
from common.study import Study


def shortcut_sums(
    study: Study, site: Site, cohort: Cohort, network: Any, number: int, device: torch.device
) -> Answer:
    """Sums over the features of training people (number 0) or validation people (1).

    Training people are those of all other sums, so that no difference of two is about a few.

    Raises
    ------
    Refusal
        NO_DATA if there are none.
    """
    modules, policy = settling(network), site.policy
    if number == 0:
        cohort, people = summed(study, cohort, modules, policy)
    else:
        people = cohort.indices("validation", study.splits)
        if not policy.sums_of_few:
            needed = people_needed(study, modules, policy)
            cohort = without_rare_columns(study, cohort, people, needed, policy.minimum_support)
    if not len(people):
        raise Refusal("NO_DATA", "nobody trains, or validates (splits.validation)")
    features = features_of(network, cohort.subset(people), device)
    plan = site_shortcuts.plan_of_sums(study)
    numbers = sum(math.prod(rule.shape) for rule in plan.values())
    return Answer(
        arrays=site_shortcuts.sums_of(study, features),
        expected=plan,
        behind=dict.fromkeys(plan, people_among(cohort, people)),
        reveals=1 if policy.sums_of_few else -(-numbers // study.evaluation.shortcuts),
    )
