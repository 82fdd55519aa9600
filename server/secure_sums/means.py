"""From sums to means: what aggregation reads as if one site had sent all sites' weighted mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from numpy.typing import NDArray

from common.arrays import Arrays, Rows
from common.network.plan import Plan
from common.secure_sums.numbers import NUMBERS, Row, Sums, read
from common.secure_sums.rosters import Roster
from common.secure_sums.updates import Float64, centre_of, mean_of, scale_of
from common.study import Study
from server.secure_sums.unmasking import SpoiltError


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """The weighted means of one round, read by parts.

    now: the round's arrays. totals: sums in steps. shares: of all data, by group.
    """

    study: Study
    plan: Plan
    now: Mapping[str, Rows]
    totals: Arrays
    shares: Mapping[str, float]

    def read(self, name: str) -> Rows:
        """One array's mean."""
        return _Mean(self, name)

    def change(self, name: str, part: slice | EllipsisType) -> Float64:
        """By how much sites moved it, on average."""
        rule = self.plan[name]
        shares = self.shares[rule.group]
        return scale_of(self.study, rule).decoded(self.totals[name][part], shares)


@dataclass(frozen=True, slots=True)
class _Mean:
    of: Means
    name: str

    def __getitem__(self, part: slice | EllipsisType) -> NDArray[Any]:
        centre = centre_of(self.of.plan, self.name)
        moved = self.of.change(centre, part) if centre is not None else None
        return mean_of(self.of.now[self.name][part], self.of.change(self.name, part), moved)


def means_of(
    study: Study,
    plan: Plan,
    roster: Roster,
    row: Row,
    now: Mapping[str, Rows],
    totals: Arrays,
    sites: int,
) -> tuple[Means, Sums]:
    """A round's means and numbers, from its unmasked sums over so many `sites`.

    Raises
    ------
    SpoiltError
        If honest sites cannot have added up to these: one of them sent something else.
    """
    sums = read(totals[NUMBERS], row)
    weights = sums.participants if study.aggregation.weight == "participants" else sums.support
    shares = {}
    for group in row.groups:
        held = roster.total(group)
        for count in (sums.support[group], sums.participants[group]):
            if count < 0:
                raise SpoiltError(f"the sites together count {count} {group}")
        if weights[group] > held:
            raise SpoiltError(f"the sites together weigh {weights[group]} {group} of {held}")
        shares[group] = weights[group] / held if held else 0.0
        if study.privacy.hides_sites:  # each weighs alike, whatever it holds
            shares[group] = sites / len(study.sites.train)
    for name, rule in plan.items():
        if not rule.travels:
            continue
        if not scale_of(study, rule).fits(totals[name], shares[rule.group]):
            raise SpoiltError(f"the sum of {name} is none of updates within the study's limit")
    return Means(study=study, plan=plan, now=now, totals=totals, shares=shares), sums
