"""Rounds of which the coordinator sees the sum alone: masked reports, then what unmasks their sum.

rounds/0007/summed.json   whose reports are added up: written before anything is asked about them
rounds/0007/unmask/       what the sites told, which takes the masks off that sum

A site tells one secret of each other site, once. So who is added up is decided once, on disk, and
a report that comes later is not in the sum, nor its site in any trouble: it has keys of its own for
the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from common.arrays import Rows
from common.errors import QuorumError
from common.protocol.orders import Order
from common.protocol.wire import Stored
from common.runtime.progress import say
from common.secure_sums.numbers import Sums
from common.secure_sums.rosters import Slot, about_round, slot_of
from common.secure_sums.tables import DEALT, TOLD, plan_of_told
from server.federation.aggregation import Contribution
from server.federation.exchange import Exchange, Outcome
from server.federation.parcel import Parcel, parcel_of, together
from server.federation.secure_setup import Agreement
from server.run_files import read_sealed, write_sealed
from server.secure_sums.means import means_of
from server.secure_sums.unmasking import Seeds, SpoiltError, Told, summed

SUMMED: Final = "summed.json"
UNMASK: Final = "unmask"
_SHORT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sum:
    """A round's sum: nothing to average where it was spoilt, and why."""

    contributions: Sequence[Contribution] = ()
    numbers: Sums = field(default_factory=lambda: Sums({}, {}, {}, {}))
    spoilt: str = ""


@dataclass(frozen=True, slots=True)
class MaskedRounds:
    """The masked rounds of one model.

    quorum: fewest reports for a round to count, never below the threshold. agree: makes the
    agreement anew.
    """

    agreement: Agreement
    exchange: Exchange
    quorum: int
    agree: Callable[[], Agreement]

    def for_the_next(self) -> MaskedRounds:
        """The same; without a site whose secrets did not come about, where there was one."""
        return self if self.agreement.holds else replace(self, agreement=self.agree())

    def ask(self, orders: Sequence[Order], parcel: Parcel, folder: Path, title: str) -> Outcome:
        """The masked reports that are added up; who they are of is settled by the first quorum."""
        path = folder / SUMMED
        settled = read_sealed(path) if path.exists() else None
        wanted = [order for order in orders if settled is None or order.site in settled["sites"]]
        plan, replies = self.agreement.masked, folder / "replies"
        outcome = self.exchange.ask(wanted, parcel, replies, plan, title)
        if settled is not None:
            outcome.refused = {**settled["refused"], **outcome.refused}
            return outcome
        if len(outcome.reports) >= self.quorum:
            sites = sorted(outcome.reports)
            attempt = self.agreement.roster.attempt
            write_sealed(path, {"sites": sites, "refused": outcome.refused, "attempt": attempt})
        return outcome

    def summed(
        self,
        orders: Sequence[Order],
        outcome: Outcome,
        folder: Path,
        now: Mapping[str, Rows],
        title: str,
    ) -> Sum:
        """The sum of the reports that are settled on.

        Raises
        ------
        QuorumError
            If one of them is lost, or too few sites tell what unmasks the sum.
        """
        agreed, settled = self.agreement, read_sealed(folder / SUMMED)
        sites = settled["sites"]
        if settled["attempt"] != agreed.roster.attempt:  # killed after a site was left out
            return Sum(spoilt="the masks of a site that was left out then cannot be taken off")
        if lost := sorted(set(sites) - outcome.reports.keys()):
            raise QuorumError(
                f"{folder}: the masked reports of {', '.join(lost)} are part of the round's sum "
                "and lost; the same command asks these sites again"
            )
        order = next(order for order in orders if order.site in sites)
        slot = slot_of(agreed.study, order.model, order.round)
        replies = [Stored(folder / "replies" / f"{site}.safetensors").by_rows() for site in sites]
        try:
            seeds = self._seeds(order, slot, sites, folder / UNMASK, title)
            totals = summed(agreed.masked, replies, seeds)
            means, numbers = means_of(
                agreed.study, agreed.plan, agreed.roster, agreed.row, now, totals, len(sites)
            )
        except SpoiltError as error:
            say(f"{order.model}: round {order.round} changes nothing: {error}")
            if error.site:
                agreed.leave_out(error.site)
            return Sum(spoilt=str(error))
        by_people = agreed.study.aggregation.weight == "participants"
        weights = numbers.participants if by_people else numbers.support
        if agreed.study.privacy.hides_sites:
            weights = dict.fromkeys(weights, len(sites))
        return Sum([Contribution(site="all", support=weights, read=means.read)], numbers)

    def _seeds(
        self, train: Order, slot: Slot, sites: Sequence[str], folder: Path, title: str
    ) -> Seeds:
        """What the sites that are summed tell; the others hold shares as well, if these lack any.

        It takes a site no time, so that nobody waits long for those who died after they had sent,
        as long as the others are enough.

        Raises
        ------
        SpoiltError, QuorumError
        """
        agreed, found = self.agreement, dict[str, Stored]()
        rest = [site for site in agreed.roster.sites if site not in sites]
        failed: SpoiltError | None = None
        sealed, place = agreed.sealed(slot), agreed.places.index
        for asked, limit_s in ((sites, _SHORT_S), ([*sites, *rest], None)):
            parcels = {
                site: parcel_of({DEALT: sealed[:, place(site)].copy()}, {}) for site in asked
            }
            orders = [
                Order(
                    kind="unmask", study=train.study, run=train.run, site=site, round=train.round,
                    model=train.model, lineage=tuple(sites), arrays=parcel.arrays,
                )
                for site, parcel in parcels.items()
            ]  # fmt: skip
            outcome = self.exchange.ask(
                orders,
                together(parcels.values()),
                folder,
                plan_of_told(agreed.study),
                title,
                limit_s=limit_s,
            )
            found |= {site: Stored(folder / f"{site}.safetensors") for site in outcome.reports}
            if len(found) < agreed.fewest:
                continue
            told = Told(
                roster=agreed.roster, slot=slot, about=about_round(train), summed=sites,
                shares={site: stored[TOLD] for site, stored in found.items()},
                places=agreed.places, fewest=agreed.fewest,
            )  # fmt: skip
            try:
                return told.seeds()
            except SpoiltError as error:
                failed = error
        if failed is None:
            raise QuorumError(
                f"{title}: {len(found)} sites told what takes the masks off, the threshold is "
                f"{agreed.fewest}; the same command asks the others again"
            )
        raise failed
