"""An agent carries out what its site allows, once, and says nothing else about why it did not."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.authority import approvals
from client.authority.receipts import read_receipts, verify
from client.authority.records import digest_of_answer, open_records
from client.service import agent as client_agent
from client.service.agent import Agent
from common.errors import SENTENCES, DataError, Refusal, StorageError
from common.network import arrays_of, build, plan_of
from common.protocol.orders import Order, digest_of

RUN = "ab" * 32
SECRET = "/data/hospital/sub-0042_T1w.nii.gz"


def order_for(agent: Agent, kind: str, arrays: Any = None, **more: Any) -> Order:
    return Order.model_validate({
        "kind": kind,
        "study": agent.study.digest,
        "run": RUN,
        "site": agent.site.name,
        "round": 1 if kind == "train" else 0,
        "arrays": digest_of(arrays or {}),
        **more,
    })  # fmt: skip


def initial(study: Any) -> dict[str, np.ndarray]:
    return arrays_of(build(study, seed=3))


@pytest.fixture
def tiny(federation):
    """A training site, a held-out site, and a task."""
    return federation({
        "sites": {"train": ["alpha"], "heldout": ["omega"]},
        "objective.targets": ["age"],
        "evaluation.head": False,
        "finetuning": [
            {"name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01]}
        ],
    })  # fmt: skip


def refusal_of(agent: Agent, order: Order, arrays: Any = None) -> str:
    report, sent = agent.answer(order, arrays or {})
    assert sent == {}
    assert report.counts == {}
    assert report.support == {}
    assert report.measurements == ()
    assert report.cohort == ""
    return report.refusal


@pytest.mark.parametrize("kind", ["train", "finetune", "linear"])
def test_heldout_site_refuses_to_contribute(tiny, kind):
    """A coordinator's mistake must not turn the judge into a party: the site checks for itself."""
    agent = tiny.agent("omega")
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, kind, arrays), arrays) == "ROLE"


def test_training_site_refuses_to_judge(tiny):
    """A model is always good on what it was trained on."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, "evaluate", arrays), arrays) == "ROLE"


def test_heldout_site_refuses_a_model_that_it_is_named_in(tiny):
    """Whoever is in the lineage cannot judge, whatever role a later study gives it."""
    agent = tiny.agent("omega")
    arrays = initial(agent.study)
    order = order_for(agent, "evaluate", arrays, lineage=("alpha", "omega"))
    assert refusal_of(agent, order, arrays) == "ROLE"
    order = order_for(agent, "evaluate", arrays, lineage=("alpha",))
    report, _ = agent.answer(order, arrays)
    assert report.refusal == ""
    assert report.measurements


def test_heldout_census_holds_no_sums(tiny):
    """Its labels and columns must not reach the constants that models are standardised by."""
    heldout = tiny.agent("omega")
    report, sent = heldout.answer(order_for(heldout, "census"), {})
    assert report.refusal == ""
    assert report.support["scans"] == 40
    assert (report.counts, sent) == ({}, {})
    training = tiny.agent("alpha")
    report, sent = training.answer(order_for(training, "census"), {})
    assert sorted(report.counts) == ["label/age", "label/diagnosis", "label/sex"]
    assert sorted(sent) == ["columns/n", "columns/squares", "columns/sum"]


def test_census_sums_are_those_of_training_participants(tiny):
    """Validation and test participants must not leak into what every model starts from."""
    agent = tiny.agent("alpha")
    report, sent = agent.answer(order_for(agent, "census"), {})
    rows = agent.cohort.indices("train", agent.study.splits)
    assert 0 < len(rows) < 40
    columns = np.asarray(agent.cohort.samples, np.float64)[rows]
    assert sent["columns/n"] == [len(rows)]
    np.testing.assert_allclose(sent["columns/sum"], columns.sum(0), rtol=1e-12)
    np.testing.assert_allclose(sent["columns/squares"], (columns**2).sum(0), rtol=1e-12)
    label = agent.cohort.labels["age"][rows].astype(np.float64)
    assert report.counts["label/age"] == (len(rows), label.sum())


def test_unknown_study_is_refused(tiny):
    """A site answers only what it approved, to the last key."""
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census", study="0" * 64)) == "STUDY_UNKNOWN"


def test_arrays_that_are_not_the_orders_are_refused(tiny):
    """Whoever sits between coordinator and site could otherwise swap the weights."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    arrays["backbone.layers.0.weight"][0, 0] += 1
    assert refusal_of(agent, order, arrays) == "ORDER_MALFORMED"


def test_order_for_another_site_is_refused(tiny):
    """A misrouted order would otherwise be answered under a wrong name."""
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census", site="beta")) == "ORDER_MALFORMED"


@pytest.mark.parametrize("kind", ["census", "train", "finetune", "linear"])
def test_kinds_outside_the_policy_are_refused(federation, kind):
    """The hospital's own file has the last word on what it does at all."""
    allowed = [name for name in ("census", "train", "finetune", "linear") if name != kind]
    made = federation({"sites": {"train": ["alpha"]}}, site={"policy.orders": allowed})
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, kind, arrays), arrays) == "POLICY"


def test_small_cohort_takes_no_part(federation):
    """With few people even sums tell who they are; the site's own number decides."""
    made = federation({"sites": {"train": ["alpha"]}}, site={"policy.minimum_cohort": 41})
    agent = made.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census")) == "COHORT_TOO_SMALL"
    roomy = agent.site.model_copy(
        update={"policy": agent.site.policy.model_copy(update={"minimum_cohort": 40})}
    )
    report, _ = Agent(roomy, agent.study, agent.cohort).answer(order_for(agent, "census"), {})
    assert report.refusal == ""


def test_site_without_data_says_so(tiny):
    """An empty folder is a code, not a crash that takes the others' round along."""
    (tiny.sites / "alpha" / "table.csv").write_text("nothing,here\n")
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census")) == "NO_DATA"


@pytest.fixture
def counted(monkeypatch):
    """How often `train` is really called."""
    calls = []
    plain = client_agent.train

    def train(*things, **more):
        calls.append(more["seed"])
        return plain(*things, **more)

    monkeypatch.setattr(client_agent, "train", train)
    return calls


def test_same_order_twice_is_the_same_report_without_work(tiny, counted):
    """After a crash the coordinator asks again: hours of GPU and a privacy budget hang on this."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    first, sent = agent.answer(order, arrays)
    again, resent = tiny.agent("alpha").answer(order, arrays)  # after a restart, too
    assert len(counted) == 1
    assert again == first
    assert {name: array.tobytes() for name, array in resent.items()} == {
        name: array.tobytes() for name, array in sent.items()
    }
    changed = {**arrays, "heads.age.bias": arrays["heads.age.bias"] + 1}
    agent.answer(order_for(agent, "train", changed), changed)
    assert len(counted) == 2  # other weights are another order


def test_kept_report_that_is_damaged_is_worked_on_again(tiny, counted):
    """A torn file costs one training, and the same seed gives the same bits."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    _, sent = agent.answer(order, arrays)
    [kept] = (agent.site.state / "runs").rglob("report-0001.safetensors")
    kept.write_bytes(kept.read_bytes()[:200])
    _, again = agent.answer(order, arrays)
    assert len(counted) == 2
    assert all(again[name].tobytes() == sent[name].tobytes() for name in sent)


def test_refused_work_is_not_remembered_as_an_answer(tiny, monkeypatch):
    """A full disk is mended and the same order then works."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left", SECRET)

    with monkeypatch.context() as broken:
        broken.setattr(client_agent, "train", full)
        assert refusal_of(agent, order, arrays) == "DISK_FULL"
    report, _ = agent.answer(order, arrays)
    assert report.refusal == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(SECRET), "SITE_FAILED"),
        (DataError(SECRET), "SITE_FAILED"),
        (MemoryError(SECRET), "SITE_FAILED"),
        (RecursionError(SECRET), "SITE_FAILED"),
        (KeyError(SECRET), "SITE_FAILED"),
        (OSError(errno.EACCES, "denied", SECRET), "SITE_FAILED"),
        (OSError(errno.ENOSPC, "full", SECRET), "DISK_FULL"),
        (OSError(errno.EDQUOT, "quota", SECRET), "DISK_FULL"),
        (StorageError(f"{SECRET} cannot be written"), "DISK_FULL"),
        (Refusal("NO_DATA", SECRET), "NO_DATA"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_what_goes_wrong_leaves_as_a_code_alone(tiny, monkeypatch, caplog, error, code):
    """An exception's text holds paths and names of people; it is for the site's own log."""
    agent = tiny.agent("alpha")

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(client_agent, "train", broken)
    arrays = initial(agent.study)
    with caplog.at_level(logging.WARNING, logger="callosum.site"):
        report, sent = agent.answer(order_for(agent, "train", arrays), arrays)
    assert report.refusal == code
    assert code in SENTENCES
    assert sent == {}
    text = report.model_dump_json()
    assert "sub-0042" not in text
    assert "/data" not in text
    assert "sub-0042" in caplog.text  # the site itself can find out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: {},
        lambda arrays: {**arrays, "x": np.zeros(3, np.float32)},
        lambda arrays: {**arrays, "heads.age.bias": np.zeros(7, np.float32)},
        lambda arrays: {**arrays, "heads.age.bias": np.full(1, np.nan, np.float32)},
    ],
    ids=["none", "one too many", "another shape", "NaN"],
)
def test_senseless_arrays_end_in_a_refusal(tiny, spoil):
    """No order, however strange, ends the agent or gets NaN back out."""
    agent = tiny.agent("alpha")
    arrays = spoil(initial(agent.study))
    report, sent = agent.answer(order_for(agent, "train", arrays), arrays)
    assert report.refusal in {"SITE_FAILED", "ORDER_MALFORMED", "EGRESS"}
    assert sent == {}


def test_unknown_task_is_refused(tiny):
    """A site learns what its study names, in the ways it names, and nothing else."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "finetune", arrays, task="iq")
    assert refusal_of(agent, order, arrays) == "ORDER_MALFORMED"


def test_training_report_says_what_it_used(federation):
    """The coordinator weighs by these numbers: scans of training participants, labels held."""
    made = federation({"sites": {"train": ["alpha"]}}, lacks={"alpha": ("sex",)})
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    report, sent = agent.answer(order_for(agent, "train", arrays), arrays)
    rows = agent.cohort.indices("train", agent.study.splits)
    assert report.support == {"scans": len(rows), "labels/age": len(rows), "labels/sex": 0}
    plan = plan_of(build(agent.study, seed=0), "average")
    assert set(sent) == {name for name, rule in plan.items() if rule.travels}
    assert "backbone.standardise.mean" not in sent
    assert sent["heads.sex.weight"].tobytes() == arrays["heads.sex.weight"].tobytes()
    assert sent["heads.age.weight"].tobytes() != arrays["heads.age.weight"].tobytes()
    assert json.loads(report.model_dump_json())["round"] == 1


# With the site's records.


@pytest.fixture
def booked(tiny):
    """The training site with its records open."""
    agent = tiny.agent("alpha")
    with open_records(agent.site) as records:
        yield replace(agent, records=records)


def receipts_of(agent: Agent) -> list[dict[str, Any]]:
    return list(read_receipts(agent.site.state / "receipts"))


def with_policy(agent: Agent, **changes: Any) -> Agent:
    policy = agent.site.policy.model_copy(update=changes)
    return replace(agent, site=agent.site.model_copy(update={"policy": policy}))


def test_books_change_no_bit(tiny, booked):
    """The local engine keeps none; what it computes is what a hospital's agent computes."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    report, sent = booked.answer(order, arrays)
    plain = replace(booked, records=None, keeps_training=False)
    moved = plain.site.model_copy(update={"folder": "elsewhere"})
    again, resent = replace(plain, site=moved).answer(order, arrays)
    assert digest_of_answer(report, sent) == digest_of_answer(again, resent)


def test_an_order_is_paid_for_before_the_work(booked, monkeypatch):
    """Killed or failed at work, it has learnt from participants all the same."""
    records, seen = booked.records, []

    def broken(*_, **__):
        seen.append(records.ledger.exposures())
        raise ValueError(SECRET)

    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    with monkeypatch.context() as patch:
        patch.setattr(client_agent, "train", broken)
        assert refusal_of(booked, order, arrays) == "SITE_FAILED"
        assert refusal_of(booked, order, arrays) == "SITE_FAILED"
    assert seen == [1, 1]
    report, _ = booked.answer(order, arrays)
    assert report.refusal == ""
    assert records.ledger.exposures() == 1


def test_what_learns_from_nobody_costs_nothing(booked):
    """A census counts; refused orders do nothing."""
    booked.answer(order_for(booked, "census"), {})
    arrays = initial(booked.study)
    for order in (
        order_for(booked, "evaluate", arrays),
        order_for(booked, "linear", arrays),
        order_for(booked, "train", {}),
        order_for(booked, "train", arrays, study="0" * 64),
    ):
        report, _ = booked.answer(order, {} if order.arrays == digest_of({}) else arrays)
        assert report.refusal
    assert booked.records.ledger.exposures() == 0


def test_the_cap_ends_training_and_not_answers(booked, counted):
    """At the cap nothing new is learnt, and what was learnt is still handed over."""
    capped = with_policy(booked, most_exposures=2)
    arrays = initial(booked.study)
    orders = [order_for(booked, "train", arrays, round=number) for number in (1, 2, 3)]
    answers = [capped.answer(order, arrays)[0].refusal for order in [*orders, orders[0], orders[1]]]
    assert answers == ["", "", "PRIVACY_SPENT", "", ""]
    assert len(counted) == 2
    report, _ = capped.answer(order_for(booked, "finetune", arrays, task="dementia"), arrays)
    assert report.refusal == "PRIVACY_SPENT"


def test_every_departure_has_a_receipt(booked):
    """Answers, the same answer again, and refusals: all of it left."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    report, sent = booked.answer(order, arrays)
    booked.answer(order, arrays)
    booked.answer(order_for(booked, "evaluate", arrays), arrays)
    first, again, refused = receipts_of(booked)
    assert first["content"] == again["content"] == digest_of_answer(report, sent)
    assert first["order"] == again["order"] == order.id
    assert {name for name, *_ in first["arrays"]} == set(sent)
    assert first["numbers"]["support/scans"] == report.support["scans"]
    assert first["bytes"] == len(report.model_dump_json()) + sum(a.nbytes for a in sent.values())
    assert (refused["refusal"], refused["arrays"], refused["content"]) == ("ROLE", [], "")
    assert verify(booked.site.state / "receipts", booked.records.ledger.head).faults == ()


def test_another_answer_to_the_same_order_cannot_leave(booked, monkeypatch):
    """The difference of two answers tells what neither does: the first one is the only one."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    _, sent = booked.answer(order, arrays)
    [kept] = (booked.site.state / "runs").rglob("report-0001.safetensors")
    kept.unlink()
    plain = client_agent.arrays_of

    def nudged(network):
        found = plain(network)
        found["heads.age.bias"] = np.nextafter(found["heads.age.bias"], np.float32(9))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(client_agent, "arrays_of", nudged)  # another GPU, a later version
        assert refusal_of(booked, order, arrays) == "SITE_FAILED"
    kept.unlink()  # the other answer, on disk
    _, again = booked.answer(order, arrays)
    assert all(again[name].tobytes() == sent[name].tobytes() for name in sent)
    assert [receipt["refusal"] for receipt in receipts_of(booked)] == ["", "SITE_FAILED", ""]
    assert booked.records.ledger.exposures() == 1


def test_an_answer_from_disk_obeys_the_policy_of_today(booked):
    """A hospital that became stricter must not be answered for by its old files."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    booked.answer(order, arrays)
    strict = with_policy(booked, largest_report_mb=0.0001)
    assert refusal_of(strict, order, arrays) == "REPORT_TOO_LARGE"
    strict = with_policy(booked, minimum_support=39)
    assert refusal_of(strict, order, arrays) == "SITE_FAILED"  # less is another answer
    assert booked.answer(order, arrays)[0].refusal == ""


def test_a_pause_holds_back_what_is_under_way(booked, counted, monkeypatch):
    """ "Stop" means that nothing leaves from now on, whatever was begun before."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    plain = client_agent.validation_counts

    def meanwhile(*things):
        approvals.pause(booked.site, "audit")
        return plain(*things)

    with monkeypatch.context() as patch:
        patch.setattr(client_agent, "validation_counts", meanwhile)
        assert refusal_of(booked, order, arrays) == "PAUSED"
    assert refusal_of(booked, order, arrays) == "PAUSED"
    approvals.resume(booked.site)
    assert booked.answer(order, arrays)[0].refusal == ""
    assert len(counted) == 1  # the work was kept
    assert [receipt["refusal"] for receipt in receipts_of(booked)] == ["PAUSED", "PAUSED", ""]


def test_without_a_receipt_nothing_leaves_but_a_code(booked, monkeypatch, caplog):
    """A full disk must not turn into departures that nobody can see."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    plain = os.fsync

    def full(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".jsonl":
            raise OSError(errno.ENOSPC, "no space left", SECRET)
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert refusal_of(booked, order, arrays) == "DISK_FULL"
    assert "leaves without a receipt" in caplog.text
    assert receipts_of(booked) == []
    assert booked.answer(order, arrays)[0].refusal == ""
    assert len(receipts_of(booked)) == 1
