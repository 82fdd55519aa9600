"""The studies of task fMRI and of connectomes stand what any study must: kills, and a deployment."""

from __future__ import annotations

import shutil
import signal
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

from common.study import load_study
from deploy.hospitals.connectomes import write_connectomes
from deploy.hospitals.task_fmri import write_task_fmri
from deploy.local import simulate
from tests.conftest import overridden
from tests.deploy.standing import removed, short_folder, standing
from tests.deploy.test_deployment import files_of, read_json, records, sha
from tests.deploy.test_kill import Command, ended, until

pytestmark = [pytest.mark.whole, pytest.mark.timeout(900)]
STUDIES = Path(__file__).parents[2] / "deploy" / "studies"
ONE_THREAD = '\n[device]\nkind = "cpu"\nthreads = 1\nloaders = 1\n'
SMALL = {
    "pretraining.rounds": 3,
    "pretraining.local_epochs": 1,
    "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
    "evaluation.bootstrap": 100,
}
TASK = {"epochs": 1, "learning_rates": [1e-3]}


def task_fmri(folder: Path) -> list[Path]:
    return write_task_fmri(
        folder, names=("amber", "birch", "elm"), heldout=["elm"], participants=16, spacing_mm=16.0
    )


def connectomes(folder: Path) -> list[Path]:
    return write_connectomes(
        folder, names=("amber", "birch", "elm"), heldout=["elm"], participants=24
    )


MADE: dict[str, tuple[Callable[[Path], list[Path]], dict[str, Any], dict[str, Any]]] = {
    "task-fmri": (
        task_fmri,
        {"data.shape": [10, 12, 10], "data.spacing_mm": 16.0,
         "splits": {"validation": 0.25, "test": 0.25}},
        {"participants": [1, 3], "draws": 1},
    ),
    "connectomes": (
        connectomes,
        {"backbone": {"name": "lcm", "width": 16, "depth": 2, "heads": 2, "feed_forward": 16}},
        {"participants": [], "draws": 1},
    ),
}  # fmt: skip


@pytest.fixture(params=MADE)
def made(request: Any) -> Iterator[Any]:
    """A study of `deploy/studies` made small, with hospitals for it, in a short folder."""
    folder = short_folder()
    write, changes, task = MADE[request.param]
    for file in write(folder / "sites"):
        text = file.read_text().replace("minimum_support = 4 ", "minimum_support = 1 ")
        file.write_text(text + ONE_THREAD)
    table = tomllib.loads((STUDIES / f"{request.param}.toml").read_text())
    table = overridden(table, {**SMALL, **changes})
    table["finetuning"][0] |= TASK | task
    study_file = folder / "study.toml"
    study_file.write_text(tomli_w.dumps(table))
    yield SimpleNamespace(
        folder=folder, study_file=study_file, sites=folder / "sites", study=load_study(study_file)
    )
    removed(folder)


def test_kills_of_the_real_command_change_no_bit(made: Any) -> None:
    """Runs that are prepared, rounds, tuned models, their maps: each is interrupted once."""
    calm = Command(made, "calm")
    calm.finish()
    for state in made.sites.glob("*/.callosum"):
        shutil.rmtree(state)  # the second prepares, and is killed in it
    torn = Command(made, "torn")
    marks = ["census", "rounds/0002", "finetuning", "evaluation"]
    if (calm.out / "explain").exists():
        marks.insert(3, "explain")
    for mark in marks:
        child = torn.start()
        until(torn.out / mark, child)
        ended(child, signal.SIGKILL)
    torn.finish()
    assert torn.digests() == calm.digests()
    maps = {path.relative_to(calm.out) for path in calm.out.glob("explain/**/*.safetensors")}
    assert maps == {
        path.relative_to(torn.out) for path in torn.out.glob("explain/**/*.safetensors")
    }


def test_the_deployment_has_the_bits_of_one_process(made: Any) -> None:
    """Kits, a hub, agents and nodes as processes; what leaves a hospital passes the gate."""
    here = simulate(made.study_file, made.sites, made.folder / "here")
    folder = short_folder()
    try:
        with standing(folder, files_of(made)) as there:
            there.stand(made.study_file)
            there.command("callosum", "run", made.study_file, "--hub", there.hub, timeout=600)
            run = there.hub / "runs" / made.study.name
            assert sha(run / "checkpoints" / "final.safetensors") == sha(
                here.folder / "checkpoints" / "final.safetensors"
            )
            assert (run / "results.csv").read_text() == (here.folder / "results.csv").read_text()
            assert read_json(run / "state.json")["state"] == "finished"
            assert not any(record["degraded"] for record in records(run))
            there.command("callosum-site", "receipts", "verify", "--kit", there.kits / "amber")
    finally:
        removed(folder)
