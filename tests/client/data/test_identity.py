"""Whom a name means: one person is never two, and two are never one."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import finding, identity
from client.data.identity import ambiguous, bids_session, folded, like_visits, name_in_table


@pytest.mark.parametrize(
    ("text", "session", "scan"),
    [
        ("sub-001_ses-01", "", "sub-001/ses-01"),
        ("001_ses-01", "", "001/ses-01"),
        ("sub-001_ses-02.long.sub-001", "", "sub-001/ses-02"),
        ("sub-001_ses-02_run-1_T1w", "", "sub-001/ses-02/run-1_T1w"),
        ("sub-001", "ses-3", "sub-001/ses-3"),
        ("sub-001", "3", "sub-001/ses-3"),
        ("sub-001", "n/a", "sub-001"),
        ("NYU_0051", "", "NYU_0051"),
    ],
)
def test_a_visit_is_no_person(text: str, session: str, scan: str) -> None:
    """FreeSurfer's tables name scans: as people they would train and test at once."""
    found = name_in_table(text, session)
    assert found is not None
    assert found.scan == scan
    assert found.participant == scan.partition("/")[0]


@pytest.mark.parametrize("text", ["", "a\x1b[8m", "a\nb", "x" * 201])
def test_what_names_nobody_is_nobody(text: str) -> None:
    """A name stands on screens and in files."""
    assert name_in_table(text) is None


def test_two_spellings_of_one_name_are_doubtful() -> None:
    """Both are named, so that somebody can say which is meant."""
    assert ambiguous(["sub-01", "sub-1", "sub-02"]) == {"sub-1": "sub-01", "sub-01": "sub-1"}
    assert ambiguous(["S01", "s01", "S1"]) == {"s01": "S01", "S01": "s01", "S1": "S01"}
    assert not ambiguous(["sub-01", "sub-10", "sub-11", "a", "aa"])


def test_visits_in_names_are_noticed_and_counts_of_people_are_not() -> None:
    """A note, because nobody can be sure."""
    assert like_visits([f"p{n}_{visit}" for n in range(9) for visit in ("bl", "m12")])
    assert like_visits([f"p{n}-v{visit}" for n in range(9) for visit in (1, 2)])
    for people in (
        [f"sub-{n:02d}" for n in range(40)],
        [f"NYU_{n:02d}" for n in range(40)],
        [f"{site}_{n:02d}" for site in ("NYU", "UCLA", "CMU") for n in range(30)],
        [f"{n:07d}" for n in range(40)],
    ):
        assert like_visits(people) is None


@given(st.text(max_size=10), st.text(max_size=10))
def test_names_that_fold_differently_are_never_one(first: str, second: str) -> None:
    """Doubt is for names that differ by case, zeros and prefix alone."""
    doubtful = ambiguous([first, second])
    assert bool(doubtful) == (first != second and folded(first) == folded(second))


@given(st.from_regex(r"[0-9A-Za-z]{1,8}", fullmatch=True))
def test_a_session_has_one_spelling(label: str) -> None:
    """With its prefix or without."""
    assert bids_session(label) == bids_session(f"ses-{label}") == bids_session(f" {label} ")


@pytest.mark.parametrize("module", [identity, finding])
def test_the_examples_in_the_documentation_run(module: object) -> None:
    """A docstring that is wrong is worse than none."""
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
