"""What arrives over Flower is what was sent, however it was cut up, and harm stays one message's."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import array as flower_array
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
)
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.errors import Refusal
from common.protocol.wire import npy_bytes, refusal_of, unpack_report, view_npy
from server.federation import transport
from server.federation.transport import Inbox, _inflated, _windowed, push

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _somebody_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Message asks who is speaking; outside its own processes nobody has said."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


named_arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    npst.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.int64]),
        npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=6),
    ),
    max_size=4,
)


def message_of(arrays: dict[str, Any], **more: Any) -> Message:
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    records = {"callosum": ConfigRecord({"json": "text"}), "arrays": record, **more}
    return Message(RecordDict(records), 7, "train", group_id="3")


def contents_of(message: Message) -> dict[str, bytes]:
    return {name: found.deflate() for name, found in get_all_nested_objects(message).items()}


# A few at a time, in order.


@given(st.lists(st.integers(), max_size=20))
def test_results_come_in_the_order_of_the_items(items: list[int]) -> None:
    """Chunks of an array are put one behind the other as they come."""
    assert list(_windowed(lambda item: item + 1, items)) == [item + 1 for item in items]


def test_a_slow_item_keeps_its_place() -> None:
    """The first chunk may be the last to arrive."""
    second = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second.wait(PATIENCE_S)
        if item == 1:
            second.set()
        return item

    assert list(_windowed(work, range(6))) == list(range(6))


def test_a_few_items_are_under_way_and_no_more() -> None:
    """Three of five megabytes are held; the others wait where they are."""
    lock, running, most, taken = threading.Lock(), 0, 0, 0
    gate = threading.Barrier(transport._WINDOW)

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if item < transport._WINDOW:
            gate.wait(PATIENCE_S)  # as many as the window holds do run at the same time
        with lock:
            running -= 1
        return item

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(30):
            taken += 1
            yield item

    for number, found in enumerate(_windowed(work, items())):
        assert found == number
        assert taken <= number + transport._WINDOW
    assert most == transport._WINDOW
    assert taken == 30


def test_what_goes_wrong_with_one_item_is_told_in_its_place() -> None:
    """A chunk that is gone ends its array, and nothing is begun after it."""
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 4:
            raise ObjectPullError(str(item), "gone")
        return item

    found = []
    with pytest.raises(ObjectPullError):
        for item in _windowed(work, itertools.count()):
            found.append(item)  # noqa: PERF402  up to the exception
    assert found == [0, 1, 2, 3]
    assert len(begun) <= 4 + transport._WINDOW


def test_nothing_is_begun_for_nobody() -> None:
    """Also the items may fail, and the caller may stop asking."""
    begun: list[int] = []
    found = _windowed(begun.append, itertools.count())
    next(found)
    found.close()
    assert len(begun) <= transport._WINDOW

    def broken() -> Iterator[int]:
        yield 1
        raise KeyError("an item")

    with pytest.raises(KeyError):
        list(_windowed(lambda item: item, broken()))


# Objects become messages again.


def assert_as_flower_reads(message: Message) -> None:
    """Ours and Flower's own way give the same message, to the byte."""
    contents, tree = contents_of(message), get_object_tree(message)
    ours = _inflated(tree, contents.__getitem__)
    flowers = inflate_object_from_contents(tree.object_id, dict(contents))
    assert isinstance(ours, Message)
    assert ours.object_id == flowers.object_id == tree.object_id
    assert ours.metadata.__dict__ == flowers.metadata.__dict__
    if not flowers.has_content():
        assert ours.error == flowers.error
        return
    assert ours.content.keys() == flowers.content.keys()
    assert ours.content.config_records == flowers.content.config_records
    assert ours.content.metric_records == flowers.content.metric_records
    for place, record in flowers.content.array_records.items():
        there = ours.content.array_records[place]
        assert list(there) == list(record)
        for name, array in record.items():
            here = there[name]
            assert (here.dtype, here.shape, here.stype) == (array.dtype, array.shape, array.stype)
            assert bytes(here.data) == array.data


@given(named_arrays)
@settings(deadline=None)
def test_a_message_is_inflated_as_flower_inflates_it(arrays: dict[str, Any]) -> None:
    """Flower's own objects and their ids are the oracle."""
    assert_as_flower_reads(message_of(arrays))


@pytest.mark.parametrize("size", [1, 16, 64, 1000])
@given(arrays=named_arrays)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_array_of_many_chunks_is_put_together(
    monkeypatch: pytest.MonkeyPatch, arrays: dict[str, Any], size: int
) -> None:
    """Chunks of 5 MiB would need much data: small ones show the same."""
    monkeypatch.setattr(flower_array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", size)
    arrays["zeros"] = np.zeros(50)  # the same chunk again and again is sent once
    assert_as_flower_reads(message_of(arrays))


def test_large_arrays_and_all_kinds_of_records_arrive() -> None:
    """Real chunks, an array in two places, two equal arrays, nothing at all, and other records."""
    random = np.random.default_rng(3)
    big = random.normal(size=(2, 1_000_000)).astype(np.float32)  # 8 MB: two chunks
    more = {
        "again": ArrayRecord({"big": Array(big), "none": Array(np.zeros(0))}),
        "empty": ArrayRecord(),
        "numbers": MetricRecord({"loss": 0.5, "n": [1, 2]}),
    }
    assert_as_flower_reads(message_of({"big": big, "same": big, "zero": np.zeros(())}, **more))
    assert_as_flower_reads(message_of({}))


def test_an_error_reply_is_inflated() -> None:
    """It has no content below it."""
    asked = message_of({})
    asked.metadata.__dict__["_message_id"] = asked.object_id
    assert_as_flower_reads(Message(Error(code=2, reason="a courier fell over"), reply_to=asked))


def test_inflated_arrays_are_read_without_a_copy() -> None:
    """A hundred million numbers are held once, from the network to the file."""
    array = np.arange(6, dtype=np.float32)
    message = message_of({"a": array})
    contents = contents_of(message)
    ours = _inflated(get_object_tree(message), contents.__getitem__)
    data = ours.content["arrays"]["a"].data
    found = view_npy(data)
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert np.array_equal(found, array)


def test_an_object_that_will_never_come_is_an_error() -> None:
    """Whichever it is, from the message itself down to a chunk; not a wait without an end."""
    message = message_of({"a": np.arange(9.0)})
    contents = contents_of(message)
    for missing in contents:

        def fetch(name: str, missing: str = missing) -> bytes:
            if name == missing:
                raise ObjectPullError(name, "gone")
            return contents[name]

        with pytest.raises(ObjectPullError):
            _inflated(get_object_tree(message), fetch)


# Push and pull, against the calls that Flower's hub answers.


@dataclass
class Runtime:
    """The five calls of a hub that matter here, over Flower's own store of objects."""

    store: InMemoryObjectStore = field(default_factory=lambda: InMemoryObjectStore(verify=True))
    pushed: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    arrived: list[tuple[Any, ObjectTree]] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    refuses: Callable[[Any], bool] = lambda message: False
    stores: bool = True
    expired: set[str] = field(default_factory=set)
    handed: dict[str, str] = field(default_factory=dict)  # announced replies by what they answer

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:  # noqa: N802
        wanted: list[str] = []
        ids = []
        for about, tree in zip(request.messages_list, request.message_object_trees, strict=True):
            if self.refuses(about):
                ids.append("")
                continue
            ids.append(about.metadata.message_id)
            wanted += self.store.preregister(1, tree)
        self.pushed += ids
        return PushAppMessagesResponse(
            message_ids=ids, objects_to_push=sorted(set(wanted)), session_id="session"
        )

    def PushObject(self, request: Any) -> PushObjectResponse:  # noqa: N802
        assert request.session_id == "session"
        if self.stores:
            self.objects.append(request.object_id)
            self.store.put(request.object_id, request.object_content)
        return PushObjectResponse(stored=self.stores)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        # SuperLink deletes both, and answers MESSAGE_UNAVAILABLE to whoever asks again
        assert not self.handed.keys() & set(request.message_ids), "asked for what was handed out"
        found = [
            (about, tree)
            for about, tree in self.arrived
            if about.metadata.reply_to_message_id in request.message_ids
        ]
        self.arrived = [entry for entry in self.arrived if entry not in found]
        for about, _ in found:
            self.handed[about.metadata.reply_to_message_id] = about.metadata.message_id
        return PullAppMessagesResponse(
            messages_list=[about for about, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        content = self.store.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None and request.object_id not in self.expired,
            object_available=bool(content),
            object_content=content or b"",
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.confirmed.append(request.message_object_id)
        self.handed = {k: v for k, v in self.handed.items() if v != request.message_object_id}

    def arrive(self, reply: Message, contents: dict[str, bytes], tree: ObjectTree) -> None:
        """A site's reply, with the objects that the site chose to send."""
        reply.metadata.__dict__["_message_id"] = tree.object_id
        about = message_to_proto(remove_content_from_message(reply))
        self.store.preregister(1, tree)
        for below in iterate_object_tree(tree):
            if below.object_id in contents:
                self.store.put(below.object_id, contents[below.object_id])
        self.arrived.append((about, tree))


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def grid(runtime: Runtime) -> HttpGrid:
    made = HttpGrid("127.0.0.1:1", insecure=True, token="none")
    made._client = runtime  # type: ignore[assignment]
    made.set_run(Run.create_empty(1))
    return made


def test_what_is_sent_is_what_a_site_receives(grid: HttpGrid, runtime: Runtime) -> None:
    """One record serves all sites: each object travels to the hub once."""
    random = np.random.default_rng(5)
    arrays = {"a": random.normal(size=900_000), "b": np.arange(7)}  # 7.2 MB: two chunks
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    messages = [
        Message(
            RecordDict({"callosum": ConfigRecord({"json": str(node)}), "arrays": record}),
            node, "train",
        )
        for node in (7, 8, 9)
    ]  # fmt: skip
    ids = push(grid, messages)
    assert ids == [message.metadata.message_id for message in messages]
    assert len(set(ids)) == 3
    assert len(runtime.objects) == len(set(runtime.objects))
    for node, message_id in zip((7, 8, 9), ids, strict=True):
        contents = {}
        for tree in iterate_object_tree(runtime.store.get_object_tree(message_id)):
            contents[tree.object_id] = runtime.store.get(tree.object_id)
            assert contents[tree.object_id]
        there = inflate_object_from_contents(message_id, contents)
        assert there.metadata.dst_node_id == node
        assert there.content["callosum"]["json"] == str(node)
        for name, array in arrays.items():
            assert there.content["arrays"][name].data == npy_bytes(array)


def test_what_the_hub_has_already_is_not_sent_again(grid: HttpGrid, runtime: Runtime) -> None:
    """Asking a site again costs a new envelope, not a new copy of the model."""
    arrays = {"a": np.arange(50.0)}
    push(grid, [message_of(arrays)])
    first = set(runtime.objects)
    runtime.objects.clear()
    push(grid, [message_of(arrays, callosum=ConfigRecord({"json": "other"}))])
    again = set(runtime.objects)
    assert not first & again
    kinds = {
        get_object_head_values_from_object_content(runtime.store.get(name))[0] for name in again
    }
    assert kinds == {"ConfigRecord", "RecordDict", "Message"}


def test_a_message_that_flower_does_not_take_has_no_id(grid: HttpGrid, runtime: Runtime) -> None:
    """The others keep their places: ids are matched with orders by position."""
    runtime.refuses = lambda about: about.metadata.dst_node_id == 8
    messages = [
        Message(RecordDict({"c": ConfigRecord({"n": node})}), node, "train") for node in (7, 8, 9)
    ]
    ids = push(grid, messages)
    assert [bool(message_id) for message_id in ids] == [True, False, True]


def test_an_object_that_the_hub_does_not_store_is_an_error(
    grid: HttpGrid, runtime: Runtime
) -> None:
    """A message without its arrays would keep a site waiting for ever."""
    runtime.stores = False
    with pytest.raises(ObjectPushError):
        push(grid, [message_of({"a": np.zeros(3)})])


def asked(grid: HttpGrid, sites: int = 2) -> list[Message]:
    messages = [
        Message(RecordDict({"c": ConfigRecord({"n": node})}), 7 + node, "train")
        for node in range(sites)
    ]
    push(grid, messages)
    return messages


def answer(runtime: Runtime, message: Message, arrays: dict[str, Any]) -> Message:
    reply = Message(message_of(arrays).content, reply_to=message)
    runtime.arrive(reply, contents_of(reply), get_object_tree(reply))
    return reply


def test_replies_come_one_by_one_and_are_confirmed(grid: HttpGrid, runtime: Runtime) -> None:
    """The second is not fetched before the first has been let go of."""
    one, two = asked(grid)
    first = answer(runtime, one, {"a": np.zeros(3)})
    second = answer(runtime, two, {"a": np.ones(3)})
    inbox = Inbox(grid)
    replies = inbox.pull([one.metadata.message_id, two.metadata.message_id])
    found = next(replies)
    assert found.metadata.reply_to_message_id == one.metadata.message_id
    assert found.metadata.message_id == first.metadata.message_id
    assert found.object_id == first.object_id
    assert runtime.confirmed == [first.metadata.message_id]
    found = next(replies)
    assert found.object_id == second.object_id
    assert runtime.confirmed == [first.metadata.message_id, second.metadata.message_id]
    assert next(replies, None) is None
    assert list(inbox.pull([one.metadata.message_id])) == []


def pulled(grid: HttpGrid, messages: Sequence[Message]) -> dict[str, Message]:
    found = Inbox(grid).pull([message.metadata.message_id for message in messages])
    return {reply.metadata.reply_to_message_id: reply for reply in found}


def test_a_site_that_went_away_in_mid_transfer_is_an_error_reply(
    grid: HttpGrid, runtime: Runtime
) -> None:
    """The order is asked again; the others' replies are not lost with it."""
    one, two = asked(grid)
    lost = answer(runtime, one, {"a": np.zeros(3)})
    answer(runtime, two, {"a": np.ones(3)})
    runtime.expired.add(get_object_tree(lost).children[0].object_id)
    found = pulled(grid, [one, two])
    assert found[one.metadata.message_id].has_error()
    assert found[two.metadata.message_id].has_content()
    assert lost.metadata.message_id not in runtime.confirmed


def late(runtime: Runtime, message: Message, arrays: dict[str, Any]) -> dict[str, bytes]:
    """A reply that is announced, and of which nothing has been sent; its objects, in order."""
    reply = Message(message_of(arrays).content, reply_to=message)
    contents, tree = contents_of(reply), get_object_tree(reply)
    runtime.arrive(reply, {}, tree)
    return contents


def test_an_object_that_is_still_on_its_way_holds_up_nobody(
    grid: HttpGrid, runtime: Runtime
) -> None:
    """A message is announced before the site has sent all of it; others are there already."""
    one, two = asked(grid)
    ids = [one.metadata.message_id, two.metadata.message_id]
    contents = late(runtime, one, {"a": np.arange(9.0), "b": np.ones(3)})
    answer(runtime, two, {"a": np.ones(3)})
    inbox = Inbox(grid)
    inbox_found = [reply.metadata.reply_to_message_id for reply in inbox.pull(ids)]
    assert inbox_found == [ids[1]]
    for name, content in contents.items():
        inbox.announced[next(iter(inbox.announced))].due = 0.0  # its rest is over
        assert list(inbox.pull(ids)) == []
        runtime.store.put(name, content)
    inbox.announced[next(iter(inbox.announced))].due = 0.0
    [reply] = inbox.pull(ids)
    assert reply.metadata.reply_to_message_id == ids[0]
    assert np.array_equal(view_npy(reply.content["arrays"]["a"].data), np.arange(9.0))
    assert inbox.announced == {}


def test_a_reply_that_lacks_its_head_costs_one_question(grid: HttpGrid, runtime: Runtime) -> None:
    """Sites send the head last: until then nothing is fetched that would be fetched again."""
    one, _ = asked(grid)
    contents = late(runtime, one, {"a": np.arange(9.0)})
    asked_for: list[str] = []
    plain = runtime.PullObject
    runtime.PullObject = lambda request: asked_for.append(request.object_id) or plain(request)  # type: ignore[method-assign]
    *most, head = contents
    for name in most:
        runtime.store.put(name, contents[name])
    assert list(Inbox(grid).pull([one.metadata.message_id])) == []
    assert asked_for == [head]


def test_a_reply_that_lacks_something_is_asked_for_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A site that sends the head first and one part never would have the rest fetched in vain."""
    reply = transport._Announced(None, ObjectTree(), 0.0, 0.2)  # type: ignore[arg-type]
    monkeypatch.setattr(transport.time, "monotonic", lambda: 100.0)
    due = []
    for tried_s in (0.0, 0.0, 0.0, 0.0, 0.0, 3.0):
        reply.rest(tried_s)
        due.append(reply.due - 100.0)
    assert due == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 30.0])


def test_what_never_arrived_whole_is_forgotten(grid: HttpGrid, runtime: Runtime) -> None:
    """The hub keeps what was sent until it is told that nobody wants it."""
    one, _ = asked(grid)
    late(runtime, one, {"a": np.arange(9.0)})
    inbox = Inbox(grid)
    assert list(inbox.pull([one.metadata.message_id])) == []
    [announced] = inbox.announced
    inbox.abandon()
    assert runtime.confirmed == [announced]
    assert inbox.announced == {}


def stored(kind: str, children: Sequence[str], body: bytes) -> tuple[str, bytes]:
    """One object as Flower stores it, whatever its body says."""
    content = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body
    return hashlib.sha256(content).hexdigest(), content


class Forged:
    """The objects of a reply, changed by kind and with all ids above made anew."""

    def __init__(self, reply: Message, changes: dict[str, Callable[[bytes], bytes]]) -> None:
        self.contents: dict[str, bytes] = {}
        self._sound, self._changes = contents_of(reply), changes
        self.tree = self._forge(get_object_tree(reply))

    def _forge(self, tree: ObjectTree) -> ObjectTree:
        below = {child.object_id: self._forge(child) for child in tree.children}
        content = self._sound[tree.object_id]
        kind, children, _ = get_object_head_values_from_object_content(content)
        body = content[content.index(b"\0") + 1 :]
        for old, new in below.items():
            body = body.replace(old.encode(), new.object_id.encode())
        if kind in self._changes:
            body = self._changes[kind](body)
        name, made = stored(kind, [below[child].object_id for child in children], body)
        self.contents[name] = made
        return ObjectTree(object_id=name, children=list(below.values()))


def said(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps({**json.loads(body), **fields}).encode()


FORGERIES: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "a chunk that is not there": {"Array": said(arraychunk_ids=[99])},
    "chunks that are no list": {"Array": said(arraychunk_ids="all")},
    "chunks by other names": {"Array": said(arraychunk_ids=["a"])},
    "an array without a type": {"Array": said(dtype=None)},
    "an array without a shape": {"Array": said(shape=3)},
    "an array that is no JSON": {"Array": lambda body: b"{" * 99_999},
    "an array that is no text": {"Array": lambda body: b"\xff\xfe"},
    "an array of nothing": {"Array": lambda body: b"{}"},
    "a record of unknown arrays": {"ArrayRecord": said(b="0" * 64)},
    "a record that is a list": {"ArrayRecord": lambda body: b"[1]"},
    "a record that is a number": {"ArrayRecord": lambda body: b"1e999"},
    "records by other names": {"RecordDict": lambda body: b"{}"},
    "a text that is no record": {"ConfigRecord": lambda body: b"\xff" * 9},
    "a message that is none": {"Message": lambda body: b"\xff" * 9},
}


def forged(runtime: Runtime, message: Message, forgery: Forged, reply: Message) -> None:
    runtime.arrive(reply, forgery.contents, forgery.tree)


def assert_harmless(grid: HttpGrid, runtime: Runtime, one: Message, two: Message) -> None:
    """The bad reply is its own site's trouble, with or without a content; the good one is there."""
    answer(runtime, two, {"a": np.ones(3)})
    found = pulled(grid, [one, two])
    assert found.keys() == {one.metadata.message_id, two.metadata.message_id}
    assert found[two.metadata.message_id].has_content()
    bad = found[one.metadata.message_id]
    if not bad.has_error():
        assert not refusal_of(bad.content)
        with pytest.raises(Refusal):
            unpack_report(bad.content)


def test_forgeries_are_forged_from_sound_replies(grid: HttpGrid, runtime: Runtime) -> None:
    """The control of the next test: objects made anew without a change are a sound reply."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.arange(3.0)}).content, reply_to=one)
    forgery = Forged(reply, {"Array": lambda body: body})
    forged(runtime, one, forgery, reply)
    answer(runtime, two, {"a": np.ones(3)})
    found = pulled(grid, [one, two])[one.metadata.message_id]
    assert np.array_equal(view_npy(found.content["arrays"]["a"].data), np.arange(3.0))


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_reply_harms_nobody_else(grid: HttpGrid, runtime: Runtime, case: str) -> None:
    """Flower's hub checks ids and heads of objects; what their bodies say, nobody has checked."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.arange(3.0)}).content, reply_to=one)
    forged(runtime, one, Forged(reply, FORGERIES[case]), reply)
    assert_harmless(grid, runtime, one, two)


def test_a_reply_that_is_no_message_harms_nobody_else(grid: HttpGrid, runtime: Runtime) -> None:
    """The head of the tree may be any object that Flower knows."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.arange(3.0)}).content, reply_to=one)
    runtime.arrive(reply, contents_of(reply), get_object_tree(reply.content))
    assert_harmless(grid, runtime, one, two)


def test_a_reply_of_another_content_harms_nobody_else(grid: HttpGrid, runtime: Runtime) -> None:
    """Flower's own reader does not mind a message that holds an array record, or nothing."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.arange(3.0)}).content, reply_to=one)
    tree, contents = get_object_tree(reply), contents_of(reply)
    arrays = get_object_tree(reply.content["arrays"])
    _, body = contents[tree.object_id].split(b"\0", 1)
    name, content = stored("Message", [arrays.object_id], body)
    runtime.arrive(reply, contents | {name: content}, ObjectTree(object_id=name, children=[arrays]))
    assert_harmless(grid, runtime, one, two)


def test_a_reply_speaks_for_the_site_that_sent_it(grid: HttpGrid, runtime: Runtime) -> None:
    """The hub has checked what it says beside the objects; what is inside them, nobody has."""
    one, two = asked(grid)
    outer = Message(message_of({}).content, reply_to=one)
    inner = Message(message_of({"a": np.arange(3.0)}).content, reply_to=two)
    runtime.arrive(outer, contents_of(inner), get_object_tree(inner))
    assert pulled(grid, [one, two]).keys() == {one.metadata.message_id}


def test_a_few_bytes_do_not_become_gigabytes(grid: HttpGrid, runtime: Runtime) -> None:
    """One chunk that is named a thousand times over would fill the coordinator's memory."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.zeros(8192)}).content, reply_to=one)  # 64 kB
    forged(runtime, one, Forged(reply, {"Array": said(arraychunk_ids=[0] * 2000)}), reply)
    tracemalloc.start()
    try:
        assert_harmless(grid, runtime, one, two)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shape",
    [[2] * 30 + ["nan"], [2] * 31 + [[7]], [10**4000] * 200, [-1], [True], {"2": 2}, "22"],
    ids=["a word", "a list", "digits", "less than none", "yes", "a table", "two words"],
)
def test_a_shape_is_a_few_whole_numbers(grid: HttpGrid, runtime: Runtime, shape: object) -> None:
    """Two to the power of thirty times "nan" are 3 GB of text."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.zeros(3)}).content, reply_to=one)
    forged(runtime, one, Forged(reply, {"Array": said(shape=shape)}), reply)
    tracemalloc.start()
    try:
        assert_harmless(grid, runtime, one, two)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
