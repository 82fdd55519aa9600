"""Means over sites, paired differences and their p-values, against figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from deploy.loso.findings import Row, contestants, mean, pairs
from server.report.verdicts import holm

SITES = ("a", "b", "c", "d", "e", "f")
FIRST = (0.71, 0.64, 0.80, 0.59, 0.77, 0.69)
SECOND = (0.66, 0.65, 0.70, 0.52, 0.71, 0.60)


def rows(study: str, values: Any, metric: str = "auc", model: str = "federated") -> list[Row]:
    return [
        Row(
            target="ill", study=study, model=model, site=site, metric=metric, value=value,
            ci_low=None, ci_high=None, n_participants=20, n_scans=20,
        )
        for site, value in zip(SITES, values, strict=False)
    ]  # fmt: skip


def test_a_pair_is_the_mean_of_differences_site_by_site() -> None:
    """By hand: differences 5, -1, 10, 7, 6, 9 points; ranks of 21, and 1 of them against."""
    (pair,) = pairs(rows("one", FIRST) + rows("two", SECOND), ["one", "two"], "ill")
    assert pair.difference.value == pytest.approx(0.06)
    half = 2.5706 * 0.038987 / 6**0.5  # t of 5 degrees, the differences' deviation
    assert pair.difference.low == pytest.approx(0.06 - half, abs=1e-4)
    assert pair.difference.high == pytest.approx(0.06 + half, abs=1e-4)
    assert (pair.ahead, pair.behind) == (5, 1)
    assert pair.p == pair.adjusted == pytest.approx(2 * 2 / 2**6)  # rank sums of 0 and of 1
    assert pair.verdict == "not distinguishable"


def test_a_pair_is_over_the_sites_that_have_both_values() -> None:
    """One class alone has no AUC: the site enters neither mean nor test of the pair."""
    lacking = (*FIRST[:2], None, *FIRST[3:])
    (pair,) = pairs(rows("one", lacking) + rows("two", SECOND), ["one", "two"], "ill")
    assert pair.difference.sites == 5
    assert pair.difference.value == pytest.approx((5 - 1 + 7 + 6 + 9) / 500)


def test_a_study_is_held_against_rivals_that_need_no_network() -> None:
    """A network that a median beats at every site must not look like a result; rivals are no pair."""
    medians = rows("one", FIRST, "mae", "training-median")
    means = rows("one", SECOND, "mae", "training-mean")
    found = pairs(rows("one", SECOND, "mae") + medians + means, ["one"], "ill")
    assert [(pair.first, pair.second) for pair in found] == [
        ("one", "training-median"), ("one", "training-mean"),
    ]  # fmt: skip
    assert found[0].difference.value == pytest.approx(-0.06)


def test_a_mean_over_people_counts_each_once_and_is_unsure_by_sites() -> None:
    """Two sites of ten and one of eighty: their people's mean, and what leaving each out does."""
    found = mean([1.0, 2.0, 5.0], [10, 10, 80])
    assert found.value == pytest.approx(4.3)
    left = [(2 * 10 + 5 * 80) / 90, (1 * 10 + 5 * 80) / 90, (1 * 10 + 2 * 10) / 20]
    centre = sum(left) / 3
    error = (2 / 3 * sum((one - centre) ** 2 for one in left)) ** 0.5
    assert found.low == pytest.approx(4.3 - 4.302653 * error)
    assert mean([0.2, 0.4, 0.9], [5, 5, 5]) == mean([0.2, 0.4, 0.9])


def test_the_interval_of_a_share_ends_at_one() -> None:
    """0.92 (0.73 to 1.11) was printed of three hospitals."""
    found = mean([0.924, 0.847, 1.0], largest=1.0)
    assert (found.low, found.high) == (pytest.approx(0.7338, abs=1e-3), 1.0)


def test_equal_studies_differ_in_nothing() -> None:
    """No rank can be given; that is no error, and no finding."""
    (pair,) = pairs(rows("one", FIRST) + rows("two", FIRST), ["one", "two"], "ill")
    assert (pair.difference.value, pair.p, pair.ahead, pair.behind) == (0, 1, 0, 0)


def test_p_values_are_adjusted_over_all_pairs_of_a_target() -> None:
    """Ten pairs at 5 % each would find something between equal studies in four of ten tables."""
    better = [value + 0.2 for value in FIRST]
    three = rows("one", FIRST) + rows("two", SECOND) + rows("three", better)
    found = pairs(three, ["one", "two", "three"], "ill")
    assert [(pair.first, pair.second) for pair in found] == [
        ("one", "two"), ("one", "three"), ("two", "three"),
    ]  # fmt: skip
    assert [pair.adjusted for pair in found] == holm([pair.p for pair in found])
    assert found[2].adjusted == pytest.approx(3 * 2 / 2**6)


def test_a_lower_error_is_better() -> None:
    """Of MAE the difference has the other sign."""
    low, high = [1.0 + 0.01 * n for n in range(6)], [3.0 + 0.1 * n for n in range(6)]
    (pair,) = pairs(rows("one", low, "mae") + rows("two", high, "mae"), ["one", "two"], "ill")
    assert (pair.ahead, pair.behind) == (6, 0)
    assert pair.verdict == "one better"


@pytest.mark.parametrize("values", [(0.5, 0.7, 0.6, 0.9), FIRST])
def test_an_interval_is_students_t_over_sites(values: Any) -> None:
    """scipy's own interval is the oracle; fewer than three sites have none."""
    found = mean(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert mean(values[:2]).low is None


def test_a_rival_stands_once_beside_the_studies() -> None:
    """Several studies hold the same rivals: the first that has one shows it."""
    both = [
        *rows("one", FIRST), *rows("two", SECOND),
        *rows("two", SECOND, model="pooled-linear"), *rows("one", FIRST, model="pooled"),
        *rows("two", SECOND, model="pooled"),
    ]  # fmt: skip
    assert list(contestants(both, ["one", "two"])) == [
        ("one", "federated"), ("two", "federated"), ("one", "pooled"), ("two", "pooled-linear"),
    ]  # fmt: skip
