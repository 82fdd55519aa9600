"""A report that is well-formed and cannot be borne costs its site its answer, and nobody the run."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, Message

from common.errors import QuorumError
from common.protocol.orders import Order, OrderKind, Report
from common.protocol.wire import open_arrays, read_spooled, spool, unpack_order
from deploy import local
from server.federation.exchange import Exchange, Outcome
from server.federation.update_norms import Moved, overlong
from tests.server.federation.test_rounds import (
    BAD,
    SQUARES,
    SUM,
    WEIGHT,
    N,
    Tamper,
    arrays_in,
    changed,
    content,
    tampered,
    untouched,
)

assert tampered  # the fixture of all tests here

Change = Callable[[dict[str, Any], dict[str, Array]], None]
HUGE = 1.7e308
KINDS = get_args(OrderKind)


def counts(**said: list[float]) -> Change:
    """Sums that replace the report's own, or stand beside them."""
    renamed = {name.replace("__", "/").replace("_", "-"): sums for name, sums in said.items()}
    return lambda report, _: report["counts"].update(renamed)


def tables(name: str, **said: float) -> Change:
    renamed = {key.replace("__", "/"): value for key, value in said.items()}
    return lambda report, _: report[name].update(renamed)


def said(**values: Any) -> Change:
    return lambda report, _: report.update(values)


def numbers(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda _, arrays: arrays.update({name: Array(make(arrays[name].numpy().copy()))})


def one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[1] = value
        return array

    return change


def bins(*places: float) -> list[float]:
    return [*places, *[0.0] * (1024 - len(places))]


def finished(run: Any) -> bool:
    """Everything was done, and nothing in it is anything but a number."""
    arrays = arrays_in(run.federated.final)
    return (run.folder / "results.csv").exists() and all(
        np.isfinite(array).all() and np.abs(array).max(initial=0) < 1e6 for array in arrays.values()
    )


@dataclass
class Played(local.LocalGrid):
    """Hands out the replies of an honest run, those of one site and kind changed before."""

    replies: dict[str, Any]
    nodes: dict[str, int]
    changed: Callable[[Order, Any], Any] = lambda order, content: content
    _waiting: dict[str, Any] = field(default_factory=dict)
    _sent: int = 0

    def _answer(self, message):
        order, _ = unpack_order(message.content)
        content = copy.deepcopy(self.replies[order.id])
        return Message(self.changed(order, content), reply_to=message)


@dataclass
class Honest:
    """One run of real agents: what was asked, how, and what was answered."""

    made: Any
    run: Any
    calls: list[tuple[Exchange, dict[str, Report], tuple[Any, ...]]]
    replies: dict[str, Any]

    def again(self, kind: str, site: str, change: Change, folder: Path) -> Outcome:
        """The exchange of that kind once more, with what one site says changed."""
        exchange, census, (orders, parcel, _, plan, *more) = next(
            call for call in self.calls if call[2][0][0].kind == kind
        )

        def changed_content(order: Order, content_of: Any) -> Any:
            if order.site != site:
                return content_of
            report = json.loads(content_of["callosum"]["json"])
            arrays = dict(content_of["arrays"])
            change(report, arrays)
            return content(json.dumps(report), arrays)

        grid = Played(self.replies, exchange._nodes, changed_content)
        fresh = Exchange(grid, exchange._nodes, exchange._study)
        fresh.census = census
        outcome = fresh.ask(orders, parcel, folder, plan, *more)
        kept = sorted(path.stem for path in folder.glob("*.safetensors"))
        assert kept == sorted(outcome.reports)
        if kind == "train":
            lengths = Moved.to(plan, parcel.sets[orders[0].arrays])
            for one in overlong(exchange._study, plan, outcome.reports, outcome.moved, lengths):
                outcome.refuse(one, "UPDATE_TOO_LONG")
        return outcome


@pytest.fixture(scope="module")
def played() -> Iterator[Callable[[Any], Honest]]:
    """Run a federation of real agents once, and note all exchanges."""

    def run(made: Any) -> Honest:
        calls, replies = [], {}
        plain_ask, plain_answer = Exchange.ask, local.LocalGrid._answer

        def ask(exchange, *called):
            calls.append((exchange, dict(exchange.census), called))
            return plain_ask(exchange, *called)

        def answer(grid, message):
            reply = plain_answer(grid, message)
            replies[unpack_order(message.content)[0].id] = reply.content
            return reply

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Exchange, "ask", ask)
            patch.setattr(local.LocalGrid, "_answer", answer)
            found = made.simulate("honest")
        return Honest(made, found, calls, replies)

    return run


@pytest.fixture(scope="module")
def three(module_federation):
    """Three sites of which two suffice."""
    return module_federation(
        {
            "sites.quorum": 2,
            "sites.time_limit_s": 0.2,
            "pretraining.rounds": 1,
            "evaluation.baselines": False,  # whose sums are others
        }
    )


@pytest.fixture(scope="module")
def trained(three, played) -> Honest:
    return played(three)


TRAIN: dict[str, tuple[Change, str]] = {
    "two bins of 1.7e308": (counts(validation__sex=bins(HUGE, HUGE)), "REPORT_MALFORMED"),
    "one bin of 1.7e308": (counts(validation__sex=bins(HUGE)), "REPORT_MALFORMED"),
    "bins of half a scan": (counts(validation__sex=bins(0.5, 0.5)), "REPORT_MALFORMED"),
    "bins of more than all scans": (counts(validation__sex=bins(9e6)), "REPORT_MALFORMED"),
    "squares of less than the mean": (
        counts(validation__age=[4.0, 40.0, 1.0, 200.0, 10000.0, 200.0, 10000.0, 1e4]),
        "REPORT_MALFORMED",
    ),
    "sums to infinity when squared": (
        counts(validation__age=[4.0, 1e300, 1e300, 200.0, 1e4, 1e300, 1e300, 1e300]),
        "REPORT_MALFORMED",
    ),
    "a loss over 2**53 scans": (counts(loss__age=[1.0, 2.0**53]), "REPORT_MALFORMED"),
    "a loss over more than all scans": (counts(loss__age=[1.0, 41.0]), "REPORT_MALFORMED"),
    "a loss over part of a scan": (counts(loss__age=[1.0, 2.5]), "REPORT_MALFORMED"),
    "a loss of 1e300": (counts(loss__age=[1e300, 10.0]), "REPORT_MALFORMED"),
    "a loss of -1e300": (counts(validation_loss__age=[-1e300, 10.0]), "REPORT_MALFORMED"),
    "a loss without a scan": (counts(loss__age=[1.0, 0.0]), "REPORT_MALFORMED"),
    "a loss of a name for a terminal": (
        lambda report, _: report["counts"].update({"loss/\x1b[8m": [1.0, 1.0]}),
        "REPORT_MALFORMED",
    ),
    "counts of another order": (counts(evaluation__age=[0.0] * 8), "REPORT_MALFORMED"),
    "people behind nothing": (tables("participants", loss__iq=3), "SUPPORT"),
    "more people than there are": (tables("participants", loss__age=10**6), "SUPPORT"),
    "a thousand years": (said(seconds=1e300), "REPORT_MALFORMED"),
    "a cohort": (said(cohort="0" * 64), "REPORT_MALFORMED"),
    "arrays held that nobody named": (said(holds=["1" * 64]), "REPORT_MALFORMED"),
    "a number of 3.3e38": (numbers(WEIGHT, one(3.3e38)), "UPDATE_TOO_LONG"),
    "a number of -1e19": (numbers(WEIGHT, one(-1e19)), "UPDATE_TOO_LONG"),
    "numbers of 3.3e38": (numbers(WEIGHT, lambda a: a * 0 + np.float32(3.3e38)), "UPDATE_TOO_LONG"),
    "an update of 1e9": (numbers(WEIGHT, one(1e9)), "UPDATE_TOO_LONG"),
    "an update of 100": (numbers(WEIGHT, one(100.0)), "UPDATE_TOO_LONG"),
    "a variance of 1e17": (numbers("backbone.layers.1.running_var", one(1e17)), "UPDATE_TOO_LONG"),
}


@pytest.mark.parametrize("case", TRAIN)
def test_a_training_report_that_cannot_be_borne_is_refused(trained, tmp_path, case):
    """Each of these ended a run, hung it on every resume, or spoilt the model for everyone."""
    change, code = TRAIN[case]
    outcome = trained.again("train", BAD, change, tmp_path)
    assert outcome.refused == {BAD: code}
    assert sorted(outcome.reports) == ["alpha", "beta"]


@pytest.mark.slow
@pytest.mark.parametrize("case", TRAIN)
def test_a_training_report_that_cannot_be_borne_is_its_sites_alone(three, tampered, case):
    """The same in whole runs: the others go on to the end."""
    change, code = TRAIN[case]
    run, _ = tampered(three, f"train-{list(TRAIN).index(case)}", changed("train", change))
    for record in run.federated.records():
        assert record["refused"] == {BAD: code}
        assert sorted(record["answered"]) == ["alpha", "beta"]
        json.dumps(record, allow_nan=False)
    assert finished(run)


CENSUS: dict[str, Change] = {
    "labels to infinity": counts(label__age=[30.0, HUGE]),
    "labels beyond the study's range": counts(label__age=[30.0, 1e13]),
    "labels of 2**53 scans": counts(label__age=[2.0**53, 1.0]),
    "labels of half a scan": counts(label__age=[10.5, 500.0]),
    "labels of no scan": counts(label__age=[0.0, 500.0]),
    "more of a class than scans": counts(label__sex=[10.0, 11.0]),
    "a million million scans": tables("support", scans=10**12),
    "more labels than scans": tables("support", labels__age=41),
    "more people than scans": tables("participants", scans=41),
    "people behind nothing": tables("participants", iq=1),
    "scans of nobody": tables("participants", scans=0),
    "no scans": tables("support", scans=0),
    "a group of its own": tables("support", labels__iq=3),
    "a cohort of quotes": said(cohort='"' * 1000),
    "a cohort of a million quotes": said(cohort='"' * 1_000_000),
    "no cohort": said(cohort=""),
}


@pytest.mark.parametrize("case", CENSUS)
def test_a_census_that_cannot_be_borne_is_refused(trained, tmp_path, case):
    """What a site says it holds bounds all that it may claim, and enters everybody's constants."""
    outcome = trained.again("census", BAD, CENSUS[case], tmp_path)
    assert sorted(outcome.reports) == ["alpha", "beta"]
    assert outcome.refused[BAD] in {"REPORT_MALFORMED", "SUPPORT"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CENSUS)
def test_a_census_that_cannot_be_borne_is_its_sites_alone(three, tampered, case):
    """The same in whole runs."""
    out = f"census-{list(CENSUS).index(case)}"
    run, asked = tampered(three, out, changed("census", CENSUS[case]))
    census = json.loads((run.folder / "census.json").read_text())
    assert census[BAD]["refused"] in {"REPORT_MALFORMED", "SUPPORT"}
    assert {order.site for order in asked if order.kind == "train"} == {"alpha", "beta"}
    assert finished(run)


SETTLE: dict[str, Change] = {
    "sums of 1e300": numbers(SUM, lambda array: array * 0 + 1e300),
    "one sum of 1e300": numbers(SUM, one(1e300)),
    "squares of 1e300": numbers(SQUARES, one(1e300)),
    "sums and squares of 1e300": lambda report, arrays: [
        numbers(name, lambda array: array * 0 + 1e300)(report, arrays) for name in (SUM, SQUARES)
    ],
    "sums of 1e44": numbers(SUM, one(1e44)),
    "a mean of 1e30": numbers(SUM, one(1e31)),
    "half a scan": numbers(N, lambda array: array * 0 + 10.5),
}


@pytest.mark.parametrize("case", SETTLE)
def test_sums_that_cannot_be_borne_are_refused(trained, tmp_path, case):
    """A run was "finished" with a mean of infinity, and every prediction was the same."""
    outcome = trained.again("settle", BAD, SETTLE[case], tmp_path)
    assert sorted(outcome.reports) == ["alpha", "beta"]


@pytest.mark.slow
@pytest.mark.parametrize("case", SETTLE)
def test_sums_that_cannot_be_borne_settle_nobodys_constants(three, tampered, case):
    """The same in whole runs."""
    run, _ = tampered(three, f"settle-{list(SETTLE).index(case)}", changed("settle", SETTLE[case]))
    refused = json.loads((run.folder / "settle" / "0000" / "refused.json").read_text())
    assert refused[BAD] in {"REPORT_MALFORMED", "SUPPORT", "UPDATE_TOO_LONG"}
    assert finished(run)


# Measurements.

JUDGE = "omega"  # the held-out site that misbehaves; psi does not


@pytest.fixture(scope="module")
def judged(module_federation):
    """Two sites that train and tune, two that judge."""
    return module_federation({
        "sites": {"train": ["alpha", "gamma"], "heldout": [JUDGE, "psi"], "time_limit_s": 0.2},
        "pretraining.rounds": 1,
        "evaluation.head": False,
        "finetuning": [{
            "name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"],
            "epochs": 1, "learning_rates": [0.01], "repeats": 2, "then": ["explain"],
        }],
    }, participants={"gamma": 240}, site={"policy.orders": list(KINDS)})  # fmt: skip


def tampering(kind: str, site: str, change: Change) -> Tamper:
    def tamper(order, message, reply):
        if (order.kind, order.site) != (kind, site):
            return [reply]
        return changed(kind, change)(order.model_copy(update={"site": BAD}), message, reply)

    return tamper


def rows(**values: Any) -> Change:
    """Change the first measurement that has a value."""

    def change(report: dict[str, Any], _: dict[str, Array]) -> None:
        first = next(row for row in report["measurements"] if row["value"] is not None)
        first.update(values)

    return change


def twice(report: dict[str, Any], _: dict[str, Array]) -> None:
    report["measurements"].append({**report["measurements"][0], "value": 3.0})


ROWS: dict[str, Change] = {
    "two bins of 1.7e308": counts(evaluation__sex=bins(HUGE, HUGE)),
    "n = 2**53": counts(evaluation__age=[2.0**53, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    "the same row twice": twice,
    "a row of another phase": rows(phase="finetune"),
    "a row of another site": rows(site="psi"),
    "a row of another role": rows(role="train"),
    "a row of a target of its own": rows(target="iq"),
    "a row of a model of its own": rows(model="=HYPERLINK()"),
    "a row of a rival that is not there": rows(model="single-alpha"),
    "a row of a metric of its own": rows(metric="accuracy_of_ours"),
    "a row of a task": rows(task="dementia"),
    "a row of a start": rows(init="scratch"),
    "a row of a method": rows(method="full"),
    "a row of some people": rows(k=3),
    "a row of a repeat": rows(repeat=1),
    "a value of 1e300": rows(value=1e300, ci_low=None, ci_high=None),
    "a value below zero": rows(metric="mae", value=-1.0, ci_low=-2.0, ci_high=0.0),
    "an interval upside down": rows(ci_low=3.0, ci_high=2.0),
    "half an interval": rows(ci_high=None),
    "a p of no difference": rows(p=0.001),
    "a p of 7": rows(p=7.0),
    "an interval of nothing": rows(value=None),
    "more people than scans": rows(n_participants=41),
    "more scans than there are": rows(n_scans=10**9),
    "a value of nobody": rows(n_participants=0, n_scans=0),
}


@pytest.fixture(scope="module")
def told(judged, played) -> Honest:
    return played(judged)


@pytest.mark.parametrize("case", ROWS)
def test_an_evaluation_that_cannot_be_borne_is_refused(told, tmp_path, case):
    """Results are the last that a run writes: one report kept it from ever writing them."""
    outcome = told.again("evaluate", JUDGE, ROWS[case], tmp_path)
    assert outcome.refused == {JUDGE: "REPORT_MALFORMED"}
    assert sorted(outcome.reports) == ["psi"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ROWS)
def test_an_evaluation_that_cannot_be_borne_is_its_judges_alone(judged, tampered, case):
    """The same in whole runs."""
    tamper = tampering("evaluate", JUDGE, ROWS[case])
    run, _ = tampered(judged, f"rows-{list(ROWS).index(case)}", tamper)
    refused = json.loads((run.folder / "evaluation" / "federated" / "refused.json").read_text())
    assert refused == {JUDGE: "REPORT_MALFORMED"}
    with (run.folder / "results.csv").open() as stream:
        judges = {row["site"] for row in csv.DictReader(stream) if row["phase"] == "evaluate"}
    assert judges == {"psi"}


TUNED: dict[str, Change] = {
    "a row of another task": rows(task="parkinson"),
    "a row of a repeat that was not asked for": rows(repeat=2),
    "a row of another target": rows(target="age"),
    "an auc of 2": rows(metric="auc", value=2.0, ci_low=1.0, ci_high=3.0),
    "a mean over draws for one of them": rows(metric="auc_over_draws", repeat=1),
    "a difference from what nobody named": rows(metric="auc_minus_nobody"),
    "the same row twice": twice,
    "a thousand rows": lambda report, _: report.update(
        measurements=[{**report["measurements"][0], "repeat": n} for n in range(1000)]
    ),
}


@pytest.mark.parametrize("case", TUNED)
def test_a_tuning_that_cannot_be_borne_is_refused(told, tmp_path, case):
    """A site that tells one number a thousand times would be a thousand rows of everyone's table."""
    outcome = told.again("finetune", "gamma", TUNED[case], tmp_path)
    assert outcome.refused == {"gamma": "REPORT_MALFORMED"}
    assert sorted(outcome.reports) == ["alpha"]


@pytest.mark.slow
@pytest.mark.parametrize("case", TUNED)
def test_a_tuning_that_cannot_be_borne_is_its_sites_alone(judged, tampered, case):
    """The same in whole runs."""
    tamper = tampering("finetune", "gamma", TUNED[case])
    run, _ = tampered(judged, f"tuned-{list(TUNED).index(case)}", tamper)
    folder = run.folder / "finetuning" / "dementia" / "pretrained-full"
    assert json.loads((folder / "refused.json").read_text()) == {"gamma": "REPORT_MALFORMED"}
    assert (run.folder / "results.csv").exists()


EXPLAINED: dict[str, Change] = {
    "a metric of tuning": rows(metric="auc"),
    "a metric of another map": rows(metric="agreement"),
    "a share that nobody deleted": rows(metric="said_without_02"),
    "a probability of 2": rows(metric="said", value=2.0, ci_low=1.0, ci_high=3.0),
    "the same row twice": twice,
    "a row of another target": rows(target="age"),
}


@pytest.mark.parametrize("case", EXPLAINED)
def test_what_cannot_be_told_of_a_map_is_refused(told, tmp_path, case):
    """Rows beside a map are read like any others."""
    outcome = told.again("explain", "gamma", EXPLAINED[case], tmp_path)
    assert outcome.refused == {"gamma": "REPORT_MALFORMED"}
    assert sorted(outcome.reports) == ["alpha"]


def test_honest_answers_to_all_of_these_are_believed(told, trained, tmp_path):
    """The control of all tests above: a change of nothing changes nothing."""
    assert list(told.run.folder.rglob("refused.json")) == []
    with (told.run.folder / "results.csv").open() as stream:
        found = {(row["phase"], row["site"]) for row in csv.DictReader(stream)}
    wanted = {("evaluate", site) for site in (JUDGE, "psi")}
    tuned = {(phase, site) for phase in ("finetune", "explain") for site in ("alpha", "gamma")}
    assert wanted | tuned <= found
    for honest, kinds in (
        (trained, ("census", "settle", "train")),
        (told, ("finetune", "explain", "evaluate")),
    ):
        for kind in kinds:
            outcome = honest.again(kind, BAD, lambda report, arrays: None, tmp_path / kind)
            assert outcome.refused == {}


def test_a_judge_with_the_scans_of_a_training_site_is_left_out(judged, told, tampered):
    """A fingerprint stands in every checkpoint; to send another's must not end the run."""
    cohort = read_spooled(told.run.folder / "census" / "alpha.safetensors").cohort
    run, asked = tampered(judged, "copied", tampering("census", JUDGE, said(cohort=cohort)))
    assert [order.site for order in asked if order.kind == "evaluate"] == [
        "psi"
    ] * 3  # the network, and two constants
    assert json.loads((run.folder / "census.json").read_text())[JUDGE]["refused"] == "ROLE"
    assert (run.folder / "results.csv").exists()


# Updates, where few sites train.


@pytest.mark.parametrize("length", [3.3e38, 1e17, 1e6])
def test_of_two_sites_the_shorter_update_decides(module_federation, tampered, length):
    """Half of 3.3e38 is still more than any site can go on from: all of them failed next round."""
    made = module_federation({
        "sites": {"train": ["alpha", BAD], "quorum": 1, "time_limit_s": 0.2},
        "pretraining.rounds": 2,
    })  # fmt: skip
    run, _ = tampered(made, "run", changed("train", numbers(WEIGHT, one(length))))
    for record in run.federated.records():
        assert record["refused"] == {BAD: "UPDATE_TOO_LONG"}
    assert finished(run)


def test_a_site_that_moves_nothing_shuts_nobody_out(module_federation, tampered):
    """Ten times nothing is nothing: the other of two sites would be refused for having learnt."""
    made = module_federation({
        "sites": {"train": ["alpha", BAD], "quorum": 1, "time_limit_s": 0.2},
        "pretraining.rounds": 1,
    })  # fmt: skip
    whole: dict[str, np.ndarray] = {}

    def still(order, message, reply):
        if order.kind == "train" and order.site == BAD:
            sent = message.content["arrays"]
            whole.update({name: array.numpy() for name, array in sent.items()})
            change = lambda _, arrays: arrays.update({n: sent[n] for n in arrays})  # noqa: E731
            return changed("train", change)(order, message, reply)
        return [reply]

    run, _ = tampered(made, "run", still)
    [record] = run.federated.records()
    assert WEIGHT in whole
    assert record["refused"] == {}
    assert sorted(record["answered"]) == ["alpha", BAD]


def test_a_single_site_may_not_send_what_float32_cannot_bear(module_federation, tampered):
    """There is nobody to compare it with; the run stops, and says why."""
    made = module_federation(
        {"sites": {"train": [BAD], "time_limit_s": 0.2}, "pretraining.rounds": 1}
    )
    with pytest.raises(QuorumError, match=f"{BAD}: UPDATE_TOO_LONG"):
        tampered(made, "run", changed("train", numbers(WEIGHT, one(3.3e38))))


def test_a_site_with_a_hundred_times_the_scans_is_not_refused(module_federation, tampered):
    """It makes a hundred times the steps, and comes as much further."""
    made = module_federation(
        {"sites.quorum": 3, "pretraining": {"rounds": 1, "batch_size": 4, "learning_rate": 0.05}},
        participants={"alpha": 20, "beta": 20, BAD: 2000},
    )
    run, _ = tampered(made, "run", untouched)
    [record] = run.federated.records()
    assert record["refused"] == {}


# What an older version accepted.


def unbearable(path: Path, **changes: Any) -> None:
    with open_arrays(path) as file:
        arrays = file.all()
    spool(path, read_spooled(path).model_copy(update=changes), arrays)


@pytest.mark.parametrize("kind", ["train", "census", "evaluate"])
def test_a_kept_report_that_cannot_be_borne_is_asked_again(judged, tampered, kind):
    """An accepted report hung the run on every resume; only deleting it by hand helped."""
    site = JUDGE if kind == "evaluate" else "alpha"

    def broken(order, message, reply):
        away = kind != "census" and order.kind == kind and order.site != site
        return [] if away else [reply]

    name = f"kept-{kind}"
    if kind == "train":
        with pytest.raises(QuorumError):
            tampered(judged, name, broken)
        folder = judged.folder / name / "rounds" / "0001" / "replies"
        change = {"counts": {"loss/age": (1.0, 2.0**53)}}
    else:
        tampered(judged, name, untouched)
        folder = judged.folder / name / ("census" if kind == "census" else "evaluation/federated")
        change = {"cohort": hashlib.sha256().hexdigest()} if kind == "evaluate" else {"cohort": ""}
    unbearable(folder / f"{site}.safetensors", **change)
    run, asked = tampered(judged, name, untouched)
    assert site in [order.site for order in asked if order.kind == kind]
    calm, _ = tampered(judged, "calm", untouched)
    assert run.federated.final.read_bytes() == calm.federated.final.read_bytes()
    assert (run.folder / "results.csv").read_bytes() == (calm.folder / "results.csv").read_bytes()
