"""Whatever lasts is seen to move, also in a log."""

from __future__ import annotations

import pytest

from common.runtime import progress


def test_a_log_hears_every_minute_how_long_a_task_still_takes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A protocol takes a night; whoever reads its log must know whether to wait."""
    clock = iter([0.0, *(20.0 * step for step in range(1, 11)), 200.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track("alpha: draws, repeats", 10) as advance:
        for _ in range(10):
            advance()
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "alpha: draws, repeats: 3 of 10, 2 min left",
        "alpha: draws, repeats: 6 of 10, 1 min left",
        "alpha: draws, repeats: 9 of 10, 1 min left",
        "alpha: draws, repeats: 10 of 10 in 200.0 s",
    ]


def test_what_is_done_for_the_hundredth_time_is_not_told(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And whatever follows it is, also where it broke off."""
    with pytest.raises(ValueError), progress.hushed():
        progress.say("again")
        with progress.track("again", 3) as advance:
            advance()
        raise ValueError
    progress.say("at last")
    assert capfd.readouterr().err == "at last\n"
