"""A whole private study: it runs, resumes and reports, and no two runs have the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.protocol.wire import open_arrays
from server.report.page import write_report
from server.results import measurements

pytestmark = pytest.mark.whole
PRIVATE: dict[str, Any] = {
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "objective.targets": ["age", "sex"],
    "aggregation.normalisation": "groupnorm",
    "backbone": {"name": "linear"},
    "pretraining": {
        "rounds": 4, "local_epochs": 2, "learning_rate": 0.3, "optimiser": "sgd",
        "momentum": 0.0, "schedule": "constant", "gradient_clip": 0.0,
    },
    "splits": {"validation": 0.25},
    "privacy": {"unit": "participant", "people_per_step": 40, "noise": 0.5, "epsilon": 0.0},
}  # fmt: skip
PEOPLE = {"alpha": 200, "beta": 160, "omega": 80}


@pytest.fixture
def run(federation: Callable[..., Any]) -> tuple[Any, Any]:
    made = federation(PRIVATE, participants=PEOPLE)
    return made, made.simulate()


def final(folder: Path) -> dict[str, Any]:
    with open_arrays(folder / "checkpoints" / "final.safetensors") as file:
        return dict(file.all())


def test_a_private_study_learns_and_reports_validation_alone(run: tuple[Any, Any]) -> None:
    """The curves of training are not to be had; everything else of a run is as ever."""
    folder = run[1].folder
    records = [
        json.loads((folder / f"rounds/{number:04d}/record.json").read_text()) for number in (1, 4)
    ]
    assert all(record["loss"] == {} for record in records)
    first, last = (record["validation_loss"]["age"] for record in records)
    assert last < 0.9 * first
    errors = {
        row.model: row.value
        for row in measurements(run[1])
        if (row.phase, row.target, row.metric) == ("evaluate", "age", "mae")
    }
    assert errors["federated"] < errors["constant"]
    page = write_report(run[1]).read_text()
    assert "Validation loss by term" in page
    assert "Training loss by term" not in page


def test_two_runs_of_a_private_study_have_other_bits_and_a_resumed_one_keeps_its_rounds(
    run: tuple[Any, Any],
) -> None:
    """Seeds draw the first weights alone; what a site has sent is never asked for again."""
    made, folder = run[0], run[1].folder
    again = made.simulate("again").folder
    one, other = final(folder), final(again)
    assert (one["model/heads.age.weight"] != other["model/heads.age.weight"]).all()
    kept = {path: path.read_bytes() for path in folder.glob("rounds/000[123]/replies/*")}
    assert kept
    shutil.rmtree(folder / "rounds" / "0004")
    for path in (folder / "checkpoints").glob("*"):
        if "0004" in path.name or "final" in path.name:
            path.unlink()
    made.simulate()
    assert {path: path.read_bytes() for path in kept} == kept
    drawn = final(folder)
    assert (one["model/heads.age.weight"] != drawn["model/heads.age.weight"]).all()
    assert np.isfinite(drawn["model/heads.age.weight"]).all()
