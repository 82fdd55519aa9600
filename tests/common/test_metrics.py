"""Metrics against scikit-learn and SciPy, as they are made, rounded, and put together over sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from common import metrics
from common.sections import Target

AGE = Target(kind="regression", unit="years")
SEX = Target(kind="binary", classes=("female", "male"))
STATE = Target(kind="categorical", classes=("rest", "left", "right"))
TARGETS = pytest.mark.parametrize("target", [AGE, SEX, STATE], ids=["age", "sex", "state"])
seeds = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=50)


def sample(target: Target, n: int, seed: int, levels: int = 0) -> tuple[Any, Any]:
    """Labels and predictions that agree somewhat; `levels` makes ties among predictions."""
    chance = np.random.default_rng(seed)
    if target.kind == "regression":
        label = chance.normal(50, 18, n).astype(np.float32)
        predicted = (label * 0.6 + chance.normal(20, 10, n)).astype(np.float32)
        return label, np.round(predicted / 10) * 10 if levels else predicted
    if target.kind == "binary":
        label = (chance.random(n) < 0.4).astype(np.float32)
        score = 1 / (1 + np.exp(-chance.normal(label - 0.5, 1.2)))
        score = np.round(score * levels) / levels if levels else score
        return label, score.astype(np.float32)
    label = chance.integers(0, 3, n).astype(np.float32)
    scores = chance.random((n, 3)) + 0.6 * np.eye(3)[label.astype(int)]
    return label, (scores / scores.sum(1, keepdims=True)).astype(np.float32)


def expected(target: Target, label: Any, predicted: Any, weights: Any = None) -> dict[str, float]:
    """What scikit-learn and SciPy say."""
    if target.kind == "regression":
        weights = np.ones(len(label)) if weights is None else weights
        y, p = np.repeat(label, weights.astype(int)), np.repeat(predicted, weights.astype(int))
        return {
            "mae": oracle.mean_absolute_error(y, p),
            "rmse": oracle.root_mean_squared_error(y, p),
            "r": stats.pearsonr(y.astype(float), p.astype(float)).statistic,
            "r2": oracle.r2_score(y, p),
            "slope": stats.linregress(p.astype(float), y.astype(float)).slope,
            "bias_slope": stats.linregress(y.astype(float), (p - y).astype(float)).slope,
        }
    keys = {"sample_weight": weights}
    if target.kind == "binary":
        return {
            "auc": oracle.roc_auc_score(label, predicted, **keys),
            "balanced_accuracy": oracle.balanced_accuracy_score(label, predicted >= 0.5, **keys),
            "f1": oracle.f1_score(label, predicted >= 0.5, **keys),
            **over_classes(label, predicted >= 0.5, weights),
            "brier": oracle.brier_score_loss(label, predicted, **keys),
            "ece": calibration_error(label, predicted, weights),
        }
    return {
        "accuracy": oracle.accuracy_score(label, predicted.argmax(1), **keys),
        "balanced_accuracy": oracle.balanced_accuracy_score(label, predicted.argmax(1), **keys),
        **over_classes(label, predicted.argmax(1), weights),
    }


def over_classes(label: Any, said: Any, weights: Any = None) -> dict[str, float]:
    """F1 by class, averaged as scikit-learn does; whom nobody drew is not there."""
    here = slice(None) if weights is None else np.asarray(weights) > 0
    keys = {"sample_weight": None if weights is None else np.asarray(weights)[here]}
    return {
        f"f1_{average}": oracle.f1_score(label[here], said[here], average=average, **keys)
        for average in ("macro", "weighted")
    }


def calibration_error(label: Any, predicted: Any, weights: Any = None) -> float:
    """By a loop over ten bins of probability (Naeini et al. 2015); scikit-learn has none."""
    weights = np.ones(len(label)) if weights is None else weights
    total = 0.0
    for low in np.arange(10) / 10:
        here = (predicted >= low) & ((predicted < low + 0.1) | (low > 0.85))
        n = weights[here].sum()
        if n:
            gap = np.average(predicted[here], weights=weights[here])
            total += n * abs(gap - np.average(label[here], weights=weights[here]))
    return float(total / weights.sum())


@TARGETS
@pytest.mark.parametrize("levels", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_exact_metrics_are_those_of_scikit_learn(target: Target, levels: int, seed: int) -> None:
    """Readers compare our numbers with those of other papers; ties count half as there."""
    label, predicted = sample(target, 83, seed, levels)
    found = metrics.exact(target, label, predicted)
    assert found == pytest.approx(expected(target, label, predicted), rel=1e-6)


def as_parts(n: int, seed: int, cuts: list[int]) -> list[Any]:
    """Positions of `n` samples, shuffled and shared out to sites; none is without one."""
    order = np.random.default_rng(seed + 1).permutation(n)
    return [part for part in np.split(order, sorted(cuts)) if len(part)]


@pytest.mark.parametrize(
    ("target", "metric"), [(AGE, "mae"), (AGE, "rmse"), (STATE, "accuracy")], ids=str
)
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=4))
@quick
def test_means_of_parts_are_together_those_of_the_whole(
    target: Target, metric: str, seed: int, cuts: list[int]
) -> None:
    """An average of sites' averages would weigh a scan by the size of its site."""
    label, predicted = sample(target, 60, seed, levels=7)
    parts = as_parts(60, seed, cuts)
    values = [metrics.exact(target, label[part], predicted[part])[metric] for part in parts]
    found = metrics.together(metric, values, [len(part) for part in parts])
    assert found == pytest.approx(expected(target, label, predicted)[metric], rel=1e-6)


@pytest.mark.parametrize("metric", ["mae", "rmse", "auc", "balanced_accuracy", "accuracy"])
@given(
    sites=st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 500)), min_size=1, max_size=6),
    seed=seeds,
)
@quick
def test_sites_together_lie_among_the_sites_whatever_their_order(
    metric: str, sites: list[tuple[float, int]], seed: int
) -> None:
    """Whoever is asked first is worth no more, and one site alone is itself."""
    values, weights = zip(*sites, strict=True)
    found = metrics.together(metric, values, weights)
    assert found is not None
    assert min(values) * (1 - 1e-9) <= found <= max(values) * (1 + 1e-9)
    order = np.random.default_rng(seed).permutation(len(sites))
    again = metrics.together(metric, [values[i] for i in order], [weights[i] for i in order])
    assert again == pytest.approx(found, rel=1e-9)


def test_scans_of_two_sites_are_never_ranked_against_each_other() -> None:
    """Scanners shift scores: of two sites that rank perfectly, the pooled ranking is mixed."""
    label = np.array([0.0, 0.0, 1.0, 1.0])
    here, there = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.7, 0.8])
    own = [metrics.exact(SEX, label, scores)["auc"] for scores in (here, there)]
    pooled = oracle.roc_auc_score(np.tile(label, 2), np.concatenate([here, there]))
    assert metrics.together("auc", own, [4, 4]) == 1.0 != pooled


def test_what_cannot_be_put_together_is_left_out() -> None:
    """A correlation of two sites follows from nothing that they sent; nor does nobody's error."""
    assert metrics.together("r", [0.5, 0.6], [10, 10]) is None
    assert metrics.together("mae", [], []) is None
    assert metrics.together("mae", [4.0], [0]) is None


@given(
    widths=st.lists(st.floats(0.01, 50), min_size=1, max_size=6), seed=seeds, value=st.floats(0, 90)
)
@quick
def test_the_interval_together_is_that_of_a_sum_of_independent_sites(
    widths: list[float], seed: int, value: float
) -> None:
    """Variances of independent means add by their shares squared; SciPy's normal says the rest."""
    weights = np.random.default_rng(seed).integers(1, 300, len(widths)).tolist()
    ends = [(value - width / 2, value + width / 2) for width in widths]
    low, high = metrics.interval_together("mae", [value] * len(widths), ends, weights)
    spreads = np.array(widths) / (2 * stats.norm.ppf(0.975))
    shares = np.array(weights) / sum(weights)
    wanted = stats.norm(value, np.sqrt(((shares * spreads) ** 2).sum())).interval(0.95)
    assert (low, high) == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert high - low <= max(widths) * (1 + 1e-9)


@pytest.mark.parametrize("metric", ["auc", "rmse"])
def test_the_interval_together_stays_on_the_metrics_scale(metric: str) -> None:
    """Two sites with .99 (.90 to 1.00) are not .99 (.93 to 1.05); one alone is itself."""
    ends = (0.9, 1.0)
    low, high = metrics.interval_together(metric, [0.99, 0.99], [ends, ends], [1, 1])
    assert 0.9 < low < 0.93
    assert 0.99 < high < 1.0
    assert metrics.interval_together(metric, [0.99], [ends], [7]) == pytest.approx(ends)


@given(value=st.floats(-1e300, 1e300), digits=st.integers(1, 6))
@quick
def test_figures_are_as_many_as_are_said(value: float, digits: int) -> None:
    """A metric to thirteen digits is an equation about everyone behind it; to three it is not."""
    found = metrics.figures(value, digits)
    assert metrics.figures(found, digits) == found
    assert float(f"{found:.{digits - 1}e}") == found
    assert abs(found - value) <= 0.5 * 10 ** (1 - digits) * abs(value) * (1 + 1e-9) + 5e-324


def test_three_figures_leave_by_default() -> None:
    """Sites and coordinator round alike: a report's numbers are found again in results.csv."""
    values = (4.5678, -0.0123456, 98765.4, 0.0, 0.99951)
    assert [metrics.figures(v) for v in values] == [4.57, -0.0123, 98800.0, 0.0, 1.0]


@given(st.permutations([{"loss/a": (1.5, 2.0)}, {"loss/a": (0.25, 1.0), "b/a": (9.0,)}, {}]))
@quick
def test_sums_merge_in_any_order_and_by_their_prefix(by_site: list[dict[str, Any]]) -> None:
    """What is summed under one name is of one kind, from whichever site it came first."""
    [(name, sums)] = metrics.merged(by_site, "loss/").items()
    assert (name, sums.tolist()) == ("a", [1.75, 3.0])


@TARGETS
@given(seed=seeds)
@quick
def test_whole_weights_repeat_samples(target: Target, seed: int) -> None:
    """A bootstrap weight of 2 means: this scan was drawn twice."""
    label, predicted = sample(target, 40, seed, levels=6)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 40)).astype(np.float64)
    found = metrics.resampled(target, label, predicted, weights)
    for number, row in enumerate(weights):
        times = row.astype(int)
        again = metrics.exact(target, np.repeat(label, times), np.repeat(predicted, times, axis=0))
        for name, values in found.items():
            assert values[number] == pytest.approx(again[name], rel=1e-6, nan_ok=True), name


@TARGETS
def test_weighted_metrics_are_those_of_scikit_learn(target: Target) -> None:
    """An oracle that shares no line with ours."""
    label, predicted = sample(target, 50, 3, levels=6)
    weights = np.random.default_rng(0).integers(0, 4, (5, 50)).astype(np.float64)
    found = metrics.resampled(target, label, predicted, weights)
    for number, row in enumerate(weights):
        whole = expected(target, label, predicted, row)
        assert {name: values[number] for name, values in found.items()} == pytest.approx(
            whole, rel=1e-6
        )


def test_probabilities_at_the_ends_are_counted() -> None:
    """A sigmoid saturates to exactly 0 and 1 in float32; 0.5 is a positive prediction."""
    label, score = np.array([0, 1, 1, 0], np.float32), np.array([0, 1, 0.5, 0.4999], np.float32)
    found = metrics.exact(SEX, label, score)
    assert found["auc"] == found["balanced_accuracy"] == found["f1"] == 1.0
    assert found["ece"] == pytest.approx((0.5 + 0.4999) / 4)  # the rest is said for certain


@pytest.mark.parametrize(
    ("target", "label", "predicted", "absent"),
    [
        (AGE, [40.0, 50.0, 60.0], [50.0, 50.0, 50.0], "r"),
        (AGE, [50.0, 50.0, 50.0], [40.0, 50.0, 60.0], "r"),
        (SEX, [1.0, 1.0], [0.2, 0.9], "auc"),
        (SEX, [0.0, 0.0], [0.2, 0.9], "auc"),
    ],
    ids=["constant prediction", "constant label", "positives", "negatives"],
)
def test_a_metric_without_meaning_is_left_out(
    target: Target, label: list[float], predicted: list[float], absent: str
) -> None:
    """A constant has no correlation, one class no ranking; neither is 0 and neither is 0.5."""
    y, p = np.array(label, np.float32), np.array(predicted, np.float32)
    assert np.isnan(metrics.exact(target, y, p).get(absent, np.nan))


def test_two_people_have_no_correlation_and_no_interval() -> None:
    """Two points always lie on a line: r = 1.00 (1.00 to 1.00) says nothing of a model."""
    label, predicted = np.array([30.0, 50.0]), np.array([39.0, 40.0])
    found = metrics.exact(AGE, label, predicted)
    assert np.isnan(found["r"])
    assert found["mae"] == pytest.approx(9.5)
    three = metrics.exact(AGE, np.append(label, 70.0), np.append(predicted, 38.0))
    assert three["r"] == pytest.approx(-0.5)


def test_a_resampling_of_two_people_has_no_correlation() -> None:
    """It would be 1 or -1, and of three people two thirds of all resamplings are such."""
    label, predicted = np.array([30.0, 50.0, 70.0]), np.array([39.0, 40.0, 38.0])
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0]])
    found = metrics.resampled(AGE, label, predicted, weights)["r"]
    assert found[0] == pytest.approx(-0.5)
    assert np.isnan(found[1:]).all()


def test_correlation_survives_a_large_offset() -> None:
    """Sums of squares of values near 1e6 lose what makes the correlation."""
    chance = np.random.default_rng(0)
    y = chance.normal(1e6, 1, 500)
    p = y + chance.normal(0, 1, 500)
    wanted = stats.pearsonr(y, p).statistic
    assert metrics.exact(AGE, y, p)["r"] == pytest.approx(wanted, rel=1e-6)


def test_better_knows_the_direction_of_each_metric() -> None:
    """Errors fall, areas rise; an undefined score never wins over a defined one."""
    assert metrics.better(AGE, 3.0, 4.0)
    assert not metrics.better(AGE, 4.0, 3.0)
    assert metrics.better(SEX, 0.8, 0.7)
    assert not metrics.better(SEX, 0.7, 0.8)
    for target in (AGE, SEX, STATE):
        assert metrics.better(target, 0.5, float("nan"))
        assert not metrics.better(target, float("nan"), 0.5)
        assert not metrics.better(target, 0.5, 0.5)


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=30), seeds)
@quick
def test_a_participant_is_drawn_with_all_her_scans(people: list[str], seed: int) -> None:
    """Scans of one person are not independent; each draw holds as many people as the site."""
    weights = metrics.draws(people, np.random.default_rng(seed), 20)
    assert weights.shape == (20, len(people))
    for name in set(people):
        hers = weights[:, [i for i, other in enumerate(people) if other == name]]
        assert (hers == hers[:, :1]).all()
    first = [people.index(name) for name in sorted(set(people))]
    assert (weights[:, first].sum(1) == len(first)).all()


def test_percentiles_ignore_resamplings_without_the_metric() -> None:
    """A resampling may hold one class only; it says nothing about AUC."""
    values = np.array([0.1, np.nan, 0.2, 0.3, np.nan, 0.4, 0.5])
    low, high = metrics.percentiles(values, 0.5) or (0, 0)
    assert (low, high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert metrics.percentiles(np.full(3, np.nan), 0.95) is None


@TARGETS
def test_every_metric_that_is_told_has_a_name(target: Target) -> None:
    """A coordinator knows by these what a site may say of a target."""
    label, predicted = sample(target, 60, 1)
    assert set(metrics.names(target)) == set(metrics.exact(target, label, predicted))
    assert metrics.primary(target) in metrics.names(target)


@TARGETS
def test_rounds_tell_less_than_the_last_judgement(target: Target) -> None:
    """Training asks thirty times; each further number would be another equation about people."""
    assert metrics.primary(target) in metrics.of_rounds(target)
    assert len(metrics.of_rounds(target)) <= 3
    assert set(metrics.of_rounds(target)) <= set(metrics.names(target))


@pytest.mark.parametrize("label", [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], ids=["well", "ill"])
def test_one_class_has_no_metric_at_all(label: list[float]) -> None:
    """A site of controls that calls nobody ill would otherwise shine with 1.0."""
    found = metrics.exact(SEX, np.array(label), np.array(label) * 0.8 + 0.1)
    assert np.isnan(list(found.values())).all()
    assert metrics.threshold(np.array(label), np.array([0.1, 0.2, 0.3])) is None


@given(seed=seeds, levels=st.sampled_from([0, 5]))
@quick
def test_the_chosen_threshold_is_the_best_of_all(seed: int, levels: int) -> None:
    """Naively: every threshold is tried on the people who choose."""
    label, score = sample(SEX, 30, seed, levels)
    if len(set(label.tolist())) < 2:
        return
    found = metrics.threshold(label, score)
    assert found is not None

    def mean_recall(cut: float) -> float:
        return float(np.mean([((score >= cut) == one)[label == one].mean() for one in (0, 1)]))

    assert mean_recall(found) == pytest.approx(max(map(mean_recall, [*score, 2.0])))
