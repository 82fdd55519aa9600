"""The work queue: orders are carried out one at a time, each once, however many ask for it.

The arrays of the orders that wait are in memory, so only a few may. Whoever asks for an order that
is under way waits for the same work; the work goes on when they leave.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from typing import Any, Final

import torch

from client.link.listener import Asking, Said
from client.service.agent import Agent, code_of
from client.service.agent_pool import AgentPool
from client.service.order_arrays import check_announced, expected, viewed
from common.arrays import Arrays
from common.errors import Refusal
from common.protocol.orders import Order, Report
from common.study import Study

MOST_ORDERS: Final = 5  # one is worked on, the others wait
HEARTBEAT_S: Final = 5.0  # a courier takes a minute of silence for death
_log = getLogger("callosum.site")

Outcome = tuple[Report, Arrays]
Phases = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Work:
    """One order under way. `outcome` is None where whoever brought it left too early."""

    outcome: Future[Outcome | None] = field(default_factory=Future)


class WorkQueue:
    """Carries out admitted orders.

    Parameters
    ----------
    pool : gives the agent of an approved study
    threads : that torch computes with; 0 takes the machine's cores
    heartbeat_s : how often a waiting courier is told that somebody is at work
    show_queue : told how many orders wait
    """

    def __init__(
        self,
        pool: AgentPool,
        threads: int,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        show_queue: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._pool, self._heartbeat_s, self._show_queue = pool, heartbeat_s, show_queue
        self._mutex = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._worker = ThreadPoolExecutor(1, "work", partial(_pin_threads, threads))

    def carry_out(
        self, order: Order, study: Study, asking: Asking, phases: Phases
    ) -> Generator[Said, None, tuple[Outcome, bool]]:
        """The answer to `order`, and whether it joined work begun for another delivery of it.

        Meanwhile it says what to tell the courier, and fills in `phases` by seconds.

        Raises
        ------
        Refusal
            If too many orders wait, the arrays are not as announced, or the data cannot be had.
        """
        while True:
            work, mine = self._work_on(order)
            since = time.monotonic()
            if mine:
                try:
                    yield from self._bring(work, order, study, asking, phases)
                except BaseException:  # the courier left, too: whoever else waits brings it anew
                    self._end(work, order)
                    work.outcome.set_result(None)
                    raise
            yield from self._alive_until(work.outcome)
            outcome = work.outcome.result()
            if outcome is not None:
                if not mine:
                    phases["queue"] = time.monotonic() - since
                return outcome, not mine

    def close(self) -> bool:
        """Begin no more work; False if some is still under way."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        with self._mutex:
            return not self._works

    def _work_on(self, order: Order) -> tuple[_Work, bool]:
        """The work on this very order, and whether it is new."""
        with self._mutex:
            work = self._works.get(order.id)
            if work is not None:
                return work, False
            if len(self._works) >= MOST_ORDERS:
                raise Refusal("BUSY", f"{len(self._works)} orders are under way")
            work = self._works[order.id] = _Work()
            self._show_queue(len(self._works) - 1)
            return work, True

    def _bring(
        self, work: _Work, order: Order, study: Study, asking: Asking, phases: Phases
    ) -> Generator[Said, None, None]:
        """Have the data ready, take the arrays that belong here, and pass both to the worker."""
        since = time.monotonic()
        opening = self._pool.agent(study, anew=order.kind == "census")
        yield from self._alive_until(opening)
        agent = _had(opening)
        phases["prepare"] = time.monotonic() - since
        since = time.monotonic()
        plan = expected(order, study, agent.cohort)
        check_announced(order, asking.sizes, plan)
        yield "send"
        arrays = {name: viewed(name, data, plan[name]) for name, data in asking.arrays()}
        phases["receive"] = time.monotonic() - since
        since = time.monotonic()
        self._worker.submit(self._do, work, agent, order, arrays, phases, since)

    def _do(
        self,
        work: _Work,
        agent: Agent,
        order: Order,
        arrays: Arrays,
        phases: Phases,
        since: float,
    ) -> None:
        """In the worker's thread, the only one that computes; whoever asked may be gone by now."""
        phases["queue"] = time.monotonic() - since
        since = time.monotonic()
        try:
            outcome = agent.answer(order, arrays)
        except BaseException:  # noqa: BLE001  those who wait must hear of it, whatever it is
            _log.exception("order %s", order.kind)
            self._end(work, order)
            work.outcome.set_exception(Refusal("SITE_FAILED"))
            return
        phases["work"] = time.monotonic() - since
        self._end(work, order)
        work.outcome.set_result(outcome)

    def _end(self, work: _Work, order: Order) -> None:
        """From here on the same order is new work; its report is found on disk."""
        with self._mutex:
            if self._works.get(order.id) is work:
                del self._works[order.id]
            self._show_queue(max(0, len(self._works) - 1))

    def _alive_until(self, awaited: Future[Any]) -> Generator[Said, None, None]:
        """Tell the courier that the agent is alive, until what it waits for is there."""
        since = time.monotonic()
        while not wait([awaited], self._heartbeat_s).done:
            yield time.monotonic() - since


def _pin_threads(asked: int) -> None:
    """Fix how many threads torch computes with: the bits of a training depend on it."""
    torch.set_num_threads(asked or os.cpu_count() or 1)


def _had(opening: Future[Agent]) -> Agent:
    try:
        return opening.result()
    except Exception as error:  # noqa: BLE001  its text may name a path: for the log alone
        _log.exception("the data cannot be prepared")
        raise Refusal(code_of(error), str(error)) from None
