"""Rounds: choose sites by name, ask, aggregate, record, resume.

A finished round is never redone, spooled replies are kept, only missing sites are asked again, and
what went wrong at one site is a code in the record. Flower's `Strategy` is not used: its `start`
always begins at round 1 and asks any n nodes, one malformed reply ends it, and of its other
methods none is left to do anything where replies are averaged from disk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.arrays import Rows
from common.errors import DamagedError, FolderError, QuorumError
from common.network.plan import Plan
from common.protocol.orders import Order
from common.protocol.wire import Stored
from common.runtime.progress import say
from server.checkpoints import Branch, Checkpoint
from server.federation.aggregation import Contribution, aggregate
from server.federation.exchange import Exchange, Outcome
from server.federation.masked_rounds import MaskedRounds, Sum
from server.federation.parcel import Parcel, parcel_of
from server.federation.record import line, means, validation, weights
from server.federation.update_norms import Moved, overlong
from server.run import Run
from server.run_files import write_sealed


class Rounds:
    """Federated training of one model, from whatever its folder already holds.

    Parameters
    ----------
    branch : the model's rounds and checkpoints
    sites : who trains it, by name
    quorum : fewest accepted reports for a round to count
    members : the sites behind a name that stands for several
    absent : sites that should train but cannot, with the code of why; every round is DEGRADED
    masked : where reports come under masks, how their sum is made
    """

    def __init__(
        self,
        run: Run,
        branch: Branch,
        exchange: Exchange,
        *,
        sites: Sequence[str],
        quorum: int,
        members: Mapping[str, Sequence[str]] | None = None,
        absent: Mapping[str, str] | None = None,
        masked: MaskedRounds | None = None,
    ) -> None:
        self._run, self._study, self._branch, self._exchange = run, run.study, branch, exchange
        self._sites, self._quorum = sorted(sites), quorum
        self._members, self._absent = members or {}, dict(absent or {})
        self._masked, self._sum = masked, Sum()
        self._plan: Plan = branch.plan(run.study)
        self._base: str | None = None  # digest of what never moves; the same in all rounds

    def train(self) -> None:
        """Train from the branch's newest checkpoint until all of the study's rounds are done.

        Arrays stay on disk between the rounds and while sites work.

        Raises
        ------
        QuorumError
            If too few sites answer a round; what is there is kept for the next call.
        """
        rounds = self._study.pretraining.rounds
        now = self._newest()
        for number in range(now.round + 1, rounds + 1):
            began = time.monotonic()
            if self._masked is not None:
                self._masked = self._masked.for_the_next()
            outcome = self._asked(number, rounds, now)
            try:
                following, moved = self._averaged(number, outcome, now)
            except DamagedError as error:  # on our disk; the site keeps its answer on its own
                say(f"{error}; its site is asked again")
                outcome = self._asked(number, rounds, now)
                following, moved = self._averaged(number, outcome, now)
            self._record(number, outcome, moved, time.monotonic() - began)
            self._branch.save(following, self._study, self._plan, last=number == rounds)
            now = self._newest()

    def _newest(self) -> Checkpoint:
        newest = self._branch.latest(self._study)
        if newest is None:
            raise FolderError(f"{self._branch.folder} has no initial checkpoint to train from")
        return newest

    def _asked(self, number: int, rounds: int, now: Checkpoint) -> Outcome:
        """Ask the round's sites, less those whose reports are already spooled."""
        parcel = parcel_of(now.arrays, self._plan, self._base)
        self._base = parcel.base
        title = f"{self._branch.model}: round {number} of {rounds}, sites"
        folder, orders = self._replies_of(number), self._orders(number, parcel)
        if self._masked is not None:
            return self._masked.ask(orders, parcel, folder.parent, title)
        outcome = self._exchange.ask(orders, parcel, folder, self._plan, title)
        self._without_overlong(outcome, folder, now)
        return outcome

    def _without_overlong(self, outcome: Outcome, folder: Path, now: Checkpoint) -> None:
        """Take out the updates that are far longer than the others'; they are not kept either."""
        lengths = Moved.to(self._plan, _by_rows(now.arrays))
        found = overlong(self._study, self._plan, outcome.reports, outcome.moved, lengths)
        for site in found:
            outcome.refuse(site, "UPDATE_TOO_LONG")
            (folder / f"{site}.safetensors").unlink(missing_ok=True)

    def _orders(self, number: int, parcel: Parcel) -> list[Order]:
        return [
            Order(
                kind="train",
                study=self._study.digest,
                run=self._run.id,
                site=site,
                round=number,
                model=self._branch.model,
                arrays=parcel.arrays,
                base=parcel.base,
            )
            for site in self._sites
            if self._masked is None or site in self._masked.agreement.roster.sites
        ]

    def _averaged(self, number: int, outcome: Outcome, now: Checkpoint) -> tuple[Checkpoint, float]:
        """The next checkpoint, averaged from disk in site order, and how far the arrays moved."""
        answered = outcome.reports
        if len(answered) < self._quorum:
            raise QuorumError(
                f"round {number} of {self._branch.model}: {len(answered)} of "
                f"{len(self._sites)} sites answered, the quorum is {self._quorum}; "
                f"{_refusals(outcome)}. The same command asks the missing sites again"
            )
        found = aggregate(
            self._plan,
            _by_rows(now.arrays),
            self._contributions(number, outcome, now),
            self._study.aggregation,
            _by_rows(now.state),
            number,
        )
        behind = {name for site in answered for name in self._members.get(site, (site,))}
        following = Checkpoint(
            round=number,
            arrays=found.arrays,
            state=found.state,
            lineage=now.lineage.used(behind, "weights"),
        )
        return following, found.moved

    def _contributions(
        self, number: int, outcome: Outcome, now: Checkpoint
    ) -> Sequence[Contribution]:
        """What is averaged: each site's arrays, or one mean where only their sum is known."""
        folder = self._replies_of(number)
        if self._masked is not None:
            parcel = parcel_of(now.arrays, self._plan, self._base)
            title = f"{self._branch.model}: unmasking round {number}, sites"
            orders = self._orders(number, parcel)
            self._sum = self._masked.summed(
                orders, outcome, folder.parent, _by_rows(now.arrays), title
            )
            return self._sum.contributions
        return [
            Contribution(
                site=site,
                support=weights(report, self._study),
                read=Stored(folder / f"{site}.safetensors").by_rows().__getitem__,
            )
            for site, report in sorted(outcome.reports.items())
        ]

    def _replies_of(self, number: int) -> Path:
        return self._branch.round(number) / "replies"

    def _record(self, number: int, outcome: Outcome, moved: float, seconds: float) -> None:
        """The round's last file. Numbers are merged over sites before they are divided."""
        reports = outcome.reports
        counts = [report.counts for report in reports.values()]
        judged = validation(self._study, reports.values())
        summed: dict[str, Any] = {}
        if self._masked is not None:
            numbers, spoilt = self._sum.numbers, self._sum.spoilt
            counts, judged = [dict(numbers.counts)], dict(numbers.validation)
            behind = {"support": numbers.support, "participants": numbers.participants}
            summed = {"sum": {**behind, "sites": len(reports), "spoilt": spoilt}}
        record = {
            "round": number,
            "model": self._branch.model,
            "degraded": bool(self._absent or self._sum.spoilt) or sorted(reports) != self._sites,
            "answered": {
                site: line(reports[site], outcome.bytes[site]) for site in sorted(reports)
            },
            "refused": dict(sorted((self._absent | outcome.refused).items())),
            "loss": means(counts, "loss/"),
            "validation_loss": means(counts, "validation-loss/"),
            "validation": judged,
            "update_norm": moved,
            "seconds": round(seconds, 3),
            **summed,
        }
        write_sealed(self._branch.round(number) / "record.json", record)


def _by_rows(arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Rows]:
    return arrays.by_rows() if isinstance(arrays, Stored) else arrays


def _refusals(outcome: Outcome) -> str:
    return ", ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
