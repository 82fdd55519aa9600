"""What a private study will cost a site before anyone trains: epsilon, rounds, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.privacy.accounting import epsilon, noise_for, rounds_for, tighter_epsilon
from common.privacy.cost import Cost, cost_of
from common.privacy.models import orders_of

if TYPE_CHECKING:
    from common.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A site of so many participants, and what the study asks of each of them.

    learners: those of `people` who train, on average; orders: training orders of one run, each of
    which costs `cost`; cap: the epsilon that is not to be exceeded, 0 for none.
    """

    people: int
    learners: int
    cost: Cost
    orders: int
    cap: float
    of_noise: float = 1.0  # noise of the study over that of `cost`

    def after(self, orders: int) -> float:
        """Epsilon after so many orders, by the accountant that decides."""
        return epsilon([self._times(orders)], self.cost.delta) if orders else 0.0

    @property
    def tighter(self) -> float | None:
        """Epsilon of the whole run by the accountant that is shown beside; None if it cannot."""
        return tighter_epsilon([self._times(self.orders)], self.cost.delta) if self.orders else 0.0

    @property
    def affordable(self) -> int:
        """Orders that stay within the cap; all of them if there is none."""
        if not self.cap:
            return self.orders
        return rounds_for(self.cap, self.cost, self.cost.delta, most=self.orders)

    @property
    def bought(self) -> int:
        """Orders that the cap would buy if a run had as many, at most a hundred thousand."""
        return rounds_for(self.cap, self.cost, self.cost.delta, most=100_000) if self.cap else 0

    @property
    def noise(self) -> float | None:
        """Least noise with which all orders stay within the cap; None if none does."""
        if not self.cap or not self.orders:
            return None
        found = noise_for(self.cap, self._times(self.orders), self.cost.delta)
        return found * self.of_noise if found is not None else None

    def _times(self, orders: int) -> Cost:
        return self.cost.model_copy(update={"steps": self.cost.steps * orders})


def plan_for(study: Study, people: int, cap: float | None = None) -> Plan:
    """The plan of a site with so many participants; `cap` in place of the study's epsilon."""
    learners = learners_of(study, people)
    return Plan(
        people=people,
        learners=learners,
        cost=cost_of(study, learners),
        orders=orders_of(study),
        cap=study.privacy.epsilon if cap is None else cap,
        of_noise=2.0 if study.privacy.hides_sites else 1.0,
    )


def learners_of(study: Study, people: int) -> int:
    """How many of a site's participants train, on average; at least one."""
    splits = study.splits
    return max(1, round(people * (1 - splits.test - splits.validation) * splits.share))
