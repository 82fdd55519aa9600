"""Columns that cannot be of one unit, and those of hospitals that only differ."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import column_units
from common.column_units import Columns, among_all, apart, factors


def columns(mean: float, deviation: float) -> Columns:
    return Columns(np.array([mean]), np.array([deviation]))


@given(
    st.sampled_from([1e-6, 1e-3, 0.01, 0.1, 1 / 25.4, 1 / 2.54, 2.54, 25.4, 10, 100, 1000]),
    st.floats(0.85, 1.18),
    st.floats(0.8, 1.25),
)
def test_units_are_told_between_hospitals_that_differ(
    factor: float, mean: float, spread: float
) -> None:
    """A volume of 3500 (400) mm3; another hospital's people differ by what age and disease do."""
    here = columns(3500.0, 400.0)
    there = columns(3500.0 * mean * factor, 400.0 * spread * factor)
    assert apart(here, there).all()
    assert apart(there, here).all()
    assert factors(there, here)[0] == pytest.approx(factor * mean, rel=0.1)


@given(st.floats(0.6, 1.6), st.floats(0.5, 2.0))
def test_other_people_are_no_other_unit(mean: float, spread: float) -> None:
    """Children beside the old, another scanner, a disease: never more than half as much again."""
    assert not apart(columns(3500.0, 400.0), columns(3500.0 * mean, 400.0 * spread)).any()


@pytest.mark.parametrize("shift", [0.0, 1.0, 5.0])
def test_standardised_columns_may_lie_apart(shift: float) -> None:
    """Around zero there is no factor to speak of."""
    assert not apart(columns(0.0, 1.0), columns(shift, 1.1)).any()
    assert apart(columns(0.0, 1.0), columns(12.0, 1.1)).all()


def test_columns_that_do_not_vary_say_nothing_of_a_unit() -> None:
    """A scanner's field strength is 1.5 everywhere at one site and 3 at another."""
    assert not apart(columns(1.5, 0.0), columns(3.0, 0.0)).any()
    assert apart(columns(0.0, 0.0), columns(3500.0, 400.0)).all()
    assert not apart(columns(0.0, 0.0), columns(0.0, 0.0)).any()


def together(*parts: tuple[int, float, float]) -> Columns:
    """All of several sites' data, given as (n, mean, deviation)."""
    n = sum(part[0] for part in parts)
    mean = sum(n_s * m for n_s, m, _ in parts) / n
    square = sum(n_s * (m * m + d * d) for n_s, m, d in parts) / n
    return columns(mean, float(np.sqrt(square - mean * mean)))


@pytest.mark.parametrize("factor", [1e-3, 0.1, 1 / 2.54, 2.54, 12, 1000])
def test_a_site_sees_from_all_data_together_that_it_counts_otherwise(factor: float) -> None:
    """Large units swallow the mean of all, small ones vanish in it; those in the right stay quiet."""
    others = [(40, 3300.0, 420.0), (60, 3600.0, 380.0), (50, 3500.0, 400.0)]
    own = (45, 3450.0 * factor, 410.0 * factor)
    joint = together(own, *others)
    told, shares, means = among_all(columns(*own[1:]), joint)
    assert told.all()
    assert shares[0] == pytest.approx(150 / 195, abs=0.06)
    assert means[0] == pytest.approx(3480, rel=0.06)
    for _, mean, spread in others:
        assert not among_all(columns(mean, spread), joint)[0].any()


def test_of_two_sites_that_differ_both_see_it() -> None:
    """And a site whose data are no part of all sees it, too: one that was held out."""
    mm3, cm3 = (50, 3500.0, 400.0), (50, 3.4, 0.45)
    joint = together(mm3, cm3)
    assert among_all(columns(*mm3[1:]), joint)[0].all()
    assert among_all(columns(*cm3[1:]), joint)[0].all()
    assert among_all(columns(*cm3[1:]), columns(*mm3[1:]))[0].all()


@given(st.lists(st.tuples(st.integers(20, 300), st.floats(2900, 4000), st.floats(250, 700)),
                min_size=2, max_size=6))  # fmt: skip
def test_a_site_among_its_like_sees_nothing(parts: list[tuple[int, float, float]]) -> None:
    """A false alarm in every hospital's log would soon be read by nobody."""
    joint = together(*parts)
    for _, mean, spread in parts:
        assert not among_all(columns(mean, spread), joint)[0].any()


def test_columns_come_of_sums_and_of_no_others() -> None:
    """What a plug-in sums otherwise is not compared."""
    x = np.random.default_rng(0).normal(5, 2, (50, 3))
    sums = {"a/sum": x.sum(0), "a/squares": (x**2).sum(0), "a/n": np.array(50.0)}
    found = Columns.of_sums(sums, "a")
    assert found is not None
    np.testing.assert_allclose(found.mean, x.mean(0))
    np.testing.assert_allclose(found.deviation, x.std(0))
    assert Columns.of_sums(sums, "b") is None
    assert Columns.of_sums({**sums, "a/n": np.array(0.0)}, "a") is None


def test_a_column_with_holes_is_measured_by_who_has_it() -> None:
    """Half of a column missing would halve its mean; what nobody has is of no unit."""
    x = np.random.default_rng(0).normal(5, 2, (50, 2))
    known = np.array([30.0, 0.0])
    some = np.where(np.arange(50)[:, None] < known, x, 0.0)
    sums = {"a/sum": some.sum(0), "a/squares": (some**2).sum(0), "a/n": np.array(50.0)}
    found = Columns.of_sums({**sums, "a/n_known": known}, "a")
    assert found is not None
    np.testing.assert_allclose(found.mean, [x[:30, 0].mean(), np.nan])
    whole = Columns(np.array([5.0, 5.0]), np.array([2.0, 2.0]))
    assert apart(found, whole).tolist() == [False, False]
    assert among_all(found, whole)[0].tolist() == [False, False]


def test_the_examples_in_the_documentation_run() -> None:
    """Words that a person reads in a log."""
    assert doctest.testmod(column_units).failed == 0
