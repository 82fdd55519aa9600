"""`kill -9` of an agent at any step: spent once, one answer, a receipt for each departure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.data.prepare import prepare
from client.site import load_site

ROOT = Path(__file__).parents[3]

STEPS = {
    "delivery noted": r"^at INSERT OR IGNORE INTO deliveries",
    "arrays not held yet": r"^before replace .*/arrays/",
    "arrays held, nothing spent": r"^after replace .*/arrays/",
    "about to spend": r"^at INSERT INTO exposures",
    "spent, nothing trained": r"^before fsync .*report-0001",
    "trained, answer not kept": r"^before replace .*report-0001",
    "answer kept, not entered": r"^after replace .*report-0001",
    "about to enter the answer": r"^at INSERT OR IGNORE INTO answers",
    "entered, no receipt": r"^before fsync .*receipts/.*\.jsonl$",
    "receipt, not in the ledger": r"^after fsync .*receipts/.*\.jsonl$",
    "about to note the receipt": r"^at INSERT OR REPLACE INTO head",
    "about to note what was told": r"^at INSERT OR REPLACE INTO told",
    "handed over, not closed": r"^at UPDATE deliveries",
}


PRIVATE = {
    "privacy": {"unit": "participant", "people_per_step": 8, "epsilon": 50.0},
    "aggregation": {"normalisation": "groupnorm"},
}


def prepared(federation: Any, changes: dict[str, Any]) -> Any:
    made = federation({
        **changes,
        "sites": {"train": ["alpha"]},
        "objective.targets": ["age"],
        "finetuning": [{"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"],
                        "epochs": 2, "learning_rates": [0.01]}],
    })  # fmt: skip
    prepare(made.study, load_site(made.sites / "alpha" / "site.toml"))
    return made


@pytest.fixture
def hospital(federation: Any) -> Any:
    """One site with a task of its own, its data prepared."""
    return prepared(federation, {})


@pytest.fixture
def private_hospital(federation: Any) -> Any:
    """The same in a study whose rounds draw noise."""
    return prepared(federation, PRIVATE)


def killed_agent(made: Any, work: Path, places: Sequence[str], limit_s: float) -> Any:
    """Run `killed_agent.py`; it ends its own children."""
    assert made.study_file.exists()
    script = Path(__file__).with_name("killed_agent.py")
    child = subprocess.run(
        [sys.executable, str(script), str(made.folder), str(work), *places],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_a_killed_agent_spends_once_and_answers_alike(hospital, tmp_path_factory):
    """Hospitals lose power; neither their participants nor the result may pay for it."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_agent(hospital, work, list(STEPS.values()), 120)
    assert found["faults"] == []
    assert found["kills"] == len(STEPS)


@pytest.mark.slow
def test_an_agent_killed_at_any_step_spends_once_and_answers_alike(hospital, tmp_path_factory):
    """The same at each statement of the ledger, and before and after each durable write."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_agent(hospital, work, [], 280)
    assert found["faults"] == []
    assert found["kills"] == len(found["steps"]) > 50


DRAWS = {
    **STEPS,
    "about to pay for the draw": r"^at INSERT INTO spendings",
}


def test_a_killed_agent_of_a_private_study_pays_for_what_leaves_and_once(
    private_hospital, tmp_path_factory
):
    """Noise falls otherwise each time: of all draws one leaves, and no kill makes it cost less."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_agent(private_hospital, work, list(DRAWS.values()), 120)
    assert found["faults"] == []
    assert found["kills"] == len(DRAWS)


@pytest.mark.slow
def test_an_agent_of_a_private_study_killed_at_any_step_pays_for_what_leaves(
    private_hospital, tmp_path_factory
):
    """The same at each statement of the ledger, and before and after each durable write."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_agent(private_hospital, work, [], 280)
    assert found["faults"] == []
    assert found["kills"] == len(found["steps"]) > 50
