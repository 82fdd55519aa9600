"""A run folder belongs to one study and one process, and says why it cannot go on."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from common.errors import CallosumError, FolderError, RunBusyError
from deploy.local_grid import LocalGrid
from server import app as room
from server import run as run_module
from server.run import alone, create_run, open_run, read_run
from server.run_state import failure_of, is_finished

FORK = multiprocessing.get_context("fork")


def _hold(folder: Path, ready: Any) -> None:
    with alone(folder):
        ready.set()
        time.sleep(1000)


@contextmanager
def held(folder: Path) -> Iterator[Callable[[], None]]:
    """Another process works in `folder`; call what comes back to kill it."""
    ready = FORK.Event()
    holder = FORK.Process(target=_hold, args=(folder, ready), daemon=True)

    def kill() -> None:
        holder.kill()  # SIGKILL: it cannot clear up
        holder.join()

    holder.start()
    try:
        assert ready.wait(20)
        yield kill
    finally:
        kill()


def test_a_run_is_made_once_and_found_again(federation: Any, tmp_path: Path) -> None:
    """`callosum run` twice is one run: its id is in every order, and sites know it by that."""
    made = federation()
    folder = tmp_path / "run"
    first = create_run(folder, made.study, made.study_file)
    again = create_run(folder, made.study, made.study_file)
    assert again == first == read_run(folder)
    assert (folder / "study.toml").read_bytes() == made.study_file.read_bytes()
    with open_run(folder, made.study) as run:
        assert run.id == first.id


def test_a_run_that_goes_on_with_other_code_says_so(
    federation: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """After an update its rounds are of two codes: whoever reads the model must be able to know."""
    made, folder = federation(), tmp_path / "run"
    create_run(folder, made.study, made.study_file)
    with open_run(folder, made.study):
        assert "other code" not in capsys.readouterr().err
    monkeypatch.setattr(run_module, "agreed_digest", lambda study: "ab" * 32)
    with open_run(folder, made.study):
        assert "was begun with other code" in capsys.readouterr().err


def test_a_run_that_goes_on_is_found_without_waiting(federation: Any, tmp_path: Path) -> None:
    """Looking on, or asking for it again, must not need the lock of whoever works in it."""
    made = federation()
    first = create_run(tmp_path / "run", made.study, made.study_file)
    with held(tmp_path / "run"):
        assert create_run(tmp_path / "run", made.study, made.study_file) == first


def test_another_study_or_foreign_files_make_no_run(federation: Any, tmp_path: Path) -> None:
    """Nothing is overwritten; the message says what differs."""
    made = federation()
    create_run(tmp_path / "run", made.study, made.study_file)
    other = made.study.model_copy(update={"seed": 8})
    with pytest.raises(FolderError, match=r"changed: seed \(was 7, is 8\)"):
        create_run(tmp_path / "run", other, made.study_file)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "draft.txt").touch()
    with pytest.raises(FolderError, match=r"holds draft\.txt and is no run"):
        create_run(tmp_path / "papers", made.study, made.study_file)


def test_one_process_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    """A lock that outlives its holder would have to be cleared by hand at three in the morning."""
    with held(tmp_path) as kill:
        with pytest.raises(RunBusyError, match="another process is working in"), alone(tmp_path):
            pass
        kill()
        with alone(tmp_path):
            pass


def driven(made: Any, folder: Path) -> None:
    """As Flower runs the ServerApp."""
    from client.site import load_site
    from deploy.local import open_agent

    sites = made.study.sites.train
    agents = [open_agent(made.study, load_site(made.sites / s / "site.toml")) for s in sites]
    grid = LocalGrid(agents)
    config = {
        "run": str(folder),
        "nodes": json.dumps(grid.nodes),
        "key": "",
        "books": "",
        "peers": "",
    }
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config)
    )
    room.app(grid, context)


def test_what_a_person_must_mend_is_noted_in_the_run(federation: Any, tmp_path: Path) -> None:
    """The hub reads it and does not hand the run to Flower again and again."""
    made = federation({"sites.time_limit_s": 0.1}, lacks={"alpha": ("age", "sex")})
    for site in ("beta", "gamma"):
        (made.sites / site / "table.csv").write_text("participant_id\n")
    folder = create_run(tmp_path / "run", made.study, made.study_file).folder
    with pytest.raises(CallosumError) as caught:
        driven(made, folder)
    assert failure_of(folder) == str(caught.value)
    assert not is_finished(folder)


def test_a_run_that_another_process_holds_has_not_failed(federation: Any, tmp_path: Path) -> None:
    """A ServerApp that lost its hub still ends; the next attempt works."""
    made = federation({"pretraining.rounds": 1})
    folder = create_run(tmp_path / "run", made.study, made.study_file).folder
    with held(folder), pytest.raises(RunBusyError):
        driven(made, folder)
    assert failure_of(folder) == ""
    driven(made, folder)
    assert is_finished(folder)


def test_a_defect_of_ours_is_logged_in_the_run_and_tried_again(
    federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower shows the log of a ServerApp to nobody who does not ask in time."""
    made = federation({"pretraining.rounds": 1})
    folder = create_run(tmp_path / "run", made.study, made.study_file).folder

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(room.Phases, "all", broken)
        driven(made, folder)
    assert failure_of(folder) == ""
    log = (folder / "run.log").read_text()
    assert "the run broke off" in log
    assert "ZeroDivisionError: a defect" in log
    driven(made, folder)
    assert is_finished(folder)
