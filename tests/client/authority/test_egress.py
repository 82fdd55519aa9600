"""The last door: what is not expressly allowed stays at the site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.authority.egress import inspect
from client.site import Policy
from common.errors import Refusal
from common.network import arrays_of, build, plan_of
from common.protocol.orders import Measurement, Order, Report

POLICY = Policy(minimum_support=10)


@pytest.fixture
def study(federation):
    return federation({"sites": {"train": ["alpha"]}}).study


@pytest.fixture
def let_out(study):
    """Send a report of `kind` with these contents to the door of one site."""
    network = build(study, seed=0)
    plan = plan_of(network, study.aggregation.normalisation)

    def send(
        kind: str,
        arrays: Any = None,
        policy: Policy = POLICY,
        received: Any = None,
        **contents: Any,
    ) -> Report:
        order = Order.model_validate({
            "kind": kind, "study": study.digest, "run": "0" * 64, "site": "alpha",
            "arrays": "0" * 64,
        })  # fmt: skip
        report = Report.model_validate(
            {"order": order.id, "site": "alpha", "kind": kind, **contents}
        )
        return inspect(study, order, plan, policy, report, arrays or {}, received or {})

    return send


@pytest.fixture
def trained(study):
    """What a training report may hold."""
    network = build(study, seed=0)
    plan = plan_of(network, study.aggregation.normalisation)
    return {name: array for name, array in arrays_of(network).items() if plan[name].travels}


def refused(send: Any, *things: Any, **more: Any) -> bool:
    with pytest.raises(Refusal) as refusal:
        send(*things, **more)
    return refusal.value.code == "EGRESS"


def row(people: int, scans: int | None = None, **more: Any) -> dict[str, Any]:
    return Measurement.model_validate({
        "phase": "evaluate", "target": "age", "model": "federated", "site": "alpha",
        "role": "heldout", "metric": "mae", "value": 4.5, "ci_low": 4.0, "ci_high": 5.0,
        "n_participants": people, "n_scans": scans or people, **more,
    }).model_dump()  # fmt: skip


def test_agreed_arrays_may_leave(let_out, trained):
    """The control: without it every test below would pass with a door that is always shut."""
    report = let_out("train", trained, support={"scans": 30})
    assert report.support == {"scans": 30}


def test_array_that_nobody_agreed_on_stays(let_out, trained):
    """A scan under a harmless name is the simplest way to lose one."""
    assert refused(let_out, "train", {**trained, "scan": np.zeros((4, 4, 4), np.float32)})


def test_frozen_and_own_arrays_stay(let_out, trained):
    """What the plan keeps at a site does not leave because the network happens to hold it."""
    mean = np.zeros(4, np.float32)
    assert refused(let_out, "train", {**trained, "backbone.standardise.mean": mean})


@pytest.mark.parametrize("kind", ["finetune", "evaluate"])
def test_judging_and_fine_tuning_send_no_arrays(let_out, trained, kind):
    """Those reports are numbers; weights of a site's own task are the site's."""
    assert refused(let_out, kind, trained)


def test_census_sends_its_three_sums_only(let_out, trained):
    """Weights or rows in a census would leave before any training was agreed to."""
    sums = {name: np.ones(4) for name in ("columns/sum", "columns/squares", "columns/n")}
    let_out("census", sums)
    assert refused(let_out, "census", {**sums, "columns/all": np.ones((40, 4))})
    assert refused(let_out, "census", trained)


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
    assert refused(let_out, "census", counts={name: (40.0, 50.0)})


def test_count_that_is_not_finite_stays(let_out, study):
    """Reports refuse NaN when they are read; one that was built inside must not get out either."""
    order = Order(kind="train", study=study.digest, run="0" * 64, site="alpha", arrays="0" * 64)
    report = Report(order=order.id, site="alpha", kind="train")
    report = report.model_copy(update={"counts": {"loss/age": (float("nan"), 40.0)}})
    with pytest.raises(Refusal, match="EGRESS"):
        inspect(study, order, {}, POLICY, report, {}, {})


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


AGE = "validation/age"


@pytest.mark.parametrize("n", [0, 2, 9, 10])
@pytest.mark.parametrize(
    ("kind", "name", "sums"),
    [
        ("census", "label/age", lambda n: (float(n), 50.0 * n)),
        ("train", "loss/age", lambda n: (0.3 * n, float(n))),
        ("train", "validation/age", lambda n: (float(n), *[1.0 * n] * 7)),
        ("train", "validation/sex", lambda n: (float(n), *[0.0] * 1023)),
        ("evaluate", "evaluation/age", lambda n: (float(n), *[1.0 * n] * 7)),
    ],
)
def test_sums_over_too_few_scans_stay(let_out, kind, name, sums, n):
    """A sum of ages and a sum of their squares, of two people, is two ages."""
    report = let_out(kind, counts={name: sums(n)})
    assert (name in report.counts) == (n >= 10)


def test_inspected_twice_is_inspected_once(let_out, trained):
    """An answer from disk goes through the same door again; it must come out as it was."""
    counts = {"loss/age": (3.0, 30.0), "loss/sex": (1.0, 2.0)}
    report = let_out("train", trained, counts=counts, support={"scans": 30})
    again = let_out("train", trained, counts=report.counts, support=report.support)
    assert again == report


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
    report = let_out("train", trained, support={"scans": 30})
    total = size + len(report.model_dump_json())
    let_out("train", trained, Policy(largest_report_mb=total / 1e6), support={"scans": 30})
    with pytest.raises(Refusal, match="REPORT_TOO_LARGE"):
        tight = Policy(largest_report_mb=(total - 1) / 1e6)
        let_out("train", trained, tight, support={"scans": 30})


def test_numbers_count_towards_the_size_of_a_report(let_out):
    """Measurements are text, and text carries data as well as arrays do."""
    rows = [row(40, metric=f"m{number}") for number in range(50)]
    let_out("evaluate", measurements=rows)
    with pytest.raises(Refusal, match="REPORT_TOO_LARGE"):
        let_out("evaluate", policy=Policy(largest_report_mb=0.001), measurements=rows)
