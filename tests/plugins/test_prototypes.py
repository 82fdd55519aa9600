"""Eight ways to learn that nobody here has heard of, each a package from outside."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.federations import PROTOTYPES, SHARED, write

ROOT = Path(__file__).parents[2]
PLUGINS = Path(__file__).parent
pytestmark = pytest.mark.timeout(900)  # eight federations, each twice, before the first test
NEEDS_DATA = ("DeepLight on real BOLD",)
# killed where a site has trained and nobody has heard of it, and where a task is being learnt
PLACES = (
    "before:^run/rounds/0002/replies/b",  # beta, or birch
    "before:^run/finetuning/own/[^/]*/b",
)


@pytest.fixture(scope="module")
def undisturbed_and_killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every prototype run calmly, and killed and resumed, in one process that is warm by then."""
    folder = tmp_path_factory.mktemp("prototypes")
    names = [name for name in PROTOTYPES if name not in NEEDS_DATA or SHARED.is_dir()]
    for name in names:
        write(folder / name, name)
    child = subprocess.Popen(
        [sys.executable, str(PLUGINS / "killed_prototypes.py"), str(folder), *PLACES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{PLUGINS}", "OMP_NUM_THREADS": "1",
             "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = child.communicate(timeout=840)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    assert child.returncode == 0, errors
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {"folder": folder, **found}


@pytest.mark.parametrize("name", PROTOTYPES)
def test_a_prototype_trains_tunes_is_judged_and_outlives_a_kill(
    undisturbed_and_killed: dict[str, Any], name: str
) -> None:
    """The seams carry it whole, or the next scientist will cut the house open."""
    if name in NEEDS_DATA and not SHARED.is_dir():
        pytest.skip("the shared real data are not on this machine")
    found = undisturbed_and_killed[name]
    assert found["faults"] == []
    assert found["kills"] == 1
    run = undisturbed_and_killed["folder"] / name / "resumed" / "run"
    rows = list(csv.DictReader((run / "results.csv").open()))
    phases = {row["phase"] for row in rows}
    assert {"finetune", "evaluate"} <= phases
    assert any(row["value"] for row in rows if row["phase"] == "finetune")
    assert any(row["value"] for row in rows if row["phase"] == "evaluate")
    asked = PROTOTYPES[name][1]["finetuning"][0]
    told = {"/".join(w for w in (row["init"], row["method"]) if w) for row in rows} - {""}
    assert told == set(asked["methods"])


def test_repeats_draws_and_numbers_of_people_are_told_apart(
    undisturbed_and_killed: dict[str, Any],
) -> None:
    """A median over repeats needs to know which they are."""
    folder = undisturbed_and_killed["folder"]
    drawn = folder / "per-person gradients" / "resumed" / "run" / "results.csv"
    rows = [row for row in csv.DictReader(drawn.open()) if row["metric"] == "auc"]
    found = {(row["k"], row["repeat"]) for row in rows if row["phase"] == "finetune"}
    assert found == {("6", "0"), ("6", "1"), ("12", "0"), ("12", "1")}
    again = folder / "MixUp" / "resumed" / "run" / "results.csv"
    rows = [row for row in csv.DictReader(again.open()) if row["phase"] == "finetune"]
    assert {row["repeat"] for row in rows} == {"0", "1"}


def test_what_tuned_models_are_asked_for_arrives(undisturbed_and_killed: dict[str, Any]) -> None:
    """Judged anew they are what they were; explained, a map of the sample; sent, what trained."""
    from common.protocol.wire import open_arrays

    run = undisturbed_and_killed["folder"] / "LoRA" / "resumed" / "run"
    rows = list(csv.DictReader((run / "results.csv").open()))
    value = {
        (row["phase"], row["site"], row["init"], row["method"], row["metric"]): row["value"]
        for row in rows
    }
    judged = {key[1:]: text for key, text in value.items() if key[0] == "judge"}
    assert judged
    assert judged == {key[1:]: text for key, text in value.items() if key[0] == "finetune"}
    # sites allow neither to explain nor to send unless they say so
    for kind in ("explain", "send"):
        refused = json.loads(
            (run / kind / "own" / "pretrained-lora-repeat0" / "refused.json").read_text()
        )
        assert refused == {"alpha": "POLICY", "beta": "POLICY"}
    allowed = undisturbed_and_killed["folder"] / "LoRA" / "allowed" / "run"
    with open_arrays(allowed / "explain/own/pretrained-lora-repeat0/alpha.safetensors") as file:
        assert {name: file[name].shape for name in file.names()} == {"map": (4,)}
    with open_arrays(allowed / "send/own/pretrained-lora-repeat0/alpha.safetensors") as file:
        names = set(file.names())
    assert "heads.diagnosis.weight" in names
    assert any(name.endswith("low_rank.down") for name in names)
    assert not any(name.startswith("backbone.") and "low_rank" not in name for name in names)


def test_no_file_of_the_project_names_a_prototype() -> None:
    """A seam that knows its plug-ins is no seam."""
    named = re.compile(r"proto-|prototypes")
    for room in ("common", "client", "server", "deploy"):
        for file in (ROOT / room).rglob("*.py"):
            assert not named.search(file.read_text()), file
