"""Correlations agree with NumPy and nilearn where all is well, and say what was not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.connectivity import edges, matrix, signals


def series(points: int = 90, regions: int = 7, seed: int = 0) -> Any:
    chance = np.random.default_rng(seed)
    mixing = chance.normal(size=(regions, regions)) + 2 * np.eye(regions)
    return 50 + 10 * chance.normal(size=(points, regions)) @ mixing


def test_correlations_are_those_of_numpy() -> None:
    """The plainest measure has an oracle that everybody trusts."""
    found = signals(series())
    wanted = np.corrcoef(series().T)
    assert matrix(found, "pearson") == pytest.approx(wanted)
    np.fill_diagonal(wanted, 0)
    assert matrix(found, "fisher-z") == pytest.approx(np.arctanh(wanted))


@pytest.mark.parametrize(("measure", "kind"), [("ledoit-wolf", "correlation"),
                                               ("partial", "partial correlation")])  # fmt: skip
def test_shrunk_measures_are_those_of_nilearn(measure: Any, kind: str) -> None:
    """Whoever compares with the field's own library finds the same numbers."""
    from nilearn.connectome import ConnectivityMeasure
    from sklearn.covariance import LedoitWolf

    z_scored = (series() - series().mean(0)) / series().std(0)
    estimator = LedoitWolf(assume_centered=True)
    oracle = ConnectivityMeasure(cov_estimator=estimator, kind=kind, standardize=False)
    wanted = oracle.fit_transform([z_scored])[0]
    assert matrix(signals(series()), measure) == pytest.approx(wanted, abs=1e-9)


@given(pad=st.integers(2, 200), gaps=st.integers(0, 20), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_zeros_at_the_end_and_gaps_change_nothing(pad: int, gaps: int, seed: int) -> None:
    """Padding correlates regions with each other in what was never measured."""
    whole = series(seed=seed)
    holed = np.insert(whole, np.linspace(1, 89, gaps).astype(int), np.nan, axis=0)
    padded = np.vstack([holed, np.zeros((pad, 7))])
    found = signals(padded)
    assert (found.padded, found.gaps) == (pad, gaps)
    assert matrix(found, "pearson") == pytest.approx(matrix(signals(whole), "pearson"))


@pytest.mark.parametrize("measure", ["pearson", "fisher-z", "ledoit-wolf", "partial"])
def test_a_region_without_signal_is_a_row_of_zeros(measure: Any) -> None:
    """Undefined is not perfectly correlated, and not a number that training would choke on."""
    whole = series()
    whole[:, 2] = 1234.5
    whole[:60, 5] = np.nan
    found = signals(whole)
    assert np.flatnonzero(found.silent).tolist() == [2, 5]
    values = matrix(found, measure)
    assert np.isfinite(values).all()
    assert not values[[2, 5]].any()
    assert not values[:, [2, 5]].any()
    heard = [0, 1, 3, 4, 6]
    assert values[np.ix_(heard, heard)] == pytest.approx(matrix(signals(whole[:, heard]), measure))


def test_equal_regions_have_a_finite_fisher_z() -> None:
    """Two parcels of one voxel would be infinitely alike."""
    whole = series()
    whole[:, 1] = whole[:, 0]
    assert matrix(signals(whole), "fisher-z")[0, 1] == pytest.approx(7.25, abs=0.01)


@pytest.mark.parametrize("content", [np.zeros((50, 7)), np.full((50, 7), np.nan)])
def test_nothing_at_all_is_silence(content: Any) -> None:
    """A run of zeros must reach the check that names it, not a division by none."""
    found = signals(content)
    assert found.silent.all()
    assert len(edges(matrix(found, "pearson")) if len(found.series) else np.zeros(21)) == 21
