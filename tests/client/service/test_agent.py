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
from client.learning import pretraining
from client.service.agent import Agent
from common.errors import SENTENCES, DataError, Refusal, StorageError
from common.network.building import arrays_of, build, plan_of
from common.network.settling import constants
from common.network.starting import taken
from common.protocol.orders import EMPTY, Order, digest_of
from common.seeding import seed_of

PLUGINS = Path(__file__).parents[2] / "plugins"
RUN = "ab" * 32
SECRET = "/data/hospital/sub-0042_T1w.nii.gz"


def order_for(agent: Agent, kind: str, arrays: Any = None, **more: Any) -> Order:
    moving, static = parted(agent.study, arrays or {})
    if kind == "settle":  # the constants are what it is about
        moving, static = arrays or {}, {}
    return Order.model_validate({
        "kind": kind,
        "study": agent.study.digest,
        "run": RUN,
        "site": agent.site.name,
        "round": 1 if kind == "train" else 0,
        "arrays": digest_of(moving),
        "base": digest_of(static) if static else "",
        **more,
    })  # fmt: skip


def parted(study: Any, arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that a site would send back, and those that none ever sends."""
    plan = plan_of(build(study, seed=0), study.aggregation.normalisation)
    static = {n: array for n, array in arrays.items() if n in plan and not plan[n].travels}
    return {n: array for n, array in arrays.items() if n not in static}, static


def initial(study: Any) -> dict[str, np.ndarray]:
    """What the study's seed draws: a site draws it, too, and takes nothing else to begin with."""
    return arrays_of(build(study, seed=seed_of(study.seed, "initial")))


@pytest.fixture
def tiny(federation):
    """A training site, a held-out site, and a task."""
    return federation({
        "sites": {"train": ["alpha"], "heldout": ["omega"]},
        "objective.targets": ["age"],
        "evaluation.head": False,
        "finetuning": [
            {"name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01],
             "methods": ["pretrained/full", "scratch/full"]}
        ],
    })  # fmt: skip


TUNED = {"task": "dementia", "init": "pretrained", "method": "full"}


def refusal_of(agent: Agent, order: Order, arrays: Any = None) -> str:
    report, sent = agent.answer(order, arrays or {})
    assert sent == {}
    assert report.counts == {}
    assert report.support == {}
    assert report.participants == {}
    assert report.measurements == ()
    assert report.holds == ()
    assert report.cohort == ""
    return report.refusal


@pytest.mark.parametrize(
    "kind", ["settle", "train", "finetune", "judge", "explain", "send", "linear"]
)
def test_heldout_site_refuses_to_contribute(tiny, kind):
    """A coordinator's mistake must not turn the judge into a party: the site checks for itself."""
    agent = with_policy(tiny.agent("omega"), orders=("census", kind, "evaluate"))
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


def test_a_census_counts_labels_and_says_nothing_of_what_they_are(tiny):
    """Sums of labels, before and after one person came, are her label."""
    for site in ("omega", "alpha"):
        agent = tiny.agent(site)
        report, sent = agent.answer(order_for(agent, "census"), {})
        assert report.refusal == ""
        held = {"scans": 40, "labels/age": 40, "labels/diagnosis": 40, "labels/sex": 40}
        assert report.support == report.participants == held
        assert (report.counts, report.measurements, sent) == ({}, (), {})


def settle_order(agent: Agent) -> tuple[Order, dict[str, Any]]:
    """What is asked before the first round: the constants as they are drawn travel with it."""
    found = initial(agent.study)
    arrays = {name: found[name] for name in constants(build(agent.study, seed=3))}
    return order_for(agent, "settle", arrays), arrays


def test_settled_sums_are_those_of_training_participants(tiny):
    """Validation and test participants must not leak into what every model starts from."""
    agent = tiny.agent("alpha")
    order, arrays = settle_order(agent)
    report, sent = agent.answer(order, arrays)
    rows = agent.cohort.indices("train", agent.study.splits)
    assert 0 < len(rows) < 40
    columns = np.asarray(agent.cohort.samples, np.float64)[rows]
    place = "backbone.standardise"
    assert sorted(sent) == [f"{place}/n", f"{place}/squares", f"{place}/sum"]
    assert sent[f"{place}/n"] == [len(rows)]
    np.testing.assert_allclose(sent[f"{place}/sum"], columns.sum(0), rtol=1e-12)
    np.testing.assert_allclose(sent[f"{place}/squares"], (columns**2).sum(0), rtol=1e-12)
    assert (report.support, report.participants, report.counts) == ({}, {}, {})


def test_sums_of_too_few_people_stay(tiny):
    """Sums and squares are two numbers for each of a person: twice as many people are needed."""
    agent = tiny.agent("alpha")
    order, arrays = settle_order(agent)
    people = len(agent.cohort.indices("train", agent.study.splits))
    strict = with_policy(agent, minimum_support=people // 2 + 1)
    assert refusal_of(strict, order, arrays) == "COHORT_TOO_SMALL"
    report, sent = with_policy(agent, minimum_support=people // 2).answer(order, arrays)
    assert report.refusal == ""
    assert len(sent) == 3


def test_sums_are_over_people_and_not_over_their_scans(tiny):
    """Twelve scans of each of three people are three people."""
    agent = tiny.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    three = [agent.cohort.participants[rows[number]] for number in range(3)]
    names = tuple(three[number % 3] for number in range(len(agent.cohort)))
    few = replace(agent, cohort=replace(agent.cohort, participants=names))
    few = with_policy(few, minimum_cohort=1, minimum_support=2)
    order, arrays = settle_order(few)
    assert refusal_of(few, order, arrays) == "COHORT_TOO_SMALL"
    report, _ = with_policy(few, minimum_support=1).answer(order, arrays)
    assert report.refusal == ""


def test_unknown_study_is_refused(tiny):
    """A site answers only what it approved, to the last key."""
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census", study="0" * 64)) == "STUDY_UNKNOWN"


@pytest.mark.parametrize("name", ["backbone.layers.0.weight", "backbone.standardise.mean"])
def test_arrays_that_are_not_the_orders_are_refused(tiny, name):
    """Whoever sits between coordinator and site could otherwise swap the weights."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    arrays[name].flat[0] += 1
    assert refusal_of(agent, order, arrays) == "ORDER_MALFORMED"


def test_order_for_another_site_is_refused(tiny):
    """A misrouted order would otherwise be answered under a wrong name."""
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census", site="beta")) == "ORDER_MALFORMED"


KINDS = ("census", "settle", "train", "finetune", "protocol", "judge", "explain", "send", "linear")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_outside_the_policy_are_refused(federation, kind):
    """The hospital's own file has the last word on what it does at all."""
    allowed = [name for name in KINDS if name != kind]
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


@pytest.mark.parametrize("kind", ["settle", "train", "linear", "send"])
def test_what_is_learnt_from_too_few_stays_whoever_else_is_there(federation, kind):
    """One person trains and thirty-nine test: the update is hers alone, with forty on the list."""
    made = federation(
        {"sites": {"train": ["alpha"]}, "splits": {"test": 0.2, "validation": 0.6}},
        site={"policy.orders": list(KINDS)},
    )
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    people = len(agent.cohort.indices("train", agent.study.splits))
    assert 1 < people < 20
    order = order_for(agent, kind, arrays)
    strict = with_policy(agent, minimum_cohort=people + 1, minimum_support=1)
    assert refusal_of(strict, order, arrays) == "COHORT_TOO_SMALL"
    assert strict.answer(order_for(agent, "census"), {})[0].refusal == ""  # forty are counted
    roomy = with_policy(strict, minimum_cohort=people)
    assert roomy.answer(order, arrays)[0].refusal != "COHORT_TOO_SMALL"


def test_a_label_of_too_few_people_is_not_learnt(tiny):
    """The gradient of a head that one person labels is her features; the others learn as ever."""
    tiny.changes["objective.targets"] = ["age", "diagnosis"]
    agent = tiny.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)

    def asked(holders: int, run: str) -> tuple[Any, Any]:
        held = agent.cohort.labels["diagnosis"].copy()
        held[rows[holders:]] = np.nan
        labels = {**agent.cohort.labels, "diagnosis": held}
        arrays = initial(agent.study)
        one = replace(agent, cohort=replace(agent.cohort, labels=labels))
        return one.answer(order_for(agent, "train", arrays, run=run), arrays)

    head = initial(agent.study)["heads.diagnosis.weight"].tobytes()
    report, sent = asked(9, "01" * 32)
    assert (report.refusal, report.support["labels/diagnosis"]) == ("", 0)
    assert report.support["labels/age"] == len(rows)
    assert sent["heads.diagnosis.weight"].tobytes() == head
    assert {row.target for row in report.measurements} == {"age"}
    report, sent = asked(10, "02" * 32)
    assert report.support["labels/diagnosis"] == 10
    assert sent["heads.diagnosis.weight"].tobytes() != head


def test_a_model_that_no_run_has_is_refused(tiny):
    """Each model may be judged so often: names made up would be as many more askings."""
    judge, trainer = tiny.agent("omega"), tiny.agent("alpha")
    arrays = initial(judge.study)
    for agent, kind in ((judge, "evaluate"), (trainer, "train")):
        for model in ("single-alpha", "pooled", "federated2"):
            order = order_for(agent, kind, arrays, model=model)
            assert refusal_of(agent, order, arrays) == "ORDER_MALFORMED"
        assert agent.answer(order_for(agent, kind, arrays), arrays)[0].refusal == ""


def test_site_without_data_says_so(tiny):
    """An empty folder is a code, not a crash that takes the others' round along."""
    (tiny.sites / "alpha" / "table.csv").write_text("nothing,here\n")
    agent = tiny.agent("alpha")
    assert refusal_of(agent, order_for(agent, "census")) == "NO_DATA"


@pytest.fixture
def counted(monkeypatch):
    """How often `train` is really called."""
    calls = []
    plain = pretraining.train

    def train(network, cohort, indices, recipe, *things, **more):
        calls.append(recipe.seed)
        return plain(network, cohort, indices, recipe, *things, **more)

    monkeypatch.setattr(pretraining, "train", train)
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
    changed = {**arrays, **sent}
    agent.answer(order_for(agent, "train", changed, round=2), changed)
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
        broken.setattr(pretraining, "train", full)
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

    monkeypatch.setattr(pretraining, "train", broken)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "iq"},
        {"task": ""},
        {"method": "lora"},
        {"method": "frozen"},
        {"init": "", "method": "linear"},
        {"k": 9},
    ],
    ids=str,
)
def test_unknown_task_is_refused(tiny, changes):
    """A site learns what its study names, in the ways it names, and nothing else."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "finetune", arrays, **{**TUNED, **changes})
    assert refusal_of(agent, order, arrays) == "ORDER_MALFORMED"
    report, _ = agent.answer(order_for(agent, "finetune", arrays, **TUNED), arrays)
    assert report.refusal == ""


@pytest.mark.parametrize("kind", ["judge", "explain", "send"])
def test_what_the_task_does_not_ask_of_tuned_models_is_refused(federation, kind):
    """A hospital approved a study, not whatever could be done with what it keeps."""
    made = federation({"sites": {"train": ["alpha"]}}, site={"policy.orders": list(KINDS)})
    task = {"name": "dementia", "target": "diagnosis", "epochs": 1, "methods": ["scratch/full"]}
    made.changes["finetuning"] = [task]
    agent, way = made.agent("alpha"), {**TUNED, "init": "scratch"}
    assert agent.answer(order_for(agent, "finetune", **way), {})[0].refusal == ""
    assert refusal_of(agent, order_for(agent, kind, **way)) == "ORDER_MALFORMED"
    made.changes["finetuning"] = [{**task, "then": [kind]}]
    agent = made.agent("alpha")  # another study, and the same site
    assert refusal_of(agent, order_for(agent, kind, run="cd" * 32, **way)) == "NO_DATA"
    agent.answer(order_for(agent, "finetune", **way), {})
    lenient = with_policy(agent, minimum_support=5)
    assert lenient.answer(order_for(agent, kind, **way), {})[0].refusal == ""


def test_training_report_says_what_it_used(federation):
    """The coordinator weighs by these numbers: scans that entered a loss, labels held, people."""
    made = federation({"sites": {"train": ["alpha"]}}, lacks={"alpha": ("sex",)})
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    report, sent = agent.answer(order_for(agent, "train", arrays), arrays)
    rows = agent.cohort.indices("train", agent.study.splits)
    used = {"shared": len(rows), "labels/age": len(rows), "labels/sex": 0}
    assert report.support == used
    assert {name: report.participants[name] for name in used} == used
    assert report.participants["loss/age"] == len(rows)
    plan = plan_of(build(agent.study, seed=0), "average")
    assert set(sent) == {name for name, rule in plan.items() if rule.travels}
    assert "backbone.standardise.mean" not in sent
    assert sent["heads.sex.weight"].tobytes() == arrays["heads.sex.weight"].tobytes()
    assert sent["heads.age.weight"].tobytes() != arrays["heads.age.weight"].tobytes()
    assert json.loads(report.model_dump_json())["round"] == 1


def test_a_scan_that_enters_no_loss_weighs_nothing(tiny):
    """A thousand scans without an age teach nobody anything, and must not outvote thirty with one."""
    agent = tiny.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    age = agent.cohort.labels["age"].copy()
    age[rows[:10]] = np.nan
    told = {**agent.cohort.labels, "age": age}
    agent = replace(agent, cohort=replace(agent.cohort, labels=told))
    arrays = initial(agent.study)
    report, _ = agent.answer(order_for(agent, "train", arrays), arrays)
    assert report.support == {"shared": len(rows) - 10, "labels/age": len(rows) - 10}


def without_ages(agent: Agent, rows: Any) -> Agent:
    """The site as it would be if the ages of `rows` were lost."""
    age = agent.cohort.labels["age"].copy()
    age[rows] = np.nan
    told = {**agent.cohort.labels, "age": age}
    return replace(agent, cohort=replace(agent.cohort, labels=told))


@pytest.mark.parametrize("sampling", ["scans", "participants"])
def test_scans_without_a_label_change_no_bit(federation, sampling):
    """Beside labelled ones they would make smaller batches of these, and alone steps of nothing."""
    made = federation({
        "sites": {"train": ["alpha"]},
        "objective.targets": ["age"],
        "pretraining.batch_size": 4,
        "pretraining.sampling": sampling,
    })  # fmt: skip
    agent = made.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    lost = rows[: len(rows) // 2]
    unlabelled = without_ages(agent, lost)
    rest = np.setdiff1d(np.arange(len(agent.cohort)), lost)
    alone = replace(agent, cohort=agent.cohort.subset(rest), keeps_training=False)
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    report, sent = replace(unlabelled, keeps_training=False).answer(order, arrays)
    wanted, by_labelled = alone.answer(order, arrays)
    assert report.support == wanted.support == {"shared": len(rows) - len(lost),
                                                "labels/age": len(rows) - len(lost)}  # fmt: skip
    assert digest_of(sent) == digest_of(by_labelled)
    assert digest_of(sent) != digest_of({name: arrays[name] for name in sent})


def test_a_label_of_any_target_is_enough_to_be_learnt_from(federation):
    """Whoever has a sex and no age teaches the backbone by her sex."""
    agent = federation({"sites": {"train": ["alpha"]}}).agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    agent = without_ages(agent, rows[:10])
    agent.cohort.labels["sex"][rows[5:12]] = np.nan
    arrays = initial(agent.study)
    report, _ = agent.answer(order_for(agent, "train", arrays), arrays)
    held = {"shared": len(rows) - 5, "labels/age": len(rows) - 10, "labels/sex": len(rows) - 7}
    assert report.support == held


def test_too_few_with_a_label_are_too_small_a_cohort(tiny):
    """What leaves is of those who were learnt from, not of all who were there."""
    agent = tiny.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    agent = with_policy(without_ages(agent, rows[6:]), minimum_cohort=7, minimum_support=3)
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, "train", arrays), arrays) == "COHORT_TOO_SMALL"
    few = with_policy(agent, minimum_cohort=6)
    assert few.answer(order_for(few, "train", arrays), arrays)[0].support["shared"] == 6


def test_people_and_their_scans_are_counted_apart(tiny):
    """A site with two scans of everybody may weigh by the one, and is protected by the other."""
    agent = tiny.agent("alpha")
    people = agent.cohort.participants
    names = tuple(people[number - number % 2] for number in range(len(people)))
    agent = replace(agent, cohort=replace(agent.cohort, participants=names))
    rows = agent.cohort.indices("train", agent.study.splits)
    behind = len({names[row] for row in rows})
    assert 10 <= behind < len(rows)
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    strict = with_policy(agent, minimum_support=behind + 1)
    assert refusal_of(strict, order, arrays) == "NO_DATA"  # too few hold the only label
    report, _ = with_policy(agent, minimum_support=behind).answer(order, arrays)
    assert report.support == {"shared": len(rows), "labels/age": len(rows)}
    groups = {"shared": behind, "labels/age": behind, "loss/age": behind}
    assert report.participants == groups
    assert report.counts["loss/age"][1] == len(rows)


def test_site_whose_samples_enter_no_loss_says_so(federation):
    """Its update would be the global arrays again, at the weight of all its scans."""
    made = federation({"sites": {"train": ["alpha"]}}, lacks={"alpha": ("age", "sex")})
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, "train", arrays), arrays) == "NO_DATA"


def test_labels_that_are_lacking_are_told_to_the_site_at_the_census(tiny, caplog):
    """Before anybody trains: somebody there may only have saved a table in another encoding."""
    agent = tiny.agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    agent.answer(order_for(agent, "census"), {})
    assert not caplog.messages
    without_ages(agent, rows[:4]).answer(order_for(agent, "census", run="12" * 32), {})
    assert caplog.messages[-1] == (
        f"alpha: 4 of {len(rows)} training samples have no label of age that is learnt; nothing is "
        "learnt from them, and they weigh nothing"
    )
    without_ages(agent, rows).answer(order_for(agent, "census", run="34" * 32), {})
    assert caplog.messages[-1].endswith("This site cannot train; see callosum-site check")


# Arrays that are named, and not sent.


@pytest.fixture
def adapted(federation, monkeypatch):
    """A training site whose network has a frozen base, and a task."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    made = federation({
        "sites": {"train": ["alpha"]},
        "backbone": {"name": "toy-adapted"},
        "objective.targets": ["age"],
        "finetuning": [
            {"name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01],
             "methods": ["pretrained/full", "pretrained/frozen"]}
        ],
    })  # fmt: skip
    return made.agent("alpha")


def held_file(agent: Agent, digest: str) -> Path:
    [file] = (agent.site.state / "arrays").glob(f"{digest}*")
    return file


def test_a_base_that_was_sent_once_need_not_be_sent_again(adapted):
    """The frozen base of an adapter is nearly all of it: gigabytes, in every round, to every site."""
    arrays = initial(adapted.study)
    moving, static = parted(adapted.study, arrays)
    assert sorted(moving) == [
        "backbone.down", "backbone.up", "heads.age.bias", "heads.age.weight"
    ]  # fmt: skip
    first = order_for(adapted, "train", arrays)
    assert first.base == digest_of(static)
    assert refusal_of(adapted, first, moving) == "NEEDS_ARRAYS"
    report, sent = adapted.answer(first, arrays)
    assert report.refusal == ""
    assert report.holds == (first.base,)
    assert set(sent) == set(moving)
    second = order_for(adapted, "train", {**arrays, **sent}, round=2)
    assert second.base == first.base
    report, slim = adapted.answer(second, sent)
    assert report.refusal == ""
    elsewhere = with_policy(adapted)  # the same site with an empty folder
    elsewhere = replace(elsewhere, site=elsewhere.site.model_copy(update={"folder": "elsewhere"}))
    again, whole = elsewhere.answer(second, {**arrays, **sent})
    assert digest_of_answer(report, slim) == digest_of_answer(again, whole)
    other_run = order_for(adapted, "train", arrays, run="cd" * 32)
    assert adapted.answer(other_run, moving)[0].refusal == ""


def test_a_base_that_was_damaged_on_disk_is_asked_for_again(adapted):
    """Half a file, or one flipped bit of a frozen layer, would train another network in silence."""
    arrays = initial(adapted.study)
    moving, _ = parted(adapted.study, arrays)
    order = order_for(adapted, "train", arrays)
    adapted.answer(order, arrays)
    file = held_file(adapted, order.base)
    sound = file.read_bytes()
    flipped = sound[:-1] + bytes([sound[-1] ^ 1])
    for number, damaged in enumerate((sound[: len(sound) // 2], flipped, b"", b"PK" + sound)):
        file.write_bytes(damaged)
        order = order_for(adapted, "train", arrays, run=f"{number:064d}")
        assert refusal_of(adapted, order, moving) == "NEEDS_ARRAYS", number
        assert adapted.answer(order, arrays)[0].refusal == ""
        assert held_file(adapted, order.base).read_bytes() == sound


def test_a_base_under_another_name_is_not_held(adapted):
    """The digest is checked when it is kept, too: nobody is handed another's arrays by a name."""
    arrays = initial(adapted.study)
    name = "f" * 64
    order = order_for(adapted, "train", arrays, base=name)
    assert refusal_of(adapted, order, arrays) == "ORDER_MALFORMED"
    assert not list((adapted.site.state / "arrays").glob("*"))
    order = order_for(adapted, "train", arrays)
    adapted.answer(order, arrays)
    held_file(adapted, order.base).rename(held_file(adapted, order.base).with_stem(name))
    order = order_for(adapted, "train", arrays, base=name, round=2)
    moving, _ = parted(adapted.study, arrays)
    assert refusal_of(adapted, order, moving) == "NEEDS_ARRAYS"


def test_what_fine_tuning_starts_from_is_sent_once_for_all_methods(adapted):
    """A study compares ten methods; each of them starts from the same arrays."""
    arrays = initial(adapted.study)
    moving, static = parted(adapted.study, arrays)
    full, frozen = (
        order_for(adapted, "finetune", arrays, **{**TUNED, "method": method})
        for method in ("full", "frozen")
    )
    report, _ = adapted.answer(full, arrays)
    assert report.refusal == ""
    assert set(report.holds) == {digest_of(moving), digest_of(static)}
    assert adapted.answer(frozen, {})[0].refusal == ""


def test_only_the_newest_sets_are_held(adapted):
    """A folder that only grows fills a hospital's disk in a year."""
    arrays = initial(adapted.study)
    adapted = replace(adapted, keeps_training=False)  # else it asks where such a base comes from
    drawn = []
    for number in range(10):
        changed = {**arrays, "backbone.base.0.bias": np.full(5, number, np.float32)}
        order = order_for(adapted, "train", changed, run=f"{number:064d}", round=2)
        report, _ = adapted.answer(order, changed)
        drawn.append(order.base)
        assert report.holds == (order.base,)  # of the others it says nothing
    kept = {path.stem for path in (adapted.site.state / "arrays").glob("*.safetensors")}
    assert kept == set(drawn[-8:])


# Where a run begins.


@pytest.fixture
def begun(federation):
    """A federation whose study begins from the backbone of `initial`, made elsewhere."""
    made = federation({"sites": {"train": ["alpha"], "heldout": ["omega"]}})
    start = {"study": "earlier", "contributors": ["zeta"], "arrays": "0" * 64}
    made.changes["start"] = start
    start["arrays"] = digest_of(taken(made.study.start, initial(made.study)))
    return made


def test_a_first_round_that_does_not_begin_from_the_studys_start_is_refused(begun):
    """A site approved where the weights come from; the coordinator's word for it is not enough."""
    agent = begun.agent("alpha")
    arrays = initial(agent.study)
    # what the start lacks is drawn from the seed, and checked as well
    for name in ("backbone.layers.0.weight", "backbone.standardise.mean", "heads.age.bias"):
        other = {**arrays, name: arrays[name] + np.float32(1)}
        assert refusal_of(agent, order_for(agent, "train", other), other) == "ORDER_MALFORMED"
    report, sent = agent.answer(order_for(agent, "train", arrays), arrays)
    assert report.refusal == ""
    later = {**arrays, **sent}
    assert agent.answer(order_for(agent, "train", later, round=2), later)[0].refusal == ""


def test_a_judge_whose_scans_made_the_start_refuses_the_census(begun):
    """Under a new name it would be found a fair judge of what was trained on its own patients."""
    agent = begun.agent("omega")
    assert agent.answer(order_for(agent, "census"), {})[0].refusal == ""
    begun.changes["start"]["cohorts"] = ["0" * 64, agent.cohort.fingerprint]
    agent = begun.agent("omega")
    arrays = initial(agent.study)
    assert refusal_of(agent, order_for(agent, "census")) == "ROLE"
    assert refusal_of(agent, order_for(agent, "evaluate", arrays), arrays) == "ROLE"
    begun.changes["start"]["cohorts"] = [begun.agent("alpha").cohort.fingerprint]
    assert begun.agent("omega").answer(order_for(begun.agent("omega"), "census"), {})[0].cohort
    agent = begun.agent("alpha")  # who trained then may train again
    assert agent.answer(order_for(agent, "census"), {})[0].refusal == ""


def test_a_judge_that_is_named_among_the_starts_contributors_refuses(begun):
    """Also one that the study does not list: it reads the study's file for itself."""
    agent = begun.agent("omega")
    agent = replace(agent, site=agent.site.model_copy(update={"name": "zeta"}))
    assert refusal_of(agent, order_for(agent, "census")) == "ROLE"


def test_later_arrays_that_no_round_led_to_are_refused(tiny):
    """A layer that fires for one person, put in after an honest first round, returns her row."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    first = order_for(agent, "train", arrays)
    _, sent = agent.answer(first, arrays)
    honest = {**arrays, **sent}
    planted = {**honest, "backbone.layers.0.weight": honest["backbone.layers.0.weight"] * 1e3}
    for kind, more in (("train", {"round": 2}), ("finetune", TUNED)):
        order = order_for(agent, kind, planted, **more)
        assert refusal_of(agent, order, planted) == "ORDER_MALFORMED", kind
        assert agent.answer(order_for(agent, kind, honest, **more), honest)[0].refusal == ""
    # also for a site that was not asked before
    late = order_for(agent, "train", planted, round=2, run="cd" * 32)
    strict = with_policy(agent, largest_update_norm=10.0)
    assert refusal_of(strict, late, planted) == "ORDER_MALFORMED"
    late = order_for(agent, "train", honest, round=2, run="ef" * 32)
    assert strict.answer(late, honest)[0].refusal == ""


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


def test_an_order_from_which_nothing_can_be_learnt_costs_nothing(booked):
    """The ledger never gives back; a site that lost its labels must not pay for every round."""
    arrays = initial(booked.study)
    agent = without_ages(booked, np.arange(len(booked.cohort)))
    assert refusal_of(agent, order_for(agent, "train", arrays), arrays) == "NO_DATA"
    assert booked.records.ledger.exposures() == 0


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
        patch.setattr(pretraining, "train", broken)
        assert refusal_of(booked, order, arrays) == "SITE_FAILED"
        assert refusal_of(booked, order, arrays) == "SITE_FAILED"
    assert seen == [1, 1]
    report, _ = booked.answer(order, arrays)
    assert report.refusal == ""
    assert records.ledger.exposures() == 1


def test_what_learns_from_nobody_costs_nothing(booked):
    """A census counts, settling sums; refused orders do nothing."""
    booked.answer(order_for(booked, "census"), {})
    order, zeros = settle_order(booked)
    assert booked.answer(order, zeros)[0].refusal == ""
    arrays = initial(booked.study)
    for order in (
        order_for(booked, "evaluate", arrays),
        order_for(booked, "linear", arrays),
        order_for(booked, "train", {}),
        order_for(booked, "train", arrays, study="0" * 64),
    ):
        report, _ = booked.answer(order, {} if order.arrays == EMPTY else arrays)
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
    report, _ = capped.answer(order_for(booked, "finetune", arrays, **TUNED), arrays)
    assert report.refusal == "PRIVACY_SPENT"


@pytest.fixture
def judge(tiny):
    """The held-out site with its records open."""
    agent = tiny.agent("omega")
    with open_records(agent.site) as records:
        yield replace(agent, records=records)


def test_a_model_of_a_run_is_judged_once(judge):
    """Each judgement of other arrays asks something else of the same people: a hundred tell all."""
    arrays = initial(judge.study)
    order = order_for(judge, "evaluate", arrays)
    first, _ = judge.answer(order, arrays)
    assert first.refusal == ""
    again, _ = judge.answer(order, arrays)  # after a crash; each departure has a receipt of its own
    assert again.model_copy(update={"books": first.books}) == first
    nudged = {**arrays, "heads.age.bias": arrays["heads.age.bias"] + np.float32(1e-3)}
    assert refusal_of(judge, order_for(judge, "evaluate", nudged), nudged) == "PRIVACY_SPENT"
    again = order_for(judge, "evaluate", arrays, against=("federated",))
    assert refusal_of(judge, again, arrays) == "PRIVACY_SPENT"


def test_a_model_of_a_study_is_judged_in_few_runs(judge):
    """A run costs a coordinator nothing; the site's own number ends it, and answers stay."""
    arrays = initial(judge.study)
    runs = [f"{number:064x}" for number in range(4)]
    orders = [order_for(judge, "evaluate", arrays, run=run) for run in runs]
    found = [judge.answer(order, arrays)[0].refusal for order in [*orders, orders[0]]]
    assert found == ["", "", "", "PRIVACY_SPENT", ""]
    unlimited = with_policy(judge, most_judgements=0)
    assert unlimited.answer(orders[3], arrays)[0].refusal == ""


def test_a_census_after_a_few_people_went_is_withheld(booked):
    """Forty before and thirty-nine after: whatever differs between the two is about one person."""
    assert booked.answer(order_for(booked, "census"), {})[0].refusal == ""
    for gone in (1, 9):
        left = replace(booked, cohort=booked.cohort.subset(range(gone, 40)))
        order = order_for(booked, "census", run=f"{gone:064x}")
        assert refusal_of(left, order) == "COHORT_TOO_SMALL"
        assert replace(left, records=None).answer(order, {})[0].refusal == ""  # nothing leaves
    left = replace(booked, cohort=booked.cohort.subset(range(10, 40)))
    order = order_for(booked, "census", run="cd" * 32)
    assert left.answer(order, {})[0].refusal == ""


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
    assert first["numbers"]["support/shared"] == report.support["shared"]
    assert first["numbers"]["participants/shared"] == report.participants["shared"]
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
    plain = pretraining.arrays_of

    def nudged(network):
        found = plain(network)
        found["heads.age.bias"] = np.nextafter(found["heads.age.bias"], np.float32(9))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "arrays_of", nudged)  # another GPU, a later version
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
    assert booked.answer(order, arrays)[0].refusal == ""
    people = len(booked.cohort.indices("train", booked.study.splits))
    strict = with_policy(booked, minimum_support=people + 1)
    assert refusal_of(strict, order, arrays) == "COHORT_TOO_SMALL"
    few = len(booked.cohort.indices("validation", booked.study.splits))
    lenient = with_policy(booked, minimum_support=few)
    order = order_for(booked, "train", arrays, run="cd" * 32)
    assert lenient.answer(order, arrays)[0].counts["validation-loss/age"][1] == few
    assert refusal_of(booked, order, arrays) == "SITE_FAILED"  # less is another answer
    assert lenient.answer(order, arrays)[0].refusal == ""


def test_an_answer_from_disk_is_measured_by_the_orders_own_arrays(tiny):
    """Whoever sends the trained arrays back as those it started from would find no update at all."""
    agent = tiny.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    _, sent = agent.answer(order, arrays)
    strict = with_policy(agent, largest_update_norm=1e-9)
    assert refusal_of(strict, order, arrays) == "EGRESS"
    assert refusal_of(strict, order, {**arrays, **sent}) == "ORDER_MALFORMED"


def test_what_else_a_site_holds_is_no_other_answer(booked):
    """A torn file costs one training, also where other arrays have come since."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    _, sent = booked.answer(order, arrays)
    assert booked.answer(order_for(booked, "finetune", arrays, **TUNED), arrays)[0].refusal == ""
    [kept] = (booked.site.state / "runs").rglob("report-0001.safetensors")
    kept.unlink()
    report, again = booked.answer(order, arrays)
    assert report.refusal == ""
    assert all(again[name].tobytes() == sent[name].tobytes() for name in sent)


def test_a_pause_holds_back_what_is_under_way(booked, counted, monkeypatch):
    """ "Stop" means that nothing leaves from now on, whatever was begun before."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    plain = pretraining.predict

    def meanwhile(*things):
        approvals.pause(booked.site, "audit")
        return plain(*things)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "predict", meanwhile)
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
