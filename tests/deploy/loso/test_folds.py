"""Each site is held out once, trains otherwise, and its own file stays as it is."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.errors import QuorumError, RunBusyError, SettingError
from common.study import load_study
from deploy.loso import folds
from deploy.loso.folds import Beginning, Fold, Folds, design
from server.checkpoints import about_checkpoint
from tests.conftest import overridden

SITES = {"train": ["alpha", "beta"], "heldout": ["omega"]}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def study(federation: Callable[..., Any], tmp_path: Path) -> Any:
    """Write a study of three small sites with changes; its path. Sites are written once."""
    made = federation({
        "sites": SITES, "objective.targets": ["age"], "pretraining.rounds": 2,
        "comparisons": {"single_site": False, "pooled": True}, "evaluation.head": False,
        "evaluation.bootstrap": 100,
    })  # fmt: skip

    def write(name: str = "first", **changes: Any) -> Path:
        table = overridden(overridden(made.base, made.changes), {"name": name, **changes})
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(table))
        return file

    return write


def test_every_site_is_held_out_once_by_every_study_site_by_site(study: Any) -> None:
    """Those that the study trains on and those that it holds out alike; pairs come early."""
    found = design([study(), study("second", sites={"train": ["alpha", "beta", "omega"]})], [])
    assert [(fold.site, fold.study) for fold in found.folds()] == [
        (site, name) for site in ("alpha", "beta", "omega") for name in ("first", "second")
    ]


def test_a_fold_holds_out_its_site_and_trains_on_all_others(study: Any, tmp_path: Path) -> None:
    """Whatever the study said; nothing else of it changes."""
    file = study(**{"sites.quorum": 2})
    work = Folds(design=design([file], []), places=tmp_path, out=tmp_path / "out")
    fold = Fold(study="first", site="alpha")
    path = tmp_path / "fold.toml"
    path.write_text(work._text(fold))
    made, whole = load_study(path), load_study(file)
    assert made.sites.train == ("beta", "omega")
    assert made.sites.heldout == ("alpha",)
    assert made.model_copy(update={"sites": whole.sites}) == whole


@pytest.mark.parametrize(("begin", "told"), [
    ("second", "STUDY=EARLIER is needed"),
    ("second=first:some", "or STUDY=EARLIER:all"),
    ("second=third", "there are the studies first, second"),
    ("first=second", "second must be named before first"),
    ("second=second", "must be named before"),
])  # fmt: skip
def test_a_beginning_that_cannot_be_is_refused_before_any_fold(
    study: Any, begin: str, told: str
) -> None:
    """Not after the folds that went well."""
    with pytest.raises(SettingError, match=told):
        design([study(), study("second")], [begin])


def test_what_no_fold_could_run_is_refused(study: Any) -> None:
    """Two studies of one name, too few sites, a beginning that lacks a site."""
    with pytest.raises(SettingError, match='both called "first"'):
        design([study(), study()], [])
    with pytest.raises(SettingError, match="has 2 sites; 3 are needed"):
        design([study(sites={"train": ["alpha", "beta"]})], [])
    more = study("second", sites={"train": ["alpha", "beta", "omega", "gamma"]})
    with pytest.raises(SettingError, match="has no fold without gamma"):
        design([study(), more], ["second=first"])


def test_a_fold_that_fails_ends_no_other_and_a_busy_one_is_left(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site's trouble costs its fold; two processes share folds out."""
    asked: list[str] = []

    def some(file: Path, places: Path, out: Path, *, recast: bool, workers: None) -> None:
        assert recast
        asked.append(out.parent.name)
        if out.parent.name == "alpha":
            raise QuorumError("nobody answered")
        if out.parent.name == "beta":
            raise RunBusyError("another process is working in it")

    monkeypatch.setattr(folds, "simulate", some)
    work = Folds(design=design([study()], []), places=tmp_path, out=tmp_path / "out")
    assert work.run(work.design.folds()) == {"first without alpha": "nobody answered"}
    assert asked == ["alpha", "beta", "omega", "beta"]


def test_a_fold_without_what_it_begins_from_says_so(study: Any, tmp_path: Path) -> None:
    """Its pretraining failed, which is another fold's news."""
    found = design([study(), study("second")], ["second=first:all"])
    assert found.begins == {"second": Beginning(study="second", earlier="first", take="all")}
    work = Folds(design=found, places=tmp_path, out=tmp_path / "out")
    problems = work.run([Fold(study="second", site="beta")])
    assert problems == {
        "second without beta": "it begins from first without beta, which is not finished"
    }


def command(*words: object) -> list[str]:
    code = 'from deploy.cli import main\nif __name__ == "__main__":\n    main()'
    return [sys.executable, "-c", code, "loso", *map(str, words)]


@pytest.mark.whole
def test_folds_that_were_killed_go_on_and_each_begins_where_its_own_site_was_held_out(
    study: Any, tmp_path: Path
) -> None:
    """End to end as a person gives it: kill -9 amid the folds, then the same command. No lineage
    of a fold holds its site, and site files are as they were."""
    out, sites = tmp_path / "out", tmp_path / "sites"
    words = [study(), study("second", **{"pretraining.rounds": 1}), "--sites", sites, "--out", out,
             "--begin", "second=first:all"]  # fmt: skip
    before = {file: file.read_bytes() for file in sites.glob("*/site.toml")}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "1073741824",
                   "MALLOC_TRIM_THRESHOLD_": "1073741824"}  # fmt: skip
    first = subprocess.Popen(command(*words), env=environment, start_new_session=True)
    begun = out / "folds" / "alpha" / "second" / "study.json"
    deadline = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert begun.exists()
    stamp = (out / "folds/alpha/first/results.csv").stat().st_mtime_ns
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "folds/alpha/first/results.csv").stat().st_mtime_ns == stamp
    rows = list(csv.DictReader((out / "folds.csv").open()))
    judged = {(row["study"], row["model"], row["site"]) for row in rows if row["value"]}
    for site in ("alpha", "beta", "omega"):
        assert {("first", "federated", site), ("second", "federated", site)} <= judged
        assert ("first", "pooled-linear", site) in judged
        final = out / "folds" / site / "second" / "checkpoints" / "final.safetensors"
        assert set(about_checkpoint(final).lineage.contributors) == {"alpha", "beta", "omega"} - {
            site
        }
    pairs = list(csv.DictReader((out / "pairs.csv").open()))
    assert (pairs[0]["first"], pairs[0]["second"], pairs[0]["sites"]) == ("first", "second", "3")
    assert ("second", "training-median") in {(pair["first"], pair["second"]) for pair in pairs}
    assert "6 folds are finished, 0 failed" in done.stdout
    assert "first minus second" in (out / "loso.html").read_text()
    assert {file: file.read_bytes() for file in before} == before
