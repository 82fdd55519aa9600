"""Sites told apart by features, from sums: what a discriminant of all rows says, and luck beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from common.errors import Refusal
from common.site_shortcuts import Moments, guessed, plan_of_sums, refuse_unsound, sums_of
from common.study import parse_study
from tests.conftest import FEATURES, overridden

D = 6


def study() -> Any:
    return parse_study(overridden(FEATURES, {"evaluation.shortcuts": D}), Path("study.toml"))


def people(apart: float, n: int, seed: int) -> dict[str, Any]:
    """Three sites of twelve features, `apart` deviations from each other in one of them."""
    random, found = np.random.default_rng(seed), {}
    for number, name in enumerate(("a", "b", "c")):
        x = random.normal(size=(n, 12)) @ np.diag(np.linspace(0.5, 2, 12))
        x[:, 3] += apart * number
        found[name] = x
    return found


def moments(rows: dict[str, Any]) -> dict[str, Moments]:
    found = {}
    for name, x in rows.items():
        sums = sums_of(study(), x)
        assert {key: value.shape for key, value in sums.items()} == {
            key: rule.shape for key, rule in plan_of_sums(study()).items()
        }
        refuse_unsound(sums)
        found[name] = Moments.of_sums(sums)
    return found


@pytest.mark.parametrize("apart", [0.0, 1.0, 4.0, 20.0])
def test_sums_tell_what_a_discriminant_of_all_rows_tells(apart: float) -> None:
    """Scores are taken for normal, and nothing else: scikit-learn with the rows finds the same."""
    fitted, judged = people(apart, 300, 1), people(apart, 300, 2)
    found = guessed(moments(fitted), moments(judged), seed=3)
    assert found is not None
    from common.seeding import seed_of

    directions = np.random.default_rng(seed_of(study().seed, "shortcuts")).normal(size=(12, D))
    y = np.repeat(np.arange(3), 300)
    rows, others = (np.concatenate(list(of.values())) @ directions for of in (fitted, judged))
    oracle = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(rows, y).score(others, y)
    assert found.share == pytest.approx(oracle, abs=0.03)
    assert (found.chance, found.sites) == (1 / 3, 3)
    assert (found.share > found.luck) == (apart > 0)


def test_luck_is_what_sites_of_one_distribution_give() -> None:
    """Of few people a discriminant guesses well by accident; nineteen of twenty stay within luck."""
    beyond = 0
    for seed in range(16):
        found = guessed(
            moments(people(0.0, 25, 2 * seed)), moments(people(0.0, 25, 2 * seed + 1)), 5
        )
        assert found is not None
        beyond += found.share > found.luck
    assert beyond <= 3  # binomial(16, 0.05) is more in 0.7 % of cases


def test_one_site_alone_cannot_be_told_from_any() -> None:
    """And a site that gave sums of only one split takes no part."""
    of = moments(people(1.0, 30, 1))
    assert guessed({"a": of["a"]}, {"a": of["a"]}, 1) is None
    assert guessed({"a": of["a"], "b": of["b"]}, {"b": of["b"]}, 1) is None


@pytest.mark.parametrize(("key", "value"), [("n", 0.0), ("n", 2.5), ("sum", 1e6)])
def test_sums_that_nobodys_features_have_are_refused(key: str, value: float) -> None:
    """A site that divides everybody by nothing ends no run."""
    sums = {name: array.copy() for name, array in sums_of(study(), people(0, 30, 1)["a"]).items()}
    sums[key] = np.full_like(sums[key], value)
    with pytest.raises(Refusal):
        refuse_unsound(sums)
