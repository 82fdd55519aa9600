"""Metrics against scikit-learn and SciPy, and the sums that make them add up over sites."""

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
        }
    keys = {"sample_weight": weights}
    if target.kind == "binary":
        return {
            "auc": oracle.roc_auc_score(label, predicted, **keys),
            "balanced_accuracy": oracle.balanced_accuracy_score(label, predicted >= 0.5, **keys),
        }
    return {
        "accuracy": oracle.accuracy_score(label, predicted.argmax(1), **keys),
        "balanced_accuracy": oracle.balanced_accuracy_score(label, predicted.argmax(1), **keys),
    }


@TARGETS
@pytest.mark.parametrize("levels", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_exact_metrics_are_those_of_scikit_learn(target: Target, levels: int, seed: int) -> None:
    """Readers compare our numbers with those of other papers; ties count half as there."""
    label, predicted = sample(target, 83, seed, levels)
    found = metrics.exact(target, label, predicted)
    assert found == pytest.approx(expected(target, label, predicted), rel=1e-6)


@TARGETS
def test_metrics_from_sums_are_those_of_scikit_learn(target: Target) -> None:
    """What the server divides is what the site would have computed; AUC to its 512 bins."""
    label, predicted = sample(target, 400, 1)
    found = metrics.ratios(target, metrics.counts(target, label, predicted))
    whole = expected(target, label, predicted)
    assert found.pop("auc", 0.0) == pytest.approx(whole.pop("auc", 0.0), abs=1e-3)
    assert found == pytest.approx(whole, rel=1e-6)
    assert metrics.n_of(target, metrics.counts(target, label, predicted)) == 400


@TARGETS
@given(seed=seeds, cuts=st.lists(st.integers(0, 60), max_size=4))
@quick
def test_counts_of_parts_add_up_to_counts_of_the_whole(
    target: Target, seed: int, cuts: list[int]
) -> None:
    """An average of sites' averages would weigh a scan by the size of its site."""
    label, predicted = sample(target, 60, seed, levels=7)
    label[np.random.default_rng(seed).random(60) < 0.3] = np.nan
    order = np.random.default_rng(seed + 1).permutation(60)
    parts = np.split(order, sorted(cuts))
    merged = sum(metrics.counts(target, label[part], predicted[part]) for part in parts)
    whole = metrics.counts(target, label, predicted)
    assert np.allclose(merged, whole, rtol=1e-12, atol=1e-9)
    assert metrics.ratios(target, merged) == pytest.approx(metrics.ratios(target, whole))


@TARGETS
@given(seed=seeds, padding=st.integers(0, 20), value=st.sampled_from([0.0, 1.0, 1e9, -1e9]))
@quick
def test_unlabelled_samples_change_nothing(
    target: Target, seed: int, padding: int, value: float
) -> None:
    """Batches are padded and labels are missing; neither may move a metric by a bit."""
    label, predicted = sample(target, 30, seed)
    value = float(np.clip(value, 0, 1)) if target.kind != "regression" else value
    blanks = np.full(padding, np.nan, np.float32)
    filler = np.full((padding, *predicted.shape[1:]), value, np.float32)
    padded = metrics.counts(
        target, np.concatenate([label, blanks]), np.concatenate([predicted, filler])
    )
    assert np.array_equal(padded, metrics.counts(target, label, predicted))


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


@given(seed=seeds, n=st.integers(20, 300), sharp=st.floats(0.2, 6))
@quick
def test_the_histogram_auc_is_within_its_resolution(seed: int, n: int, sharp: float) -> None:
    """512 bins: off by at most half the share of pairs that fall into one bin."""
    chance = np.random.default_rng(seed)
    label = (np.arange(n) % 2).astype(np.float32)
    score = (1 / (1 + np.exp(-chance.normal(sharp * (label - 0.5), 1)))).astype(np.float32)
    sums = metrics.counts(SEX, label, score)
    half = len(sums) // 2
    together = float((sums[:half] * sums[half:]).sum()) / (sums[:half].sum() * sums[half:].sum())
    found = metrics.ratios(SEX, sums)["auc"]
    assert abs(found - oracle.roc_auc_score(label, score)) <= together / 2 + 1e-12


def test_the_histogram_resolves_a_thousandth_of_auc() -> None:
    """Smooth scores fill the bins; sites are ranked by differences of a hundredth."""
    label, score = sample(SEX, 4000, 2)
    sums = metrics.counts(SEX, label, score)
    half = len(sums) // 2
    together = float((sums[:half] * sums[half:]).sum()) / (sums[:half].sum() * sums[half:].sum())
    assert together / 2 < 1.5e-3


def test_probabilities_at_the_ends_are_counted() -> None:
    """A sigmoid saturates to exactly 0 and 1 in float32; 0.5 is a positive prediction."""
    label, score = np.array([0, 1, 1, 0], np.float32), np.array([0, 1, 0.5, 0.4999], np.float32)
    found = metrics.ratios(SEX, metrics.counts(SEX, label, score))
    assert found == {"auc": 1.0, "balanced_accuracy": 1.0}
    assert metrics.exact(SEX, label, score) == {"auc": 1.0, "balanced_accuracy": 1.0}


@TARGETS
def test_no_labels_give_no_metrics(target: Target) -> None:
    """Nothing divided by nothing is not zero."""
    label, predicted = sample(target, 5, 0)
    sums = metrics.counts(target, np.full_like(label, np.nan), predicted)
    assert metrics.n_of(target, sums) == 0
    assert metrics.ratios(target, sums) == {}


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
    assert absent not in metrics.ratios(target, metrics.counts(target, y, p))
    assert np.isnan(metrics.exact(target, y, p).get(absent, np.nan))


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


def interval(people: list[str], label: Any, predicted: Any) -> tuple[float, float]:
    weights = metrics.draws(people, np.random.default_rng(0), 2000)
    found = metrics.percentiles(metrics.resampled(AGE, label, predicted, weights)["mae"], 0.95)
    assert found is not None
    return found


def test_repeated_scans_do_not_narrow_an_interval() -> None:
    """Ten scans of each of twenty people are twenty people, not two hundred."""
    label, predicted = sample(AGE, 20, 5)
    people = [f"p{i}" for i in range(20)]
    once = interval(people, label, predicted)
    tenfold = interval(people * 10, np.tile(label, 10), np.tile(predicted, 10))
    assert tenfold == pytest.approx(once, rel=1e-9)
    as_scans = interval([str(i) for i in range(200)], np.tile(label, 10), np.tile(predicted, 10))
    assert as_scans[1] - as_scans[0] < 0.5 * (once[1] - once[0])


def test_percentiles_ignore_resamplings_without_the_metric() -> None:
    """A resampling may hold one class only; it says nothing about AUC."""
    values = np.array([0.1, np.nan, 0.2, 0.3, np.nan, 0.4, 0.5])
    low, high = metrics.percentiles(values, 0.5) or (0, 0)
    assert (low, high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert metrics.percentiles(np.full(3, np.nan), 0.95) is None


@pytest.mark.slow
@pytest.mark.parametrize(("target", "metric"), [(AGE, "mae"), (AGE, "r"), (SEX, "auc")])
def test_intervals_hold_the_truth_about_as_often_as_they_say(target: Target, metric: str) -> None:
    """95 % intervals over 150 people, each with one to three scans, 400 simulated sites."""
    truth = metrics.exact(target, *sample(target, 400_000, 99))[metric]
    inside = 0
    for seed in range(400):
        chance = np.random.default_rng(seed)
        label, predicted = sample(target, 150, seed + 1000)
        times = chance.integers(1, 4, 150)
        people = [f"p{i}" for i in np.repeat(np.arange(150), times)]
        weights = metrics.draws(people, chance, 500)
        drawn = metrics.resampled(
            target, np.repeat(label, times), np.repeat(predicted, times), weights
        )
        low, high = metrics.percentiles(drawn[metric], 0.95) or (0, 0)
        inside += low <= truth <= high
    assert 0.90 <= inside / 400 <= 0.98


@TARGETS
def test_every_metric_that_is_told_has_a_name(target: Target) -> None:
    """A coordinator knows by these what a site may say of a target."""
    label, predicted = sample(target, 60, 1)
    assert set(metrics.names(target)) == set(metrics.exact(target, label, predicted))
    assert metrics.primary(target) in metrics.names(target)
