"""What comes over the wire: orders, envelopes, reports, frames, npy bytes, Flower's objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.task_identity import TaskIdentity

from client.link.frames import CHUNK, gather, read_header, sizes_of, text_of
from common.errors import Refusal
from common.network.plan import Rule
from common.protocol.orders import Measurement, Order, Report, read_report
from common.protocol.signing import Envelope, Sealed, unseal
from common.protocol.wire import forward, npy_bytes, refusal_of, unpack_order, unpack_report
from server.federation import transport
from server.federation.report_validation import accept
from tests.fuzz.border import Border
from tests.fuzz.made import STUDY
from tests.fuzz.mutation import as_json, grown, mutated

KEY = Ed25519PrivateKey.from_private_bytes(b"7" * 32)
ARRAYS = {"backbone.w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.zeros((), np.int64)}
ORDER = Order(
    kind="train", study=STUDY.digest, run="a" * 64, site="alpha", round=3, arrays="b" * 64,
    lineage=("beta",), against=("federated",),
)  # fmt: skip
ROW = Measurement(
    phase="evaluate", target="age", model="federated", site="alpha", role="heldout", metric="mae",
    value=3.5, ci_low=2.0, ci_high=5.0, n_participants=20, n_scans=21,
)  # fmt: skip
REPORTS = [
    Report(order=ORDER.id, site="alpha", kind="train", round=3, support={"backbone": 20},
           participants={"backbone": 18}, counts={"loss/age": (3.0, 20.0)}, seconds=1.5),
    Report(order=ORDER.id, site="alpha", kind="census", support={"scans": 20, "labels/age": 9},
           participants={"scans": 18}, cohort="c" * 64),
    Report(order=ORDER.id, site="alpha", kind="evaluate", measurements=(ROW,),
           holds=("d" * 64,)),
    Report(order=ORDER.id, site="alpha", kind="train", refusal="BUSY"),
]  # fmt: skip
PLAN = {
    "backbone.w": Rule(
        shape=(2, 3), dtype="float32", group="backbone", role="parameter", kept=False
    ),
    "n": Rule(shape=(), dtype="int64", group="backbone", role="statistic", kept=False),
}
CENSUS = REPORTS[1]


def envelope(random: Random) -> str:
    sound = Envelope(order=ORDER, issued=5.0, expires=65.0, nonce="1" * 32, code="0" * 64,
                     seen=None)  # fmt: skip
    return as_json(random, sound.model_dump(mode="json")).decode(errors="surrogateescape")


def read_order(text: str) -> None:
    """Signed, so that what is signed is looked at; unsigned, so that signing is."""
    try:
        signature = KEY.sign(b"callosum order 1\0" + text.encode()).hex()
    except UnicodeEncodeError:
        signature = "0" * 128
    keys = [KEY.public_key()]
    found = unseal(Sealed(text, signature), keys, now=6.0)
    found.order.id, found.order.model_dump_json()


def report(random: Random) -> str:
    sound = random.choice(REPORTS).model_dump(mode="json")
    return as_json(random, sound).decode(errors="surrogateescape")


def read_answer(text: str) -> None:
    """As a reply's text is read: its code first, then all of it, then what it claims."""
    refusal_of(RecordDict({"callosum": ConfigRecord({"json": text})}))
    found = read_report(text)
    for kind in ("train", "census", "evaluate"):
        order = ORDER.model_copy(update={"kind": kind, "round": found.round})
        told = found.model_copy(update={"order": order.id})
        try:
            accept(STUDY, order, PLAN, told, ARRAYS if kind == "train" else {}, CENSUS)
        except Refusal:
            continue


def frames(random: Random) -> tuple[bytes, list[bytes]]:
    names = [["a", 10], ["b", 0], ["c", CHUNK + 5]]
    head = as_json(
        random, {"text": "{}", "signature": "00", "arrays": names[: random.randrange(4)]}
    )
    chunks = [bytes(random.choice((0, 1, 10, 15, CHUNK))) for _ in range(random.randrange(4))]
    return head, chunks


def read_frames(value: tuple[bytes, list[bytes]]) -> None:
    head, chunks = value
    fields = read_header(head, "ORDER_MALFORMED")
    text_of(fields, "text", "ORDER_MALFORMED")
    sizes = sizes_of(fields, "ORDER_MALFORMED")
    if len(sizes) < 1000:
        for _ in gather(sizes, iter(chunks), "ORDER_MALFORMED"):
            pass


def npy(random: Random) -> bytes:
    """A header that lies, or bytes that rot."""
    odd = random.choice(("<f8", "<f2", "?", "<U3", "<M8[s]", "V5"))
    array = np.zeros(6, odd if random.random() < 0.1 else random.choice(("<f4", "<i8")))
    data = npy_bytes(array.reshape(2, 3))
    if random.random() < 0.5:
        return mutated(random, data)
    shape = tuple(
        random.choice((0, 1, 2, 3, 6, -1, 2**31, 2**62, True, 1.0, "2")) for _ in range(3)
    )
    about = random.choice((
        {"descr": "<f4", "fortran_order": False, "shape": shape},
        {"descr": random.choice(("<f4", "|O", "<U0", "|V0", "<f16", "4<f4", [("a", "<f4")], "x", 7,
                                 [("a", "<f4", (2, 2))] * 2, ("<f4", (3,)), "<m8", "<M8[7s]")),
         "fortran_order": random.choice((True, False, 0, None)), "shape": (2, 3)},
        grown(random, {"descr": "<f4", "fortran_order": False, "shape": [2, 3]}),
    ))  # fmt: skip
    head = (str(about) + " " * 40 + "\n").encode(errors="replace")
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(4, "little")[:2] + head + data[-24:]


def read_npy(data: bytes) -> None:
    """As coordinator, site and courier read an array."""
    stype = "numpy.ndarray"
    record = ArrayRecord()
    record["a"] = Array("float32", (2, 3), stype, data)
    text = ConfigRecord({"json": REPORTS[0].model_dump_json()})
    content = RecordDict({"callosum": text, "arrays": record})
    for read in (unpack_report, unpack_order):
        try:
            read(content)
        except Refusal:
            continue
    forward("text", [("a", data)])


def objects(random: Random) -> tuple[Any, dict[str, bytes], Any]:
    """A reply as Flower stores it: a tree of objects, of which some rot or say something else."""
    record = ArrayRecord({name: Array(array) for name, array in ARRAYS.items()})
    text = ConfigRecord({"json": REPORTS[0].model_dump_json()})
    message = Message(RecordDict({"callosum": text, "arrays": record}), 7, "train", group_id="3")
    message.metadata.__dict__["_created_at"] = 5.0
    contents = {name: found.deflate() for name, found in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    for _ in range(random.choice((1, 1, 2))):
        name = random.choice(list(contents))
        contents[name] = _rewritten(random, contents[name])
    return tree, contents, message.metadata


def _rewritten(random: Random, content: bytes) -> bytes:
    head, _, body = content.partition(b"\0")
    if body.startswith(b'{"') and random.random() < 0.7:
        try:
            body = as_json(random, json.loads(body))
        except ValueError:  # changed before
            return mutated(random, content)
        kind, ids, _ = (*head.split(b" "), b"")[:3]
        return b" ".join((kind, ids, str(len(body)).encode())) + b"\0" + body
    return mutated(random, content)


def read_objects(value: tuple[Any, dict[str, bytes], Any]) -> None:
    tree, contents, metadata = value

    def fetch(name: str) -> bytes:
        if name not in contents:
            raise ObjectPullError(name, "gone")
        return contents[name]

    try:
        reply = transport._Announced(metadata, tree, 0.0)
        message = transport._message(reply, fetch, transport.Allowance(1 << 20, 100))
    except ObjectPullError:
        return
    if message.has_content():
        refusal_of(message.content)
        unpack_report(message.content)


def borders() -> Iterator[Border]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    yield Border(name="order", share=10, make=envelope, read=read_order)
    yield Border(name="report", share=20, make=report, read=read_answer)
    yield Border(name="frame", share=20, make=frames, read=read_frames)
    yield Border(name="npy", share=12, make=npy, read=read_npy)
    yield Border(name="objects", share=2, make=objects, read=read_objects)
