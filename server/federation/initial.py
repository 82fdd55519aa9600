"""What a model starts from; the coordinator's only file that builds a network, or meets torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.arrays import Arrays
from common.explain import explain
from common.network import arrays_of, build, check_buildable, plan_of
from common.plan import Plan
from common.protocol.orders import Report
from common.seeding import seed_of
from common.study import Study, load_study, with_plugins
from server.federation.census import standardised


def initial(study: Study, reports: Sequence[Report], census: Path) -> tuple[Arrays, Plan]:
    """The first arrays of a model that the sites of `reports` will train, and their rules."""
    whole = with_plugins(study)
    network = build(whole, seed=seed_of(study.seed, "initial"))
    plan = plan_of(network, study.aggregation.normalisation)
    return standardised(arrays_of(network), reports, census), plan


def explained(file: Path) -> str:
    """A study file in words, after everything that can be checked of it has been."""
    study = load_study(file)
    check_buildable(study, file)
    return explain(study)
