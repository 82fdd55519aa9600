"""Targets as numbers, logarithms, medians and quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.objectives import regression
from common.sections import Target
from common.target_transform import restored, transformed

AGE = Target(kind="regression", transform="log", low=1.0, high=120.0, centre=30.0, scale=0.4)


@given(st.floats(1.0, 120.0))
def test_a_logarithm_comes_back_as_it_was(age: float) -> None:
    """What a network learns and what a linear model learns both lead back to years."""
    label = torch.tensor([age], dtype=torch.float64)
    assert regression.value(AGE, regression.wanted(AGE, label)).item() == pytest.approx(age)
    assert restored(AGE, transformed(AGE, np.array([age]))).item() == pytest.approx(age)


def test_no_prediction_of_a_logarithm_leaves_the_targets_bounds() -> None:
    """A far-off scan must not become e^50 years."""
    found = regression.value(AGE, torch.tensor([1e4, -1e4]))
    assert found.tolist() == pytest.approx([120.0, 1.0], rel=1e-5)
    assert restored(AGE, np.array([900.0, -900.0])).tolist() == pytest.approx([120.0, 1.0])


@pytest.mark.parametrize(("loss", "quantile"), [("l1", 0.5), ("quantile", 0.5), ("quantile", 0.8)])
def test_absolute_and_pinball_losses_are_least_at_their_quantile(
    loss: str, quantile: float
) -> None:
    """Of skewed labels a squared loss finds the mean, these the median or another quantile."""
    target = Target(kind="regression", loss=loss, quantile=quantile)  # type: ignore[arg-type]
    labels = torch.from_numpy(np.random.default_rng(0).exponential(size=4001))
    grid = torch.linspace(0, 5, 1001, dtype=torch.float64)
    losses = torch.stack(
        [regression.loss(target, one.expand(4001), labels, "huber").mean() for one in grid]
    )
    assert float(grid[losses.argmin()]) == pytest.approx(
        float(np.quantile(labels, quantile)), abs=0.01
    )


def test_a_targets_own_loss_goes_before_the_objectives() -> None:
    """Ages by a median and volumes by a mean in one study."""
    off, none = torch.tensor([3.0]), torch.zeros(1)
    plain, own = Target(kind="regression"), Target(kind="regression", loss="squared")
    assert regression.loss(plain, off, none, "huber").item() == pytest.approx(2.5)
    assert regression.loss(own, off, none, "huber").item() == pytest.approx(4.5)
    l1 = Target(kind="regression", loss="l1")
    assert regression.loss(l1, off, none, "huber").item() == pytest.approx(3.0)
