"""What a site sends is measured before it is read: in text, objects, bytes and time."""

from __future__ import annotations

import json
import logging
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import Refusal
from common.network.plan import Rule
from common.protocol.orders import Order, Report, digest_of, read_report
from common.protocol.wire import array_record, pack_report, refusal_of, unpack_report
from common.seams import SHARED
from server.federation.exchange import Exchange, Outcome
from server.federation.expectation import longest_text, most_rows
from server.federation.parcel import NOTHING, parcel_of
from server.federation.transport import Allowance, Inbox
from tests.server.federation.test_transport import (
    Forged,
    Runtime,
    _somebody_speaks,
    answer,
    asked,
    contents_of,
    forged,
    grid,
    message_of,
    runtime,
    said,
)

assert all((_somebody_speaks, grid, runtime))  # fixtures
MIB = 1 << 20
ORDER = Order(kind="train", study="1" * 64, run="2" * 64, site="gamma", round=1, arrays="3" * 64)
SOUND = json.loads(Report(order=ORDER.id, site="gamma", kind="train", round=1).model_dump_json())


# Text.

FLOODS: dict[str, Callable[[], dict[str, Any]]] = {
    "one long name and a thousand faults": lambda: {
        **SOUND, "counts": {"k" * 400_000: ["x"] * 100_000}
    },
    "a hundred thousand unknown keys": lambda: {**SOUND, **{f"k{n}": 0 for n in range(80_000)}},
    "a fault in each of many numbers": lambda: {**SOUND, "counts": {"a": [None] * 180_000}},
    "a fault in each of many lists": lambda: {**SOUND, "counts": {"a": [[]] * 200_000}},
    "a fault in each of many tables": lambda: {**SOUND, "counts": {"a": [{}] * 200_000}},
    "infinities": lambda: {**SOUND, "counts": {"a": [float("inf")] * 100_000}},
    "many names": lambda: {**SOUND, "support": {f"{n}": -1 for n in range(70_000)}},
    "rows without anything": lambda: {**SOUND, "measurements": [{}] * 200_000},
    "rows that are none": lambda: {**SOUND, "measurements": [0] * 300_000},
    "a row of unknown keys": lambda: {
        **SOUND, "measurements": [{f"k{n}": 0 for n in range(80_000)}]
    },
    "a row of long names": lambda: {**SOUND, "measurements": [{"metric": "x" * 900_000}]},
    "many things held": lambda: {**SOUND, "holds": ["x"] * 180_000},
    "a table that is held": lambda: {**SOUND, "holds": [[["x"] * 180_000]]},
    "a long cohort": lambda: {**SOUND, "cohort": '"' * 450_000},
    "a long code": lambda: {**SOUND, "refusal": "x" * 900_000},
    "a code and much beside it": lambda: {"refusal": "BUSY", **{f"k{n}": 0 for n in range(80_000)}},
    "a long site": lambda: {**SOUND, "site": "x" * 900_000},
    "tables for words": lambda: {**SOUND, "order": {f"k{n}": {} for n in range(60_000)}},
}  # fmt: skip


@pytest.mark.parametrize("case", FLOODS)
def test_a_report_of_many_faults_is_refused_at_the_first(case):
    """0.9 MB took the coordinator to 4 GB, and its log to 912 MB."""
    text = json.dumps(FLOODS[case]())
    assert len(text) > MIB // 4
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as caught:
            read_report(text, 100)
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    assert caught.value.code in {"REPORT_MALFORMED", "SUPPORT", "NOT_FINITE"}
    assert len(str(caught.value)) < 400
    assert str(caught.value).isascii()


def test_a_text_of_twenty_million_quotes_is_not_read(federation):
    """Its file in the run folder had a head that nobody can read, on every resume."""
    study = federation().study
    content = RecordDict({
        "callosum": ConfigRecord({"json": json.dumps({**SOUND, "cohort": '"' * 20_000_000})}),
        "arrays": ArrayRecord(),
    })  # fmt: skip
    tracemalloc.start()
    try:
        with pytest.raises(Refusal, match="REPORT_MALFORMED"):
            unpack_report(content, longest_text(study, ORDER), most_rows(study, ORDER))
        assert refusal_of(content) == ""
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_text_may_be_as_long_as_its_rows_ask_for(federation):
    """A study of many repeats has long reports; a census has none."""
    study = federation({
        "finetuning": [{
            "name": "dementia", "target": "diagnosis", "participants": [5], "repeats": 20,
            "draws": 50, "methods": ["pretrained/full"],
        }]
    }).study  # fmt: skip
    more = {"task": "dementia", "init": "pretrained", "method": "full", "round": 0}
    tuned = ORDER.model_copy(update={"kind": "finetune", "k": 5, **more})
    assert most_rows(study, tuned) == 8 * 1000 + 1  # and a mean over draws
    assert longest_text(study, tuned) == MIB + 8001 * 1024
    assert most_rows(study, tuned.model_copy(update={"k": 0})) == 8 * 20 + 1
    assert longest_text(study, ORDER.model_copy(update={"kind": "census"})) == MIB


# Objects.


def measured(bad: Allowance, grid: HttpGrid, runtime: Runtime, ids: list[str]) -> tuple[Any, int]:
    """Replies by message, and the most memory that fetching them took."""
    tracemalloc.start()
    try:
        found = {m.metadata.reply_to_message_id: m for m in Inbox(grid).pull(ids, bad)}
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def fetches(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    plain = runtime.PullObject

    def noted(request: Any) -> Any:
        seen.append(request.object_id)
        return plain(request)

    monkeypatch.setattr(runtime, "PullObject", noted)
    return seen


SMALL = Allowance.of([800], MIB)


def assert_refused(grid: HttpGrid, runtime: Runtime, one: Message, two: Message) -> None:
    answer(runtime, two, {"a": np.ones(100)})
    ids = [one.metadata.message_id, two.metadata.message_id]
    found, peak = measured(SMALL, grid, runtime, ids)
    assert list(found[ids[0]].content) == []
    assert list(found[ids[1]].content["arrays"]) == ["a"]
    assert peak < 24 * MIB
    assert len(runtime.confirmed) == 2  # the hub may forget both


def test_an_upload_that_names_one_chunk_1500_times_stays_small(grid, runtime):
    """5 MB took the coordinator to 5.5 GB."""
    one, two = asked(grid)
    reply = Message(message_of({"a": np.zeros(5 * MIB // 8)}).content, reply_to=one)
    body = said(arraychunk_ids=[0] * 1500, shape=[1500 * 5 * MIB // 8])
    forged(runtime, one, Forged(reply, {"Array": body}), reply)
    assert_refused(grid, runtime, one, two)


def test_an_array_that_is_larger_than_the_plan_is_not_fetched_whole(grid, runtime, monkeypatch):
    """Its shape says so truly; nobody asked for it."""
    one, two = asked(grid)
    random = np.random.default_rng(0)
    answer(runtime, one, {"a": random.normal(size=8 * MIB)})
    seen = fetches(runtime, monkeypatch)
    assert_refused(grid, runtime, one, two)
    assert len(seen) < 12 + 8  # of 13 chunks a few, and the whole of the other


def test_a_tree_that_names_a_part_twice_is_refused_before_anything_is_fetched(
    grid, runtime, monkeypatch
):
    """An honest one names each once: equal chunks are one object."""
    one, _ = asked(grid)
    reply = Message(message_of({"a": np.zeros(9)}).content, reply_to=one)
    tree, contents = get_object_tree(reply), contents_of(reply)
    part = tree.children[0].children[-1]
    tree.children[0].children.extend([part] * 1500)
    seen = fetches(runtime, monkeypatch)
    runtime.arrive(reply, contents, tree)
    ids = [one.metadata.message_id]
    [found] = Inbox(grid).pull(ids, SMALL)
    assert list(found.content) == []
    assert seen == []


def test_a_tree_of_more_objects_than_the_plan_has_is_refused_before_anything_is_fetched(
    grid, runtime, monkeypatch
):
    """Each is a question to the hub: a hundred thousand of them are an hour."""
    one, two = asked(grid)
    reply = Message(message_of({f"a{n}": np.full(2, n) for n in range(50)}).content, reply_to=one)
    seen = fetches(runtime, monkeypatch)
    runtime.arrive(reply, contents_of(reply), get_object_tree(reply))
    [found] = Inbox(grid).pull([one.metadata.message_id], SMALL)
    assert list(found.content) == []
    assert seen == []
    deep = ObjectTree(object_id="0" * 64)
    for _ in range(90):
        deep = ObjectTree(object_id="0" * 64, children=[deep])
    runtime.arrived.append((runtime_message(two), deep))
    [found] = Inbox(grid).pull([two.metadata.message_id], SMALL)
    assert list(found.content) == []
    assert seen == []


def runtime_message(asked_for: Message) -> Any:
    from flwr.common.serde import message_to_proto

    reply = Message(message_of({}).content, reply_to=asked_for)
    reply.metadata.__dict__["_message_id"] = "0" * 64
    return message_to_proto(remove_content_from_message(reply))


def test_what_a_plan_asks_for_is_always_allowed(grid, runtime):
    """The control of the tests above: large arrays, many small ones, none at all, a long text."""
    random = np.random.default_rng(0)
    for arrays in (
        {"big": random.normal(size=3 * MIB).astype(np.float32), "zero": np.zeros(2 * MIB)},
        {f"backbone.layers.{n}.weight": random.normal(size=n) for n in range(200)},
        {},
    ):
        one, _ = asked(grid)
        content = pack_report(Report.model_validate(SOUND), array_record(arrays))
        content["callosum"] = ConfigRecord({"json": "x" * MIB})
        reply = Message(content, reply_to=one)
        runtime.arrive(reply, contents_of(reply), get_object_tree(reply))
        allowance = Allowance.of([array.nbytes for array in arrays.values()], MIB)
        [found] = Inbox(grid).pull([one.metadata.message_id], allowance)
        assert list(found.content["arrays"]) == list(arrays)


# Time.


@dataclass
class Answering(Runtime):
    """A hub whose nodes answer as `replies` says, each by its order's site."""

    replies: dict[int, Callable[[Message], None]] = field(default_factory=dict)

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        told = super().PushMessages(request)
        for about in request.messages_list:
            message = message_from_proto(about)
            self.replies[message.metadata.dst_node_id](message)
        return told


@pytest.fixture
def answering() -> tuple[Answering, HttpGrid]:
    from flwr.supercore.run import Run

    made = HttpGrid("127.0.0.1:1", insecure=True, token="none")
    runtime = Answering()
    made._client = runtime  # type: ignore[assignment]
    made.set_run(Run.create_empty(1))
    return runtime, made


SITES = {"alpha": 7, "beta": 8, "gamma": 9}
LIMIT_S = 1.5


@pytest.mark.parametrize("which", ["never the head", "the head first", "one object a second"])
def test_a_drip_of_objects_holds_no_round_open(federation, answering, tmp_path, which):
    """The site is silent when its time is up, and the others were heard meanwhile."""
    runtime, grid = answering
    study = federation({"sites.time_limit_s": LIMIT_S}).study
    orders = {
        site: Order(
            kind="settle", study=study.digest, run="0" * 64, site=site, arrays=digest_of({})
        )
        for site in SITES
    }
    arrays = {f"a{n}": np.full(3, float(n)) for n in range(5)}
    plan = {
        name: Rule(shape=(3,), dtype="float64", group=SHARED, role="statistic", kept=False)
        for name in arrays
    }
    pending: list[tuple[str, bytes]] = []

    def reply(site: str, message: Message) -> Message:
        report = Report(order=orders[site].id, site=site, kind="settle")
        return Message(pack_report(report, array_record(arrays)), reply_to=message)

    def honest(site: str) -> Callable[[Message], None]:
        def answer_it(message: Message) -> None:
            found = reply(site, message)
            runtime.arrive(found, contents_of(found), get_object_tree(found))

        return answer_it

    def drip(message: Message) -> None:
        found = reply("gamma", message)
        contents = contents_of(found)
        runtime.arrive(found, {}, get_object_tree(found))
        *most, head = contents
        if which == "the head first":
            most = [head, *most]
        pending.extend((name, contents[name]) for name in most[:-1])
        if which == "the head first":
            for name, content in pending:
                runtime.store.put(name, content)
            pending.clear()

    plain, began = runtime.PullMessages, time.monotonic()

    def dripping(request: Any) -> Any:
        while pending and len(pending) > 15 - (time.monotonic() - began):
            runtime.store.put(*pending.pop(0))
        return plain(request)

    runtime.PullMessages = dripping  # type: ignore[method-assign]
    runtime.replies = {7: honest("alpha"), 8: honest("beta"), 9: drip}
    outcome: Outcome = Exchange(grid, SITES, study).ask(
        list(orders.values()), NOTHING, tmp_path / "settle", plan, "settle: sites"
    )
    assert time.monotonic() - began < 3 * LIMIT_S
    assert sorted(outcome.reports) == ["alpha", "beta"]
    assert outcome.refused == {"gamma": "NO_ANSWER"}
    assert len(runtime.confirmed) == 3  # the hub may forget the drip, too


# Logs.


def test_what_sites_send_fills_no_log(federation, tmp_path, caplog):
    """Names of arrays are as long as their site likes, and so is what cannot be read of them."""
    from flwr.app import Array

    study = federation().study
    arrays = {"a": np.zeros(3, np.float32)}
    parcel = parcel_of(arrays, {})
    order = ORDER.model_copy(update={"arrays": parcel.arrays})
    long = "\x1b[8m" + "n" * 900_000
    report = {**SOUND, "order": order.id}
    contents = [
        RecordDict({
            "callosum": ConfigRecord({"json": json.dumps(text)}),
            "arrays": ArrayRecord({name: array}),
        })
        for text, name, array in (
            (report, long, Array(np.zeros(3))),
            (report, long, Array("float32", (3,), "numpy.ndarray", b"\x93NUMPY" + b"{" * 60_000)),
            (report, long, Array(np.zeros(1, np.dtype([("n" * 60_000, "f4")])))),
            ({**SOUND, "counts": {long: ["x"] * 1000}}, "a", Array(np.zeros(3))),
            ({**SOUND, "site": long}, "a", Array(np.zeros(3))),
        )
    ]  # fmt: skip
    exchange = Exchange(_Nowhere(), SITES, study)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="callosum.server"):
        for content in contents:
            outcome = Outcome()
            message = Message(content, dst_node_id=9, message_type="train")
            message.metadata.__dict__["_reply_to_message_id"] = "m"
            exchange._asked["m"] = order
            exchange._decide(message, [order], tmp_path, outcome)
            assert outcome.reports == {}
    assert len(caplog.records) == len(contents)
    assert all(len(line) < 600 for line in caplog.text.splitlines())
    assert "\x1b" not in caplog.text


class _Nowhere:
    """A grid that nobody sends anything over."""
