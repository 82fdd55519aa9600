"""Rounds: choose sites by name, send, check, spool, aggregate, record, resume.

`Exchange` is the one place that waits for sites; it knows no science. `Rounds` is Flower's Strategy
for one model: a finished round is never redone, spooled replies are kept, only missing sites are
asked again, and what went wrong at one site is a code in the round's record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from logging import INFO, getLogger
from pathlib import Path
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from common import metrics
from common.arrays import Arrays, norm_of_difference
from common.errors import FolderError, QuorumError, Refusal
from common.network import Plan
from common.orders import Order, Report, digest_of
from common.progress import track
from common.study import Study
from common.wire import array_record, pack, read_array, read_spooled, spool, unpack_report
from server.acceptance import accept
from server.aggregation import Contribution, aggregate
from server.census import merged
from server.run import Branch, Checkpoint, Run, write_json

_log = getLogger("callosum.server")
_SHORTEST_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 3.0


@dataclass(slots=True)
class Outcome:
    """Who answered acceptably, and who did not, by site."""

    reports: dict[str, Report] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


class Exchange:
    """Carries orders to sites and accepted reports into a folder, one file a site."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int], study: Study) -> None:
        self._grid = grid
        self._nodes = nodes
        self._study = study
        self.census: dict[str, Report] = {}  # what each site said it holds; bounds what it claims
        self._time_limit_s = study.sites.time_limit_s
        self._by_node: dict[int, Order] = {}
        self._asked: dict[str, Order] = {}  # by message: Flower answers for a dead node as node 1

    def ask(
        self, orders: Sequence[Order], arrays: Arrays, folder: Path, plan: Plan, title: str
    ) -> Outcome:
        """Send what `folder` does not answer yet; return when all answered or time is up."""
        outcome = Outcome()
        messages = self.messages(orders, arrays, folder, outcome)
        self.receive(self.replies(messages, title), orders, folder, plan, outcome)
        return outcome

    def messages(
        self, orders: Sequence[Order], arrays: Arrays, folder: Path, outcome: Outcome
    ) -> list[Message]:
        """Messages for the orders that have no spooled report; `outcome` takes those that have."""
        missing = []
        for order in orders:
            kept = _kept(folder, order)
            if kept is not None:
                _take(outcome, kept, folder)
            elif order.site not in self._nodes:
                outcome.refused[order.site] = "NO_ANSWER"
            else:
                missing.append(order)
        self._by_node = {self._nodes[order.site]: order for order in missing}
        record = array_record(arrays) if missing else ArrayRecord()
        return [
            Message(
                pack(order, record),
                dst_node_id=self._nodes[order.site],
                message_type=MessageType.TRAIN,
                group_id=str(order.round),
            )
            for order in missing
        ]

    def replies(self, messages: Sequence[Message], title: str) -> Iterator[Message]:
        """Push, then yield replies as they come, until all came or the time limit passed.

        The limit runs while nothing arrives: sites that answer keep a slow round alive.
        """
        if not messages:
            return
        pushed = list(self._grid.push_messages(messages))
        for message_id, message in zip(pushed, messages, strict=True):
            self._asked[message_id] = self._by_node[message.metadata.dst_node_id]
        waiting = set(pushed)
        deadline, pause = time.monotonic() + self._time_limit_s, _SHORTEST_POLL_S
        with track(title, len(waiting)) as advance:
            while waiting:
                arrived = list(self._grid.pull_messages(waiting))
                for reply in arrived:
                    waiting.discard(reply.metadata.reply_to_message_id)
                    yield reply
                    advance()
                if arrived:
                    deadline, pause = time.monotonic() + self._time_limit_s, _SHORTEST_POLL_S
                elif time.monotonic() > deadline:
                    return
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_POLL_S)

    def receive(
        self,
        replies: Iterable[Message],
        orders: Sequence[Order],
        folder: Path,
        plan: Plan,
        outcome: Outcome,
    ) -> None:
        """Check each reply on arrival; spool it or note its code. No reply ends the round.

        One thread checks and writes while the next reply is waited for; one reply at a time, so
        memory holds one and the order of replies stays the order of decisions.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="spool") as checker:
            before: Future[None] | None = None
            for reply in replies:
                if before is not None:
                    before.result()
                before = checker.submit(self._decide, reply, folder, plan, outcome)
            if before is not None:
                before.result()
        for order in orders:
            if order.site not in outcome.reports:
                outcome.refused.setdefault(order.site, "NO_ANSWER")

    def _decide(self, reply: Message, folder: Path, plan: Plan, outcome: Outcome) -> None:
        order = self._asked.get(reply.metadata.reply_to_message_id)
        site = order.site if order else f"node {reply.metadata.src_node_id}"
        try:
            if order is None:
                raise Refusal("STRANGER", f"{site} was not asked")
            if site in outcome.reports:
                raise Refusal("DUPLICATE")
            self._accept(reply, order, folder, plan, outcome)
        except Refusal as refusal:
            _log.warning("%s: %s", site, refusal)
            outcome.refused.setdefault(site, refusal.code)

    def _accept(
        self, reply: Message, order: Order, folder: Path, plan: Plan, outcome: Outcome
    ) -> None:
        if reply.has_error():
            raise Refusal("TRANSPORT", f"Flower error {reply.error.code}")
        report, arrays = unpack_report(reply.content)
        accept(self._study, order, plan, report, arrays, self.census.get(order.site))
        spool(folder / f"{order.site}.safetensors", report, arrays)
        _take(outcome, report, folder)


class Rounds(Strategy):
    """Federated training of one model, from whatever its folder already holds.

    Parameters
    ----------
    branch : the model's rounds and checkpoints
    sites : who trains it, by name
    quorum : fewest accepted reports for a round to count
    plan : the rules of the model's arrays
    cohorts : fingerprints of the data that train it
    members : the sites behind a name that stands for several
    absent : sites that should train but cannot, with the code of why; every round is DEGRADED
    """

    def __init__(  # noqa: PLR0913  one model's whole setting, each by name
        self,
        run: Run,
        branch: Branch,
        exchange: Exchange,
        *,
        sites: Sequence[str],
        quorum: int,
        plan: Plan,
        cohorts: Sequence[str] = (),
        members: Mapping[str, Sequence[str]] | None = None,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self._members = members or {}
        self._absent = dict(absent or {})
        self._run, self._study, self._branch = run, run.study, branch
        self._exchange, self._plan = exchange, plan
        self._sites, self._quorum = sorted(sites), quorum
        self._now = Checkpoint(round=0, arrays={}, state={}, contributors=(), cohorts=())
        self._cohorts = tuple(cohorts)
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
        """Train until `num_rounds` are done; those that are done already are not redone."""
        initial = {name: array.numpy() for name, array in initial_arrays.items()}
        self._now = self._branch.latest(self._study) or Checkpoint(
            round=0, arrays=initial, state={}, contributors=(), cohorts=self._cohorts
        )
        for number in range(self._now.round + 1, num_rounds + 1):
            began = time.monotonic()
            messages = self.configure_train(number, ArrayRecord(), ConfigRecord(), grid)
            title = f"{self._branch.model}: round {number} of {num_rounds}, sites"
            self.aggregate_train(number, self._exchange.replies(list(messages), title))
            self._record(number, time.monotonic() - began)
            self._branch.save(self._now, self._study, self._plan, last=number == num_rounds)
        return Result(arrays=array_record(self._now.arrays))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Orders for the round's sites, less those whose reports are already spooled."""
        digest = digest_of(self._now.arrays)
        self._orders = [
            Order(
                kind="train",
                study=self._study.digest,
                run=self._run.id,
                site=site,
                round=server_round,
                model=self._branch.model,
                arrays=digest,
            )
            for site in self._sites
        ]
        self._outcome = Outcome()
        return self._exchange.messages(
            self._orders, self._now.arrays, self._replies_of(server_round), self._outcome
        )

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
                read=partial(read_array, folder / f"{site}.safetensors"),
            )
            for site, report in sorted(answered.items())
        ]
        arrays, state = aggregate(
            self._plan,
            self._now.arrays,
            contributions,
            self._study.aggregation,
            self._now.state,
            server_round,
        )
        behind = {name for site in answered for name in self._members.get(site, (site,))}
        before, self._now = (
            self._now,
            Checkpoint(
                round=server_round,
                arrays=arrays,
                state=state,
                contributors=tuple(sorted({*self._now.contributors, *behind})),
                cohorts=self._now.cohorts,
            ),
        )
        self._moved = norm_of_difference(arrays, before.arrays)
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


def validation(study: Study, reports: Iterable[Report]) -> dict[str, dict[str, float]]:
    """The global model's metrics on the sites' validation participants, by target."""
    return {
        name: {
            "n": metrics.n_of(study.targets[name], sums),
            **metrics.ratios(study.targets[name], sums),
        }
        for name, sums in merged(reports, "validation/").items()
        if name in study.targets
    }


def _losses(reports: Iterable[Report]) -> dict[str, float]:
    sums = merged(reports, "loss/")
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


def _kept(folder: Path, order: Order) -> Report | None:
    path = folder / f"{order.site}.safetensors"
    if not path.exists():
        return None
    try:
        report = read_spooled(path)
    except (FolderError, Refusal):
        return None  # damaged on disk; the site keeps its answer and sends it again
    return report if report.order == order.id else None


def _take(outcome: Outcome, report: Report, folder: Path) -> None:
    outcome.reports[report.site] = report
    outcome.bytes[report.site] = (folder / f"{report.site}.safetensors").stat().st_size
