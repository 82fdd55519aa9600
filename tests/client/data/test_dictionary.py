"""The data set's own dictionary, held against the site file: a note where they contradict."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from client.data import dictionary
from client.data.dictionary import contradictions, read_dictionary
from client.data.finding import Findings
from client.site import Column
from common.sections import Target

AGE = Target(kind="regression", unit="years", low=0, high=120)
SEX = Target(kind="binary", classes=("female", "male"))


def notes(target: Target, about: Any, **column: Any) -> list[str]:
    found = contradictions({"it": target}, {"it": Column(column="c", **column)}, {"c": about})
    return [finding.problem for finding in found]


@pytest.mark.parametrize(
    ("units", "factor", "said"),
    [
        ("months", 1.0, "factor would be 0.08333, and is 1"),
        ("Months", 1 / 12, ""),
        ("month", 0.0833, ""),
        ("years", 1.0, ""),
        ("yrs.", 1.0, ""),
        ("years (at scan)", 1.0, ""),
        ("years", 1 / 12, "factor would be 1, and is 0.0833333"),
        ("days", 1 / 365, ""),
        ("weeks", 1.0, "factor would be 0.01916"),
        ("mm^3", 1.0, 'is in "mm^3"'),
        ("", 1.0, ""),
    ],
)
def test_a_unit_that_contradicts_the_factor_is_noted(units: str, factor: float, said: str) -> None:
    """Months that train as years are plausible to every other check."""
    found = notes(AGE, {"Units": units}, factor=factor)
    assert [said in note for note in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("levels", "codes", "noted"),
    [
        ({"1": "female", "2": "male"}, {"1": "male", "2": "female"}, True),
        ({"1": "female", "2": "male"}, {"1": "female", "2": "male"}, False),
        ({"1.0": "Female participant", "2": "Male"}, {"1": "male", "2": "female"}, True),
        ({"F": {"Description": "woman"}}, {"F": "male", "M": "female"}, True),
        ({"F": {"Description": "woman"}}, {"F": "female", "M": "male"}, False),
        ({"1": "patients"}, {"1": "male", "2": "female"}, False),
        ({"male": "female"}, {}, True),
    ],
)
def test_codes_that_contradict_the_levels_are_noted(
    levels: Any, codes: dict[str, str], noted: bool
) -> None:
    """Exchanged sexes make a perfect model of the wrong thing."""
    assert bool(notes(SEX, {"Levels": levels}, codes=codes)) == noted


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe{", b'{"c": 1}' + b" " * (5 << 20), b"[" * 100_000],
    ids=["empty", "half", "a list", "no UTF-8", "large", "deep"],
)
def test_a_bad_dictionary_costs_a_note(tmp_path: Path, content: bytes) -> None:
    """Nothing is taken from it, so nothing is lost with it."""
    (tmp_path / "p.json").write_bytes(content)
    findings = Findings()
    assert read_dictionary(tmp_path / "p.json", tmp_path, findings) == {}
    (note,) = findings
    assert note.what == "p.json"
    assert not note.error


def test_a_dictionary_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """It is held to what holds for the tables."""
    home = tmp_path / "bids"
    home.mkdir()
    (tmp_path / "p.json").write_text(json.dumps({"c": {}}))
    (home / "p.json").symlink_to(tmp_path / "p.json")
    findings = Findings()
    assert read_dictionary(home / "p.json", home, findings) == {}
    assert "out of the data folder" in findings[0].problem
    assert read_dictionary(home / "absent.json", home, findings) == {}
    assert len(findings) == 1


def test_the_examples_in_the_documentation_run() -> None:
    """A docstring that is wrong is worse than none."""
    assert doctest.testmod(dictionary).failed == 0
