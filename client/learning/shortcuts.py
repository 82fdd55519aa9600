"""A site's sums by which features tell its people from others' (`common.site_shortcuts`)."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from client.answer import Answer
from client.data.cohort import Cohort
from client.data.splits import Split
from client.learning.census import people_needed, without_differences
from client.learning.prediction import features_of
from client.learning.support import people_among
from client.site import Site
from common import site_shortcuts
from common.errors import Refusal
from common.network.settling import settling
from common.study import Study

_SPLITS: Final[tuple[Split, ...]] = ("train", "validation")  # by the number of the order


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
    people = cohort.indices(_SPLITS[number], study.splits)
    if not number and not site.policy.sums_of_few:
        modules = settling(network)
        needed = people_needed(study, modules, site.policy)
        _, people = without_differences(study, cohort, people, modules, needed)
    if not len(people):
        raise Refusal("NO_DATA", f"nobody is in the {_SPLITS[number]} split")
    features = features_of(network, cohort.subset(people), device)
    plan = site_shortcuts.plan_of_sums(study)
    numbers = sum(math.prod(rule.shape) for rule in plan.values())
    return Answer(
        arrays=site_shortcuts.sums_of(study, features),
        expected=plan,
        behind=dict.fromkeys(plan, people_among(cohort, people)),
        reveals=1 if site.policy.sums_of_few else -(-numbers // study.evaluation.shortcuts),
    )
