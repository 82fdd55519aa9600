"""What crosses between sites: the same content the same bytes, and nothing hostile believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import string
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import save

from common.arrays import Arrays
from common.errors import FolderError, Refusal
from common.orders import Measurement, Order, Report, digest_of, read_report
from common.wire import (
    array_record,
    open_arrays,
    pack,
    read_spooled,
    spool,
    unpack_order,
    unpack_report,
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
    labels,
    npst.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int32, np.int64]),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)
orders = st.builds(
    Order,
    kind=st.sampled_from(["census", "train", "finetune", "evaluate"]),
    study=hexes,
    run=hexes,
    site=names,
    round=st.integers(0, 10_000),
    model=names,
    task=names,
    init=st.sampled_from(["transfer", "frozen", "scratch", "linear"]),
    lineage=st.lists(names, max_size=3).map(tuple),
    against=st.lists(names, max_size=3).map(tuple),
    constants=st.dictionaries(labels, numbers, max_size=3),
    arrays=hexes,
)
measurements = st.builds(
    Measurement,
    phase=labels,
    target=labels,
    model=labels,
    site=names,
    role=st.sampled_from(["train", "heldout"]),
    metric=labels,
    value=st.none() | numbers,
    ci_low=st.none() | numbers,
    n_participants=st.integers(0, 2**53),
    n_scans=st.integers(0, 2**53),
)
reports = st.builds(
    Report,
    order=hexes,
    site=names,
    kind=st.sampled_from(["census", "train", "finetune", "evaluate"]),
    round=st.integers(0, 10_000),
    refusal=st.sampled_from(["", "ROLE", "DISK_FULL"]),
    support=st.dictionaries(labels, st.integers(0, 2**53), max_size=3),
    counts=st.dictionaries(labels, st.lists(numbers, max_size=5).map(tuple), max_size=3),
    measurements=st.lists(measurements, max_size=2).map(tuple),
    cohort=hexes,
    seconds=st.floats(0, 1e6),
)

HEX = "0" * 64
ORDER = Order(kind="train", study=HEX, run=HEX, site="alpha", round=3, arrays=HEX)
REPORT = Report(
    order=ORDER.id, site="alpha", kind="train", round=3, support={"scans": 7},
    counts={"loss/age": (1.5, 7.0)}, seconds=0.25,
)  # fmt: skip


def same(left: Arrays, right: Arrays) -> bool:
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


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
from common.orders import Report, digest_of
from common.wire import spool
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
            cwd=Path(__file__).parents[2],
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


@pytest.mark.parametrize("message", [ORDER, REPORT], ids=["order", "report"])
@given(st.data())
@settings(deadline=None, max_examples=200)
def test_any_value_in_any_field_is_a_message_or_a_refusal(message: Any, data: Any) -> None:
    """Almost right is worse than wrong: it reaches further."""
    fields = message.model_dump(mode="json")
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(json_values)
    read = read_envelope if isinstance(message, Order) else read_report
    try:
        read(json.dumps(fields))
    except Refusal as refusal:
        assert refusal.code.endswith("_MALFORMED") or refusal.code in {"NOT_FINITE", "SUPPORT"}


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


@pytest.mark.parametrize("count", ["-1", "1.5", "null", "1e30", "NaN", '"many"', "[]", "2e16"])
def test_a_count_that_is_none_has_its_own_code(count: str) -> None:
    """A weight below zero would subtract a site from the mean."""
    text = REPORT.model_dump_json().replace('"scans":7', f'"scans":{count}')
    assert believed(unpack_report, with_text(text)) in {"SUPPORT", "NOT_FINITE"}


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "{" * 100_000, "[" * 100_000, '{"protocol":2}', "\ud800",
        REPORT.model_dump_json()[:-1], REPORT.model_dump_json() + " x",
        REPORT.model_dump_json().replace('"protocol":1', '"protocol":2'),
        REPORT.model_dump_json().replace('"site":"alpha"', '"site":"../alpha"'),
        REPORT.model_dump_json().replace('"round":3', '"round":-3'),
        REPORT.model_dump_json().replace('"refusal":""', '"refusal":"MADE_UP"'),
        REPORT.model_dump_json().replace('"round":3', '"round":3,"run_this":"rm"'),
    ],
)  # fmt: skip
def test_a_report_of_another_form_is_malformed(text: str) -> None:
    """Another protocol, a path for a name, a key nobody knows, a code nobody documented."""
    with pytest.raises(Refusal) as caught:
        read_report(text)
    assert caught.value.code == "REPORT_MALFORMED"


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


@given(st.data())
@relaxed(200)
def test_flipped_bytes_are_a_value_or_an_error_of_ours(
    spooled: bytes, tmp_path: Path, data: Any
) -> None:
    """Damage on a disk must end in a sentence that names the file."""
    place = data.draw(st.integers(0, len(spooled) - 1))
    damaged = bytearray(spooled)
    damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "flipped"
    path.write_bytes(damaged)
    try:
        read_whole(path)
    except (FolderError, Refusal):
        pass


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
