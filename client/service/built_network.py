"""The one network that a process keeps built for each study; every order loads its arrays anew."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from common.network.building import build, plan_of
from common.network.plan import Plan
from common.study import Study


@lru_cache(maxsize=2)
def built_network(study: Study) -> tuple[Any, Plan]:
    """The study's network, whose arrays are whatever the last order loaded, and their rules."""
    network = build(study, seed=0)
    return network, plan_of(network, study.aggregation.normalisation)
