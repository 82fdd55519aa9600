"""Transport: messages over a Flower grid, one at a time and without Flower's copies of them.

Flower's own grid holds a message two or three times while it sends or fetches it, and fetches all
that has arrived at once: with 100 million parameters and three sites that took 6.2 GB. Here one
message is held once, and its objects travel in a short window.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from logging import getLogger
from typing import Any, Final, TypeVar

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

_log = getLogger("callosum.server")
_LONGEST_HEADER: Final = 10 + 0xFFFF
_WINDOW: Final = 3  # objects of 5 MiB under way
_REST_S: Final = 0.2  # a site still sends what we fetch

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


def pull(grid: Grid, message_ids: Iterable[str]) -> Iterator[Message]:
    """The replies that have arrived; each is fetched when the one before has been let go of."""
    if not isinstance(grid, HttpGrid):
        yield from grid.pull_messages(message_ids)
        return
    client, run_id = grid._runtime_client, grid.run.run_id  # noqa: SLF001
    found = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    fetch = make_pull_object_fn_protobuf(client.PullObject, grid.node, run_id)
    for about, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        metadata = message_from_proto(about).metadata  # the hub has checked it; not so the objects
        try:
            message = _message(tree, fetch, metadata)
        except ObjectPullError as error:  # the site went away while it sent
            lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, str(error))
            yield make_message(metadata=metadata, error=lost)
            continue
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=grid.node, run_id=run_id, message_object_id=about.metadata.message_id
            )
        )
        yield message
        del message


def _message(tree: ObjectTree, fetch: Callable[[str], bytes], metadata: Metadata) -> Message:
    """A reply; one whose objects make no sense has no content, which is a malformed report."""
    try:
        found = _inflated(tree, fetch)
        if found.has_error():
            return make_message(metadata=metadata, error=found.error)
        if not isinstance(found.content, RecordDict):
            raise TypeError("the content of a message must be records")
        return make_message(metadata=metadata, content=found.content)
    except (ObjectPullError, httpx.HTTPError):
        raise
    except Exception as error:  # noqa: BLE001  a site's objects may say anything
        _log.warning("a reply cannot be read: %s", error)
        return make_message(metadata=metadata, content=RecordDict())


def _inflated(tree: ObjectTree, fetch: Callable[[str], bytes]) -> Any:
    """The object at the head of `tree`, with all below it."""
    content = _patiently(fetch, tree.object_id)
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind == Array.__qualname__:
        return _array(content, children, fetch)
    below = {child.object_id: _inflated(child, fetch) for child in tree.children}
    if kind == ArrayRecord.__qualname__:  # its own inflate would copy every array
        record = ArrayRecord()
        for name, reference in json.loads(get_object_body(content, ArrayRecord)).items():
            record[name] = below[reference]
        return record
    return inflatable_class_registry[kind].inflate(content, below)


def _array(content: bytes, chunks: list[str], fetch: Callable[[str], bytes]) -> Array:
    """An array whose bytes are put in their place as they come; as `bytes` they would be twice."""
    about = json.loads(get_object_body(content, Array))
    shape = tuple(about["shape"])
    most = _LONGEST_HEADER + math.prod(shape) * np.dtype(about["dtype"]).itemsize
    data = bytearray()
    names = [chunks[number] for number in about["arraychunk_ids"]]
    for chunk in _windowed(lambda name: _patiently(fetch, name), names):
        data += memoryview(chunk)[chunk.index(b"\0") + 1 :]
        if len(data) > most:
            raise ValueError(f"an array of shape {shape} has more than {most} bytes")
    array = Array(about["dtype"], shape, about["stype"], b"")
    array.data = data  # type: ignore[assignment]
    return array


def _patiently(fetch: Callable[[str], bytes], name: str) -> bytes:
    """An object that may still be on its way; Flower says when it will never come."""
    while True:
        try:
            return fetch(name)
        except ObjectUnavailableError:
            time.sleep(_REST_S)


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
