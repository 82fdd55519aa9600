"""Rounds: choose sites by name, ask, aggregate, record, resume.

`Rounds` is Flower's Strategy for one model: a finished round is never redone, spooled replies are
kept, only missing sites are asked again, and what went wrong at one site is a code in the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO, getLogger
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from common import metrics
from common.arrays import Rows
from common.errors import FolderError, QuorumError
from common.plan import Plan
from common.protocol.orders import Order, Report, digest_of
from common.protocol.wire import Stored
from common.study import Study
from server.federation.aggregation import Contribution, aggregate
from server.federation.exchange import Exchange, Outcome
from server.run import Branch, Checkpoint, Run, write_json

_log = getLogger("callosum.server")


class Rounds(Strategy):
    """Federated training of one model, from whatever its folder already holds.

    Parameters
    ----------
    branch : the model's rounds and checkpoints
    sites : who trains it, by name
    quorum : fewest accepted reports for a round to count
    plan : the rules of the model's arrays
    members : the sites behind a name that stands for several
    absent : sites that should train but cannot, with the code of why; every round is DEGRADED
    """

    def __init__(
        self,
        run: Run,
        branch: Branch,
        exchange: Exchange,
        *,
        sites: Sequence[str],
        quorum: int,
        plan: Plan,
        members: Mapping[str, Sequence[str]] | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self._members = members or {}
        self._absent = dict(absent or {})
        self._run, self._study, self._branch = run, run.study, branch
        self._exchange, self._plan = exchange, plan
        self._sites, self._quorum = sorted(sites), quorum
        self._now = Checkpoint(round=0, arrays={}, state={}, contributors=(), cohorts=())
        self._moved = 0.0
        self._orders: list[Order] = []
        self._outcome = Outcome()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Train from the branch's newest checkpoint until `num_rounds` are done.

        Arrays stay on disk between the rounds and while sites work; no argument brings any.
        """
        self._now = self._newest()
        for number in range(self._now.round + 1, num_rounds + 1):
            began = time.monotonic()
            missing = self._order(number)
            title = f"{self._branch.model}: round {number} of {num_rounds}, sites"
            self.aggregate_train(number, self._exchange.replies(missing, self._now.arrays, title))
            self._record(number, time.monotonic() - began)
            self._branch.save(self._now, self._study, self._plan, last=number == num_rounds)
            self._now = self._newest()
        return Result()

    def _newest(self) -> Checkpoint:
        newest = self._branch.latest(self._study)
        if newest is None:
            raise FolderError(f"{self._branch.folder} has no initial checkpoint to train from")
        return newest

    def _order(self, number: int) -> list[Order]:
        """Orders for the round's sites, less those whose reports are already spooled."""
        digest = digest_of(self._now.arrays)
        self._orders = [
            Order(
                kind="train",
                study=self._study.digest,
                run=self._run.id,
                site=site,
                round=number,
                model=self._branch.model,
                arrays=digest,
            )
            for site in self._sites
        ]
        self._outcome = Outcome()
        return self._exchange.missing(self._orders, self._replies_of(number), self._outcome)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No message: `start` hands the round's orders to the exchange, which may ask again."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Receive until all answered or time is up; then average from disk, in site order."""
        folder = self._replies_of(server_round)
        self._exchange.receive(replies, self._orders, folder, self._plan, self._outcome)
        answered = self._outcome.reports
        if len(answered) < self._quorum:
            raise QuorumError(
                f"round {server_round} of {self._branch.model}: {len(answered)} of "
                f"{len(self._sites)} sites answered, the quorum is {self._quorum}; "
                f"{_refusals(self._outcome)}. The same command asks the missing sites again"
            )
        contributions = [
            Contribution(
                site=site,
                support=report.support,
                read=Stored(folder / f"{site}.safetensors").by_rows().__getitem__,
            )
            for site, report in sorted(answered.items())
        ]
        now = self._now
        found = aggregate(
            self._plan,
            _by_rows(now.arrays),
            contributions,
            self._study.aggregation,
            _by_rows(now.state),
            server_round,
        )
        behind = {name for site in answered for name in self._members.get(site, (site,))}
        self._moved = found.moved
        self._now = Checkpoint(
            round=server_round,
            arrays=found.arrays,
            state=found.state,
            contributors=tuple(sorted({*now.contributors, *behind})),
            cohorts=now.cohorts,
        )
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No message: a training report already holds the site's validation counts."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing to aggregate; see `configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Log who trains what."""
        _log.log(INFO, "%s: %s", self._branch.model, ", ".join(self._sites))

    def _replies_of(self, number: int) -> Path:
        return self._branch.round(number) / "replies"

    def _record(self, number: int, seconds: float) -> None:
        """The round's last file. Numbers are merged over sites before they are divided."""
        reports = self._outcome.reports
        record = {
            "round": number,
            "model": self._branch.model,
            "degraded": bool(self._absent) or sorted(reports) != self._sites,
            "answered": {site: _line(self._outcome, site) for site in sorted(reports)},
            "refused": dict(sorted((self._absent | self._outcome.refused).items())),
            "loss": _losses(reports.values()),
            "validation": validation(self._study, reports.values()),
            "update_norm": self._moved,
            "seconds": round(seconds, 3),
        }
        write_json(self._branch.round(number) / "record.json", record)


def _by_rows(arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Rows]:
    return arrays.by_rows() if isinstance(arrays, Stored) else arrays


def validation(study: Study, reports: Iterable[Report]) -> dict[str, dict[str, float]]:
    """The global model's metrics on the sites' validation participants, by target."""
    merged = metrics.merged((report.counts for report in reports), "validation/")
    return {
        name: {
            "n": metrics.n_of(study.targets[name], sums),
            **metrics.ratios(study.targets[name], sums),
        }
        for name, sums in merged.items()
        if name in study.targets
    }


def _losses(reports: Iterable[Report]) -> dict[str, float]:
    sums = metrics.merged((report.counts for report in reports), "loss/")
    return {name: float(total / n) for name, (total, n) in sums.items() if n}


def _line(outcome: Outcome, site: str) -> dict[str, Any]:
    report = outcome.reports[site]
    return {
        "support": report.support,
        "seconds": round(report.seconds, 3),
        "bytes": outcome.bytes[site],
    }


def _refusals(outcome: Outcome) -> str:
    return ", ".join(f"{site}: {code}" for site, code in sorted(outcome.refused.items()))
