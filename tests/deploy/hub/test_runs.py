"""How long a hub waits for a ServerApp: one that starts is not one that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.hub import runs
from deploy.hub.runs import HubRuns
from server.run_state import want


class Control:
    """Flower, as far as a hub asks it."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.stopped: list[int] = []

    def start(self, bundle: bytes, config: Any) -> int:
        self.started.append(len(self.started) + 1)
        return self.started[-1]

    def stop(self, run: int) -> None:
        self.stopped.append(run)

    def going(self) -> set[int]:
        return set(self.started) - set(self.stopped)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub with one run, whose ServerApp holds its folder when `held` says so."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    want(folder, "running")
    there = type("There", (), {"now": 1000.0, "held": False, "control": Control()})()
    monkeypatch.setattr(runs.time, "monotonic", lambda: there.now)
    monkeypatch.setattr(runs, "is_held", lambda _: there.held)
    driven = HubRuns(folder.parent, b"", tmp_path / "superexec.log")

    def wait(seconds: float) -> None:
        for _ in range(int(seconds)):
            there.now += 1
            driven.drive(there.control, {})

    there.wait = wait
    driven.drive(there.control, {})
    return there


def test_a_serverapp_that_starts_slowly_is_not_started_for_ever(hub: Any) -> None:
    """On a machine with other work it took half a minute, and was ended after a quarter of one."""
    hub.wait(50)
    assert hub.control.stopped == []
    hub.held = True
    hub.wait(500)
    assert hub.control.started == [1]


def test_one_that_never_comes_is_started_anew_with_more_patience(hub: Any) -> None:
    """What one minute did not suffice for may need two."""
    hub.wait(70)
    assert hub.control.started == [1, 2]
    hub.wait(110)
    assert hub.control.started == [1, 2]
    hub.wait(30)
    assert len(hub.control.started) == 3


def test_one_that_was_killed_is_missed_soon(hub: Any) -> None:
    """Flower would wait a minute."""
    hub.held = True
    hub.wait(100)
    hub.held = False
    hub.wait(20)
    assert hub.control.started == [1, 2]
