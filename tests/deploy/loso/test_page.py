"""What is shown of folds: negative findings, what is undefined, and what failed, by name."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.sections import Target
from deploy.loso.page import Outcome, format_outcome, write_page
from tests.deploy.loso.test_findings import FIRST, SECOND, rows


def made(**keys: Any) -> Outcome:
    studies = {
        name: SimpleNamespace(targets={"ill": Target(kind="binary", classes=("no", "yes"))})
        for name in ("one", "two")
    }
    found: dict[str, Any] = {
        "design": SimpleNamespace(studies=studies, begins={}),
        "targets": ("ill",),
        "rows": (*rows("one", (*FIRST[:5], None)), *rows("two", (*SECOND[:5], None))),
        "finished": 11,
        "failed": {"two without <b>": "nobody answered"},
        "waiting": (),
    }
    return Outcome(**{**found, **keys})


def test_a_site_without_a_value_is_named_and_counted_nowhere() -> None:
    """One class alone: a mean that left it out in silence would look like all sites'."""
    text = format_outcome(made())
    assert "ill at f: undefined (one class); it is in no mean and no pair" in text
    assert "0.702 (0.593 to 0.811)" in text  # of five
    assert "one minus two" in text
    assert "failed: two without <b>: nobody answered" in text


def test_the_page_says_the_same_and_obeys_no_name(tmp_path: Path) -> None:
    """Names come from files; tables are written in full beside it."""
    page = write_page(tmp_path, made()).read_text()
    assert "two without &lt;b&gt;" in page
    assert "not distinguishable" in page
    assert len(list(csv.DictReader((tmp_path / "folds.csv").open()))) == 12
    (pair,) = csv.DictReader((tmp_path / "pairs.csv").open())
    assert float(pair["difference"]) == pytest.approx(0.054)
    assert pair["sites"] == "5"


def test_nothing_finished_yet_is_a_page_too(tmp_path: Path) -> None:
    """An early look must not end in an error."""
    write_page(tmp_path, made(rows=(), finished=0, failed={}, waiting=("one without a",)))
    assert "not run yet: one without a" in format_outcome(made(rows=(), waiting=("one without a",)))
