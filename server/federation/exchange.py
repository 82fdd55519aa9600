"""Carries orders to sites and accepted reports into a folder: the one place that waits for sites.

It knows no science. A reply is checked on arrival and spooled, or its code is noted. A site that
could not be reached, or lost what it was asked, is asked again for as long as the others may take.
"""

from __future__ import annotations

import gc
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.comparisons import CLOSED_FORM
from common.errors import SENTENCES, FolderError, Refusal
from common.network.plan import Plan
from common.protocol.code import agreed_digest
from common.protocol.orders import Order, Report
from common.protocol.signing import seal
from common.protocol.tokens import BYTES_OF_SCAN
from common.protocol.wire import (
    Stored,
    array_record,
    pack_order,
    read_spooled,
    refusal_of,
    spool,
    unpack_report,
)
from common.runtime.progress import track
from common.study import Study
from server.federation.books import BOOKS, SiteBooks
from server.federation.expectation import longest_text, most_rows
from server.federation.parcel import Parcel
from server.federation.progress import ProgressFile
from server.federation.report_validation import Sound, accept
from server.federation.transport import Allowance, Inbox, push
from server.federation.update_norms import Moved

_log = getLogger("callosum.server")
_SHORTEST_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 1.0
_LARGE: Final = 64 << 20  # bytes
_MOST_EXPIRED: Final = 3  # a site whose clock is wrong must not cost every round its time limit
_SHORTEST_REST_S: Final = 0.5
_LONGEST_REST_S: Final = 15.0
# the order never reached the site's agent, or its answer never reached us; the same order asked
# again is answered from the site's disk or joins the work that goes on
_NEEDS: Final = "NEEDS_ARRAYS"  # what was thought to be held is not: the same order with it
_AGAIN: Final = frozenset({"TRANSPORT", "NO_AGENT", "BUSY", "REPLAYED", "EXPIRED"})


@dataclass(slots=True)
class Outcome:
    """Who answered acceptably, and who did not, by site."""

    reports: dict[str, Report] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    moved: dict[str, Moved] = field(default_factory=dict)  # of training reports

    def refuse(self, site: str, code: str) -> None:
        """Take back what was accepted of a site."""
        del self.reports[site], self.bytes[site], self.moved[site]
        self.refused[site] = code
        _log.warning("%s: %s: %s", site, code, SENTENCES[code])


class Exchange:
    """Sends orders over a grid and receives reports, one exchange after the other.

    Parameters
    ----------
    nodes : Flower's node id of each site
    key : signs the orders; None where coordinator and sites are one process
    progress : told who answered, for whoever looks on
    books : what was seen of each site's books; by default nothing is kept
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        study: Study,
        *,
        key: Ed25519PrivateKey | None = None,
        progress: ProgressFile | None = None,
        books: SiteBooks | None = None,
    ) -> None:
        self._books = books or SiteBooks()
        self._grid, self._nodes, self._study = grid, nodes, study
        self._key, self._progress = key, progress
        self.identities: Mapping[str, bytes] = {}  # of sites, for secure sums; {}: unknown
        self.census: dict[str, Report] = {}  # what each site said it holds; bounds what it claims
        self._time_limit_s = self._limit_s = study.sites.time_limit_s
        self._code = agreed_digest(study)
        self._inbox = Inbox(grid)
        self._sets: Mapping[str, Mapping[str, NDArray[Any]]] = {}
        self._plan: Plan = {}
        self._untold: tuple[Sequence[Order], Outcome] | None = None
        self._held: dict[str, set[str]] = {}  # by site: digests that need not be sent again
        self._sound: Sound | None = None
        self._whole: set[str] = set()  # orders that were sent with all of their arrays
        self._asked: dict[str, Order] = {}  # by message: Flower answers for a dead node as node 1
        self._waiting: set[str] = set()  # messages without a reply
        self._resting: dict[str, tuple[float, Order]] = {}  # by site: what is asked again, and when
        self._settled: set[str] = set()  # sites whose answer has come, whatever else is under way
        self._unreached: dict[str, tuple[str, int]] = {}  # by site: why, and how often already

    def ask(
        self,
        orders: Sequence[Order],
        parcel: Parcel,
        folder: Path,
        plan: Plan,
        title: str,
        sound: Sound | None = None,
        limit_s: float | None = None,
    ) -> Outcome:
        """Send what `folder` does not answer yet; return when all answered or time is up.

        `limit_s` is a shorter limit than the study's. `sound` raises `Refusal` for arrays that
        `plan` allows and nobody may believe.
        """
        self._sound, self._plan, self._sets = sound, plan, parcel.sets
        self._limit_s = min(limit_s or self._time_limit_s, self._time_limit_s)
        outcome = Outcome()
        missing = self.missing(orders, folder, outcome)
        self.receive(self.replies(missing, title), orders, folder, outcome)
        return outcome

    @property
    def at_once(self) -> int:
        """How many exchanges may go on at the same time, each by an `another` of this one."""
        return int(getattr(self._grid, "at_once", 1))

    def another(self) -> Exchange:
        """One more over the same grid, for sites that this one asks nothing meanwhile."""
        made = Exchange(
            self._grid,
            self._nodes,
            self._study,
            key=self._key,
            progress=self._progress,
            books=self._books,
        )
        made.census = self.census
        return made

    def knows(self, site: str) -> bool:
        """Whether a site can be asked at all."""
        return site in self._nodes

    def missing(self, orders: Sequence[Order], folder: Path, outcome: Outcome) -> list[Order]:
        """The orders that have no spooled report; `outcome` takes the reports of the others."""
        missing = []
        for order in orders:
            kept = self._kept(folder / f"{order.site}.safetensors", order)
            if kept is not None:
                self._take(outcome, order, *kept, folder)
            elif order.site not in self._nodes:
                outcome.refused[order.site] = "NO_ANSWER"
            elif self._books.stops(order.site):
                outcome.refused[order.site] = BOOKS
            else:
                missing.append(order)
        return missing

    def replies(self, orders: Sequence[Order], title: str) -> Iterator[Message]:
        """Push, then yield replies as they come, until all came or the time limit passed.

        The limit runs while nothing arrives: sites that answer keep a slow round alive.
        """
        if not orders:
            return
        try:
            yield from self._replies(orders, title)
        finally:
            self._inbox.abandon()

    def _replies(self, orders: Sequence[Order], title: str) -> Iterator[Message]:
        allowance = self._allowance(orders)
        self._whole.clear()
        self._unreached.clear()
        self._resting.clear()
        self._settled.clear()
        self._waiting = waiting = set[str]()
        self._push(orders)
        deadline, pause = time.monotonic() + self._limit_s, _SHORTEST_POLL_S
        with track(title, len(orders)) as advance:
            while waiting or self._resting:
                arrived = False
                for reply in self._inbox.pull(waiting, allowance) if waiting else ():
                    waiting.discard(reply.metadata.reply_to_message_id)
                    if self._rests_after(reply):
                        continue
                    self._settle(reply)
                    arrived = True
                    yield reply
                    del reply  # the next is fetched only now, and memory holds one
                    advance()
                now = time.monotonic()
                self._push([order for due, order in self._resting.values() if due <= now])
                if arrived:
                    deadline, pause = now + self._limit_s, _SHORTEST_POLL_S
                elif now > deadline:
                    return
                else:
                    if self._untold is not None:
                        self._show(*self._untold)
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_POLL_S)

    def receive(
        self,
        replies: Iterable[Message],
        orders: Sequence[Order],
        folder: Path,
        outcome: Outcome,
    ) -> None:
        """Check each reply on arrival; spool it or note its code. No reply ends the round.

        One thread checks and writes while the next reply is waited for; one reply at a time, so
        that the order of replies stays the order of decisions. A large one is not overlapped:
        memory holds one, however many sites there are.
        """
        self._show(orders, outcome, always=True)
        with ThreadPoolExecutor(1, thread_name_prefix="spool") as checker:
            before: Future[None] | None = None
            for reply in replies:
                if before is not None:
                    before.result()
                before = checker.submit(self._decide, reply, orders, folder, outcome)
                large = _bytes(reply) > _LARGE
                del reply
                if large:
                    before.result()
                    gc.collect()  # Flower's records refer to themselves
            if before is not None:
                before.result()
        for order in orders:
            if order.site not in outcome.reports:
                code, _ = self._unreached.get(order.site, ("NO_ANSWER", 0))
                outcome.refused.setdefault(order.site, code)
        self._show(orders, outcome, always=True)

    def _push(self, orders: Sequence[Order]) -> None:
        """Seal and send, without what a site holds; sites that need the same share one record."""
        if not orders:
            return
        now, records = time.time(), dict[tuple[str, ...], ArrayRecord]()
        sealed = partial(
            seal, key=self._key, code=self._code, now=now, lifetime_s=self._time_limit_s
        )
        messages = []
        for order in orders:
            needed = self._needed(order)
            if needed not in records:
                # one array at a time: they lie on disk, and memory holds what Flower is given
                sets = (self._sets[digest] for digest in needed)
                records[needed] = array_record(ChainMap(*sets))  # type: ignore[arg-type]
            messages.append(
                Message(
                    pack_order(sealed(order, seen=self._books.told(order)), records[needed]),
                    dst_node_id=self._nodes[order.site],
                    message_type=MessageType.TRAIN,
                    group_id=str(order.round),
                )
            )
        for message_id, order in zip(push(self._grid, messages), orders, strict=True):
            self._resting.pop(order.site, None)
            if message_id:
                self._asked[message_id] = order
                self._waiting.add(message_id)
            else:  # Flower takes no message for a node that is not connected
                self._rest(order, "TRANSPORT", " (its node is not connected)")

    def _needed(self, order: Order) -> tuple[str, ...]:
        """Digests of the sets that must travel with an order."""
        held = self._held.get(order.site, set())
        named = (order.arrays, order.base)
        needed = tuple(one for one in named if one in self._sets and one not in held)
        if all(one in needed or one not in self._sets for one in named):
            self._whole.add(order.id)
        return needed

    def _rests_after(self, reply: Message) -> bool:
        """Whether the reply says that its order must be asked again; it is due after a rest."""
        order = self._asked.get(reply.metadata.reply_to_message_id)
        code = "TRANSPORT" if reply.has_error() else refusal_of(reply.content)
        if order is not None and code == _NEEDS and order.id not in self._whole:
            self._held.pop(order.site, None)
            self._resting[order.site] = (time.monotonic(), order)  # at once, with everything
            return True
        if order is None or code not in _AGAIN:
            return False
        if order.site in self._settled:  # it was asked twice, and has answered once
            return True
        _, rests = self._unreached.get(order.site, ("", 0))
        if code == "EXPIRED" and rests >= _MOST_EXPIRED:
            return False
        # its reason may be a site's own words, and stays where it is
        why = f" (Flower error {reply.error.code})" if reply.has_error() else ""
        self._rest(order, code, why)
        return True

    def _settle(self, reply: Message) -> None:
        """Ask a site no more that has answered, nor wait for what it may say to the same order."""
        order = self._asked.get(reply.metadata.reply_to_message_id)
        if order is not None:
            self._settled.add(order.site)
            self._resting.pop(order.site, None)
            self._waiting -= {one for one in self._waiting if self._asked[one].site == order.site}

    def _rest(self, order: Order, code: str, why: str = "") -> None:
        _, rests = self._unreached.get(order.site, ("", 0))
        if not rests:
            _log.warning("%s: %s%s; asking again", order.site, code, why)
        rest_s = min(_LONGEST_REST_S, _SHORTEST_REST_S * 2.0 ** min(rests, 9))
        self._unreached[order.site] = (code, rests + 1)
        self._resting[order.site] = (time.monotonic() + rest_s, order)

    def _allowance(self, orders: Sequence[Order]) -> Allowance:
        """What one reply to any of `orders` may take; they differ in the site alone."""
        sizes = [rule.nbytes for rule in self._plan.values() if rule.travels]
        head = orders[0].kind == "send" and orders[0].method in CLOSED_FORM
        if orders[0].kind == "linear" or head:  # of as many measures as the sites have
            sizes = [_LARGE]
        if orders[0].kind == "overlap":
            sizes = [BYTES_OF_SCAN * self._study.sites.most_scans]
        return Allowance.of(sizes, longest_text(self._study, orders[0]))

    def _decide(
        self, reply: Message, orders: Sequence[Order], folder: Path, outcome: Outcome
    ) -> None:
        order = self._asked.get(reply.metadata.reply_to_message_id)
        site = order.site if order else f"node {reply.metadata.src_node_id}"
        try:
            if order is None:
                raise Refusal("STRANGER", f"{site} was not asked")
            if site in outcome.reports:
                raise Refusal("DUPLICATE")
            self._accept(reply, order, folder, outcome)
        except Refusal as refusal:
            _log.warning("%s: %.300s", site, refusal)
            outcome.refused.setdefault(site, refusal.code)
            if order is not None and refusal.code == BOOKS:
                self._books.stop(site, "the site itself says so")
        self._show(orders, outcome)

    def _accept(self, reply: Message, order: Order, folder: Path, outcome: Outcome) -> None:
        if reply.has_error():
            raise Refusal("TRANSPORT", f"Flower error {reply.error.code}")
        longest, rows = longest_text(self._study, order), most_rows(self._study, order)
        report, arrays = unpack_report(reply.content, longest, rows)
        self._believe(order, report, arrays)
        self._books.take(order, report)
        path = folder / f"{order.site}.safetensors"
        spool(path, report, arrays)
        try:
            if read_spooled(path) != report or set(Stored(path)) != set(arrays):
                raise FolderError(f"{path} holds something else than was written")
        except (FolderError, Refusal) as error:  # as a text can be that its file cannot hold
            path.unlink(missing_ok=True)
            raise Refusal("REPORT_MALFORMED", f"it cannot be read back: {error}") from None
        self._take(outcome, order, report, arrays, folder)

    def _believe(self, order: Order, report: Report, arrays: Mapping[str, NDArray[Any]]) -> None:
        census = self.census.get(order.site) if order.kind != "census" else None
        accept(self._study, order, self._plan, report, arrays, census, self._sound)

    def _kept(self, path: Path, order: Order) -> tuple[Report, Stored] | None:
        """What is spooled already, if it is what would be accepted now; else it is asked again.

        An older version may have accepted it, and a disk may have damaged it: the site keeps its
        answer and sends it again.
        """
        if not path.exists():
            return None
        try:
            report, arrays = read_spooled(path), Stored(path)
            self._believe(order, report, arrays)
        except (FolderError, Refusal) as error:
            _log.warning("%s: what is kept is asked again: %.300s", order.site, error)
            path.unlink(missing_ok=True)
            return None
        return report, arrays

    def _take(
        self,
        outcome: Outcome,
        order: Order,
        report: Report,
        arrays: Mapping[str, NDArray[Any]],
        folder: Path,
    ) -> None:
        site = report.site
        masked = self._study.secure_sums.on  # then nobody knows how far it moved
        if order.kind == "train" and not masked:
            outcome.moved[site] = Moved.to(self._plan, arrays, self._sets[order.arrays])
        outcome.bytes[site] = (folder / f"{site}.safetensors").stat().st_size
        outcome.reports[site] = report
        self._held.setdefault(site, set()).update(report.holds)

    def _show(self, orders: Sequence[Order], outcome: Outcome, *, always: bool = False) -> None:
        """Tell whoever looks on, now or as soon as it is due."""
        if self._progress is None or not orders:
            return
        if not (always or self._progress.is_due()):
            self._untold = (orders, outcome)
            return
        self._untold = None
        reports = dict(outcome.reports)  # another thread may be taking the next
        seconds = {site: report.seconds for site, report in reports.items()}
        self._progress.show(orders, seconds, dict(outcome.bytes), dict(outcome.refused))


def _bytes(reply: Message) -> int:
    if not reply.has_content():
        return 0
    records = reply.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
