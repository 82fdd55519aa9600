"""Drawn films, rendered heads, scans on disk, a task: four stages from commands, lineage and all."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.errors import LineageError
from common.study import load_study
from deploy.cli import main
from server.checkpoints import load_checkpoint
from tests.conftest import overridden

STUDIES = Path(__file__).parents[2] / "deploy" / "studies"
SMALL = {
    "backbone.channels": [2, 4],
    "backbone.top": 4,
    "pretraining.rounds": 1,
    "comparisons": {"single_site": False, "pooled": False},
    "evaluation.bootstrap": 100,
}
GRID = {"data.shape": [12, 14, 12], "data.spacing_mm": 14.0}
TASK = {"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full", "scratch/full"],
        "epochs": 1, "learning_rates": [0.01]}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "video-pretext": {
        "data.shape": [8, 12, 12],
        "sites": {"train": ["film-a", "film-b"], "heldout": ["film-c"]},
    },
    "synthetic-pretext": {**GRID, "sites": {"train": ["head-a", "head-b"], "heldout": ["head-c"]}},
    "demo": {
        **GRID,
        "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
        "finetuning": [TASK],
        "evaluation.statistics": "shared",
    },
}
SOURCES = {
    "video-pretext": ("film-a,film-b,film-c", "film-c", "--kind", "synthetic-video"),
    "synthetic-pretext": ("head-a,head-b,head-c", "head-c", "--kind", "synthetic-t1w"),
    "demo": ("amber,birch,elm", "elm", "--spacing-mm", "14"),
}

Run = Callable[..., str]


@pytest.fixture
def callosum(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`callosum ...` in this process; what it printed."""

    def run(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["callosum", *map(str, words)])
            patch.setenv("MALLOC_MMAP_THRESHOLD_", "1")  # as if it had started itself again
            patch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
            main()
        written = capsys.readouterr()
        assert (ended.value.code or 0) == code, written
        return written.out

    return run


def stage(name: str, folder: Path, callosum: Run) -> tuple[Path, Path]:
    """A small study of a stage, and its sites, on one thread each."""
    names, heldout, *more = SOURCES[name]
    sites = folder / f"{name}-sites"
    callosum("hospitals", sites, "--names", names, "--heldout", heldout,
             "--participants", 24, *more)  # fmt: skip
    for file in sites.glob("*/site.toml"):
        text = file.read_text().replace("minimum_support = 4 ", "minimum_support = 1 ")
        file.write_text(f'{text}\n[device]\nkind = "cpu"\nthreads = 1\nloaders = 2\n')
    table = tomllib.loads((STUDIES / f"{name}.toml").read_text())
    study = folder / f"{name}.toml"
    study.write_text(tomli_w.dumps(overridden(table, {**SMALL, **STAGES[name]})))
    return study, sites


@pytest.mark.whole
def test_films_lead_to_heads_to_scans_to_a_task(tmp_path: Path, callosum: Run) -> None:
    """What the built-in sources are for; who taught the last model is known to the first stage."""
    begin: Path | None = None
    for name in STAGES:
        study, sites = stage(name, tmp_path, callosum)
        if begin is not None:
            start = callosum("study", "start", study, "--from", begin)
            study.write_text(study.read_text() + "\n" + start)
        callosum("simulate", study, "--sites", sites, "--out", tmp_path / name)
        begin = tmp_path / name / "checkpoints/final.safetensors"
        kept = list(sites.glob("*/.callosum/prepared/*/generation-*/samples.bin"))
        assert len(kept) == (3 if name == "demo" else 0)  # what is lazy was never on disk
    assert begin is not None
    last = load_study(tmp_path / "demo.toml")
    trained = ("amber", "birch", "film-a", "film-b", "head-a", "head-b")
    assert load_checkpoint(begin, last).lineage.contributors == trained
    rows = (tmp_path / "demo/results.csv").read_text()
    assert ",pretrained,full," in rows
    assert ",elm,heldout," in rows
    judged = (tmp_path / "video-pretext/results.csv").read_text()
    assert ",film-c,heldout," in judged
    # whoever drew films may not judge what was made of them
    text = (tmp_path / "demo.toml").read_text().replace('"elm"', '"film-b"')
    (tmp_path / "demo.toml").write_text(text)
    with pytest.raises(LineageError, match="film-b contributed to the checkpoint"):
        load_study(tmp_path / "demo.toml")
