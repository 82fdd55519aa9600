"""Statistics over overlapping draws, against formulas written out and against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from client.learning.resampled_statistics import FLIPS, corrected_mean, sign_flip


def test_the_correction_is_nadeau_and_bengios() -> None:
    """Formula 10 of the paper, written out: s^2 (1/J + n2/n1), Student's with J - 1."""
    values, ratio = np.random.default_rng(1).normal(0.1, 0.2, 15), 40 / 200
    found = corrected_mean(values, ratio, 0.9)
    mean = sum(values) / 15
    variance = sum((one - mean) ** 2 for one in values) / 14
    error = math.sqrt((1 / 15 + ratio) * variance)
    assert found.value == pytest.approx(mean)
    assert found.bounds == pytest.approx(
        (mean - stats.t.ppf(0.95, 14) * error, mean + stats.t.ppf(0.95, 14) * error)
    )
    assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, 14))


def test_without_overlap_the_correction_is_students() -> None:
    """The limit where it must vanish."""
    values = np.random.default_rng(2).normal(size=12)
    plain = stats.ttest_1samp(values, 0.0)
    found, bounds = corrected_mean(values, 0.0, 0.95), plain.confidence_interval(0.95)
    assert found.p == pytest.approx(plain.pvalue)
    assert found.bounds == pytest.approx((bounds.low, bounds.high))


def test_two_repeats_have_no_interval() -> None:
    """A spread of two is chance."""
    assert corrected_mean(np.array([0.1, 0.2]), 0.2, 0.95).bounds is None


def test_repeats_that_all_agree_are_told_apart_only_from_zero() -> None:
    """No spread at all: the p-value of equality is one if, and only if, nothing differs."""
    assert corrected_mean(np.zeros(5), 0.2, 0.95).p == 1.0
    assert corrected_mean(np.full(5, 0.25), 0.2, 0.95).p == 0.0


def resampled_means(random: np.random.Generator, people: int, repeats: int) -> np.ndarray:
    """Differences of two fixed rules by repeat, on a seventh of `people` who are drawn anew."""
    differences = random.normal(size=people)
    share = people // 7
    return np.array([
        differences[random.permutation(people)[:share]].mean() for _ in range(repeats)
    ])  # fmt: skip


def test_overlapping_repeats_of_equal_ways_are_rarely_told_apart() -> None:
    """The sign-flip test takes repeats for independent and is fooled; the correction is not.

    Both ways are equal in the population and differ in these people by chance.
    """
    random = np.random.default_rng(3)
    corrected, flipped = [], []
    for number in range(200):
        values = resampled_means(random, people=70, repeats=40)
        corrected.append(corrected_mean(values, 1 / 5, 0.95).p < 0.05)
        if number < 40:
            flipped.append(sign_flip(values, number) < 0.05)
    assert np.mean(corrected) <= 0.08
    assert np.mean(flipped) > 0.2


@pytest.mark.parametrize("repeats", [2, 5, 9])
def test_few_repeats_try_all_signs(repeats: int) -> None:
    """Enumerated by hand: the share of sign patterns at least as far from zero."""
    values = np.random.default_rng(repeats).normal(0.3, 1.0, repeats)
    means = [
        abs(np.mean(values * np.array(signs)))
        for signs in itertools.product((1, -1), repeat=repeats)
    ]
    wanted = np.mean(np.array(means) >= abs(values.mean()) - 1e-12)
    assert sign_flip(values, seed=0) == pytest.approx(wanted)


def test_many_repeats_draw_ten_thousand_patterns_from_their_seed() -> None:
    """The least p-value is 1/10,001 twice, the same on every night."""
    values = np.full(100, 0.01) + np.random.default_rng(0).normal(0, 1e-4, 100)
    assert sign_flip(values, seed=4) == pytest.approx(2 / (FLIPS + 1))
    mild = np.random.default_rng(1).normal(0.1, 1.0, 100)
    assert sign_flip(mild, seed=4) == sign_flip(mild, seed=4)


def test_a_single_repeat_tells_nothing() -> None:
    """Either sign is as far from zero."""
    assert sign_flip(np.array([0.4]), seed=0) == 1.0
