"""A local grid whose agents work in several processes at once, as many as there are cores.

Processes are forked from this one, so data that it mapped are there already and nothing is
imported again. Orders and reports pass as JSON text and npy bytes, as on any wire. A site works on
one order at a time, whichever process does it; the bits do not depend on how many there are.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from logging import getLogger
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Final, Self

from flwr.app import Message, RecordDict

from client.learning.training import choose_device
from client.service.agent import Agent
from common.errors import CallosumError
from common.protocol.bounded_json import parsed
from common.protocol.wire import forward, npy_bytes, unpack_order, unpack_sealed
from common.runtime.progress import draw_nothing
from deploy.local_grid import LocalGrid

_log = getLogger("callosum.local")
_PATIENCE_S: Final = 30.0  # of one pull; then whoever waits looks at its time limit
_MOST: Final = 16


def workers_for(agents: Sequence[Agent]) -> int:
    """How many processes can work on the agents' orders: one, unless each asks for one thread.

    Bits depend on the number of threads, which more processes must not change; and a GPU is busy
    with one.
    """
    apart = all(
        agent.site.device.threads == 1 and choose_device(agent.site.device.kind).type == "cpu"
        for agent in agents
    )
    return min(len(os.sched_getaffinity(0)), len(agents), _MOST) if apart else 1


class WorkersGrid(LocalGrid):
    """A local grid, and so many processes of its own while it is entered."""

    def __init__(self, agents: Sequence[Agent], workers: int) -> None:
        super().__init__(agents)
        self.at_once = workers
        self._changed = threading.Condition()
        self._busy: set[int] = set()  # nodes that work on an order
        self._done: dict[str, Message] = {}
        self._failed: BaseException | None = None
        self._open = True
        self._lines: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._processes: list[ForkProcess] = []

    def __enter__(self) -> Self:
        """Fork, while no other thread is there; then one thread waits for each process."""
        fork = get_context("fork")
        for _ in range(self.at_once):
            here, there = fork.Pipe()
            others = [*self._lines, here]  # closed there, or nobody would see that we are gone
            process = fork.Process(target=self._work, args=(there, others))
            process.start()
            self._processes.append(process)
            there.close()
            self._lines.append(here)
        for line in self._lines:
            thread = threading.Thread(target=self._serve, args=(line,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *error: object) -> None:
        """Let the processes end; what one is still at is worked on again by the next call."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for process in self._processes if error[0] is not None else ():
            process.terminate()
        for thread in self._threads:
            thread.join()
        for line in self._lines:
            line.close()  # the process at the other end has nothing left to wait for
        for process in self._processes:
            process.join()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for whichever process is free."""
        with self._changed:
            pushed = super().push_messages(messages)
            self._changed.notify_all()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Wait for the first of the asked replies; all that are there by then."""
        wanted = message_ids if isinstance(message_ids, AbstractSet) else set(message_ids)
        with self._changed:
            self._changed.wait_for(lambda: self._failed or wanted & self._done.keys(), _PATIENCE_S)
            if self._failed is not None:
                raise self._failed
            return [self._done.pop(one) for one in list(self._done) if one in wanted]

    def _serve(self, line: Connection) -> None:
        """Pass one order after the other to a process, and its reply to whoever pulls."""
        while (message := self._next()) is not None:
            reply: Message | None = None
            try:
                reply = Message(self._passed(line, message.content), reply_to=message)
            except (EOFError, OSError):
                _log.warning("a process of this run died; the order is asked of the others")
            except BaseException as error:  # noqa: BLE001  whoever pulls must hear of it
                self._failed = error
            with self._changed:
                self._busy.discard(message.metadata.dst_node_id)
                if reply is not None:
                    self._done[message.metadata.message_id] = reply
                else:
                    self._waiting[message.metadata.message_id] = message
                self._changed.notify_all()
            if reply is None:
                self._bury(line)
                return

    def _next(self) -> Message | None:
        """The next message whose site is free; None once the grid is closed."""
        with self._changed:
            while self._open:
                for message_id, message in self._waiting.items():
                    node = message.metadata.dst_node_id
                    if node not in self._busy:
                        del self._waiting[message_id]
                        self._busy.add(node)
                        return message
                self._changed.wait()
        return None

    def _bury(self, line: Connection) -> None:
        """Without any process left nobody would ever answer."""
        with self._changed:
            line.close()
            if all(one.closed for one in self._lines) and self._failed is None:
                self._failed = CallosumError(
                    "all processes of this run died, of too little memory perhaps; the same "
                    "command goes on"
                )
            self._changed.notify_all()

    @staticmethod
    def _passed(line: Connection, content: RecordDict) -> RecordDict:
        sealed, arrays = unpack_sealed(content)
        _send(line, sealed.text, arrays)
        return forward(*_receive(line))

    def _work(self, line: Connection, others: Sequence[Connection]) -> None:
        """A process: answer orders until nobody is there to ask."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked decides what that means
        draw_nothing()
        for other in others:
            other.close()
        with suppress(EOFError, OSError):
            while True:
                order, arrays = unpack_order(forward(*_receive(line)))
                report, sent = self._agents[self.nodes[order.site]].answer(order, arrays)
                named = ((name, npy_bytes(array)) for name, array in sent.items())
                _send(line, report.model_dump_json(), list(named))


def _send(line: Connection, text: str, arrays: Sequence[tuple[str, bytes]]) -> None:
    line.send_bytes(json.dumps([text, [name for name, _ in arrays]]).encode())
    for _, data in arrays:
        line.send_bytes(data)


def _receive(line: Connection) -> tuple[str, list[tuple[str, bytes]]]:
    text, names = parsed(line.recv_bytes())
    return text, [(name, line.recv_bytes()) for name in names]
