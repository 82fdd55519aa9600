"""What is wanted of a run and how it stands survive crashes, restarts and curious hands."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.hub.runs import HubRuns
from server.report.live_view import _states
from server.run_state import (
    failure_of,
    is_finished,
    note_break,
    note_failure,
    note_state,
    read_state_file,
    state_of,
    want,
    wanted_of,
)


def test_nobody_has_said_anything_about_a_fresh_run(tmp_path: Path) -> None:
    """A folder of the local engine has none of these files."""
    assert wanted_of(tmp_path) is None
    assert state_of(tmp_path) == {}
    assert failure_of(tmp_path) == ""
    assert not is_finished(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wanted", ["running", "stopped"])
def test_what_is_wanted_is_there_for_the_hub(tmp_path: Path, wanted: Any) -> None:
    """The coordinator's command may end before any hub has started."""
    before = time.time()
    want(tmp_path, wanted)
    assert wanted_of(tmp_path) == wanted
    about = json.loads((tmp_path / "wanted.json").read_text())
    assert before <= about["since"] <= time.time()


def test_the_latest_wish_counts(tmp_path: Path) -> None:
    """Stop, and go on."""
    for wanted in ("running", "stopped", "running"):
        want(tmp_path, wanted)
        assert wanted_of(tmp_path) == wanted


@pytest.mark.parametrize("state", ["waiting", "running", "finished", "failed", "stopped"])
def test_a_state_is_read_as_it_was_noted(tmp_path: Path, state: Any) -> None:
    """With the wish that it answers, so that one file tells a reader both."""
    want(tmp_path, "running")
    before = time.time()
    note_state(tmp_path, state, attempts=3, error="quorum")
    found = state_of(tmp_path)
    assert before <= found.pop("since") <= time.time()
    assert found == {"state": state, "attempts": 3, "error": "quorum", "wanted": "running"}


def test_a_failure_stands_until_somebody_wants_the_run_again(tmp_path: Path) -> None:
    """The hub must not try for ever what only a person can mend; a person's command is a mending."""
    want(tmp_path, "running")
    note_failure(tmp_path, "1 of 3 sites answered, the quorum is 2")
    assert failure_of(tmp_path) == "1 of 3 sites answered, the quorum is 2"
    assert wanted_of(tmp_path) == "running"
    note_state(tmp_path, "failed", attempts=1, error=failure_of(tmp_path))
    assert failure_of(tmp_path)
    want(tmp_path, "running")
    assert failure_of(tmp_path) == ""


def test_results_are_the_end(tmp_path: Path) -> None:
    """They are the last that a run writes, and it writes them whole."""
    note_state(tmp_path, "finished", attempts=1)
    assert not is_finished(tmp_path)  # the hub's word is not the work
    (tmp_path / "results.csv").touch()
    assert is_finished(tmp_path)


DAMAGED = {
    "empty": b"",
    "cut": b'{"wanted": "runn',
    "noise": b"\xff\xfe\x00",
    "list": b"[1, 2]",
    "number": b"3",
    "null": b"null",
    "text": b'"running"',
    "other": b'{"state": 3, "wanted": ["running"], "error": null}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_says_nothing_and_hurts_nobody(tmp_path: Path, content: bytes) -> None:
    """An editor left it half written; the next word of the hub or the coordinator mends it."""
    for name in ("wanted.json", "state.json", "failure.json"):
        (tmp_path / name).write_bytes(content)
    assert wanted_of(tmp_path) is None
    assert isinstance(state_of(tmp_path), dict)
    assert isinstance(failure_of(tmp_path), str)
    want(tmp_path, "running")
    note_state(tmp_path, "running", attempts=1)
    assert wanted_of(tmp_path) == "running"
    assert state_of(tmp_path)["state"] == "running"


def test_a_folder_or_nothing_in_place_of_a_file_says_nothing(tmp_path: Path) -> None:
    """Reading never raises: whoever looks on must not fall over what it sees."""
    assert read_state_file(tmp_path) == {}
    assert read_state_file(tmp_path / "nothing" / "state.json") == {}


def _write_for_ever(folder: Path) -> None:
    number = 0
    while True:
        number += 1
        note_state(folder, "running", attempts=number, error="e" * (number % 5000))


def test_a_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    """The hub writes while `callosum run` reads twice a second."""
    writer = multiprocessing.get_context("fork").Process(
        target=_write_for_ever, args=(tmp_path,), daemon=True
    )
    writer.start()
    try:
        end = time.monotonic() + 20
        while not state_of(tmp_path):
            assert time.monotonic() < end
        seen = [state_of(tmp_path)]
        while len(seen) < 1000 or seen[-1]["attempts"] < seen[0]["attempts"] + 20:
            assert time.monotonic() < end
            seen.append(state_of(tmp_path))
    finally:
        writer.kill()
        writer.join()
    assert all(len(state["error"]) == state["attempts"] % 5000 for state in seen)
    attempts = [state["attempts"] for state in seen]
    assert attempts == sorted(attempts)


class Flower:
    """A hub's control API of which only the list of runs matters."""

    def going(self) -> set[int]:
        return set()

    def stop(self, run: int) -> None:
        raise AssertionError("nothing runs")


def test_a_wish_for_what_is_done_already_is_answered(tmp_path: Path) -> None:
    """`callosum run` on a finished study looks on until the hub has said how it stands since."""

    def start(control: object, config: Mapping[str, str]) -> int:
        raise AssertionError("it is finished")

    runs = HubRuns(tmp_path, start, tmp_path / "superexec.log")
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "results.csv").touch()
    for _ in range(2):
        since = time.time()
        want(folder, "running")
        runs.drive(Flower(), {})  # type: ignore[arg-type]
        assert next(_states(folder, since)).get("state") == "finished"


def test_an_unexpected_error_three_times_over_needs_a_person(tmp_path: Path) -> None:
    """A report that raises on every resume would else be met by the hub for ever."""
    want(tmp_path, "running")
    for number in range(3):
        assert failure_of(tmp_path) == ""
        note_break(tmp_path, RuntimeError(f"at 0x{number} dictionary changed size"))
    assert "RuntimeError: at 0x2 dictionary changed size" in failure_of(tmp_path)
    assert "3 times" in failure_of(tmp_path)
    want(tmp_path, "running")
    assert failure_of(tmp_path) == ""
    note_break(tmp_path, RuntimeError())
    assert failure_of(tmp_path) == ""


def test_a_run_that_comes_further_each_time_is_tried_again(tmp_path: Path) -> None:
    """A run of weeks may meet three bad moments; it is stuck only where nothing is added."""
    for number in range(9):
        note_break(tmp_path, OSError("a bad moment"))
        (tmp_path / f"{number}.safetensors").touch()
    assert failure_of(tmp_path) == ""


def test_the_text_of_an_error_is_bounded(tmp_path: Path) -> None:
    """It stands in a table on somebody's screen."""
    for _ in range(3):
        note_break(tmp_path, ValueError("x" * 10**6))
    assert len(failure_of(tmp_path)) < 600


def test_a_broken_count_begins_anew(tmp_path: Path) -> None:
    """It is a help, not a truth."""
    (tmp_path / "breaks.json").write_text('{"times": ')
    note_break(tmp_path, ValueError("x"))
    assert failure_of(tmp_path) == ""
