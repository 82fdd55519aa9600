"""A Flower Grid without a network: its nodes are agents in this process.

Message contents are copied, so no site can reach another's arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from client.service.agent import Agent
from common.protocol.wire import array_record, pack_report, unpack_order

SERVER_NODE: Final = 1


class LocalGrid(Grid):
    """A Flower Grid whose nodes are agents in this process; one works at each pull.

    at_once: how many orders are worked on at a time.
    """

    at_once = 1

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.nodes = {agent.site.name: 100 + i for i, agent in enumerate(agents)}
        self._agents = {self.nodes[agent.site.name]: agent for agent in agents}
        self._waiting: dict[str, Message] = {}
        self._sent = 0
        # Flower's Message asks who is speaking; outside its own processes nobody has said
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER_NODE, 1

    def __enter__(self) -> Self:
        """There is nothing to stand up."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nor to take down."""

    def set_run(self, run: FlowerRun) -> None:
        """A local grid belongs to no SuperLink run."""

    @property
    def run(self) -> FlowerRun:
        """A local grid belongs to no SuperLink run."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """One node for each agent."""
        return list(self._agents)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; nothing works until it is pulled."""
        pushed = []
        for message in messages:
            self._sent += 1
            message_id = f"local-{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the next asked agent work, and return its reply."""
        wanted = message_ids if isinstance(message_ids, AbstractSet) else set(message_ids)
        due = next((message_id for message_id in self._waiting if message_id in wanted), None)
        return [] if due is None else [self._answer(self._waiting.pop(due))]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push all, pull all."""
        pushed = set(self.push_messages(messages))
        replies: list[Message] = []
        while arrived := list(self.pull_messages(pushed)):
            replies += arrived
        return replies

    def _answer(self, message: Message) -> Message:
        agent = self._agents[message.metadata.dst_node_id]
        order, arrays = unpack_order(message.content)
        report, sent = agent.answer(order, arrays)
        return Message(pack_report(report, array_record(sent)), reply_to=message)
