"""The last door: what is not expressly allowed stays at the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.answer import Answer, Measured
from client.authority.egress import inspect
from client.site import Policy
from common.errors import Refusal
from common.network.building import arrays_of, build, plan_of
from common.network.settling import settling, sums_plan
from common.protocol.orders import Measurement, Order, Report

POLICY = Policy(minimum_support=10)


@pytest.fixture
def study(federation):
    return federation({"sites": {"train": ["alpha"]}}).study


@pytest.fixture
def plan(study):
    """What a training report may hold, by name."""
    whole = plan_of(build(study, seed=0), study.aggregation.normalisation)
    return {name: rule for name, rule in whole.items() if rule.travels}


@pytest.fixture
def let_out(study, plan):
    """Send an answer to an order of `kind` to the door of one site; what is `expected` may leave.

    Behind a training report stand 20 people, and what it sends is what it was given, unless the
    test says otherwise.
    """

    def send(
        kind: str,
        arrays: Any = None,
        policy: Policy = POLICY,
        received: Any = None,
        expected: Any = plan,
        **contents: Any,
    ) -> Report:
        order = Order.model_validate({
            "kind": kind, "study": study.digest, "run": "0" * 64, "site": "alpha",
            "arrays": "0" * 64,
        })  # fmt: skip
        report = Report(order=order.id, site="alpha", kind=order.kind)
        if kind == "train":
            people = contents.get("participants", {})
            contents = {**contents, "participants": {"shared": 20, **people}}
        answer = Answer(arrays=arrays or {}, expected=expected, **contents)
        given = answer.arrays if received is None else received
        return inspect(order, policy, report, answer, given)

    return send


@pytest.fixture
def trained(study, plan):
    """The arrays of a training report."""
    found = arrays_of(build(study, seed=0))
    return {name: found[name] for name in plan}


@pytest.fixture
def sums(study):
    """The sums that the study's network is settled by, and their rules."""
    agreed = sums_plan(study, settling(build(study, seed=0)), 0)
    return {name: np.ones(rule.shape) for name, rule in agreed.items()}, agreed


def code_of(send: Any, *things: Any, **more: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        send(*things, **more)
    return refusal.value.code


def too_few(send: Any, *things: Any, **more: Any) -> bool:
    return code_of(send, *things, **more) == "COHORT_TOO_SMALL"


def refused(send: Any, *things: Any, **more: Any) -> bool:
    return code_of(send, *things, **more) == "EGRESS"


def row(people: int, scans: int | None = None, rarest: int | None = None, **more: Any) -> Measured:
    """A measurement of so many people, of whom so many are in its rarest class."""
    measured = Measurement.model_validate({
        "phase": "evaluate", "target": "age", "model": "federated", "site": "alpha",
        "role": "heldout", "metric": "mae", "value": 4.5, "ci_low": 4.0, "ci_high": 5.0,
        "n_participants": people, "n_scans": scans or people, **more,
    })  # fmt: skip
    return Measured(measured, people if rarest is None else rarest)


def test_agreed_arrays_may_leave(let_out, trained):
    """The control: without it every test below would pass with a door that is always shut."""
    people = {"shared": 20, "loss/age": 20}
    report = let_out(
        "train", trained, support={"shared": 30}, participants=people, counts={"loss/age": (9, 30)}
    )
    assert (report.support, report.participants) == ({"shared": 30}, people)
    assert report.counts == {"loss/age": (9, 30)}


def test_array_that_nobody_agreed_on_stays(let_out, trained):
    """A scan under a harmless name is the simplest way to lose one."""
    assert refused(let_out, "train", {**trained, "scan": np.zeros((4, 4, 4), np.float32)})


def test_frozen_and_own_arrays_stay(let_out, trained):
    """What the plan keeps at a site does not leave because the network happens to hold it."""
    mean = np.zeros(4, np.float32)
    assert refused(let_out, "train", {**trained, "backbone.standardise.mean": mean})


@pytest.mark.parametrize("kind", ["finetune", "judge", "evaluate"])
def test_judging_and_fine_tuning_send_no_arrays(let_out, trained, kind):
    """Those reports are numbers; weights of a site's own task are the site's."""
    assert refused(let_out, kind, trained)


def test_a_census_sends_no_arrays(let_out, trained, sums):
    """Weights or rows in a census would leave before any training was agreed to."""
    found, agreed = sums
    let_out("census", support={"scans": 40}, participants={"scans": 40})
    assert refused(let_out, "census", trained)
    behind = dict.fromkeys(found, 40)
    assert refused(let_out, "census", found, expected=agreed, behind=behind)


def test_settling_sends_the_networks_sums_only(let_out, trained, sums):
    """Rows, or weights, beside the sums would leave before anybody had trained."""
    found, agreed = sums
    assert let_out("settle", found, expected=agreed, behind=dict.fromkeys(found, 10)).refusal == ""
    for strange in ({"backbone.standardise/all": np.ones((40, 4))}, trained):
        whole = {**found, **strange}
        behind = dict.fromkeys(whole, 10)
        assert refused(let_out, "settle", whole, expected=agreed, behind=behind)
    for name in found:
        longer = {**found, name: np.ones(9)}
        assert refused(let_out, "settle", longer, expected=agreed, behind=dict.fromkeys(found, 10))


@pytest.mark.parametrize("kind", ["settle", "explain", "send", "linear"])
@pytest.mark.parametrize("people", [0, 1, 9, 10])
def test_arrays_over_too_few_people_stay(let_out, sums, kind, people):
    """The sums of one person are her own row; a mean map of two people is nearly a map of each."""
    found, agreed = sums
    behind = dict.fromkeys(found, people)
    if people == 10:
        assert let_out(kind, found, expected=agreed, behind=behind).refusal == ""
    else:
        assert too_few(let_out, kind, found, expected=agreed, behind=behind)
    strict = Policy(minimum_support=11)
    assert too_few(let_out, kind, found, strict, expected=agreed, behind=behind)


def test_zeros_of_nobody_may_leave_and_nothing_else_of_nobody(let_out, sums):
    """A hospital without a label of sex takes part in what is learnt of age."""
    found, agreed = sums
    first, *others = found
    behind = dict.fromkeys(others, 40)
    nothing = {**found, first: np.zeros_like(found[first])}
    assert let_out("settle", nothing, expected=agreed, behind=behind).refusal == ""
    assert too_few(let_out, "settle", nothing, expected=agreed, behind={**behind, first: 3})
    assert too_few(let_out, "settle", found, expected=agreed, behind=behind)


@pytest.mark.parametrize("lacking", [{}, {"other": 99}])
def test_each_array_has_its_own_people(let_out, sums, lacking):
    """Forty people behind one array must not carry out another of one person's beside it."""
    found, agreed = sums
    [first, *others] = found
    behind = {**dict.fromkeys(others, 40), **lacking}
    assert too_few(let_out, "settle", found, expected=agreed, behind=behind)
    behind[first] = 9
    assert too_few(let_out, "settle", found, expected=agreed, behind=behind)
    behind[first] = 10
    let_out("settle", found, expected=agreed, behind=behind)


def test_more_people_are_asked_for_as_more_of_each_is_told(let_out, sums):
    """Ten people's sums and sums of squares are twenty equations: as many as their numbers."""
    found, agreed = sums
    for reveals in (2, 3):
        enough = dict.fromkeys(found, 10 * reveals)
        let_out("settle", found, expected=agreed, behind=enough, reveals=reveals)
        few = dict.fromkeys(found, 10 * reveals - 1)
        assert too_few(let_out, "settle", found, expected=agreed, behind=few, reveals=reveals)


@pytest.mark.parametrize("people", [{"shared": 0}, {"shared": 1}, {"shared": 9}])
def test_an_update_of_too_few_people_stays(let_out, trained, people):
    """One person's update is her row, whatever number of scans the round took it from."""
    held = {"support": {"shared": 400}, "participants": people}
    assert too_few(let_out, "train", trained, **held)
    lenient = Policy(minimum_support=1)
    assert people == {"shared": 0} or let_out("train", trained, lenient, **held).refusal == ""


def test_array_of_another_form_stays(let_out, trained):
    """A longer array under an agreed name can carry anything behind the weights."""
    name = "heads.age.weight"
    assert refused(let_out, "train", {**trained, name: np.zeros((9, 99), np.float32)})
    assert refused(let_out, "train", {**trained, name: trained[name].astype(np.float64)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_array_that_is_not_finite_stays(let_out, trained, value):
    """Diverged weights are no contribution; the site learns of it first."""
    spoilt = {name: array.copy() for name, array in trained.items()}
    spoilt["heads.age.bias"][0] = value
    assert refused(let_out, "train", spoilt)


@pytest.mark.parametrize("name", ["age", "ages/sub-01", "participants", "loss", "label"])
def test_count_of_another_name_stays(let_out, name):
    """Sums have agreed names; a list of ages is also a tuple of numbers."""
    counts, people = {name: (40.0, 50.0)}, {name: 40}
    assert refused(let_out, "census", counts=counts, participants=people)


def test_count_that_is_not_finite_stays(let_out):
    """Reports refuse NaN when they are read; one that was built inside must not get out either."""
    for sums in ((float("nan"), 40.0), (float("inf"), 40.0), (9.0, float("nan"))):
        counts, people = {"loss/age": sums}, {"loss/age": 40}
        assert refused(let_out, "train", counts=counts, participants=people)


def test_measurement_of_too_few_people_loses_its_value(let_out):
    """The mean error of two people is nearly their ages, and even "two" is a small cell."""
    report = let_out("evaluate", measured=(row(9, p=0.5), row(10, p=0.5)))
    few, enough = report.measurements
    assert (few.value, few.ci_low, few.ci_high, few.p) == (None, None, None, None)
    assert enough.p == 0.5
    assert (few.n_participants, few.n_scans, few.metric) == (0, 0, "mae")
    assert (enough.value, enough.ci_low, enough.ci_high) == (4.5, 4.0, 5.0)


def test_people_count_and_not_their_scans(let_out):
    """Forty scans of three people are three people."""
    [few] = let_out("evaluate", measured=(row(3, 40),)).measurements
    assert few.value is None


@pytest.mark.parametrize("rarest", [0, 1, 9, 10])
def test_people_of_the_rarest_class_count(let_out, rarest):
    """An AUC of a hundred people with a single patient among them is her rank."""
    [found] = let_out("evaluate", measured=(row(100, rarest=rarest, metric="auc"),)).measurements
    assert (found.value is None) == (rarest < 10)
    assert (found.n_participants, found.n_scans) == ((0, 0) if rarest < 10 else (100, 100))


def test_a_measurement_without_meaning_still_says_how_many_it_is_of(let_out):
    """A site of one class has no AUC; that it has a hundred scans tells of nobody."""
    one_class = row(100, rarest=1, value=None, ci_low=None, ci_high=None)
    [found] = let_out("evaluate", measured=(one_class,)).measurements
    assert (found.value, found.n_participants) == (None, 100)


def test_site_may_ask_for_more_people(let_out):
    """The hospital's own number decides, above whatever is usual."""
    strict = Policy(minimum_support=50)
    [few] = let_out("evaluate", policy=strict, measured=(row(49),)).measurements
    assert few.value is None


COUNTS = [("train", "loss/age", (3.6, 12.0)), ("train", "validation-loss/age", (3.6, 12.0))]


@pytest.mark.parametrize("people", [0, 2, 9, 10])
@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_sums_over_too_few_people_stay(let_out, kind, name, sums, people):
    """A sum of losses and one a round later, of two people, are what was learnt of two people."""
    held = {"support": {"shared": 40}, "participants": {name: people, "shared": 40}}
    report = let_out(kind, counts={name: sums}, **held)
    assert (name in report.counts) == (people >= 10)
    assert (name in report.participants) == (people >= 10)  # "two" is a small cell, too
    assert report.participants["shared"] == 40


@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_twelve_volumes_of_one_person_are_one_person(let_out, kind, name, sums):
    """A run of a scanner gives hundreds of samples; each of them is hers."""
    group = {"support": {"shared": 12}, "participants": {"shared": 20, name: 1}}
    assert let_out(kind, counts={name: sums}, **group).counts == {}
    alone = let_out(kind, policy=Policy(minimum_support=1), counts={name: sums}, **group)
    assert alone.counts == {name: sums}  # what the site's own number allows


@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_sums_that_nobody_is_said_to_stand_behind_stay(let_out, kind, name, sums):
    """Samples are counted in the sums themselves, and must never be taken for people."""
    assert let_out(kind, counts={name: sums}, participants={"shared": 12}).counts == {}


@pytest.mark.parametrize("name", ["label/age", "validation/age", "evaluation/age"])
def test_sums_of_what_the_labels_are_stay(let_out, name):
    """Sums of ages, and histograms of scores, were asked for again and again and taken apart."""
    for kind in ("census", "train", "evaluate"):
        assert refused(let_out, kind, counts={name: (40.0, 2000.0)}, participants={name: 40})


def test_a_group_of_too_few_people_counts_as_none(let_out):
    """ "23 have an age, and one a diagnosis" singles her out before anything was learnt."""
    report = let_out(
        "census",
        support={"shared": 60, "labels/age": 40, "labels/diagnosis": 12},
        participants={"shared": 23, "labels/age": 10, "labels/diagnosis": 1},
    )
    assert report.support == {"shared": 60, "labels/age": 40, "labels/diagnosis": 0}
    assert report.participants == {"shared": 23, "labels/age": 10, "labels/diagnosis": 0}


def test_a_head_that_too_few_people_moved_does_not_leave(let_out, trained):
    """Its support could be hidden, its arrays could not: they are her features."""
    with pytest.raises(Refusal, match="COHORT_TOO_SMALL"):
        let_out(
            "train",
            trained,
            support={"shared": 60, "labels/age": 12},
            participants={"shared": 23, "labels/age": 1},
        )


def test_people_of_what_does_not_leave_stay_too(let_out):
    """A number of people is a number about people; without what it belongs to it has no use."""
    assert let_out("census", participants={"left-handed": 40}).participants == {}


def test_numbers_leave_only_from_the_answer(let_out, study):
    """A report that was filled in beside the gate would carry out what the gate never saw."""
    order = Order(kind="train", study=study.digest, run="0" * 64, site="alpha", arrays="0" * 64)
    filled = Report(
        order=order.id, site="alpha", kind="train", support={"label/sub-01": 7},
        participants={"label/sub-01": 7}, counts={"loss/sub-01": (64.0, 1.0)},
        measurements=(row(1).row,),
    )  # fmt: skip
    left = inspect(order, POLICY, filled, Answer(participants={"shared": 20}), {})
    assert (left.support, left.participants, left.counts, left.measurements) == ({}, {}, {}, ())


def test_inspected_twice_is_inspected_once(let_out, trained):
    """An answer from disk goes through the same door again; it must come out as it was."""
    contents = {
        "counts": {"loss/age": (3.0, 30.0), "loss/sex": (1.0, 20.0)},
        "participants": {"shared": 30, "labels/sex": 12, "loss/age": 30, "loss/sex": 2},
        "support": {"shared": 40, "labels/sex": 19},
    }
    measured = (row(9), row(100, rarest=2), row(100))
    report = let_out("train", trained, measured=measured, **contents)
    assert list(report.counts) == ["loss/age"]
    kept = {name: getattr(report, name) for name in contents}
    again = tuple(Measured(row, row.n_participants) for row in report.measurements)
    assert let_out("train", trained, measured=again, **kept) == report


@pytest.fixture
def moved(trained):
    """The arrays that came with the order: 3 away from what was trained, in one of them 4 more."""
    received = {name: array.copy() for name, array in trained.items()}
    received["heads.age.bias"] = received["heads.age.bias"] + np.float32(3)
    weight = received["heads.age.weight"].copy()
    weight[0, 0] += 4
    return {**received, "heads.age.weight": weight, "backbone.standardise.mean": np.zeros(4)}


def test_an_update_longer_than_the_site_allows_stays(let_out, trained, moved):
    """A few people learnt by heart, or a training that ran away, show in the update's length."""
    let_out("train", trained, Policy(largest_update_norm=5.0001), moved)
    assert refused(let_out, "train", trained, Policy(largest_update_norm=4.9999), moved)
    let_out("train", trained, Policy(largest_update_norm=0.0), moved)  # 0 sets no limit


def test_the_norm_is_summed_in_float64(let_out, trained):
    """A million small float32 squares would lose the half of themselves in a float32 sum."""
    name = "heads.age.bias"
    received = {**trained, name: trained[name] + np.float32(3e25)}  # its square is no float32
    assert refused(let_out, "train", trained, Policy(largest_update_norm=1e25), received)
    let_out("train", trained, Policy(largest_update_norm=1e26), received)


def test_an_update_that_cannot_be_measured_stays(let_out, trained):
    """Without the arrays it started from, nobody knows how long it is."""
    assert refused(let_out, "train", trained, Policy(largest_update_norm=9.0), {})


def test_a_report_larger_than_the_site_allows_stays(let_out, trained):
    """A megabyte is a scan; the limit is the hospital's, whatever the study's network."""
    size = sum(array.nbytes for array in trained.values())
    report = let_out("train", trained, support={"shared": 30})
    total = size + len(report.model_dump_json())
    let_out("train", trained, Policy(largest_report_mb=total / 1e6), support={"shared": 30})
    with pytest.raises(Refusal, match="REPORT_TOO_LARGE"):
        tight = Policy(largest_report_mb=(total - 1) / 1e6)
        let_out("train", trained, tight, support={"shared": 30})


def test_numbers_count_towards_the_size_of_a_report(let_out):
    """Measurements are text, and text carries data as well as arrays do."""
    rows = tuple(row(40, metric=f"m{number}") for number in range(50))
    let_out("evaluate", measured=rows)
    with pytest.raises(Refusal, match="REPORT_TOO_LARGE"):
        let_out("evaluate", policy=Policy(largest_report_mb=0.001), measured=rows)
