"""What `callosum study plan` shows: privacy by site before anyone trains.

People are given by hand, or as a run's census counted them. A site's split is its own secret, so
how many of them train is known on average only; the site's ledger goes by the real number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Final

from common.errors import SettingError
from common.privacy.models import models_of
from common.privacy.plan import Plan, plan_for
from common.study import Study

COLUMNS: Final = ("site", "train", "epsilon", "PRV", "orders", "bought", "needs noise")
OF_ONE: Final = ("site", "noise", "rate", "steps", "delta", "epsilon")
_SHOWN: Final = 6  # sites that have a column each, and the tighter epsilon
_MOMENTS: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # of all orders, by which epsilon grows


def people_of(study: Study, census: Mapping[str, Any]) -> dict[str, int]:
    """Participants of each training site that a census counted."""
    found = {site: line for site, line in census.items() if line["role"] == "train"}
    return {
        site: line["participants"].get("scans", 0)
        for site, line in found.items()
        if not line["refused"] and line["participants"].get("scans", 0)
    }


def plans(
    study: Study, people: Mapping[str, int], cap: float | None, file: Path
) -> dict[str, Plan]:
    """The plan of each site, or of each number of people, by name.

    Raises
    ------
    SettingError
        If the study is not private, has no rounds, or nobody is to be planned for.
    """
    if not study.privacy.has_cost:
        raise SettingError(
            f'privacy.unit is "none"; "participant" or "site" is needed to plan its cost ({file})'
        )
    if cap is not None and not isfinite(cap):
        raise SettingError(f"--epsilon is {cap}; a finite number is needed, 0 for no cap")
    if not study.pretraining.rounds:
        raise SettingError(f"pretraining.rounds is 0; sums are not private training ({file})")
    few = {name: n for name, n in people.items() if n < 2}
    if few or not people:
        told = f"a site of {next(iter(few.values()))} people is given" if few else "nobody is given"
        raise SettingError(f"{told}; at least 2 are needed (--people N, or --census RUN)")
    return {name: plan_for(study, n, cap) for name, n in people.items()}


def rows(plans: Mapping[str, Plan]) -> Iterator[tuple[str, ...]]:
    """A line a site: what a run costs, how many orders the cap buys, the noise that would do."""
    beside = dearest(plans)  # PRV takes a second each
    for name, plan in plans.items():
        tighter, noise = plan.tighter if name in beside else None, plan.noise
        yield (
            name, f"{plan.learners:,} of {plan.people:,}", f"{plan.after(plan.orders):.3g}",
            "" if tighter is None else f"{tighter:.3g}", f"{plan.orders:,}",
            f"{plan.bought:,}" if plan.cap else "", "" if noise is None else f"{noise:.4g}",
        )  # fmt: skip


def of_one(plans: Mapping[str, Plan]) -> Iterator[tuple[str, ...]]:
    """A line a site: one order, as accountants see it."""
    for name, plan in plans.items():
        cost = plan.cost
        yield (
            name, f"{cost.noise:.4g}", f"{cost.rate:.3g}", f"{cost.steps:,}",
            f"{cost.delta:.2g}", f"{plan.after(1):.3g}",
        )  # fmt: skip


def dearest(plans: Mapping[str, Plan]) -> list[str]:
    """The few sites where a run costs most, in the order given."""
    most = sorted(plans, key=lambda name: plans[name].after(plans[name].orders), reverse=True)
    return [name for name in plans if name in most[:_SHOWN]]


def rounds(plans: Mapping[str, Plan]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Epsilon by order at a few moments of a run, where it is largest: columns, a line a moment."""
    orders = next(iter(plans.values())).orders
    shown = {name: plans[name] for name in dearest(plans)}
    moments = sorted({max(1, round(share * orders)) for share in _MOMENTS})
    lines = [(str(n), *(f"{plan.after(n):.3g}" for plan in shown.values())) for n in moments]
    return ("after orders", *shown), lines


def words(study: Study, plans: Mapping[str, Plan]) -> Iterator[str]:
    """What the tables mean, and who would decline."""
    orders = next(iter(plans.values())).orders
    of = " and of ".join(models_of(study))
    yield f"orders: {orders} in one run, {study.pretraining.rounds} rounds of {of}"
    of_whom = (
        "All that a site holds replaced, or one of its participants; noise counts half"
        if study.privacy.hides_sites
        else "One participant more or less, Poisson sampling"
    )
    yield (
        "epsilon: Renyi accountant, which decides; PRV: privacy loss variables, closer to the "
        f"truth. {of_whom}; rounds alone are covered"
    )
    cap = next(iter(plans.values())).cap
    if not cap:
        yield "no cap: privacy.epsilon is 0, so no order is declined by the study's own budget"
        return
    yield f"bought: orders within epsilon {cap:g}; needs noise: the least for all of them"
    for name, plan in plans.items():
        if plan.affordable < plan.orders:
            yield (
                f"{name} would decline with BUDGET_EXHAUSTED after {plan.affordable} of "
                f"{plan.orders} orders; a round counts with {study.quorum} of "
                f"{len(study.sites.train)} sites (sites.quorum)"
            )
