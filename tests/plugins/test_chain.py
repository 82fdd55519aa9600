"""Three studies in a chain: clips without patients, then scans, then a task; who took part stays."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from client.authority.approvals import approve
from client.site import load_site
from common.errors import DamagedError, LineageError, SettingError
from common.network.starting import taken
from common.protocol.orders import digest_of
from common.protocol.wire import Stored, open_arrays, write_arrays
from common.study import load_study
from deploy.local import simulate
from server.checkpoints import load_checkpoint
from server.federation.initial import start_table
from tests.conftest import overridden
from tests.plugins.federations import CLIP, MOTION, write_site

ROOT = Path(__file__).parents[2]
FILMS = ["film-a", "film-b"]
BACKBONE = {"name": "sfcn", "channels": [2, 4], "top": 4}
CLIPS: dict[str, Any] = {
    "name": "clips",
    "data": CLIP,
    "targets": MOTION,
    "backbone": BACKBONE,
    "objective": {"name": "multitask"},
    "pretraining": {"rounds": 2, "learning_rate": 0.01},
    "sites": {"train": FILMS},
    "comparisons": {"single_site": False, "pooled": False},
}


@pytest.fixture
def chain(
    brains: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """`chain(name, start, **changes)` writes a study of brains that begins from a checkpoint."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for seed, name in enumerate(FILMS, start=1):
        data = {"kind": "proto-clips", "seed": seed, "clips": 24}
        write_site(tmp_path / "films" / name, name, "train", data, {"motion": {"column": "motion"}})
    base = tomllib.loads(brains().study_file.read_text())

    def write(name: str, begin: Path, **changes: Any) -> Path:
        file = tmp_path / f"{name}.toml"
        study = {**overridden(base, {"backbone": BACKBONE, "pretraining.rounds": 1, **changes})}
        file.write_text(tomli_w.dumps({**study, "name": name}))
        text = file.read_text() + start_table(file, begin, "backbone", ())
        file.write_text(text)
        return file

    return write


@pytest.fixture
def clips(chain: Any, tmp_path: Path) -> Path:
    """The first stage's finished model."""
    file = tmp_path / "clips.toml"
    file.write_text(tomli_w.dumps(CLIPS))
    return simulate(file, tmp_path / "films", tmp_path / "clips").federated.final


TASK = [{"name": "male", "target": "sex", "methods": ["pretrained/full", "scratch/full"],
         "epochs": 1, "learning_rates": [0.01]}]  # fmt: skip


def test_the_last_of_three_names_every_contributor_of_the_first(
    clips: Path, chain: Callable[..., Path], tmp_path: Path
) -> None:
    """A lineage that is lost on the way lets a site judge what it taught."""
    scans = simulate(chain("scans", clips), tmp_path / "sites", tmp_path / "scans")
    file = chain("task", scans.federated.final, finetuning=TASK, **{"objective.targets": ["age"]})
    last = simulate(file, tmp_path / "sites", tmp_path / "task")
    final = load_checkpoint(last.federated.final, last.study)
    assert final.lineage.contributors == ("amber", "birch", *FILMS)
    first = load_checkpoint(clips, load_study(tmp_path / "clips.toml"))
    assert len(set(first.lineage.cohorts)) == 2
    assert set(first.lineage.cohorts) < set(final.lineage.cohorts)
    rows = (last.folder / "results.csv").read_text()
    assert ",pretrained,full," in rows
    assert ",elm,heldout," in rows


def test_the_first_arrays_are_the_checkpoints_and_the_rest_is_drawn(
    clips: Path, chain: Callable[..., Path], tmp_path: Path
) -> None:
    """`scratch` is the same network without them: what is taken, is taken whole."""
    file = chain("scans", clips)
    simulate(file, tmp_path / "sites", tmp_path / "scans")
    study = load_study(file)
    assert study.start is not None
    assert study.start.contributors == tuple(FILMS)
    held, theirs = Stored(tmp_path / "scans/start.safetensors"), Stored(clips, "model/")
    assert {name.partition(".")[0] for name in held} == {"backbone"}
    for name in held:
        np.testing.assert_array_equal(held[name], theirs[name])
    assert digest_of(taken(study.start, theirs)) == study.start.arrays


def test_whoever_took_part_in_the_first_cannot_judge_the_last(
    clips: Path, chain: Callable[..., Path], tmp_path: Path
) -> None:
    """Refused at once, by the coordinator and by the site itself, before any work."""
    scans = chain("scans", clips)
    text = scans.read_text().replace('heldout = [\n    "elm",\n]', 'heldout = ["film-b"]')
    bad = tmp_path / "bad.toml"
    bad.write_text(text)
    assert 'heldout = ["film-b"]' in text
    began = time.perf_counter()
    with pytest.raises(LineageError, match="film-b contributed to the checkpoint") as caught:
        load_study(bad)
    assert "line" in str(caught.value)
    site = load_site(tmp_path / "films/film-b/site.toml")
    with pytest.raises(LineageError):
        approve(site.model_copy(update={"role": "heldout"}), bad, 0)
    assert time.perf_counter() - began < 1
    # the command, too, before torch is there
    code = (
        "import sys\nfrom deploy.cli import app\n"
        "from common.runtime import command\n"
        f"sys.argv = ['callosum', 'study', 'check', {str(bad)!r}]\n"
        "try:\n    command.run(app, 'callosum')\n"
        "except SystemExit as left:\n    print(left.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "8 False", done


def test_a_checkpoint_that_does_not_fit_is_refused_array_by_array(
    clips: Path, chain: Callable[..., Path]
) -> None:
    """Matching by chance what has the same shape is how a pretrained model becomes half of one."""
    with pytest.raises(SettingError, match="have another shape there.*--leave"):
        chain("scans", clips, **{"backbone.channels": [2, 6]})
    with pytest.raises(SettingError, match="are not in the checkpoint.*blocks.2"):
        chain("scans", clips, **{"backbone.channels": [2, 4, 4]})
    with pytest.raises(SettingError, match="no array in common"):
        chain("scans", clips, backbone={"name": "proto-patches"})


def test_a_changed_checkpoint_is_not_the_studys(
    clips: Path, chain: Callable[..., Path], tmp_path: Path
) -> None:
    """Sites approved a digest; another file under the old name is another start."""
    file = chain("scans", clips)
    content = bytearray(clips.read_bytes())
    begin = tmp_path / "begin.safetensors"
    begin.write_bytes(content)
    content[8 + int.from_bytes(content[:8], "little") + 3] ^= 1  # in the first array
    clips.write_bytes(content)
    with pytest.raises(DamagedError, match="no longer what was written"):
        simulate(file, tmp_path / "sites", tmp_path / "scans")
    with open_arrays(begin) as whole:
        texts = {"checkpoint": whole.text("checkpoint")}
        write_arrays(clips, {name: 2 * array for name, array in whole.all().items()}, texts)
    with pytest.raises(SettingError, match="start.arrays is .* but the arrays in"):
        simulate(file, tmp_path / "sites", tmp_path / "scans")
