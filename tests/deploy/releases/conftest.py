"""One finished run, copied for each test that changes it; and sites that took no part."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from server.run import Run, read_run
from tests.conftest import write_federation, write_table_site

STUDY: dict[str, Any] = {
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega", "psi"]},
    "objective.targets": ["age"],
    "pretraining.rounds": 1,
    "evaluation.head": False,
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("finished")
    run: Run = write_federation(folder, STUDY).simulate()
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """The same run in a folder of its own."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return read_run(tmp_path / "run")


@pytest.fixture
def judges(tmp_path: Path) -> Path:
    """Site files of two hospitals that nobody has seen."""
    for name in ("sigma", "tau"):
        write_table_site(tmp_path / "judges", name, role="heldout", participants=30)
    return tmp_path / "judges" / "sites"
