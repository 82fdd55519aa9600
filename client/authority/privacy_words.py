"""What private training has cost a site's participants, in words for whoever answers for them.

Numbers come from the ledger, caps from the approved studies and the site file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Final

from client.authority import approvals, spendings
from client.authority.ledger import JUDGING, Account
from client.site import Site
from common.privacy.cost import MIXED, Spent

MEANING: Final = """\
unit: one participant, with all of her scans and labels
neighbours: two data sets, one of which holds one participant more than the other
epsilon e at delta d: whatever left by private training is at most exp(e) times as likely with her
  data as without them; d is the chance that it is not so
bound: Renyi differential privacy of Poisson sampling with Gaussian noise, composed over rounds,
  restarts and runs; written before the work, never refunded
whole sites: a round that hides a site is entered as one step of everybody at half its noise, which
  bounds replacing all that the site holds, and so any one participant
assumed: how many train here is no secret; each person has one name and trains at no other site;
  the noise is drawn as the study says; over all studies the worst case, a person in all of them
not covered: measurements, losses and counts that leave with reports; sums that constants and
  baselines are made of; tokens by which overlaps are counted; fine-tuning, protocols and judging;
  every study without privacy"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCost:
    """One study's part; cap: its own privacy.epsilon, None where it is not approved any more."""

    name: str
    study: str
    steps: int
    noise: tuple[float, float]
    rate: tuple[float, float]
    delta: float
    epsilon: float
    cap: float | None

    @property
    def row(self) -> tuple[str, ...]:
        """The same for a table."""
        return (
            self.name, self.study[:12], f"{self.steps:,}", _span(self.noise), _span(self.rate),
            f"{self.delta:.2g}", f"{self.epsilon:.3g}", left_of(self.cap, self.epsilon),
        )  # fmt: skip

    @property
    def as_json(self) -> dict[str, Any]:
        """The same for programs; no epsilon where it is infinite, which JSON cannot say."""
        return asdict(self) | {"epsilon": self.epsilon if isfinite(self.epsilon) else None}


COLUMNS: Final = ("study", "digest", "steps", "noise", "rate", "delta", "epsilon", "left")


def costs(site: Site, account: Account) -> list[StudyCost]:
    """What each private study has cost, in the order in which they began."""
    names = {each.study: each.study_name for each in account.exposures}
    found = dict.fromkeys(each.study for each in account.private)
    return [_cost(site, account.private, study, names.get(study, study)) for study in found]


def statement(site: Site, account: Account) -> Iterator[str]:
    """The lifetime's bound, what it means and what it leaves out."""
    spent, cap = spendings.lifetime(list(account.private)), site.policy.epsilon
    delta = spendings.smallest_delta([each.cost for each in account.private])
    limit = "policy.epsilon sets no limit"
    if cap:
        limit = f"policy.epsilon leaves {left_of(cap, spent)}"
    yield f"private training, all studies: epsilon {spent:.3g} at delta {delta:.2g}; {limit}"
    yield MEANING
    others = _without_bound(account)
    if others:
        yield f"WITHOUT A BOUND besides: {others} training orders on the same people"


def _without_bound(account: Account) -> int:
    """Training orders that cost no epsilon, of any study."""
    private = Counter(each.study for each in account.private)
    return sum(
        each.kind != JUDGING and not (each.kind == "train" and each.study in private)
        for each in account.exposures
    )


def _cost(site: Site, private: Sequence[Spent], study: str, name: str) -> StudyCost:
    own = [each.cost for each in private if each.study == study]
    agreed: Any = approvals.study_of(site, study) if study != MIXED else None
    return StudyCost(
        name=name,
        study=study,
        steps=sum(cost.steps for cost in own),
        noise=(min(cost.noise for cost in own), max(cost.noise for cost in own)),
        rate=(min(cost.rate for cost in own), max(cost.rate for cost in own)),
        delta=spendings.smallest_delta(own),
        epsilon=spendings.of_study(list(private), study),
        cap=agreed.privacy.epsilon if agreed is not None else None,
    )


def left_of(cap: float | None, spent: float) -> str:
    """What is left below a cap, in words for a cell."""
    if cap is None:
        return "not approved"
    return f"{max(0.0, cap - spent):.3g} of {cap:g}" if cap else "no cap"


def _span(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.4g}" for end in ends)
    return low if low == high else f"{low} to {high}"
