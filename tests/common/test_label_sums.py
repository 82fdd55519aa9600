"""Mean and median of all sites' labels, from sums in which nobody's label shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import label_sums
from common.errors import Refusal
from common.label_sums import MEAN, MEDIAN, constants_of, plan_of_sums, refuse_unsound, sums_of
from common.study import parse_study
from tests.conftest import FEATURES

AGE = {
    "kind": "regression",
    "unit": "years",
    "centre": 30.0,
    "scale": 13.0,
    "low": 1.0,
    "high": 120.0,
}


def study(**age: Any) -> Any:
    targets = {**FEATURES["targets"], "age": {**AGE, **age}}
    return parse_study({**FEATURES, "targets": targets}, Path("s.toml"))


def told(agreed: Any, ages: Any, minimum: int = 10) -> dict[str, Any]:
    return sums_of("age", agreed.targets["age"], ages, np.arange(len(ages)), minimum)


@pytest.mark.parametrize("transform", ["none", "log"])
def test_mean_and_median_are_those_of_everyone(transform: str) -> None:
    """Skewed ages of unlike sites: the mean to three figures, the median to half a year."""
    agreed = study(transform=transform, scale=0.4 if transform == "log" else 13.0)
    random = np.random.default_rng(0)
    sites = [18 + random.exponential(10 + 5 * place, n) for place, n in enumerate((200, 40, 25))]
    found = constants_of(agreed, [told(agreed, ages) for ages in sites])
    everyone = np.concatenate(sites)
    assert float(found[MEAN]["constant/age"]) == pytest.approx(everyone.mean(), rel=0.005)
    assert float(found[MEDIAN]["constant/age"]) == pytest.approx(np.median(everyone), abs=0.5)


@given(st.lists(st.floats(1, 119), min_size=0, max_size=60), st.integers(1, 12))
def test_no_cell_speaks_of_fewer_people_than_the_site_allows(ages: list[float], least: int) -> None:
    """Whatever the labels: runs of equal cells hold the minimum, or nothing is told."""
    found = told(study(), np.array(ages), least)
    refuse_unsound(found)
    cells = found["cells_age"]
    if len(ages) < least:
        assert not any(array.any() for array in found.values())
        return
    assert cells.sum() == pytest.approx(len(ages))
    inside = cells[1:-1]
    runs = np.split(inside, np.flatnonzero(np.diff(inside)) + 1)
    sums = [cells[0], cells[-1], *(run.sum() for run in runs)]
    assert all(one == 0 or one >= least - 1e-9 for one in sums)


def test_a_median_outside_of_the_cells_is_not_known() -> None:
    """A centre in another unit must not give a median that looks like one."""
    agreed = study(centre=3.0, scale=1.0)
    found = constants_of(agreed, [told(agreed, np.linspace(20, 80, 40))])
    assert not found[MEDIAN]
    assert float(found[MEAN]["constant/age"]) == pytest.approx(50.0)


def test_cells_that_do_not_add_up_are_refused() -> None:
    """A site that overstates one cell would move everybody's median."""
    found = told(study(), np.linspace(20, 60, 40))
    assert set(found) == set(plan_of_sums(study()))
    for spoilt in (found["cells_age"] * 2, -found["cells_age"]):
        with pytest.raises(Refusal):
            refuse_unsound({**found, "cells_age": spoilt})


def test_constants_of_other_targets_are_refused() -> None:
    """They come with an order, and may be anybody's."""
    assert label_sums.told_by({"constant/age": np.array(31.0)}, study()) == {"age": 31.0}
    for arrays in ({"constant/sex": np.array(1.0)}, {"constant/age": np.ones(2)}):
        with pytest.raises(Refusal):
            label_sums.told_by(arrays, study())


def test_sums_of_labels_that_differ_by_one_person_do_not_tell_her_label() -> None:
    """One column as two targets, the second of which refuses the oldest: n differs, and no more."""
    ages = np.append(np.linspace(20.0, 60.0, 60), 97.0)
    with_her, without = told(study(), ages), told(study(), ages[:-1])
    for found in (with_her, without):
        total = float(found["sum_age"])
        assert total == float(f"{total:.3g}")
    assert float(with_her["sum_age"] - without["sum_age"]) != pytest.approx(97.0)
