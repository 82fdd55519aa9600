"""Linear rivals against plain scikit-learn; their penalty is chosen by people they have not seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from client.learning import linear
from client.learning.linear import STRENGTHS, LinearModel, choose, fit
from common import metrics
from common.sections import Target

AGE = Target(kind="regression", unit="years")
SEX = Target(kind="binary", classes=("female", "male"))
STATE = Target(kind="categorical", classes=("rest", "left", "right", "tongue"))
TARGETS = pytest.mark.parametrize("target", [AGE, SEX, STATE], ids=["age", "sex", "state"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """The oracle is as slow as we would be: many threads on small matrices wait for each other."""
    with threadpool_limits(1):
        yield


def sample(target: Target, n: int = 120, columns: int = 6, seed: int = 0) -> tuple[Any, Any]:
    """Features of very different scales, and labels that depend on them."""
    chance = np.random.default_rng(seed)
    z = chance.normal(size=(n, columns))
    x = z * 10.0 ** np.arange(-2, columns - 2) + 1000
    signal = z[:, 0] + 0.5 * z[:, 1] + chance.normal(0, 0.7, n)
    if target.kind == "regression":
        return x, (50 + 10 * signal).astype(np.float32)
    if target.kind == "binary":
        return x, (signal > 0.3).astype(np.float32)
    return x, np.digitize(signal, [-0.7, 0.0, 0.7]).astype(np.float32)


def sklearn_says(target: Target, x: Any, y: Any, c: float, unseen: Any) -> Any:
    if target.kind == "regression":
        return make_pipeline(StandardScaler(), Ridge(alpha=1 / c)).fit(x, y).predict(unseen)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    chances = model.fit(x, y.astype(int)).predict_proba(unseen)
    return chances[:, 1] if target.kind == "binary" else chances


@TARGETS
@pytest.mark.parametrize("c", [STRENGTHS[0], STRENGTHS[4], STRENGTHS[-1]])
def test_fits_are_those_of_scikit_learn(target: Target, c: float) -> None:
    """The rival that a deep network must beat has to be the one that everybody knows."""
    x, y = sample(target)
    fitted, unseen = np.arange(0, 80), np.arange(80, 120)
    model = fit(target, x, y, fitted, c)
    wanted = sklearn_says(target, x[fitted], y[fitted], c, x[unseen])
    assert model.predict(x, unseen) == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@TARGETS
def test_more_columns_than_people_are_fitted_alike(target: Target) -> None:
    """A connectome has 19,900 edges; the short way to its fit must be the fit itself."""
    x, y = sample(target, n=60)
    x = np.hstack([x, np.random.default_rng(1).normal(size=(60, 150)) @ np.eye(150, 200)])
    fitted, unseen = np.arange(0, 40), np.arange(40, 60)
    model = fit(target, x, y, fitted, STRENGTHS[3])
    wanted = sklearn_says(target, x[fitted], y[fitted], STRENGTHS[3], x[unseen])
    assert model.coefficients.shape[0] == 206
    assert model.predict(x, unseen) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@TARGETS
def test_a_model_is_plain_numbers(target: Target) -> None:
    """What is sent to a judge predicts what was fitted, to the bit."""
    x, y = sample(target)
    model = fit(target, x, y, np.arange(80), 1.0)
    again = LinearModel.from_arrays("a", target, model.arrays("a"))
    everyone = np.arange(len(x))
    assert np.array_equal(again.predict(x, everyone), model.predict(x, everyone))


@pytest.mark.parametrize("seen", [(0, 2), (1, 2, 3), (1, 3)])
def test_a_class_that_a_fit_never_saw_is_never_predicted(seen: tuple[int, ...]) -> None:
    """A site without `tongue` still speaks of the study's four classes, in their order."""
    x, y = sample(STATE)
    fitted = np.flatnonzero(np.isin(y, seen))
    found = fit(STATE, x, y, fitted, 1.0).predict(x, np.arange(len(x)))
    wanted = sklearn_says(STATE, x[fitted], y[fitted], 1.0, x)
    assert found.shape == (len(x), 4)
    assert found[:, list(seen)] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    assert not found[:, [k for k in range(4) if k not in seen]].any()


def test_a_fit_reads_nobody_else() -> None:
    """Neither features nor labels of the others, not even for centre and scale."""
    x, y = sample(AGE)
    fitted = np.arange(0, 60)
    first = fit(AGE, x, y, fitted, 1.0)
    x[60:], y[60:] = 1e12, np.nan
    second = fit(AGE, x, y, fitted, 1.0)
    assert np.array_equal(first.coefficients, second.coefficients)
    assert np.array_equal(first.centre, second.centre)


def test_a_column_that_does_not_vary_is_harmless() -> None:
    """A region that the segmentation never finds is 0 for everyone."""
    x, y = sample(AGE)
    constant = np.concatenate([x, np.full((len(x), 1), 7.7), np.zeros((len(x), 1))], axis=1)
    everyone = np.arange(len(x))
    wide = fit(AGE, constant, y, everyone, 1.0).predict(constant, everyone)
    assert wide == pytest.approx(fit(AGE, x, y, everyone, 1.0).predict(x, everyone), rel=1e-9)


def folds_of(n: int, count: int = 4) -> list[tuple[Any, Any]]:
    fold = np.arange(n) % count
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]


@TARGETS
@pytest.mark.parametrize("seed", range(2))
def test_the_penalty_is_the_one_that_does_best_on_held_out_folds(target: Target, seed: int) -> None:
    """By the target's own metric, over all held-out people at once; never by the fit itself."""
    x, y = sample(target, n=60, columns=25, seed=seed)
    folds = folds_of(60)
    scores = []
    for c in STRENGTHS:
        predicted = [sklearn_says(target, x[rest], y[rest], c, x[held]) for rest, held in folds]
        label = np.concatenate([y[held] for _, held in folds])
        found = metrics.exact(target, label, np.concatenate(predicted))[metrics.primary(target)]
        scores.append(-found if target.kind == "regression" else found)
    assert len({round(score, 6) for score in scores}) > 2
    assert choose(target, x, y, folds) == STRENGTHS[int(np.argmax(scores))]


def test_noise_asks_for_the_strongest_penalty() -> None:
    """With as many columns of noise as people, the fit itself would choose the weakest."""
    chance = np.random.default_rng(1)
    x, y = chance.normal(size=(200, 150)), chance.normal(50, 10, 200).astype(np.float32)
    assert choose(AGE, x, y, folds_of(200)) <= STRENGTHS[1]


def test_folds_without_a_ranking_leave_the_middle_penalty() -> None:
    """Held-out people of one class have no AUC; that must not crash a site."""
    x, y = sample(SEX)
    positives, rest = np.flatnonzero(y == 1), np.arange(40)
    assert choose(SEX, x, y, [(rest, positives[-5:])]) == 1.0


def test_a_scan_without_regions_is_read_in_coarse_blocks() -> None:
    """Means over blocks, the remainder spread as NumPy splits; every voxel counts once."""
    chance = np.random.default_rng(0)
    scan = chance.normal(size=(13, 12, 7))
    blocks = linear._blocks(scan)
    assert blocks.shape == (6 * 6 * 6,)
    first = scan[:3, :2, :2].mean(2).mean(1).mean(0)
    assert blocks[0] == pytest.approx(first)
    assert linear._blocks(np.full((13, 12, 7), 2.5)) == pytest.approx(np.full(216, 2.5))
