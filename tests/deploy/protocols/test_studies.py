"""Cells run once, go on after any end, and fail alone."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from common.errors import QuorumError, RunBusyError, StorageError
from deploy.protocols import studies
from deploy.protocols.page import outcome
from deploy.protocols.protocol import cells, load_protocol
from deploy.protocols.studies import Cells


@pytest.fixture
def work(protocol_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Cells of the tiny protocol whose simulation only writes down that it was asked."""
    protocol = load_protocol(protocol_file(initialisations=["scratch"]), small=False)
    made = Cells(protocol, tmp_path / "out", {})
    ran: list[str] = []

    def simulate(study: Path, sites: Path, out: Path, **more: Any) -> None:
        ran.append(out.name)
        out.mkdir(parents=True, exist_ok=True)
        (out / "study.toml").write_bytes(study.read_bytes())
        (out / "results.csv").touch()

    monkeypatch.setattr(studies, "simulate", simulate)
    monkeypatch.setattr(studies, "write_group", lambda *_: None)
    monkeypatch.setattr(studies, "read_run", lambda folder: folder)
    return made, cells(protocol), ran, simulate


def test_a_finished_cell_is_not_run_again_and_a_changed_one_is_asked_anew(work: Any) -> None:
    """A night's work is not repeated; nor is another study's result taken for this one's."""
    made, every, ran, _ = work
    assert made.run(every) == {}
    assert made.run(every) == {}
    assert ran == ["age-sfcn-scratch-100pc-1"]
    file = made.folder(every[0]) / "study.toml"
    file.write_text(file.read_text().replace("rounds = 2", "rounds = 3"))
    made.run(every)
    assert len(ran) == 2  # where the folder's own check says what differs


def test_a_cell_that_fails_is_named_and_ends_no_other(
    work: Any, monkeypatch: pytest.MonkeyPatch, protocol_file: Any
) -> None:
    """Whatever it was: a refusal, or a defect of ours; it is tried again by the next command."""
    made, _, ran, simulate = work
    protocol = load_protocol(
        protocol_file(seeds=[1, 2, 3], initialisations=["scratch"]), small=False
    )
    made, every = Cells(protocol, made.out, {}), cells(protocol)

    def some(study: Path, sites: Path, out: Path, **more: Any) -> None:
        if out.name.endswith("-1"):
            raise QuorumError("nobody\nanswered")
        if out.name.endswith("-2"):
            raise ZeroDivisionError
        simulate(study, sites, out)

    monkeypatch.setattr(studies, "simulate", some)
    assert made.run(every) == {
        "age-sfcn-scratch-100pc-1": "nobody answered",
        "age-sfcn-scratch-100pc-2": "ZeroDivisionError: ",
    }
    assert ran == ["age-sfcn-scratch-100pc-3"]
    monkeypatch.setattr(studies, "simulate", simulate)
    assert made.run(every) == {}
    assert len(ran) == 3


def test_a_full_disk_ends_the_command(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other cell would fail of it, too."""
    made, every, _, _ = work

    def full(*_: Path, **more: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(studies, "simulate", full)
    with pytest.raises(StorageError):
        made.run(every)


def test_a_cell_that_another_process_works_in_is_left_to_it(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command twice takes two cores; neither says that the other's cell has failed."""
    made, every, _, _ = work
    asked = []

    def busy(study: Path, sites: Path, out: Path, **more: Any) -> None:
        asked.append(out.name)
        raise RunBusyError("another process is working in it")

    monkeypatch.setattr(studies, "simulate", busy)
    assert made.run(every) == {}
    assert len(asked) == 2  # once more at the end


def test_a_cell_without_what_it_begins_from_says_so(protocol_file: Any, tmp_path: Path) -> None:
    """Its pretraining failed, which is another cell's news."""
    protocol = load_protocol(protocol_file(), small=False)
    made, every = Cells(protocol, tmp_path / "out", {}), cells(protocol)
    (last,) = [cell for cell in every if cell.task and cell.source == "supervised"]
    problem = made._one(last)
    assert problem == "it begins from pretraining-sfcn-supervised, which is not finished"


def command(*words: object) -> list[str]:
    code = 'from deploy.cli import main\nif __name__ == "__main__":\n    main()'
    return [sys.executable, "-c", code, "protocol", *map(str, words)]


@pytest.mark.whole
def test_a_protocol_that_was_killed_goes_on_and_ends_with_its_page(
    protocol_file: Any, tmp_path: Path
) -> None:
    """End to end as a person gives it: kill -9 amid the second cell, then the same command."""
    file, out = protocol_file(), tmp_path / "out"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "1073741824",
                   "MALLOC_TRIM_THRESHOLD_": "1073741824"}  # fmt: skip
    first = subprocess.Popen(command(file, "--out", out), env=environment, start_new_session=True)
    second = out / "cells" / "age-sfcn-scratch-100pc-1" / "study.json"
    deadline = time.monotonic() + 240
    while not second.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.exists()
    before = (out / "cells/pretraining-sfcn-supervised/results.csv").stat().st_mtime_ns
    done = subprocess.run(
        command(file, "--out", out), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (out / "cells/pretraining-sfcn-supervised/results.csv").stat().st_mtime_ns == before
    rows = list(csv.DictReader((out / "cells.csv").open()))
    measured = {(row["initialisation"], row["measured"]) for row in rows if row["task"]}
    assert measured == {
        (source, what)
        for source in ("scratch", "supervised")
        for what in ("held-out people", "zero-shot", "few-shot")
    } | {("scratch", "rival")}  # what needs no network is judged once
    assert {row["model"] for row in rows if row["measured"] == "rival"} >= {"constant", "site-mean"}
    assert "3 cells are finished, 0 failed, 0 were not run yet" in done.stdout
    page = (out / "protocol.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    protocol = load_protocol(file, small=False)
    made = Cells(protocol, out, {})
    last = cells(protocol)[-1]
    run = made.finished(last)
    assert run is not None
    assert run.study.start is not None
    assert run.study.start.study == "pretraining-sfcn-supervised"
    # a finished cell whose files were damaged is a failed cell, and the page is written all the same
    record = next((made.folder(last) / "rounds").glob("*/record.json"))
    record.write_text(record.read_text().replace('"round": 1', '"round": 9'))
    found = outcome(made, cells(protocol), {})
    assert list(found.failed) == [last.name]
    assert found.finished == 2
