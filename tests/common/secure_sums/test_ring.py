"""Fixed-point sums are exact in the ring and near the plain mean, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refusal
from common.secure_sums.ring import Scale, add, from_fractions, in_fractions

EIGHT = Scale(8.0, 8, np.dtype(np.int32))
DTYPES = st.sampled_from([np.dtype(np.int32), np.dtype(np.int64)])
WEIGHTS = st.lists(st.just(0) | st.integers(100, 10_000), min_size=3, max_size=12)


@given(WEIGHTS, st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 8.0, 1000.0]), DTYPES)
def test_a_sum_of_steps_is_the_weighted_mean_to_half_a_step_a_site(weights, seed, largest, dtype):
    """The bound is what the limit costs in precision: none of it comes from the ring."""
    random = np.random.default_rng(seed)
    updates = [random.uniform(-largest, largest, 40) for _ in weights]
    sites, held = len(weights), sum(weights) + int(random.integers(0, 100)) + 1
    total, scale = np.zeros(40, dtype), Scale(largest, sites, dtype)
    for update, weight in zip(updates, weights, strict=True):
        add(total, scale.encoded(update, weight / held))
    shares = sum(weights) / held
    assert scale.fits(total, shares)
    if not shares:
        assert not total.any()
        return
    plain = sum(w * u for w, u in zip(weights, updates, strict=True)) / sum(weights)
    step = largest / ((2**31 - 1 if dtype.itemsize == 4 else 2**62) - sites)
    rounding = 1e-15 * largest * sites / shares  # float64 has 53 bits of the 62
    assert np.abs(scale.decoded(total, shares) - plain).max() <= (
        (sites / 2 / shares) * step * 1.001 + rounding
    )


def test_the_largest_updates_of_all_sites_together_stay_in_the_ring():
    """At the very limit, all of one sign: what would wrap around would come out with the other."""
    for sites in (3, 8, 1000):
        for dtype in (np.dtype(np.int32), np.dtype(np.int64)):
            total, scale = np.zeros(1, dtype), Scale(8.0, sites, dtype)
            for _ in range(sites):
                add(total, scale.encoded(np.array([8.0]), 1 / sites))
            assert scale.decoded(total, 1.0) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("wrong", [8.0001, -9.0, np.nan, np.inf])
def test_nothing_beyond_the_limit_is_cut_off_in_silence(wrong):
    """A site that would exceed it declines; a clipped number would be a wrong mean, unseen."""
    with pytest.raises(Refusal) as caught:
        EIGHT.encoded(np.array([0.0, wrong]), 0.5)
    assert caught.value.code == "UPDATE_TOO_LARGE"


@pytest.mark.parametrize("share", [1.01, -0.1, np.nan, 1e-9, 4e-4])
def test_a_share_that_cannot_be_is_refused(share):
    """Totals are the coordinator's word: too small ones would have sums wrap around; under too large
    ones all parts but the largest site's would vanish in rounding, and its update be the sum.
    """
    with pytest.raises(Refusal):
        EIGHT.encoded(np.zeros(3), share)


def test_a_sum_that_honest_sites_cannot_have_is_seen():
    """Half of all data cannot move a number by more than half the limit in the sum."""
    total = np.array([2**30 + 2000], np.int32)
    assert EIGHT.fits(total, 0.51)
    assert not EIGHT.fits(total, 0.5)
    assert not EIGHT.fits(-total, 0.5)
    assert not EIGHT.fits(np.array([-(2**31)], np.int32), 0.99)


@given(st.floats(-1e8, 1e8))
def test_sums_of_losses_come_back_to_a_sixteen_millionth(value):
    """Losses are told in three figures anyway."""
    assert abs(from_fractions(in_fractions(value)) - value) <= 2**-25


@pytest.mark.parametrize("value", [1e12, -1e12, float("inf")])
def test_a_sum_that_the_ring_might_not_hold_is_no_number(value):
    """It stays at the site, as what too few people stand behind."""
    assert in_fractions(value) is None if np.isfinite(value) else True


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_adding_goes_round_the_ring_in_both_directions(dtype):
    """Masks are uniform: without the ring they could not hide what they are added to."""
    info = np.iinfo(dtype)
    total = np.array([info.max, info.min, 5], dtype)
    other = np.array([1, -1, 7], dtype)
    add(total, other)
    assert total.tolist() == [info.min, info.max, 12]
    add(total, other, minus=True)
    assert total.tolist() == [info.max, info.min, 5]
