"""The last door: what is not expressly allowed stays at the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
    """Send a report of `kind` with these contents to the door of one site."""

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
        report = Report.model_validate(
            {"order": order.id, "site": "alpha", "kind": kind, **contents}
        )
        return inspect(order, expected, policy, report, arrays or {}, received or {})

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


def refused(send: Any, *things: Any, **more: Any) -> bool:
    return code_of(send, *things, **more) == "EGRESS"


def row(people: int, scans: int | None = None, **more: Any) -> dict[str, Any]:
    return Measurement.model_validate({
        "phase": "evaluate", "target": "age", "model": "federated", "site": "alpha",
        "role": "heldout", "metric": "mae", "value": 4.5, "ci_low": 4.0, "ci_high": 5.0,
        "n_participants": people, "n_scans": scans or people, **more,
    }).model_dump()  # fmt: skip


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
    assert refused(let_out, "census", found, expected=agreed, participants={"settle": 40})


def test_settling_sends_the_networks_sums_only(let_out, trained, sums):
    """Rows, or weights, beside the sums would leave before anybody had trained."""
    found, agreed = sums
    people = {"settle": 10}
    assert let_out("settle", found, expected=agreed, participants=people).participants == people
    for strange in ({"backbone.standardise/all": np.ones((40, 4))}, trained):
        assert refused(
            let_out, "settle", {**found, **strange}, expected=agreed, participants=people
        )
    for name in found:
        longer = {**found, name: np.ones(9)}
        assert refused(let_out, "settle", longer, expected=agreed, participants=people)


@pytest.mark.parametrize("kind", ["settle", "explain"])
@pytest.mark.parametrize("people", [{}, {"other": 99}, 0, 1, 9, 10])
def test_arrays_over_too_few_people_stay(let_out, sums, kind, people):
    """The sums of one person are her own row; a mean map of two people is nearly a map of each."""
    found, agreed = sums
    behind = people if isinstance(people, dict) else {kind: people}
    if people == 10:
        assert let_out(kind, found, expected=agreed, participants=behind).refusal == ""
    else:
        assert code_of(let_out, kind, found, expected=agreed, participants=behind) == (
            "COHORT_TOO_SMALL"
        )
    strict = Policy(minimum_support=11)
    assert code_of(let_out, kind, found, strict, expected=agreed, participants=behind) == (
        "COHORT_TOO_SMALL"
    )


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


def test_count_that_is_not_finite_stays(let_out, study):
    """Reports refuse NaN when they are read; one that was built inside must not get out either."""
    order = Order(kind="train", study=study.digest, run="0" * 64, site="alpha", arrays="0" * 64)
    report = Report(order=order.id, site="alpha", kind="train")
    report = report.model_copy(update={"counts": {"loss/age": (float("nan"), 40.0)}})
    with pytest.raises(Refusal, match="EGRESS"):
        inspect(order, {}, POLICY, report, {}, {})


def test_measurement_of_too_few_people_loses_its_value(let_out):
    """The mean error of two people is nearly their ages, and even "two" is a small cell."""
    report = let_out("evaluate", measurements=[row(9), row(10)])
    few, enough = report.measurements
    assert (few.value, few.ci_low, few.ci_high) == (None, None, None)
    assert (few.n_participants, few.n_scans, few.metric) == (0, 0, "mae")
    assert (enough.value, enough.ci_low, enough.ci_high) == (4.5, 4.0, 5.0)


def test_people_count_and_not_their_scans(let_out):
    """Forty scans of three people are three people."""
    [few] = let_out("evaluate", measurements=[row(3, 40)]).measurements
    assert few.value is None


def test_site_may_ask_for_more_people(let_out):
    """The hospital's own number decides, above whatever is usual."""
    strict = Policy(minimum_support=50)
    [few] = let_out("evaluate", policy=strict, measurements=[row(49)]).measurements
    assert few.value is None


COUNTS = [
    ("census", "label/age", (12.0, 600.0)),
    ("train", "loss/age", (3.6, 12.0)),
    ("train", "validation-loss/age", (3.6, 12.0)),
    ("train", "validation/age", (12.0, *[12.0] * 7)),
    ("train", "validation/sex", (12.0, *[0.0] * 1023)),
    ("evaluate", "evaluation/age", (12.0, *[12.0] * 7)),
]


@pytest.mark.parametrize("people", [0, 2, 9, 10])
@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_sums_over_too_few_people_stay(let_out, kind, name, sums, people):
    """A sum of ages and a sum of their squares, of two people, is two ages."""
    participants = {name: people, "scans": 40}
    report = let_out(kind, counts={name: sums}, participants=participants)
    assert (name in report.counts) == (people >= 10)
    assert (name in report.participants) == (people >= 10)  # "two" is a small cell, too
    assert report.participants["scans"] == 40


@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_twelve_volumes_of_one_person_are_one_person(let_out, kind, name, sums):
    """A run of a scanner gives hundreds of samples; each of them is hers."""
    group = {"support": {"shared": 12}, "participants": {"shared": 1, name: 1}}
    assert let_out(kind, counts={name: sums}, **group).counts == {}
    alone = let_out(kind, policy=Policy(minimum_support=1), counts={name: sums}, **group)
    assert alone.counts == {name: sums}  # what the site's own number allows


@pytest.mark.parametrize(("kind", "name", "sums"), COUNTS)
def test_sums_that_nobody_is_said_to_stand_behind_stay(let_out, kind, name, sums):
    """Samples are counted in the sums themselves, and must never be taken for people."""
    assert let_out(kind, counts={name: sums}, participants={"shared": 12}).counts == {}


def test_inspected_twice_is_inspected_once(let_out, trained):
    """An answer from disk goes through the same door again; it must come out as it was."""
    contents = {
        "counts": {"loss/age": (3.0, 30.0), "loss/sex": (1.0, 20.0)},
        "participants": {"shared": 30, "loss/age": 30, "loss/sex": 2},
        "support": {"shared": 40},
    }
    report = let_out("train", trained, **contents)
    assert list(report.counts) == ["loss/age"]
    kept = {name: getattr(report, name) for name in contents}
    assert let_out("train", trained, **kept) == report


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
    rows = [row(40, metric=f"m{number}") for number in range(50)]
    let_out("evaluate", measurements=rows)
    with pytest.raises(Refusal, match="REPORT_TOO_LARGE"):
        let_out("evaluate", policy=Policy(largest_report_mb=0.001), measurements=rows)
