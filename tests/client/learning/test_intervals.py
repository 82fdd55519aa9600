"""Intervals hold the truth as often as they say, of people and never of scans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from client.learning import intervals
from client.learning.intervals import Judged, difference, wilson, z_of
from common import metrics
from common.sections import Target
from server.federation.expectation import bounds_of
from tests.bench.coverage import (
    AGE,
    DIFFERENCE,
    OF_AGES,
    SEX,
    Found,
    ages,
    binormal,
    coverage,
    pages,
    states,
)

FOUR = Target(kind="categorical", classes=("rest", "left", "right", "both"))
STATE = Target(kind="categorical", classes=("rest", "left", "right"))
TARGETS = pytest.mark.parametrize("target", [AGE, SEX, STATE], ids=["age", "sex", "state"])
Z = z_of(0.95)


def judged(target: Target, n: int, seed: int, *, times: int = 1, worse: float = 0.0) -> Judged:
    """What a model said of `n` people, each scan of whom is there so many times."""
    chance = np.random.default_rng(seed)
    if target.kind == "regression":
        label = chance.normal(50, 15, n)
        told = label + chance.normal(0, 6 + worse, n)
    elif target.kind == "binary":
        label = (np.arange(n) % 2).astype(np.float64)
        told = 1 / (1 + np.exp(-chance.normal(2 * label - 1, 1.5 + worse)))
    else:
        label = (np.arange(n) % 3).astype(np.float64)
        told = np.eye(3)[label.astype(int)] + (0.5 + worse) * chance.normal(size=(n, 3))
    people = np.repeat([f"p{i}" for i in range(n)], times)
    return Judged.of(target, np.repeat(label, times), [np.repeat(told, times, axis=0)], people)


@TARGETS
def test_every_interval_holds_its_value_and_copies_of_scans_do_not_narrow_it(
    target: Target,
) -> None:
    """Ten scans of each of forty people are forty people, not four hundred."""
    once, tenfold = judged(target, 40, 3), judged(target, 40, 3, times=10)
    for metric in set(once.metrics) - {"ece"}:
        low, high = once.bounds(metric, Z) or (np.nan, np.nan)
        assert low < once.value(metric) < high, metric
        # r2 and slopes correct nothing by n, so that copies change nothing at all
        assert tenfold.bounds(metric, Z) == pytest.approx((low, high), rel=1e-6), metric


@TARGETS
def test_no_interval_goes_beyond_what_the_metric_can_be(target: Target) -> None:
    """The coordinator refuses a report with such a row, and with it everything of the site."""
    for seed in range(40):
        of_few = judged(target, 6 + seed % 9, seed, worse=3.0)
        for metric in of_few.metrics:
            least, largest = bounds_of(target, metric)
            found = of_few.bounds(metric, Z)
            assert found is None or least <= found[0] <= found[1] <= largest, (metric, found)
        other = judged(target, 6 + seed % 9, seed, worse=0.1)
        primary = metrics.primary(target)
        least, largest = bounds_of(target, f"{primary}_minus_scratch-full")
        apart = difference(of_few, other, primary, 0.95).bounds
        assert apart is None or least <= apart[0] <= apart[1] <= largest


def test_the_calibration_error_has_no_interval() -> None:
    """It is too high in few samples, and twice so in resamplings: an interval would miss it."""
    assert judged(SEX, 40, 1).bounds("ece", Z) is None


@TARGETS
def test_two_people_have_no_interval(target: Target) -> None:
    """However many scans they have."""
    one = judged(target, 2, 0, times=9)
    assert all(one.bounds(metric, Z) is None for metric in one.metrics)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (40, 40), (199, 200)])
def test_shares_have_wilsons_interval(hits: int, n: int) -> None:
    """SciPy has it of whole numbers; we have it of the people that many scans amount to."""
    wanted = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits / n, n, Z) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_the_jackknife_of_a_mean_is_students() -> None:
    """With one scan a person, a mean's standard error and a paired t-test are SciPy's."""
    ours, theirs = judged(AGE, 30, 1), judged(AGE, 30, 1, worse=3)
    errors = [np.abs(one.predicted[0] - one.label) for one in (ours, theirs)]
    root = (30 / 29) ** 0.5
    assert intervals.jackknifed(ours.left_out["mae"]) == pytest.approx(stats.sem(errors[0]) * root)
    found, wanted = difference(ours, theirs, "mae", 0.95), stats.ttest_rel(*errors)
    t = stats.t.isf((found.p or 0) / 2, 29)
    assert t == pytest.approx(abs(wanted.statistic) / root)
    assert found.value == pytest.approx(np.mean(errors[0]) - np.mean(errors[1]))


@TARGETS
def test_p_is_below_one_in_twenty_where_the_interval_leaves_out_zero(target: Target) -> None:
    """A verdict and the interval beside it must not contradict each other."""
    metric, told = metrics.primary(target), set()
    for seed in range(40):
        ours = judged(target, 60, seed)
        apart = difference(ours, judged(target, 60, seed, worse=seed / 20), metric, 0.95)
        assert apart.bounds is not None
        low, high = apart.bounds
        assert apart.p is not None
        told.add(apart.p < 0.05)
        assert (apart.p < 0.05) == (not low <= 0 <= high)
        assert low <= apart.value <= high
    assert told == {True, False}


@TARGETS
def test_a_difference_turned_round_is_its_mirror_image(target: Target) -> None:
    """Who is subtracted from whom is a matter of taste."""
    metric = metrics.primary(target)
    one, other = judged(target, 60, 5), judged(target, 60, 5, worse=1)
    there, back = difference(one, other, metric, 0.95), difference(other, one, metric, 0.95)
    assert there.value == -back.value
    assert there.bounds == pytest.approx(tuple(-end for end in (back.bounds or ())[::-1]))
    assert there.p == pytest.approx(back.p)


@TARGETS
def test_a_model_does_not_differ_from_itself(target: Target) -> None:
    """p is 1, and the interval is around 0."""
    one = judged(target, 60, 5)
    apart = difference(one, one, metrics.primary(target), 0.95)
    low, high = apart.bounds or (1, -1)
    assert (apart.value, apart.p) == (0, 1)
    assert low <= 0 <= high


def test_a_mean_over_draws_is_surer_than_one_draw_and_two_copies_of_one_are_one() -> None:
    """Ten models of ten draws vary against each other; a copy of a model tells nothing new."""
    chance = np.random.default_rng(0)
    label = (np.arange(60) % 2).astype(np.float64)
    told = [1 / (1 + np.exp(-chance.normal(label, 1))) for _ in range(10)]
    people = [str(i) for i in range(60)]

    def width(predicted: list[Any]) -> float:
        low, high = Judged.of(SEX, label, predicted, people).bounds("auc", Z) or (0, 0)
        return high - low

    assert width(told) < 0.9 * width(told[:1])
    assert width(told[:1] * 2) == pytest.approx(width(told[:1]))


def test_groups_of_people_stand_for_each_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving out forty thousand people one at a time would take an hour."""
    whole = judged(AGE, 400, 2).bounds("mae", Z)
    monkeypatch.setattr(intervals, "_MOST_GROUPS", 100)
    monkeypatch.setattr(intervals, "_AT_ONCE", 400 * 7)
    in_groups = judged(AGE, 400, 2)
    assert len(in_groups.left_out["mae"]) == 100
    assert in_groups.bounds("mae", Z) == pytest.approx(whole, rel=0.02)


def check(found: list[Found]) -> None:
    """Nominal is .95; intervals of a difference in area are wider than they need be."""
    most = {"auc minus auc": 1.0}
    outside = [one for one in found if not 0.93 <= one.coverage <= most.get(one.what, 0.97)]
    assert not outside


@pytest.mark.slow
@pytest.mark.parametrize(
    ("area", "prevalence", "n"),
    [(0.6, 0.1, 50), (0.6, 0.5, 20), (0.9, 0.2, 20), (0.75, 0.1, 50), (0.97, 0.5, 20)],
)
def test_intervals_of_areas_and_shares_cover(area: float, prevalence: float, n: int) -> None:
    """Percentiles of the bootstrap held .52 to .87; the binomial error here is .006."""
    draw = binormal(area, prevalence)
    check(list(coverage(SEX, draw, n, ("auc", DIFFERENCE), about="", repeats=1500, seed=1)))


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50])
def test_intervals_of_regressions_cover(n: int) -> None:
    """Mean errors, correlations and slopes of 20 people; the binomial error is .006."""
    check(list(coverage(AGE, ages("normal"), n, OF_AGES, about="", repeats=1500, seed=1)))


@pytest.mark.slow
@pytest.mark.parametrize("clear", [1.5, 3.0])
def test_intervals_of_f1_over_four_classes_cover(clear: float) -> None:
    """At .70 and .96, where an error costs two classes at once."""
    draw = states(0.25, clear)
    check(list(coverage(FOUR, draw, 50, metrics.F1S, about="", repeats=1500, seed=1)))


@pytest.mark.slow
def test_equal_models_are_told_apart_on_few_pages() -> None:
    """Of 117 tests of equal models six would be called different; of a page, 5 % at most are."""
    found = pages(people=50, rivals=5, sites=2, repeats=150, seed=2)
    assert found.adjusted <= 0.05
    assert found.unadjusted > 0.3


def test_coverage_of_a_few_simulations_is_near_nominal() -> None:
    """The small form of the bench, at each commit: the binomial error is .006 and .009."""
    check(list(coverage(SEX, binormal(0.9, 0.3), 30, ("auc",), about="", repeats=1500, seed=1)))
    of_ages = ages("heavy tails")
    check(list(coverage(AGE, of_ages, 20, ("mae", "r"), about="", repeats=600, seed=1)))
