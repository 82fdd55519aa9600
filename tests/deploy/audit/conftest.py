"""One finished private run, copied for each test; its sites stay where they are."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.run import Run, read_run
from tests.conftest import Federation, write_federation

PRIVATE: dict[str, Any] = {
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "objective.targets": ["age", "sex"],
    "aggregation.normalisation": "groupnorm",
    "backbone": {"name": "linear"},
    "pretraining": {
        "rounds": 3, "local_epochs": 2, "learning_rate": 0.3, "optimiser": "sgd",
        "momentum": 0.0, "schedule": "constant", "gradient_clip": 0.0,
    },
    "privacy": {"unit": "participant", "people_per_step": 10, "noise": 1.5, "epsilon": 0.0},
    "splits": {"validation": 0.2, "test": 0.1},
    "evaluation.head": False,
}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """A run, and the folder of the sites that it trained on."""

    run: Run
    sites: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = write_federation(
        tmp_path_factory.mktemp("private"), PRIVATE, participants={"alpha": 70, "beta": 60}
    )
    made.simulate()
    return made


@pytest.fixture
def standing(trained: Federation, tmp_path: Path) -> Standing:
    shutil.copytree(trained.folder / "run", tmp_path / "run")
    return Standing(read_run(tmp_path / "run"), trained.sites)
