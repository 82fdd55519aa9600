"""The auditor's people: their labels made false, their samples brought together, or all made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, SettingError
from deploy.audit.people import MADE, People, people_of
from tests.client.learning.privacy.people import cohort_of
from tests.conftest import Federation, write_table_site


@pytest.fixture
def made(federation: Callable[..., Federation]) -> Federation:
    return federation({"objective.targets": ["age", "sex"]})


def test_people_of_several_sites_are_numbered_on(made: Federation) -> None:
    """One number is one person, over all sites; nobody is known by any other name."""
    people = people_of(made.study, made.sites, made.folder / "audit", 0, 0)
    assert [site.name for site in people.sites] == ["alpha", "beta", "gamma"]
    assert people.number == 120
    assert np.unique(np.concatenate(people.numbers)).tolist() == list(range(120))
    chosen = np.arange(120) % 3 == 0
    assert sum(len(cohort) for cohort in people.where(chosen)) == 40


def test_means_are_by_person(made: Federation) -> None:
    """A person with three scans is one row; what is unknown of one scan is known of another."""
    cohort = cohort_of((3,), [1, 3, 2])
    people = People((None,), (cohort,), made=True)  # type: ignore[arg-type]
    found = people.by_person([np.array([1.0, 1.0, np.nan, 3.0, np.nan, np.nan])])
    assert found[:2].tolist() == [1.0, 2.0]
    assert np.isnan(found[2])


def test_false_labels_are_far_off_and_of_those_alone(made: Federation) -> None:
    """The other class, the other end of the ages; missing labels stay missing."""
    people = people_of(made.study, made.sites, made.folder / "audit", 0, 0)
    whose = np.zeros(people.number, bool)
    whose[:20] = True
    for name in ("age", "sex"):
        people.cohorts[0].labels[name][3] = np.nan
    false = people.with_false_labels(made.study, whose)
    for cohort, other, numbers in zip(people.cohorts, false.cohorts, people.numbers, strict=True):
        hers = whose[numbers] & ~np.isnan(cohort.labels["age"])
        assert (np.isnan(other.labels["age"]) == np.isnan(cohort.labels["age"])).all()
        assert (other.labels["sex"][hers] == 1 - cohort.labels["sex"][hers]).all()
        np.testing.assert_array_equal(other.labels["age"][~hers], cohort.labels["age"][~hers])
        assert (np.abs(other.labels["age"] - cohort.labels["age"])[hers] > 5).all()


def test_nobody_is_made_up_twice(made: Federation) -> None:
    """Tables of the study's columns, from which its targets can be learnt; a second call is the same."""
    folder = made.folder / "audit"
    people = people_of(made.study, None, folder, 30, 5)
    assert people.made
    assert [site.name for site in people.sites] == list(MADE)
    assert people.number == 60
    before = (folder / MADE[0] / "table.csv").read_bytes()
    again = people_of(made.study, None, folder, 30, 5)
    assert (folder / MADE[0] / "table.csv").read_bytes() == before
    columns = np.asarray(again.cohorts[0].samples[np.arange(30)])
    slopes = np.linalg.lstsq(np.log(columns), again.cohorts[0].labels["age"] - 50, rcond=None)[0]
    told = np.log(columns) @ slopes
    assert np.corrcoef(told, again.cohorts[0].labels["age"])[0, 1] > 0.6


def test_too_few_people_are_no_audience(made: Federation, tmp_path: Path) -> None:
    """Of twenty people no rate of false alarms of one in ten is worth a number."""
    write_table_site(tmp_path / "few", "solo", participants=20)
    with pytest.raises(DataError, match="20 people with labels are there; 40 are needed"):
        people_of(made.study, tmp_path / "few", tmp_path, 0, 0)


def test_a_folder_without_sites_and_two_of_a_name_are_refused(
    made: Federation, tmp_path: Path
) -> None:
    """Nothing is left out, or counted twice, in silence."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="no site file is below"):
        people_of(made.study, tmp_path / "empty", tmp_path, 0, 0)
    for place in ("one", "two"):
        write_table_site(tmp_path / "twice" / place, "solo")
    with pytest.raises(SettingError, match="several site files claim the name solo"):
        people_of(made.study, tmp_path / "twice", tmp_path, 0, 0)


def test_kinds_that_nobody_can_make_need_sites(made: Federation, tmp_path: Path) -> None:
    """An audit on other people's kind of data would be no audit of the study."""

    class Study(dict[str, Any]):
        kind_name = "holograms"
        data = None

    with pytest.raises(SettingError, match=r"data\.kind holograms; give .* by --sites"):
        people_of(Study(), None, tmp_path, 30, 0)  # type: ignore[arg-type]
