"""Private spendings in a ledger: noise, rate and steps of each order, before its noise is drawn.

A row is one draw of noise. A draw whose result nobody has seen may be made again at no further
cost: what never left is no release. So after a kill the same order costs nothing more, as long as
its report was not kept; a kept report is what leaves, and no second one may. But a code that says
how a draw ended (`EGRESS`, say) is told of it: then the draw has been seen, and another one costs
once more.

Who is a participant for the lifetime bound: everyone. Studies split people differently, and some
train in one and not in the other; the bound is of a person who trained in all of them. It covers
private orders alone: other training, sums and measurements of the same people have no bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from client.site import Policy
from common.comparisons import SINGLE_SITE
from common.errors import Refusal
from common.privacy.accounting import epsilon
from common.privacy.cost import MIXED, Cost, Spent, cost_of, read_spent
from common.privacy.models import models_of
from common.protocol.orders import Order
from common.study import Study

_ENTRIES: Final = 60  # that books tell; what is beyond is told as one, at its worst

Row = tuple[str, str, str, str, float, float, float, int, int]  # in the order of `_ROWS`

_ROWS: Final = """
SELECT draw, order_id, time, study, noise, rate, delta, steps, people FROM spendings
"""
_INSERT: Final = """
INSERT INTO spendings (order_id, time, study, noise, rate, delta, steps, people, seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_OPEN: Final = """
SELECT 1 FROM spendings WHERE order_id = ? AND seen = 0 AND noise = ? AND rate = ? AND steps = ?
"""
_SUMS: Final = """
SELECT study, noise, rate, delta, sum(steps) FROM spendings
GROUP BY study, noise, rate, delta ORDER BY min(number)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an order would cost, and the two caps; 0 is none.

    people: who enter a loss here; study_cap: the coordinator's, of one study; site_cap: the site's
    own, of all studies together.
    """

    cost: Cost
    people: int
    study_cap: float
    site_cap: float


def asked_of(study: Study, policy: Policy, people: int) -> Asked | None:
    """What a round costs each of the `people` who enter a loss, if the study is private."""
    if not study.privacy.has_cost:
        return None
    return Asked(
        cost=cost_of(study, people),
        people=people,
        study_cap=study.privacy.epsilon,
        site_cap=policy.epsilon,
    )


def before(study: Study, order: Order, asked: Asked) -> list[Spent]:
    """What a run has cost before an order, where no ledger is kept and every round was answered.

    A simulation must end in the same round as the sites whose study it tries.
    """
    together = [model for model in models_of(study) if model != SINGLE_SITE]
    if order.model.startswith("single-"):
        behind = len(together)
    else:  # pooled data are no site's
        behind = together.index(order.model) if order.model in together else 0
    number = order.round - 1 + study.pretraining.rounds * behind
    if number < 1:
        return []
    cost = asked.cost.model_copy(update={"steps": asked.cost.steps * number})
    return [Spent(study=order.study, cost=cost)]


def lifetime(spent: list[Spent], more: Cost | None = None) -> float:
    """Epsilon of all studies together, at the smallest delta of any: the strictest promise."""
    costs = [each.cost for each in spent] + ([more] if more is not None else [])
    return epsilon(costs, smallest_delta(costs)) if costs else 0.0


def of_study(spent: list[Spent], study: str, more: Cost | None = None) -> float:
    """The same of one study, over all of its runs and models."""
    return lifetime([each for each in spent if each.study == study], more)


def smallest_delta(costs: list[Cost]) -> float:
    """The delta that a history is told at."""
    return min(cost.delta for cost in costs)


def check(spent: list[Spent], study: str, asked: Asked) -> None:
    """Raise `Refusal("BUDGET_EXHAUSTED")` if the order would exceed either cap."""
    for cap, found, whose in (
        (asked.study_cap, of_study(spent, study, asked.cost), "this study's privacy.epsilon"),
        (asked.site_cap, lifetime(spent, asked.cost), "policy.epsilon"),
    ):
        if cap and found > cap:
            raise Refusal("BUDGET_EXHAUSTED", f"epsilon would be {found:.4g}; {whose} is {cap:g}")


def read(connection: sqlite3.Connection) -> list[Spent]:
    """Everything that was spent, oldest first."""
    return [
        Spent(study=study, cost=Cost(noise=noise, rate=rate, delta=delta, steps=steps))
        for study, noise, rate, delta, steps in connection.execute(_SUMS)
    ]


def is_open(connection: sqlite3.Connection, order_id: str, cost: Cost) -> bool:
    """Whether such a draw for this order was paid for, of which nothing was told yet.

    A draw among fewer people, say, is another one: their number may change over a restart.
    """
    found = connection.execute(_OPEN, (order_id, cost.noise, cost.rate, cost.steps))
    return found.fetchone() is not None


def enter(change: sqlite3.Connection, order: Order, asked: Asked) -> None:
    """Pay for one draw."""
    _insert(change, order.id, order.study, asked.cost, asked.people)


def close(change: sqlite3.Connection, order_id: str) -> None:
    """Something is about to be told of how this order's draw ended: the next one costs anew."""
    change.execute("UPDATE spendings SET seen = 1 WHERE order_id = ?", (order_id,))


def told(spent: list[Spent]) -> tuple[str, ...]:
    """Everything that was spent, for the books; of very many entries the last as one."""
    words = [each.word for each in spent[:_ENTRIES]]
    if rest := [each.cost for each in spent[_ENTRIES:]]:
        worst = Cost(
            noise=min(cost.noise for cost in rest),
            rate=max(cost.rate for cost in rest),
            delta=smallest_delta(rest),
            steps=sum(cost.steps for cost in rest),
        )
        words.append(Spent(study=MIXED, cost=worst).word)
    return tuple(words)


def take_over(change: sqlite3.Connection, seen: Iterable[str]) -> None:
    """Enter what was seen of these books and is not in them any more."""
    own = {_kind(each): each.cost.steps for each in map(read_spent, told(read(change)))}
    for spent in map(read_spent, seen):
        lost = spent.cost.steps - own.get(_kind(spent), 0)
        if lost > 0:
            _insert(change, "", spent.study, spent.cost.model_copy(update={"steps": lost}), 0)


def rows(connection: sqlite3.Connection) -> set[Row]:
    """Every draw under the id that it got; a copy has those of before it was made."""
    return set(connection.execute(_ROWS))


def add(change: sqlite3.Connection, others: Iterable[Row]) -> None:
    """Enter draws of a copy; none of them is one that an order may still make here."""
    for draw, *row in sorted(others):
        entered = change.execute(_INSERT, (*row, 1)).lastrowid
        change.execute("UPDATE spendings SET draw = ? WHERE number = ?", (draw, entered))


def _kind(spent: Spent) -> tuple[str, float, float, float]:
    cost = spent.cost
    return spent.study, cost.noise, cost.rate, cost.delta


def _insert(change: sqlite3.Connection, order_id: str, study: str, cost: Cost, people: int) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    numbers = (cost.noise, cost.rate, cost.delta, cost.steps, people)
    change.execute(_INSERT, (order_id, now, study, *numbers, 0))
