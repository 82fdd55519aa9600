"""Transport: messages over a Flower grid, one at a time and without Flower's copies of them.

Flower's own grid holds a message two or three times while it sends or fetches it, and fetches all
that has arrived at once: with 100 million parameters and three sites that took 6.2 GB. Here one
message is held once, and its objects travel in a short window.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from logging import getLogger
from threading import Lock
from typing import Any, Final, Self, TypeVar

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflatable_class_registry,
)
from flwr.superlink.grid.http_grid import HttpGrid

from common.protocol.bounded_json import parsed, told

_log = getLogger("callosum.server")
_LONGEST_HEADER: Final = 10 + 0xFFFF
_MOST_AXES: Final = 32
_MOST_CHUNKS: Final = 1 << 16  # equal ones are stored once and named often
_LARGEST: Final = 1 << 48  # of an axis
_WINDOW: Final = 3  # objects of 5 MiB under way
_SHORTEST_REST_S: Final = 0.2  # a site still sends what we would fetch
_LONGEST_REST_S: Final = 2.0
_TIMES_AT_REST: Final = 10  # as long as was spent on a reply that then lacked an object
_SMALLEST_CHUNK: Final = 1 << 20  # bytes; Flower's are of five times as many
_ABOUT_OBJECT: Final = 1 << 10  # bytes of an object's head, and of what stands around an array
_LONGEST_REASON: Final = 200  # characters

Item = TypeVar("Item")
Found = TypeVar("Found")


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Send messages; their ids, in order."""
    if not isinstance(grid, HttpGrid):
        return list(grid.push_messages(messages))
    client = grid._runtime_client  # noqa: SLF001  what Flower's own push uses
    with no_object_id_recompute():
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        objects: dict[str, Any] = {}
        for message in messages:  # one record serves all sites: each of its objects is here once
            objects |= get_all_nested_objects(message)
        answer = client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(m)) for m in messages],
                message_object_trees=[get_object_tree(message) for message in messages],
            )
        )
        send = make_push_object_fn_protobuf(
            client.PushObject, grid.node, grid.run.run_id, answer.session_id
        )
        wanted = set(answer.objects_to_push)
        contents = ((name, found.deflate()) for name, found in objects.items() if name in wanted)
        for _ in _windowed(lambda content: send(*content), contents):
            pass
    return list(answer.message_ids)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one reply may take: bytes of all of its objects, and how many of them are fetched."""

    bytes: int
    objects: int

    @classmethod
    def of(cls, sizes: Iterable[int], longest_text: int) -> Self:
        """For arrays of so many bytes each, and a text beside them."""
        every = list(sizes)
        chunks = sum(2 + size // _SMALLEST_CHUNK for size in every)
        about = (_ABOUT_OBJECT * (chunks + len(every) + 8)) + 4 * longest_text  # UTF-8
        return cls(sum(every) + about, 8 + chunks + len(every))


UNLIMITED: Final = Allowance(1 << 62, 1 << 62)


@dataclass(slots=True)
class _Announced:
    """A reply whose objects need not all be there yet, and when to look again."""

    metadata: Metadata
    tree: ObjectTree
    due: float
    rest_s: float = _SHORTEST_REST_S

    def rest(self, tried_s: float) -> None:
        """Look again later, and the later the longer it was looked at for nothing.

        A site sends the head of its reply last, so as a rule nothing else is fetched for nothing.
        """
        self.due = time.monotonic() + max(self.rest_s, _TIMES_AT_REST * tried_s)
        self.rest_s = min(2 * self.rest_s, _LONGEST_REST_S)


@dataclass(slots=True)
class Inbox:
    """Replies from the sites, each handed out once all of it has arrived at the hub.

    A hub announces a reply before the site has sent all of it. Nobody waits for the rest: what
    lacks an object is looked at again later, and the others are fetched meanwhile, so a site that
    drips its reply holds up nothing, and its time runs out like that of a silent one.
    """

    grid: Grid
    announced: dict[str, _Announced] = field(default_factory=dict)

    def pull(
        self, message_ids: Iterable[str], allowance: Allowance = UNLIMITED
    ) -> Iterator[Message]:
        """What has arrived; each is fetched when the one before has been let go of."""
        if not isinstance(self.grid, HttpGrid):
            yield from self.grid.pull_messages(message_ids)
            return
        client, run_id = self.grid._runtime_client, self.grid.run.run_id  # noqa: SLF001
        # a hub hands a reply out once, and of a message whose reply it has handed out knows nothing
        coming = {reply.metadata.reply_to_message_id for reply in self.announced.values()}
        asked = [message_id for message_id in message_ids if message_id not in coming]
        found = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for about, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            metadata = message_from_proto(about).metadata  # the hub has checked it; not so the tree
            self.announced[metadata.message_id] = _Announced(metadata, tree, time.monotonic())
        fetch = make_pull_object_fn_protobuf(client.PullObject, self.grid.node, run_id)
        for message_id, reply in list(self.announced.items()):
            if reply.due > time.monotonic():
                continue
            began = time.monotonic()
            try:
                message = _message(reply, fetch, allowance)
            except ObjectUnavailableError:
                reply.rest(time.monotonic() - began)
                continue
            except ObjectPullError as error:  # the site went away while it sent
                lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, str(error)[:_LONGEST_REASON])
                message = make_message(metadata=reply.metadata, error=lost)
            else:
                self._confirm(message_id)
            del self.announced[message_id]
            yield message
            del message

    def abandon(self) -> None:
        """Forget what never arrived whole; the hub may forget it, too."""
        for message_id in self.announced:
            with suppress(httpx.HTTPError):
                self._confirm(message_id)
        self.announced.clear()

    def _confirm(self, message_id: str) -> None:
        assert isinstance(self.grid, HttpGrid)  # nothing else announces
        self.grid._runtime_client.ConfirmMessageReceived(  # noqa: SLF001
            ConfirmMessageReceivedRequest(
                node=self.grid.node, run_id=self.grid.run.run_id, message_object_id=message_id
            )
        )


def _check_tree(tree: ObjectTree, allowance: Allowance) -> None:
    """Refuse before anything is fetched; an object has each of its parts once."""
    number = 0
    waiting = [tree]
    while waiting:
        number += 1
        children = waiting.pop().children
        if len({child.object_id for child in children}) != len(children):
            raise ValueError("one of its objects names a part twice")
        waiting += children
        if number + len(waiting) > allowance.objects:
            raise ValueError(f"it has more than {allowance.objects} objects")


@dataclass(slots=True)
class _Limited:
    """Fetches objects for one reply, up to what it may take in all."""

    fetch: Callable[[str], bytes]
    allowance: Allowance
    size: int = 0
    objects: int = 0
    lock: Lock = field(default_factory=Lock)

    def __call__(self, name: str) -> bytes:
        content = self.fetch(name)
        with self.lock:
            self.size += len(content)
            self.objects += 1
        if self.size > self.allowance.bytes or self.objects > self.allowance.objects:
            raise ValueError(f"it is larger than the {self.allowance.bytes} bytes that were asked")
        return content


def _message(reply: _Announced, fetch: Callable[[str], bytes], allowance: Allowance) -> Message:
    """A reply; one whose objects make no sense has no content, which is a malformed report."""
    metadata = reply.metadata
    try:
        _check_tree(reply.tree, allowance)
        found = _inflated(reply.tree, _Limited(fetch, allowance))
        if found.has_error():
            return make_message(metadata=metadata, error=found.error)
        if not isinstance(found.content, RecordDict):
            raise TypeError("the content of a message must be records")
        return make_message(metadata=metadata, content=found.content)
    except (ObjectPullError, ObjectUnavailableError, httpx.HTTPError):
        raise
    except Exception as error:  # noqa: BLE001  a site's objects may say anything
        _log.warning("a reply cannot be read: %s: %s", type(error).__name__, told(str(error)))
        return make_message(metadata=metadata, content=RecordDict())


def _inflated(tree: ObjectTree, fetch: Callable[[str], bytes]) -> Any:
    """The object at the head of `tree`, with all below it."""
    content = fetch(tree.object_id)
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind == Array.__qualname__:
        return _array(content, children, fetch)
    below = {child.object_id: _inflated(child, fetch) for child in tree.children}
    if kind == ArrayRecord.__qualname__:  # its own inflate would copy every array
        record = ArrayRecord()
        for name, reference in parsed(get_object_body(content, ArrayRecord)).items():
            record[name] = below[reference]
        return record
    return inflatable_class_registry[kind].inflate(content, below)


def _array(content: bytes, chunks: list[str], fetch: Callable[[str], bytes]) -> Array:
    """An array whose bytes are put in their place as they come; as `bytes` they would be twice."""
    about = parsed(get_object_body(content, Array))
    shape = _whole(about["shape"], _MOST_AXES)
    numbers = _whole(about["arraychunk_ids"], _MOST_CHUNKS)
    if not (isinstance(about["dtype"], str) and isinstance(about["stype"], str)):
        raise TypeError("an array's type is no word")
    most = _LONGEST_HEADER + math.prod(shape) * np.dtype(about["dtype"]).itemsize
    data = bytearray()
    for chunk in _windowed(fetch, [chunks[number] for number in numbers]):
        data += memoryview(chunk)[chunk.index(b"\0") + 1 :]
        if len(data) > most:
            raise ValueError(f"an array of shape {shape} has more than {most} bytes")
    array = Array(about["dtype"], shape, about["stype"], b"")
    array.data = data  # type: ignore[assignment]
    return array


def _whole(found: object, most: int) -> tuple[int, ...]:
    """A short list of counts; a word among them would be repeated as often as the others say."""
    if not isinstance(found, list) or len(found) > most:
        raise TypeError(f"no list of at most {most} numbers")
    if not all(type(number) is int and 0 <= number < _LARGEST for number in found):
        raise TypeError("a list of an array's numbers holds something else")
    return tuple(found)


def _windowed(work: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Work on items, a few at a time; results in order."""
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(_WINDOW, thread_name_prefix="transport") as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == _WINDOW:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
