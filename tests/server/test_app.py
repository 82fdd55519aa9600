"""A run that breaks off says so where a coordinator looks, and is not tried for ever."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from common.errors import QuorumError
from deploy.cli import app
from server.federation.phases import Phases
from server.run_state import failure_of


@pytest.fixture
def breaking(federation, monkeypatch) -> Any:
    """A federation whose run raises what it is told."""
    made = federation({"pretraining.rounds": 1})

    def run(error: Exception) -> Any:
        def broken(phases: Phases) -> None:
            raise error

        monkeypatch.setattr(Phases, "all", broken)
        with pytest.raises(type(error)):
            made.simulate("run")
        return made.folder / "run"

    return run


def test_an_unexpected_error_three_times_over_is_the_runs_state(breaking) -> None:
    """Seven hours of attempts told nobody anything; the text is what a person needs."""
    for times in range(1, 4):
        folder = breaking(RuntimeError("a site made this"))
        assert bool(failure_of(folder)) == (times == 3)
    assert "RuntimeError: a site made this" in failure_of(folder)
    shown = CliRunner().invoke(app, ["show", str(folder)])
    assert "a site made this" in " ".join((shown.output + shown.stderr).split())


def test_an_expected_error_is_the_runs_state_at_once(breaking) -> None:
    """Too few sites answered: only a person can mend that."""
    assert failure_of(breaking(QuorumError("1 of 3 sites"))) == "1 of 3 sites"


def test_a_hub_that_is_away_is_never_the_runs_fault(breaking) -> None:
    """It may be restarted ten times in a night; the run goes on when it is back."""
    for _ in range(5):
        assert failure_of(breaking(httpx.ConnectError("refused"))) == ""
