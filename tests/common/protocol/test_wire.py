"""What crosses between sites: the same content the same bytes, and nothing hostile believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import string
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import safe_open
from safetensors.numpy import save

from common.arrays import Arrays
from common.errors import SENTENCES, DamagedError, FolderError, Refusal
from common.protocol.orders import (
    PROTOCOL,
    Measurement,
    Order,
    OrderKind,
    Report,
    declined,
    digest_of,
    read_report,
    refuse,
)
from common.protocol.signing import read_envelope, seal, unseal
from common.protocol.wire import (
    Stored,
    array_record,
    forward,
    npy_bytes,
    open_arrays,
    pack_order,
    pack_report,
    read_spooled,
    refusal_of,
    spool,
    unpack_order,
    unpack_report,
    unpack_sealed,
    view_npy,
    write_arrays,
)


def relaxed(examples: int) -> settings:
    """Each example writes its file anew, so that sharing the folder does no harm."""
    shared = [HealthCheck.function_scoped_fixture]
    return settings(suppress_health_check=shared, deadline=None, max_examples=examples)


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,30}", fullmatch=True)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
labels = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)
named_arrays = st.dictionaries(
    labels.filter(lambda name: name != "__metadata__"),  # safetensors keeps it for itself
    npst.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.int64]),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)
kinds = st.sampled_from(get_args(OrderKind))
orders = st.builds(
    Order,
    kind=kinds,
    study=hexes,
    run=hexes,
    site=names,
    round=st.integers(0, 10_000),
    model=names,
    task=names,
    init=st.sampled_from(["", "pretrained", "scratch"]),
    method=st.from_regex(r"([a-z][a-z0-9-]{0,30})?", fullmatch=True),
    k=st.integers(0, 2**53),
    repeat=st.integers(0, 2**53),
    lineage=st.lists(names, max_size=3).map(tuple),
    against=st.lists(names, max_size=3).map(tuple),
    arrays=hexes,
    base=st.just("") | hexes,
)
measurements = st.builds(
    Measurement,
    phase=labels,
    target=labels,
    model=labels,
    init=st.text(max_size=5),
    method=st.text(max_size=5),
    k=st.integers(0, 2**53),
    site=names,
    role=st.sampled_from(["train", "heldout"]),
    metric=labels,
    value=st.none() | numbers,
    ci_low=st.none() | numbers,
    p=st.none() | st.floats(0, 1),
    n_participants=st.integers(0, 2**53),
    n_scans=st.integers(0, 2**53),
    repeat=st.integers(0, 2**53),
)
reports = st.builds(
    Report,
    order=hexes,
    site=names,
    kind=kinds,
    round=st.integers(0, 10_000),
    refusal=st.sampled_from(["", "ROLE", "DISK_FULL"]),
    support=st.dictionaries(labels, st.integers(0, 2**53), max_size=3),
    participants=st.dictionaries(labels, st.integers(0, 2**53), max_size=3),
    counts=st.dictionaries(labels, st.lists(numbers, max_size=5).map(tuple), max_size=3),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    cohort=hexes,
    holds=st.lists(hexes, max_size=2).map(tuple),
    seconds=st.floats(0, 1e6),
)

HEX = "0" * 64
KEY = Ed25519PrivateKey.generate()
ORDER = Order(kind="train", study=HEX, run=HEX, site="alpha", round=3, arrays=HEX)
REPORT = Report(
    order=ORDER.id, site="alpha", kind="train", round=3, support={"shared": 7},
    participants={"loss/age": 5}, counts={"loss/age": (1.5, 7.0)}, seconds=0.25,
)  # fmt: skip


def same(left: Arrays, right: Arrays) -> bool:
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def text_of(message: Order | Report) -> str:
    """The JSON that travels: a report's own, an order's inside its envelope."""
    if isinstance(message, Order):
        return seal(message, None, code="0" * 64, now=0, lifetime_s=1).text
    return message.model_dump_json()


def packed(message: Order | Report, arrays: ArrayRecord) -> RecordDict:
    """As the coordinator sends an order and a site its report."""
    if isinstance(message, Order):
        return pack_order(seal(message, None, code="0" * 64, now=0, lifetime_s=1), arrays)
    return pack_report(message, arrays)


def carried(content: RecordDict) -> RecordDict:
    """Through the bytes that Flower sends."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


@given(orders, named_arrays)
@settings(deadline=None, max_examples=60)
def test_an_order_arrives_as_it_was_sent(order: Order, arrays: Arrays) -> None:
    """Its id is a digest of its content: one changed bit would be another order."""
    arrived, there = unpack_order(carried(packed(order, array_record(arrays))))
    assert arrived == order
    assert arrived.id == order.id
    assert same(there, arrays)
    assert digest_of(there) == digest_of(arrays)


@given(reports, named_arrays)
@relaxed(60)
def test_a_report_survives_the_wire_and_the_spool(
    tmp_path: Path, report: Report, arrays: Arrays
) -> None:
    """A resumed round reads from disk what an undisturbed one had in memory."""
    arrived, there = unpack_report(carried(packed(report, array_record(arrays))))
    assert arrived == report
    assert same(there, arrays)
    spool(tmp_path / "one", arrived, there)
    assert read_spooled(tmp_path / "one") == report
    with open_arrays(tmp_path / "one") as file:
        assert same(file.all(), arrays)


def test_a_single_number_stays_a_single_number(tmp_path: Path) -> None:
    """A learnt temperature has shape (); as (1,) it would be refused as misshapen."""
    scalar = {"scale": np.float32(2.5) + np.zeros((), np.float32)}
    assert same(unpack_order(packed(ORDER, array_record(scalar)))[1], scalar)
    write_arrays(tmp_path / "a", scalar, {})
    with open_arrays(tmp_path / "a") as file:
        assert same(file.all(), scalar)


def test_arrays_of_any_layout_arrive_in_c_order() -> None:
    """A transposed view has the same numbers in other places of memory."""
    arrays = {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "s": np.arange(9.0)[::2]}
    arrived = unpack_order(packed(ORDER, array_record(arrays)))[1]
    assert all(np.array_equal(arrived[name], arrays[name]) for name in arrays)
    assert digest_of(arrived) == digest_of(arrays)


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from common.protocol.orders import Report, digest_of
from common.protocol.wire import spool
report = Report(order="0" * 64, site="alpha", kind="train", cohort="", seconds=1.0,
    support={name: 1 for name in set("abcdefgh")}, counts={n: (1.0,) for n in sorted(set("xyz"))})
report = report.model_copy(update={"support": dict(sorted(report.support.items()))})
arrays = {name: np.full(3, ord(name), np.float32) for name in set("abcdefgh")}
spool(Path(sys.argv[1]), report, arrays)
print(digest_of(arrays))
"""


def test_the_same_content_is_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Checkpoints are compared by digest; Python's hash order differs from process to process."""
    seen = set()
    for number in range(2):
        path = tmp_path / str(number)
        environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)],
            env=environment, capture_output=True, text=True, check=True, timeout=120,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        seen.add((hashlib.sha256(path.read_bytes()).hexdigest(), done.stdout))
    assert len(seen) == 1


@given(named_arrays, st.randoms())
@relaxed(30)
def test_files_and_digests_do_not_depend_on_the_order_of_names(
    tmp_path: Path, arrays: Arrays, chance: Any
) -> None:
    """Dictionaries are filled in whatever order a network lists its layers."""
    mixed = list(arrays.items())
    chance.shuffle(mixed)
    metadata = {"b": "1", "a": "2"}
    write_arrays(tmp_path / "one", arrays, metadata)
    write_arrays(tmp_path / "two", dict(mixed), dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert digest_of(arrays) == digest_of(dict(mixed))


def test_the_digest_tells_names_types_shapes_and_bytes_apart() -> None:
    """It stands in a signed order for the arrays themselves."""
    zeros = np.zeros((2, 3), np.float32)
    different = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.reshape(3, 2)},
        {"a": zeros.ravel()},
        {"a": zeros.astype(np.float64)},
        {"a": zeros.view(np.int32)},
        {"a": zeros + 1},
        {"a": zeros[:1], "b": zeros[1:]},
        {},
    ]
    assert len({digest_of(arrays) for arrays in different}) == len(different)


@given(orders, orders)
def test_different_orders_have_different_ids(one: Order, other: Order) -> None:
    """A site answers an id from disk without looking at the order again."""
    assert (one == other) == (one.id == other.id)


# What follows arrives from strangers.

Unpack = Callable[[RecordDict], Any]
unpacks = pytest.mark.parametrize("unpack", [unpack_order, unpack_report])


def believed(unpack: Unpack, content: RecordDict) -> str:
    """The code of the refusal, or nothing; any other exception fails the test."""
    try:
        unpack(content)
    except Refusal as refusal:
        return refusal.code
    return ""


def with_text(text: Any) -> RecordDict:
    return RecordDict({"callosum": ConfigRecord({"json": text}), "arrays": ArrayRecord()})


@unpacks
@given(st.text(max_size=300) | st.binary(max_size=300) | st.integers() | st.lists(st.floats()))
@settings(deadline=None)
def test_any_text_is_a_message_or_a_refusal(unpack: Unpack, text: Any) -> None:
    """The JSON is the first thing that a hostile peer controls."""
    try:
        content = with_text(text)
    except (TypeError, ValueError):
        return  # Flower does not carry it
    assert believed(unpack, content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def enveloped(fields: Any) -> str:
    return json.dumps({**json.loads(text_of(ORDER)), "order": fields})


FIELDS: dict[str, tuple[Any, Callable[[Any], str], Callable[[str], Any]]] = {
    "order": (ORDER.model_dump(mode="json"), enveloped, read_envelope),
    "envelope": (json.loads(text_of(ORDER)), json.dumps, read_envelope),
    "report": (REPORT.model_dump(mode="json"), json.dumps, read_report),
}


@pytest.mark.parametrize("message", FIELDS)
@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_value_in_any_field_is_a_message_or_a_refusal(message: str, data: Any) -> None:
    """Almost right is worse than wrong: it reaches further."""
    sound, written, read = FIELDS[message]
    read(written(sound))
    fields = dict(sound)
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(json_values)
    try:
        read(written(fields))
    except Refusal as refusal:
        assert refusal.code.endswith("_MALFORMED") or refusal.code in {
            "NOT_FINITE",
            "SUPPORT",
            "CODE",
        }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ('"loss/age":[NaN,7.0]', "NOT_FINITE"),
        ('"loss/age":[Infinity]', "NOT_FINITE"),
        ('"loss/age":[1e999]', "NOT_FINITE"),
        ('"loss/age":["x"]', "REPORT_MALFORMED"),
        ('"loss/age":[[1.0]]', "REPORT_MALFORMED"),
        ('"":[1.0]', "REPORT_MALFORMED"),
    ],
)
def test_a_number_that_is_none_has_its_own_code(change: str, code: str) -> None:
    """One NaN in a sum makes every site's sum NaN."""
    text = REPORT.model_dump_json().replace('"loss/age":[1.5,7.0]', change)
    assert change in text
    assert believed(unpack_report, with_text(text)) == code


@pytest.mark.parametrize("sound", ['"shared":7', '"loss/age":5'])
@pytest.mark.parametrize("count", ["-1", "1.5", "null", "1e30", "NaN", '"many"', "[]", "2e16"])
def test_a_count_that_is_none_has_its_own_code(sound: str, count: str) -> None:
    """A weight below zero would subtract a site from the mean; people weigh as scans do."""
    text = REPORT.model_dump_json()
    assert sound in text
    text = text.replace(sound, f"{sound[:-1]}{count}")
    assert believed(unpack_report, with_text(text)) in {"SUPPORT", "NOT_FINITE"}


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "{" * 100_000, "[" * 100_000, f'{{"protocol":{PROTOCOL}}}', "\ud800",
        REPORT.model_dump_json()[:-1], REPORT.model_dump_json() + " x",
        REPORT.model_dump_json().replace(f'"protocol":{PROTOCOL}', '"protocol":"3.1"'),
        REPORT.model_dump_json().replace('"site":"alpha"', '"site":"../alpha"'),
        REPORT.model_dump_json().replace('"round":3', '"round":-3'),
        REPORT.model_dump_json().replace('"refusal":""', '"refusal":"MADE_UP"'),
        REPORT.model_dump_json().replace('"round":3', '"round":3,"run_this":"rm"'),
        REPORT.model_dump_json().replace('"holds":[]', '"holds":["../arrays"]'),
    ],
)  # fmt: skip
def test_a_report_of_another_form_is_malformed(text: str) -> None:
    """No protocol, a path for a name, a key nobody knows, a code nobody documented."""
    assert text != REPORT.model_dump_json()
    with pytest.raises(Refusal) as caught:
        read_report(text)
    assert caught.value.code == "REPORT_MALFORMED"


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
def test_a_report_of_another_version_says_so(protocol: int) -> None:
    """A site that was not updated refuses in its own form; the coordinator must see which it is."""
    text = REPORT.model_dump_json().replace(f'"protocol":{PROTOCOL}', f'"protocol":{protocol}')
    with pytest.raises(Refusal) as caught:
        read_report(text)
    assert caught.value.code == "CODE"


@unpacks
def test_missing_and_wrong_records_are_refused(unpack: Unpack) -> None:
    """Flower carries whatever records a peer puts in."""
    text = ConfigRecord({"json": text_of(ORDER if unpack is unpack_order else REPORT)})
    arrays = ArrayRecord()
    assert not believed(unpack, RecordDict({"callosum": text, "arrays": arrays}))
    extra = RecordDict({"callosum": text, "arrays": arrays, "more": ConfigRecord({"a": 1})})
    assert not believed(unpack, extra)
    bad = [
        RecordDict(),
        RecordDict({"callosum": text}),
        RecordDict({"arrays": arrays}),
        RecordDict({"callosum": arrays, "arrays": text}),
        RecordDict({"callosum": ConfigRecord(), "arrays": arrays}),
        RecordDict({"callosum": ConfigRecord({"json": 3}), "arrays": arrays}),
        RecordDict({"callosum": ConfigRecord({"json": ["a"]}), "arrays": arrays}),
        RecordDict({"callosum": text, "arrays": MetricRecord({"a": 1.0})}),
        with_text(" " * (64 << 20) + "{}"),
    ]
    for content in bad:
        assert believed(unpack, content).endswith("_MALFORMED")


def npy(array: Any, **keys: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **keys)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    padded = text.encode() + b"\n"
    size = len(padded).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + padded + data


def archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.npy", npy(np.zeros(3)))
    return stream.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
ARRAYS = {
    "empty": b"",
    "noise": b"not an array at all",
    "cut": npy(np.zeros(8, np.float32))[:-1],
    "longer": npy(np.zeros(8, np.float32)) + b"\0",
    "cut header": npy(np.zeros(8, np.float32))[:20],
    "object": npy(np.array([{}], dtype=object), allow_pickle=True),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "archive": archive(),
    "huge": header(HUGE % (1 << 40)),
    "large": header(HUGE % (1 << 33), b"\0" * 64),
    "beyond": header(HUGE % (1 << 200)),
    "negative": header(HUGE % -1),
    "two minus": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2), }", b"\0" * 8),
    "not a dict": header("[1, 2]"),
    "code": header("__import__('os').system('true')"),
    "deep": header("(" * 9000),
    "other version": header(HUGE % 2, b"\0" * 8, b"\x02\x00"),
    "version 9": header(HUGE % 2, b"\0" * 8, b"\x09\x00"),
}
MISTYPED = {
    "big endian": npy(np.zeros(3, ">f4")),
    "structured": npy(np.zeros(3, [("a", "<f4"), ("b", "<i4")])),
    "text": npy(np.array(["a", "bc"])),
    "bytes": npy(np.array([b"a", b"bc"])),
    "complex": npy(np.zeros(3, np.complex64)),
    "bool": npy(np.zeros(3, bool)),
    "date": npy(np.zeros(3, "datetime64[D]")),
    "long double": npy(np.zeros(3, np.longdouble)),
}


def with_array(data: bytes, stype: str = "numpy.ndarray") -> RecordDict:
    array = Array(dtype="float32", shape=(8,), stype=stype, data=data)
    text = ConfigRecord({"json": REPORT.model_dump_json()})
    return RecordDict({"callosum": text, "arrays": ArrayRecord({"a": array})})


@contextmanager
def little_memory() -> Iterator[None]:
    """No more than 256 MiB beyond what is mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", ARRAYS)
def test_bytes_that_are_no_array_are_refused(name: str) -> None:
    """A few bytes must buy neither code, nor an exception, nor memory."""
    assert believed(unpack_report, with_array(ARRAYS[name])) == "REPORT_MALFORMED"


@pytest.mark.parametrize("name", ["huge", "large", "beyond"])
def test_a_header_buys_no_memory(name: str) -> None:
    """A header of 80 bytes that promises 32 GB is refused before anything is reserved."""
    with little_memory(), pytest.raises(Refusal, match="header says"):
        unpack_report(with_array(ARRAYS[name]))


@pytest.mark.parametrize("name", MISTYPED)
def test_arrays_of_other_types_are_refused(name: str) -> None:
    """Only plain little-endian numbers travel."""
    assert believed(unpack_report, with_array(MISTYPED[name])) == "ARRAYS_MISTYPED"


def test_an_array_that_flower_reads_otherwise_is_refused() -> None:
    """Flower knows other ways to store an array; ours is one."""
    data = npy(np.zeros(8, np.float32))
    assert not believed(unpack_report, with_array(data))
    assert believed(unpack_report, with_array(data, "torch.pickle")) == "REPORT_MALFORMED"


@given(st.binary(max_size=200), st.integers(0, 150))
@settings(deadline=None)
def test_any_bytes_in_an_array_are_an_array_or_a_refusal(noise: bytes, place: int) -> None:
    """Also noise inside an otherwise sound header."""
    sound = npy(np.zeros(8, np.float32))
    believed(unpack_report, with_array(noise))
    believed(unpack_report, with_array(sound[:place] + noise + sound[place + len(noise) :]))


@unpacks
def test_too_many_arrays_are_refused_and_thousands_are_not(unpack: Unpack) -> None:
    """A deep network has thousands; a hundred thousand empty ones are an attack on the memory."""
    text = ConfigRecord({"json": text_of(ORDER if unpack is unpack_order else REPORT)})
    one = Array(np.zeros(1, np.float32))
    some = ArrayRecord({str(i): one for i in range(3000)})
    assert len(unpack(RecordDict({"callosum": text, "arrays": some}))[1]) == 3000
    many = ArrayRecord({str(i): one for i in range(100_001)})
    assert believed(unpack, RecordDict({"callosum": text, "arrays": many})).endswith("_MALFORMED")


def read_whole(path: Path) -> None:
    read_spooled(path)
    with open_arrays(path) as file:
        file.all()


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("spool") / "sound"
    spool(path, REPORT, {"a": np.arange(6, dtype=np.float32), "b": np.zeros((2, 2))})
    read_whole(path)
    return path.read_bytes()


@given(cut=st.integers(0, 10_000))
@relaxed(60)
def test_a_truncated_file_is_a_folder_error(spooled: bytes, tmp_path: Path, cut: int) -> None:
    """A copy that broke off, or a disk that filled under another program."""
    path = tmp_path / "cut"
    path.write_bytes(spooled[: cut % len(spooled)])
    with pytest.raises(FolderError, match="cut is damaged or not Callosum's"):
        read_whole(path)


def test_a_flipped_bit_anywhere_in_a_file_is_noticed(spooled: bytes, tmp_path: Path) -> None:
    """A disk that rots would otherwise end in another model, and nobody would ever know."""
    path, chance = tmp_path / "flipped", random.Random(3)
    for place in range(len(spooled)):
        damaged = bytearray(spooled)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="flipped is damaged or not Callosum's"):
            read_whole(path)
        with pytest.raises(DamagedError):
            Stored(path).by_rows()


def test_a_sealed_header_that_makes_no_sense_is_a_damaged_file(
    spooled: bytes, tmp_path: Path
) -> None:
    """Whoever can write into a run folder can make the digest fit; reading must still not break."""
    length = int.from_bytes(spooled[:8], "little")
    sound = spooled[8 : 8 + length].rstrip()
    for old, new in (
        (b'"F64"', b'"BF16"'),
        (b'"shape":[2,2]', b'"shape":[-2,-2]'),
        (b'"shape":[2,2]', b'"shape":[2.0,2]'),
        (b'"shape":[2,2]', b'"shape":[true,4]'),
        (b'"shape":[2,2]', b'"shape":7'),
        (b'"shape":[2,2]', b'"shape":[' + b"9" * 5000 + b"]"),
        (b'"b":{', b'"b":3,"c":{'),
        (b'\\"texts\\":{', b'\\"texts\\":[{'),
        (b'\\"arrays\\":[', b'\\"arrays\\":[3,'),
        (b'{"__metadata__"', b'{"__metadata__":3,"a"'),
        (sound[120:], b"[" * 100_000),
    ):
        assert old in sound
        path = tmp_path / "forged"
        path.write_bytes(sealed_anew(sound.replace(old, new, 1), spooled[8 + length :]))
        with pytest.raises(DamagedError):
            read_whole(path)


def sealed_anew(head: bytes, body: bytes) -> bytes:
    """A file whose header holds its own digest again."""
    start = head.find(b'sha256\\":\\"') + len(b'sha256\\":\\"')
    blank = head[:start] + b"0" * 64 + head[start + 64 :]
    head = head[:start] + hashlib.sha256(blank).hexdigest().encode() + head[start + 64 :]
    return len(head).to_bytes(8, "little") + head + body


def test_what_an_older_version_wrote_is_refused_and_named(tmp_path: Path) -> None:
    """Its numbers cannot be checked: nobody wrote down what they were."""
    path = tmp_path / "older"
    path.write_bytes(save({"a": np.zeros(3, np.float32)}, {"json": '{"report": "{}"}'}))
    with pytest.raises(DamagedError, match=r"no digest of its content; .* an older Callosum"):
        read_whole(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04" + b"\0" * 100,
        b"\xff" * 100,
        save({"a": np.zeros(3, np.float32)}),
        save({"a": np.zeros(3, np.float32)}, {"json": "no json"}),
        save({"a": np.zeros(3, np.float32)}, {"json": "[1]"}),
        save({"a": np.zeros(3, np.float32)}, {"json": "[" * 100_000}),
        save({"a": np.zeros(3, np.float32)}, {"json": '{"report": 3}'}),
        save({"a": np.zeros(3, np.float32)}, {"json": "{}"}),
        save({"a": np.zeros(3, np.float32)}, {"other": "{}"}),
    ],
    ids=["empty", "zip", "noise", "bare", "text", "list", "deep", "number", "nothing", "foreign"],
)
def test_a_file_that_is_not_ours_is_a_folder_error(tmp_path: Path, content: bytes) -> None:
    """Somebody copies weights of another program into a run folder."""
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(FolderError, match="foreign is damaged or not Callosum's"):
        read_whole(path)


def test_a_folder_or_nothing_in_place_of_a_file_is_a_folder_error(tmp_path: Path) -> None:
    """Both happen when people tidy up."""
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FolderError, match="damaged or not Callosum's"):
            read_whole(path)


def test_types_that_numpy_does_not_know_are_a_folder_error(tmp_path: Path) -> None:
    """bfloat16 weights are sound safetensors, and none of ours."""
    sound = save({"a": np.zeros(3, np.float16)}, {"json": "{}"})
    path = tmp_path / "brain-float"
    path.write_bytes(sound.replace(b'"F16"', b'"BF16"').replace(b"  ", b" ", 1))
    with pytest.raises(FolderError), open_arrays(path) as file:
        file.all()


def test_every_letter_of_a_name_is_kept() -> None:
    """Array names are layer names of networks that we have not seen."""
    arrays = {letter: np.zeros(1, np.float32) for letter in string.printable}
    assert same(unpack_order(carried(packed(ORDER, array_record(arrays))))[1], arrays)


# The courier passes on what it does not read.


def npys(arrays: Arrays) -> list[tuple[str, bytes]]:
    return [(name, npy_bytes(array)) for name, array in arrays.items()]


@given(orders, named_arrays)
@settings(deadline=None, max_examples=40)
def test_an_order_reaches_the_agent_as_the_coordinator_sealed_it(
    order: Order, arrays: Arrays
) -> None:
    """The signature covers the text byte for byte, and the text names the arrays' digest."""
    sealed = seal(order, KEY, code="0" * 64, now=5.0, lifetime_s=1)
    passed, sent = unpack_sealed(carried(pack_order(sealed, array_record(arrays))))
    assert passed == sealed
    assert unseal(passed, [KEY.public_key()], now=5.0).order == order
    assert sent == npys(arrays)
    assert digest_of({name: view_npy(data) for name, data in sent}) == digest_of(arrays)


@given(reports, named_arrays)
@settings(deadline=None, max_examples=40)
def test_a_report_leaves_the_courier_as_the_agent_wrote_it(report: Report, arrays: Arrays) -> None:
    """Flower must carry the same bytes whether the agent or a courier filled the record."""
    passed = forward(report.model_dump_json(), npys(arrays))
    direct = pack_report(report, array_record(arrays))
    assert recorddict_to_proto(passed) == recorddict_to_proto(direct)
    assert passed.object_id == direct.object_id
    arrived, there = unpack_report(carried(passed))
    assert arrived == report
    assert same(there, arrays)
    assert digest_of(there) == digest_of(arrays)


@pytest.mark.parametrize("signature", [None, 3, b"ab", ["ab"], 0.5, [1.0]], ids=repr)
def test_a_signature_that_is_no_text_is_none(signature: Any) -> None:
    """The agent then says UNSIGNED; the courier must not stumble before it."""
    fields = {"json": "x"} | ({} if signature is None else {"signature": signature})
    sealed, arrays = unpack_sealed(RecordDict({"callosum": ConfigRecord(fields)}))
    assert sealed == ("x", "")
    assert arrays == []


def test_the_courier_passes_on_arrays_that_it_could_not_read() -> None:
    """Judging them is the agent's business, after the signature."""
    content = with_array(b"no array", "torch.pickle")
    assert unpack_sealed(content)[1] == [("a", b"no array")]


@given(st.sampled_from(sorted(SENTENCES)))
def test_an_answer_of_a_code_alone_is_that_refusal(code: str) -> None:
    """A courier without its agent cannot name the order that it could not deliver."""
    content = forward(declined(code), [])
    assert refusal_of(carried(content)) == code
    assert believed(unpack_report, content) == code


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda code: code not in SENTENCES))
def test_an_answer_of_an_unknown_code_is_malformed(code: str) -> None:
    """Only documented codes enter a record: a hospital's path must not travel as one."""
    with pytest.raises(Refusal) as caught:
        read_report(declined(code))
    assert caught.value.code == "REPORT_MALFORMED"


@given(reports)
@settings(deadline=None, max_examples=40)
def test_the_refusal_is_seen_without_reading_the_report(report: Report) -> None:
    """Whether to ask again is decided before anything is believed."""
    assert refusal_of(forward(report.model_dump_json(), [])) == report.refusal
    declining = refuse(ORDER, "BUSY")
    assert refusal_of(pack_report(declining, ArrayRecord())) == "BUSY"


@given(st.text(max_size=200) | st.binary(max_size=20) | json_values.map(json.dumps) | st.just(None))
@settings(deadline=None)
def test_looking_for_a_refusal_never_fails(text: Any) -> None:
    """It runs in the coordinator's own loop, on whatever a site sent."""
    record = ConfigRecord() if text is None else ConfigRecord({"json": text})
    for content in (RecordDict({"callosum": record}), RecordDict({"arrays": record})):
        assert isinstance(refusal_of(content), str)


@pytest.mark.parametrize(
    "text",
    ["{" * 100_000, "[" * 100_000, "1" * 10_000, "\ud800", '{"refusal": ["BUSY"]}', "NaN", "",
     '{"refusal": null}', '["refusal"]', '"refusal"', '{"refusal": ' + "1" * 5000 + "}"],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_no_refusal_is_seen_where_none_is(text: str) -> None:
    """Deep nesting and numbers of a thousand digits are errors of Python's own reader."""
    assert not refusal_of(with_text(text))
    assert not refusal_of(RecordDict({"callosum": MetricRecord({"json": 1.0})}))
    assert not refusal_of(RecordDict())


# Arrays on disk and in Flower's npy bytes.


def told_in(path: Path) -> dict[str, str]:
    """A file's metadata, as safetensors itself reads them."""
    with safe_open(str(path), framework="numpy") as file:
        return file.metadata()


@given(named_arrays)
@relaxed(150)
def test_files_are_byte_for_byte_what_safetensors_writes(tmp_path: Path, arrays: Arrays) -> None:
    """Anybody's reader opens them, and final models stay those of earlier versions."""
    metadata = {"b": "1", "a": '2 "quoted" \u00e9'}
    write_arrays(tmp_path / "one", arrays, metadata)
    ordered = {name: arrays[name] for name in sorted(arrays)}
    assert (tmp_path / "one").read_bytes() == save(ordered, told_in(tmp_path / "one"))


def test_every_type_with_and_without_axes_is_written_as_safetensors_does(tmp_path: Path) -> None:
    """Hypothesis seldom puts all types, a single number and nothing at all into one file."""
    arrays = {
        f"{odd}{dtype}{shape}": np.ones(shape, dtype)
        for odd in ("", "\x00", '"', "\\", "/", "\x7f", "\u2028", "\U0001f9e0", "\n")
        for dtype in ("float16", "float32", "float64", "int32", "int64")
        for shape in ((), (0,), (3, 0), (1,), (2, 3))
    }
    arrays["transposed"] = np.arange(6, dtype=np.int32).reshape(2, 3).T
    write_arrays(tmp_path / "one", arrays, {})
    sound = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    for name, array in sound.items():
        sound[name] = array.reshape(arrays[name].shape)  # ascontiguousarray adds an axis
    assert (tmp_path / "one").read_bytes() == save(sound, told_in(tmp_path / "one"))


def test_a_lazy_mapping_is_asked_for_one_array_at_a_time(tmp_path: Path) -> None:
    """Ten arrays of a gigabyte are written with one of them in memory."""
    made: list[weakref.ref[Any]] = []
    most = 0

    class Lazy(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            nonlocal most
            array = np.full(1000, int(name), np.float64)
            made.append(weakref.ref(array))
            most = max(most, sum(one() is not None for one in made))
            return array

        def __iter__(self) -> Iterator[str]:
            return iter("0123456789")

        def __len__(self) -> int:
            return 10

    write_arrays(tmp_path / "one", Lazy(), {})
    assert most <= 2  # the one that is written, the one that is asked for
    assert {name: array[0] for name, array in Stored(tmp_path / "one").items()} == {
        name: int(name) for name in "0123456789"
    }


@given(named_arrays, st.sampled_from(["", "model/", "m"]), st.data())
@relaxed(60)
def test_a_stored_array_is_what_was_written_whole_and_by_rows(
    tmp_path: Path, arrays: Arrays, prefix: str, data: Any
) -> None:
    """Averaging reads parts of the first axis and must see what reading all would show."""
    beside = {"state/x": np.ones(3)} if prefix else {}
    write_arrays(
        tmp_path / "one", {f"{prefix}{name}": a for name, a in arrays.items()} | beside, {}
    )
    stored = Stored(tmp_path / "one", prefix)
    assert list(stored) == list(dict(stored))
    assert len(stored) == len(arrays)
    assert same(dict(stored), arrays)
    rows = stored.by_rows()
    assert rows.keys() == arrays.keys()
    for name, array in arrays.items():
        part = ...
        if array.shape:
            start = data.draw(st.none() | st.integers(0, array.shape[0] + 1))
            length = data.draw(st.none() | st.integers(0, 5))
            part = slice(start, None if length is None else (start or 0) + length)
        assert same({"a": rows[name][part]}, {"a": array[part]})


def test_a_stored_array_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    """What is read is a copy: a mapped page that is written to would be the checkpoint."""
    write_arrays(tmp_path / "one", {"a": np.zeros(3)}, {})
    stored = Stored(tmp_path / "one")
    stored["a"][:] = 7
    assert not stored["a"].any()


@given(cut=st.integers(1, 10_000))
@relaxed(60)
def test_a_stored_file_that_is_cut_short_is_a_folder_error(
    spooled: bytes, tmp_path: Path, cut: int
) -> None:
    """Cut before it is opened, or after: a disk that fails while a round is averaged."""
    path = tmp_path / "cut"
    path.write_bytes(spooled[: -(cut % len(spooled)) or None])
    if cut % len(spooled):
        with pytest.raises(FolderError, match="cut is damaged or not Callosum's"):
            Stored(path)
    path.write_bytes(spooled)
    stored = Stored(path)
    path.write_bytes(spooled[:-1])  # the last byte is of the last array
    with pytest.raises(FolderError, match="is no longer what was written"):
        stored.by_rows()
    with pytest.raises(FolderError, match="cut is cut short at array"):
        dict(stored)
    path.unlink()
    with pytest.raises(FolderError, match="cut cannot be read"):
        dict(stored)


def test_a_stored_file_of_another_program_is_a_folder_error(tmp_path: Path) -> None:
    """Somebody copies weights of another program over a checkpoint."""
    for number, content in enumerate([b"", b"PK\x03\x04", save({"a": np.zeros(3, np.float32)})]):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with pytest.raises(FolderError, match="damaged or not Callosum's"):
            Stored(path)
    with pytest.raises(FolderError):
        Stored(tmp_path / "nothing")


def test_a_stored_file_of_types_that_numpy_lacks_is_a_folder_error(tmp_path: Path) -> None:
    """bfloat16 weights are sound safetensors, and none of ours."""
    sound = save({"a": np.zeros(3, np.float16)}, {"json": "{}"})
    path = tmp_path / "brain-float"
    path.write_bytes(sound.replace(b'"F16"', b'"BF16"').replace(b"  ", b" ", 1))
    with pytest.raises(FolderError):
        dict(Stored(path))


@given(named_arrays)
@settings(deadline=None)
def test_npy_bytes_are_those_of_numpy_and_are_read_without_a_copy(arrays: Arrays) -> None:
    """Half a gigabyte of received weights must not become a whole one."""
    for array in arrays.values():
        data = npy_bytes(array)
        assert data == npy(array)
        found = view_npy(data)
        assert same({"a": found}, {"a": array})
        assert not found.flags.writeable
        assert not found.size or np.shares_memory(found, np.frombuffer(data, np.uint8))
        assert same({"a": view_npy(npy(np.asfortranarray(array)))}, {"a": np.asfortranarray(array)})


@pytest.mark.parametrize("name", ARRAYS)
def test_npy_bytes_that_are_no_array_are_refused(name: str) -> None:
    """The courier looks at each array that the agent sends, and must know what to expect."""
    with pytest.raises(Refusal, match="REPORT_MALFORMED: npy bytes cannot be read"):
        view_npy(ARRAYS[name])
