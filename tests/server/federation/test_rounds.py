"""A hostile, broken or silent site costs a round its own answer and nothing else."""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client.learning import pretraining
from common.errors import SENTENCES, QuorumError
from common.protocol.orders import PROTOCOL, Order
from common.protocol.wire import open_arrays, unpack_order
from deploy import local

WEIGHT = "backbone.layers.0.weight"
VARIANCE = "backbone.layers.1.running_var"
BAD = "gamma"  # the site that misbehaves; alpha and beta do not

Tamper = Callable[[Order, Message, Message], Sequence[Message]]
Parts = tuple[dict[str, Any], dict[str, Array]]


def untouched(order: Order, message: Message, reply: Message) -> Sequence[Message]:
    return [reply]


class Tampering(local.LocalGrid):
    """A LocalGrid that hands every reply to `tamper` first, and notes who was asked for what."""

    tamper: Tamper = staticmethod(untouched)
    asked: list[Order]

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        for message_id in list(self._waiting):
            if message_id in wanted:
                message = self._waiting.pop(message_id)
                order, _ = unpack_order(message.content)
                self.asked.append(order)
                replies = list(self.tamper(order, message, self._answer(message)))
                if replies:
                    return replies
        return []


@pytest.fixture
def tampered(monkeypatch):
    """Simulate with a tampering grid; returns the orders that sites were sent."""

    def simulate(made: Any, out: str, tamper: Tamper) -> tuple[Any, list[Order]]:
        asked: list[Order] = []
        grid = type("Grid", (Tampering,), {"tamper": staticmethod(tamper), "asked": asked})
        monkeypatch.setattr(local, "LocalGrid", grid)
        try:
            return made.simulate(out), asked
        finally:
            monkeypatch.setattr(local, "LocalGrid", Tampering.__mro__[1])

    return simulate


def when(order: Order, *, number: int = 1) -> bool:
    return order.site == BAD and order.kind == "train" and order.round == number


def rewritten(change: Callable[[dict[str, Any], dict[str, Array]], None]) -> Tamper:
    """Change the JSON and the arrays of the bad site's first training report."""

    def tamper(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        if when(order):
            report = json.loads(reply.content["callosum"]["json"])
            arrays = dict(reply.content["arrays"])
            change(report, arrays)
            reply.content = content(json.dumps(report), arrays)
        return [reply]

    return tamper


def content(text: str, arrays: dict[str, Array]) -> RecordDict:
    return RecordDict({"callosum": ConfigRecord({"json": text}), "arrays": ArrayRecord(arrays)})


def replaced(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Tamper:
    def change(report: dict[str, Any], arrays: dict[str, Array]) -> None:
        arrays[name] = Array(make(arrays[name].numpy().copy()))

    return rewritten(change)


def raw(make: Callable[[bytes], bytes]) -> Tamper:
    """Change the serialised bytes of one array, below what NumPy would agree to write."""

    def change(report: dict[str, Any], arrays: dict[str, Array]) -> None:
        old = arrays[WEIGHT]
        arrays[WEIGHT] = Array(old.dtype, old.shape, old.stype, make(old.data))

    return rewritten(change)


def said(key: str, value: Any) -> Tamper:
    """Set one key of the report's JSON; "support.shared" is a key inside a table."""

    def change(report: dict[str, Any], arrays: dict[str, Array]) -> None:
        *places, last = key.split(".")
        here = report
        for place in places:
            here = here[place]
        here[last] = value

    return rewritten(change)


def unsaid(key: str, inner: str) -> Tamper:
    return rewritten(lambda report, arrays: report[key].pop(inner))


def spoilt(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[3] = value
        return array

    return change


def npy_claiming(shape: str, filled: bytes = b"\0" * 64) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + filled


class Trap:
    """Would leave a file behind if anything unpickled it."""

    sprung = Path("/tmp/callosum-test-pickle-was-executed")

    def __reduce__(self):
        return (Path.touch, (self.sprung,))


def pickled(_: bytes) -> bytes:
    array = np.empty(2, dtype=object)
    array[:] = [Trap(), Trap()]
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def zipped(_: bytes) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3, np.float32))
    return stream.getvalue()


def long_header(_: bytes) -> bytes:
    return b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{'descr'"


def text(value: Any) -> Tamper:
    def tamper(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        if when(order):
            record = ConfigRecord() if value is None else ConfigRecord({"json": value})
            reply.content = RecordDict({"callosum": record, "arrays": reply.content["arrays"]})
        return [reply]

    return tamper


def without_arrays(order: Order, message: Message, reply: Message) -> Sequence[Message]:
    if when(order):
        reply.content = RecordDict({"callosum": reply.content["callosum"]})
    return [reply]


def error(order: Order, message: Message, reply: Message) -> Sequence[Message]:
    """Flower's reply for a courier that raised, or a node that went away."""
    return [Message(Error(code=2, reason="/data/sub-01"), reply_to=message)] if when(order) else [
        reply
    ]  # fmt: skip


def silence(order: Order, message: Message, reply: Message) -> Sequence[Message]:
    return [] if when(order) else [reply]


def stranger(order: Order, message: Message, reply: Message) -> Sequence[Message]:
    """A reply to a message that nobody sent; the real one never comes."""
    if when(order):
        reply.metadata.__dict__["_reply_to_message_id"] = "local-999999"
    return [reply]


INFINITE = float("inf")
HOSTILE: dict[str, tuple[Tamper, str]] = {
    "NaN in an array": (replaced(WEIGHT, spoilt(float("nan"))), "NOT_FINITE"),
    "infinity in an array": (replaced(WEIGHT, spoilt(-INFINITE)), "NOT_FINITE"),
    "a negative variance": (replaced(VARIANCE, spoilt(-1e-9)), "NOT_FINITE"),
    "another shape": (replaced(WEIGHT, lambda array: array[:, :-1]), "ARRAYS_MISSHAPEN"),
    "a shape that would broadcast": (replaced(WEIGHT, lambda array: array[:1]), "ARRAYS_MISSHAPEN"),
    "the transposed shape": (replaced(WEIGHT, lambda array: array.T), "ARRAYS_MISSHAPEN"),
    "float64": (replaced(WEIGHT, lambda array: array.astype(np.float64)), "ARRAYS_MISTYPED"),
    "integers": (replaced(WEIGHT, lambda array: array.astype(np.int64)), "ARRAYS_MISTYPED"),
    "complex numbers": (replaced(WEIGHT, lambda array: array + 1j), "ARRAYS_MISTYPED"),
    "swapped bytes": (replaced(WEIGHT, lambda array: array.astype(">f4")), "ARRAYS_MISTYPED"),
    "text": (replaced(WEIGHT, lambda array: array.astype("U9")), "ARRAYS_MISTYPED"),
    "a lacking array": (rewritten(lambda _, arrays: arrays.pop(WEIGHT)), "ARRAYS_MISNAMED"),
    "an extra array": (
        rewritten(lambda _, arrays: arrays.update(scan=Array(np.zeros(3, np.float32)))),
        "ARRAYS_MISNAMED",
    ),
    "another name": (
        rewritten(lambda _, arrays: arrays.update({f"{WEIGHT}.": arrays.pop(WEIGHT)})),
        "ARRAYS_MISNAMED",
    ),
    "a frozen array": (
        rewritten(lambda _, arrays: arrays.update(
            {"backbone.standardise.mean": Array(np.zeros(4, np.float32))}
        )),
        "ARRAYS_MISNAMED",
    ),
    "no arrays": (rewritten(lambda _, arrays: arrays.clear()), "ARRAYS_MISNAMED"),
    "no array record": (without_arrays, "REPORT_MALFORMED"),
    "truncated bytes": (raw(lambda data: data[:-5]), "REPORT_MALFORMED"),
    "no bytes": (raw(lambda data: b""), "REPORT_MALFORMED"),
    "no npy": (raw(lambda data: b"\0" * 200), "REPORT_MALFORMED"),
    "a pickle": (raw(lambda data: pickle.dumps([Trap()])), "REPORT_MALFORMED"),
    "a pickle inside npy": (raw(pickled), "REPORT_MALFORMED"),
    "a zip archive": (raw(zipped), "REPORT_MALFORMED"),
    "a claim of 4 TB": (raw(lambda data: npy_claiming("(1099511627776,)")), "REPORT_MALFORMED"),
    "a claim of 2**80": (
        raw(lambda data: npy_claiming("(1208925819614629174706176,)")), "REPORT_MALFORMED"
    ),
    "a negative shape": (raw(lambda data: npy_claiming("(-4,)")), "REPORT_MALFORMED"),
    "a claim of a long header": (raw(long_header), "REPORT_MALFORMED"),
    "negative support": (said("support.shared", -20), "SUPPORT"),
    "fractional support": (said("support.shared", 20.5), "SUPPORT"),
    "absurd support": (said("support.shared", 10**30), "SUPPORT"),
    "more scans than it holds": (said("support.shared", 1000), "SUPPORT"),
    "infinite support": (said("support.shared", INFINITE), "NOT_FINITE"),
    "support in words": (said("support.shared", "many"), "SUPPORT"),
    "no scans": (
        said("support", {"shared": 0, "labels/age": 0, "labels/sex": 0}),
        "SUPPORT",
    ),
    "support that lacks scans": (unsaid("support", "shared"), "SUPPORT"),
    "support that lacks a head": (unsaid("support", "labels/age"), "SUPPORT"),
    "support of an unknown group": (said("support.labels/iq", 3), "SUPPORT"),
    "more labels than scans": (said("support.labels/age", 10**6), "SUPPORT"),
    "negative people": (said("participants.shared", -20), "SUPPORT"),
    "fractional people": (said("participants.shared", 20.5), "SUPPORT"),
    "people in words": (said("participants.shared", "many"), "SUPPORT"),
    "no people behind scans": (said("participants.shared", 0), "SUPPORT"),
    "no people behind labels": (said("participants.labels/age", 0), "SUPPORT"),
    "people that lack scans": (unsaid("participants", "shared"), "SUPPORT"),
    "people that lack a head": (unsaid("participants", "labels/sex"), "SUPPORT"),
    "more people than scans": (said("participants.shared", 10**6), "SUPPORT"),
    "more people than labels": (said("participants.labels/age", 10**6), "SUPPORT"),
    "a count that is NaN": (said("counts.loss/age", [float("nan"), 1.0]), "NOT_FINITE"),
    "a count that is infinite": (said("counts.loss/age", [INFINITE, 1.0]), "NOT_FINITE"),
    "a loss of three numbers": (said("counts.loss/age", [1.0, 2.0, 3.0]), "REPORT_MALFORMED"),
    "a validation loss of one number": (
        said("counts.validation-loss/age", [1.0]), "REPORT_MALFORMED"
    ),
    "a loss of fewer than nobody": (said("counts.loss/age", [1.0, -2.0]), "REPORT_MALFORMED"),
    "sums of a validation": (said("counts.validation/age", [1.0, 2.0]), "REPORT_MALFORMED"),
    "sums of labels": (said("counts.label/age", [1.0, 2.0]), "REPORT_MALFORMED"),
    "a validation loss of fewer than nobody": (
        said("counts.validation-loss/age", [1.0, -2.0]), "REPORT_MALFORMED"
    ),
    "counts of a kind of its own": (said("counts.shared", [1.0]), "REPORT_MALFORMED"),
    "an unknown key": (said("weights", [1.0]), "REPORT_MALFORMED"),
    "an unknown code of refusal": (said("refusal", "TIRED"), "REPORT_MALFORMED"),
    "a path as code of refusal": (said("refusal", "/data/sub-01.nii"), "REPORT_MALFORMED"),
    "a refusal of its own": (said("refusal", "POLICY"), "POLICY"),
    "an earlier protocol": (said("protocol", PROTOCOL - 1), "CODE"),
    "a later protocol": (said("protocol", PROTOCOL + 1), "CODE"),
    "something held that is no digest": (said("holds", ["../../arrays"]), "REPORT_MALFORMED"),
    "another order": (said("order", "0" * 64), "STALE"),
    "another round": (said("round", 2), "STALE"),
    "another kind": (said("kind", "census"), "STALE"),
    "another site's name": (said("site", "alpha"), "STRANGER"),
    "an unknown site's name": (said("site", "delta"), "STRANGER"),
    "a path as its name": (said("site", "../../alpha"), "REPORT_MALFORMED"),
    "no JSON": (text("{" * 10_000), "REPORT_MALFORMED"),
    "JSON that is no table": (text("[1, 2]"), "REPORT_MALFORMED"),
    "bytes for text": (text(b"\xff\xfe"), "REPORT_MALFORMED"),
    "no text": (text(None), "REPORT_MALFORMED"),
    "Flower's error reply": (error, "TRANSPORT"),
    "no reply at all": (silence, "NO_ANSWER"),
    "a reply to nothing": (stranger, "NO_ANSWER"),
}  # fmt: skip


@pytest.fixture(scope="module")
def three(module_federation):
    """Three sites of which two suffice; gamma is the largest, so its weight would show."""
    return module_federation(
        {
            "sites.quorum": 2,
            "sites.time_limit_s": 0.2,
            "pretraining.rounds": 1,
            "evaluation.baselines": False,
        },
        participants={"alpha": 30, "beta": 40, "gamma": 90},
    )


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    with open_arrays(path) as file:
        return file.all()


def mean_of(folder: Path, sites: Sequence[str]) -> dict[str, np.ndarray]:
    """The naive weighted mean of spooled replies, weighted as their JSON says.

    A variance is that of all their samples together: E[x^2] - E[x]^2.
    """
    wanted: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    weight: Counter[str] = Counter()
    for site in sites:
        with open_arrays(folder / f"{site}.safetensors") as file:
            support = json.loads(file.text("report"))["support"]
            for name in file.names():
                group = f"labels/{name.split('.')[1]}" if name.startswith("heads.") else "shared"
                term = file[name].astype(np.float64) * support[group]
                wanted[name] = wanted[name] + term if name in wanted else term
                weight[name] += support[group]
                if name.endswith("running_mean"):
                    square = np.square(file[name].astype(np.float64)) * support[group]
                    squares[name] = squares.get(name, 0) + square
    means = {name: total / weight[name] for name, total in wanted.items()}
    for name, total in squares.items():
        of = name.replace("running_mean", "running_var")
        means[of] += total / weight[name] - np.square(means[name])
    return {name: mean.astype(np.float32) for name, mean in means.items()}


def assert_is(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """To the bit; a variance to the last one, since there are two ways to add it up."""
    if name.endswith("running_var"):
        np.testing.assert_array_max_ulp(found, wanted, maxulp=1)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_reply_is_refused_by_its_code_and_the_others_go_on(three, tampered, case):
    """One bad site never ends a run, never enters the mean, and is named in the record."""
    tamper, code = HOSTILE[case]
    out = case.replace(" ", "-").replace("*", "x").replace("'", "")
    run, asked = tampered(three, out, tamper)
    [record] = run.federated.records()
    assert record["refused"][BAD] == code
    assert set(record["refused"].values()) <= set(SENTENCES)
    assert record["degraded"] is True
    assert sorted(record["answered"]) == ["alpha", "beta"]
    replies = run.federated.round(1) / "replies"
    assert sorted(path.name for path in replies.glob("*")) == [
        "alpha.safetensors",
        "beta.safetensors",
    ]
    found = arrays_in(run.federated.final)
    for name, array in mean_of(replies, ["alpha", "beta"]).items():
        assert_is(found[f"model/{name}"], array, name)
    with open_arrays(run.federated.final) as file:
        about = json.loads(file.text("checkpoint"))
    [stage] = about["lineage"]["stages"]
    trained = [part["site"] for part in stage["parts"] if "weights" in part["uses"]]
    assert trained == ["alpha", "beta"]
    assert not Trap.sprung.exists()
    assert Counter(order.kind for order in asked)["train"] == 3


def test_good_replies_would_all_have_counted(three, tampered):
    """The control of the test above: without tampering gamma does move the mean."""
    run, _ = tampered(three, "untouched", untouched)
    [record] = run.federated.records()
    assert record["refused"] == {}
    assert record["degraded"] is False
    replies = run.federated.round(1) / "replies"
    found = arrays_in(run.federated.final)[f"model/{WEIGHT}"]
    everyone = mean_of(replies, ["alpha", "beta", "gamma"])[WEIGHT]
    np.testing.assert_array_equal(found, everyone)
    assert np.abs(found - mean_of(replies, ["alpha", "beta"])[WEIGHT]).max() > 1e-4


def test_duplicated_reply_counts_once(three, tampered):
    """A message delivered twice must not double a hospital's weight."""

    def twice(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        return [reply, reply] if when(order) else [reply]

    run, _ = tampered(three, "twice", twice)
    plain, _ = tampered(three, "once", untouched)
    [record] = run.federated.records()
    assert record["refused"] == {BAD: "DUPLICATE"}
    assert record["degraded"] is False
    assert run.federated.final.read_bytes() == plain.federated.final.read_bytes()


def test_second_answer_after_a_refused_one_is_not_needed(three, tampered):
    """A reply from nowhere is refused by its node's number and costs the real sites nothing."""

    def extra(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        if not when(order):
            return [reply]
        foreign = Message(reply.content, reply_to=message)
        foreign.metadata.__dict__["_reply_to_message_id"] = "local-999999"
        foreign.metadata.__dict__["_src_node_id"] = 666
        return [foreign, reply]

    run, _ = tampered(three, "foreign", extra)
    [record] = run.federated.records()
    assert record["refused"] == {"node 666": "STRANGER"}
    assert record["degraded"] is False


def test_report_of_another_round_is_stale(module_federation, tampered):
    """A late report holds weights from before everyone's last step: averaging it undoes that."""
    made = module_federation({"sites.quorum": 2, "pretraining.rounds": 2})
    earlier: list[RecordDict] = []

    def late(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        if when(order):
            earlier.append(reply.content)
        if when(order, number=2):
            return [Message(earlier[0], reply_to=message)]
        return [reply]

    run, _ = tampered(made, "late", late)
    first, second = run.federated.records()
    assert first["refused"] == {}
    assert second["refused"] == {BAD: "STALE"}
    replies = run.federated.round(2) / "replies"
    found = arrays_in(run.federated.final)
    for name, array in mean_of(replies, ["alpha", "beta"]).items():
        assert_is(found[f"model/{name}"], array, name)


Change = Callable[[dict[str, Any], dict[str, Array]], None]


def changed(kind: str, change: Change) -> Tamper:
    """Change every report of one kind that the bad site sends."""

    def tamper(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        if order.site == BAD and order.kind == kind:
            report = json.loads(reply.content["callosum"]["json"])
            arrays = dict(reply.content["arrays"])
            change(report, arrays)
            reply.content = content(json.dumps(report), arrays)
        return [reply]

    return tamper


CENSUS: dict[str, Change] = {
    "an extra array": lambda _, arrays: arrays.update({"x": Array(np.zeros(1))}),
    "column sums": lambda _, arrays: arrays.update({"columns/sum": Array(np.zeros(4))}),
    "sums of labels": lambda report, _: report["counts"].update({"label/age": [40.0, 2000.0]}),
    "sums of losses": lambda report, _: report["counts"].update({"loss/age": [1.0, 40.0]}),
}


@pytest.mark.parametrize("case", CENSUS)
def test_bad_census_costs_the_site_its_place_and_nobody_elses(three, tampered, case):
    """The very first answer of a site can already end a run if it is believed unread."""

    tamper = changed("census", CENSUS[case])
    run, asked = tampered(three, f"census-{case.replace(' ', '-')}", tamper)
    census = json.loads((run.folder / "census.json").read_text())
    assert census[BAD]["refused"] in {"REPORT_MALFORMED", "ARRAYS_MISNAMED"}
    [record] = run.federated.records()
    assert sorted(record["answered"]) == ["alpha", "beta"]
    for kind in ("settle", "train"):
        assert [order.site for order in asked if order.kind == kind] == ["alpha", "beta"]


SUM, SQUARES, N = (f"backbone.standardise/{key}" for key in ("sum", "squares", "n"))
SETTLE: dict[str, tuple[Change, str]] = {
    "no sums": (lambda _, arrays: arrays.clear(), "ARRAYS_MISNAMED"),
    "one sum lacking": (lambda _, arrays: arrays.pop(SQUARES), "ARRAYS_MISNAMED"),
    "an extra array": (
        lambda _, arrays: arrays.update({"x": Array(np.zeros(1))}), "ARRAYS_MISNAMED"
    ),
    "sums of other columns": (
        lambda _, arrays: arrays.update({SUM: Array(np.zeros(9))}), "ARRAYS_MISSHAPEN"
    ),
    "a sum that would broadcast": (
        lambda _, arrays: arrays.update({SUM: Array(np.zeros(1))}), "ARRAYS_MISSHAPEN"
    ),
    "sums in half the bytes": (
        lambda _, arrays: arrays.update({N: Array(np.ones(1, np.float32))}), "ARRAYS_MISTYPED"
    ),
    "a sum that is NaN": (
        lambda _, arrays: arrays.update({SUM: Array(np.full(4, np.nan))}), "NOT_FINITE"
    ),
    "an infinite sum": (
        lambda _, arrays: arrays.update({SQUARES: Array(np.full(4, np.inf))}), "NOT_FINITE"
    ),
    "squares that are negative": (
        lambda _, arrays: arrays.update({SQUARES: Array(np.full(4, -1.0))}), "REPORT_MALFORMED"
    ),
    "counts": (
        lambda report, _: report["counts"].update({"loss/age": [1.0, 2.0]}), "REPORT_MALFORMED"
    ),
    "another pass": (lambda report, _: report.update(round=1), "STALE"),
    "a refusal": (lambda report, _: report.update(refusal="COHORT_TOO_SMALL"), "COHORT_TOO_SMALL"),
}  # fmt: skip


def matches_rows(run, three, sites):
    """The constants are what the training rows of these sites have, and of nobody else."""
    cohorts, splits = [three.agent(site).cohort for site in sites], three.study.splits
    x = np.concatenate([c.samples[c.indices("train", splits)] for c in cohorts]).astype(np.float64)
    found = arrays_in(run.federated.final)
    mean, deviation = (found[f"model/backbone.standardise.{n}"] for n in ("mean", "deviation"))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(deviation, x.std(0), rtol=1e-6)


@pytest.mark.parametrize("case", SETTLE)
def test_bad_sums_are_refused_by_their_code_and_the_others_settle(three, tampered, case):
    """Constants are frozen for the whole run: one site's broken sums would be in every prediction."""
    change, code = SETTLE[case]
    run, asked = tampered(three, f"settle-{case.replace(' ', '-')}", changed("settle", change))
    folder = run.folder / "settle" / "0000"
    assert json.loads((folder / "refused.json").read_text()) == {BAD: code}
    matches_rows(run, three, ("alpha", "beta"))
    # it may mend its sums by the next run; what it trains is as good as anyone's
    [record] = run.federated.records()
    assert sorted(record["answered"]) == ["alpha", "beta", "gamma"]
    assert record["refused"] == {}
    assert Counter(order.kind for order in asked)["settle"] == 3


@pytest.mark.parametrize("taken", [0, 60, "all", "beyond"])
def test_sums_of_scans_that_a_site_has_not_are_refused(three, tampered, taken):
    """Those that take away just what the others hold would divide everybody's columns by 0.

    Those of more scans than the site's census counts would settle the constants alone.
    """
    splits = three.study.splits
    others = sum(
        len(three.agent(site).cohort.indices("train", splits)) for site in ("alpha", "beta")
    )
    everything = len(three.agent(BAD).cohort)
    n = {"all": -others, "beyond": everything + 1}.get(taken, -1 * taken)
    change = changed("settle", lambda _, arrays: arrays.update({N: Array(np.array([float(n)]))}))
    run, _ = tampered(three, f"settle-{taken}", change)
    refused = json.loads((run.folder / "settle" / "0000" / "refused.json").read_text())
    assert refused == {BAD: "SUPPORT" if n else "REPORT_MALFORMED"}
    assert all(np.isfinite(array).all() for array in arrays_in(run.federated.final).values())


def test_constants_are_those_of_all_training_participants(three, tampered):
    """The control of the test above, from the tables themselves."""
    run, _ = tampered(three, "settled", untouched)
    matches_rows(run, three, ("alpha", "beta", BAD))


def test_without_anybodys_sums_the_run_stops_and_says_so(three, tampered):
    """A network that divides by a deviation of nobody would train, and be worth nothing."""

    def refused(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        return [] if order.kind == "settle" else [reply]

    with pytest.raises(QuorumError, match=r"no site's sums settle.*federated.*alpha: NO_ANSWER"):
        tampered(three, "unsettled", refused)
    run, _ = tampered(three, "unsettled", untouched)
    calm, _ = tampered(three, "calm", untouched)
    assert run.federated.final.read_bytes() == calm.federated.final.read_bytes()


def test_round_below_the_quorum_stops_and_loses_nothing(module_federation, tampered, monkeypatch):
    """After the outage only the missing site works; the result is that of a calm run."""
    made = module_federation(
        {"pretraining.rounds": 3, "sites.time_limit_s": 0.2, "evaluation.baselines": False}
    )
    calm, _ = tampered(made, "calm", untouched)
    trained: Counter[str] = Counter()
    plain = pretraining.train

    def counted(network, cohort, *more, **settings):
        trained[cohort.participants[0].partition("-")[0]] += 1
        return plain(network, cohort, *more, **settings)

    monkeypatch.setattr(pretraining, "train", counted)

    def out(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        gone = order.kind == "train" and order.round == 2 and order.site in ("alpha", "gamma")
        return [] if gone else [reply]

    with pytest.raises(QuorumError, match=r"1 of 3 sites answered.*alpha: NO_ANSWER"):
        tampered(made, "outage", out)
    assert trained == {"alpha": 2, "beta": 2, "gamma": 2}  # the answers were lost on the way
    assert not (made.folder / "outage" / "rounds" / "0002" / "record.json").exists()

    run, asked = tampered(made, "outage", untouched)
    again = [(order.site, order.round) for order in asked if order.kind == "train"]
    assert again == [
        ("alpha", 2), ("gamma", 2), ("alpha", 3), ("beta", 3), ("gamma", 3)
    ]  # fmt: skip
    assert [order for order in asked if order.kind in ("census", "settle")] == []
    # the local engine's sites keep no second copy: lost answers are worked out again, bit for bit
    assert trained == {"alpha": 4, "beta": 3, "gamma": 4}
    assert run.federated.final.read_bytes() == calm.federated.final.read_bytes()
    assert [record["degraded"] for record in run.federated.records()] == [False] * 3


def test_damaged_spool_is_asked_for_again(module_federation, tampered):
    """Half a file in the run folder must cost one message, not the run."""
    made = module_federation({"pretraining.rounds": 2, "sites.time_limit_s": 0.2})
    calm, _ = tampered(made, "calm", untouched)

    def out(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        return [] if order.kind == "train" and order.site == BAD else [reply]

    with pytest.raises(QuorumError):
        tampered(made, "torn", out)
    spooled = made.folder / "torn" / "rounds" / "0001" / "replies" / "alpha.safetensors"
    spooled.write_bytes(spooled.read_bytes()[:-100])
    run, asked = tampered(made, "torn", untouched)
    first = [order.site for order in asked if order.kind == "train" and order.round == 1]
    assert first == ["alpha", "gamma"]
    assert run.federated.final.read_bytes() == calm.federated.final.read_bytes()


def test_quorum_may_be_met_without_a_site_that_never_came(module_federation, tampered):
    """A hospital that is away from the census on is named there, and the others begin."""
    made = module_federation(
        {"sites.quorum": 2, "sites.time_limit_s": 0.2, "pretraining.rounds": 1}
    )

    def away(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        return [] if order.site == BAD else [reply]

    run, asked = tampered(made, "away", away)
    census = json.loads((run.folder / "census.json").read_text())
    assert census[BAD]["refused"] == "NO_ANSWER"
    assert {order.site for order in asked if order.kind == "train"} == {"alpha", "beta"}


def test_a_rival_that_fails_does_not_end_the_run(module_federation, tampered):
    """A single site that cannot finish its own model must not cost everyone the study."""
    made = module_federation(
        {"pretraining.rounds": 2, "sites.time_limit_s": 0.2, "comparisons.single_site": True}
    )

    def out(order: Order, message: Message, reply: Message) -> Sequence[Message]:
        return [] if order.model == "single-alpha" else [reply]

    run, _ = tampered(made, "rival", out)
    assert run.federated.final.exists()
    assert not run.comparison("single-alpha").final.exists()
    assert run.comparison("single-beta").final.exists()
    assert (run.folder / "results.csv").exists()


PEOPLE = {"alpha": 4, "beta": 5, "gamma": 1}
VOLUMES = {"alpha": 12, "beta": 10, "gamma": 648}


@pytest.fixture(scope="module", params=["participants", "scans"])
def few(request, module_federation):
    """Four people, five, and one volunteer of 648 volumes; one of alpha's people has no age."""
    made = module_federation(
        {
            "aggregation.weight": request.param,
            "pretraining": {"rounds": 1, "batch_size": 16, "learning_rate": 0.01},
            "splits": {"validation": 0.0, "test": 0.0},
        },
        participants=VOLUMES,
        site={"policy": {"minimum_cohort": 1, "minimum_support": 1}},
    )
    for site, people in PEOPLE.items():
        table = made.sites / site / "table.csv"
        header, *lines = table.read_text().splitlines()
        rows = [line.split(",") for line in lines]
        for number, row in enumerate(rows):
            row[0] = f"{site}-{number % people}"
            if row[0] == "alpha-0":
                row[5] = ""
        table.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return request.param, made


def test_one_volunteer_with_many_scans_weighs_one_person_where_people_count(few, tampered):
    """Beside two hospitals of four and five patients she is 1 of 10; by scans she is the model."""
    weight, made = few
    run, _ = tampered(made, "run", untouched)
    [record] = run.federated.records()
    lines = record["answered"]
    assert {site: line["support"]["shared"] for site, line in lines.items()} == VOLUMES
    assert {site: line["participants"]["shared"] for site, line in lines.items()} == PEOPLE
    if weight == "participants":
        shared = {"alpha": 4, "beta": 5, "gamma": 1}
        aged = {"alpha": 3, "beta": 5, "gamma": 1}  # of an age's head: people with an age
    else:
        shared = {"alpha": 12, "beta": 10, "gamma": 648}
        aged = {"alpha": 9, "beta": 10, "gamma": 648}
    sent = {
        site: arrays_in(run.federated.round(1) / "replies" / f"{site}.safetensors")
        for site in PEOPLE
    }
    found = arrays_in(run.federated.final)
    moved = {}
    for name in sent["alpha"]:
        share = aged if name.startswith("heads.age.") else shared
        whole = sum(share.values())
        wanted = sum(share[site] * sent[site][name].astype(np.float64) for site in share) / whole
        if name.endswith("running_var"):  # and what lies between the sites' means
            means = {site: sent[site][name.replace("_var", "_mean")] for site in share}
            centre = sum(share[site] * means[site].astype(np.float64) for site in share) / whole
            wanted += sum(share[site] * np.square(means[site] - centre) for site in share) / whole
        np.testing.assert_array_max_ulp(found[f"model/{name}"], wanted.astype(np.float32), maxulp=1)
        moved[name] = np.abs(wanted - sent["gamma"][name]).max()
    # the control: hers differ from everyone's, or any weight would have done
    assert (moved[WEIGHT] > 0.01) == (weight == "participants")
