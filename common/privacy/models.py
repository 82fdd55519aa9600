"""Which models' rounds a private run asks of each site: each of them costs its people anew."""

from __future__ import annotations

from common.comparisons import SINGLE_SITE
from common.study import Study


def models_of(study: Study) -> tuple[str, ...]:
    """Models whose rounds a run asks of each site, in that order; its own model alone at the end.

    A site without labels of some targets is not asked for the models of these.
    """
    compared = study.comparisons
    alone = (SINGLE_SITE,) if compared.single_site and len(study.sites.train) > 1 else ()
    return (*compared.members, *sorted(compared.targets), *alone)


def orders_of(study: Study) -> int:
    """Private training orders that a run asks of each site, at most."""
    return study.pretraining.rounds * len(models_of(study))
