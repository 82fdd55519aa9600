"""Trials are played once, whole or not at all, and never taken for another audit's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.arrays import Arrays
from common.errors import FolderError
from deploy.audit.trials import Clock, Trials, check_setting


class Player:
    """Plays, and counts."""

    def __init__(self, dies_at: int = -1) -> None:
        self.played: list[int] = []
        self.dies_at = dies_at

    def __call__(self, n: int) -> Arrays:
        if n == self.dies_at:
            raise KeyboardInterrupt
        self.played.append(n)
        return {"number": np.array([float(n)])}


def numbers(trials: Trials, most: int) -> list[float]:
    return [float(found["number"][0]) for found in trials.all(most)]


def test_what_was_played_before_a_death_is_not_played_again(tmp_path: Path) -> None:
    """Hours of trainings: the same command goes on."""
    trials, first, second = Trials(tmp_path, "some"), Player(dies_at=3), Player()
    with pytest.raises(KeyboardInterrupt):
        trials.play("trials", 6, first, Clock(0))
    assert numbers(trials, 6) == [0, 1, 2]
    trials.play("trials", 6, second, Clock(0))
    assert second.played == [3, 4, 5]
    assert numbers(trials, 6) == [0, 1, 2, 3, 4, 5]
    assert numbers(trials, 4) == [0, 1, 2, 3]


def test_a_damaged_trial_is_played_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A bound that rests on rotten numbers is none."""
    trials = Trials(tmp_path, "some")
    trials.play("trials", 3, Player(), Clock(0))
    path = tmp_path / "some" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    again = Player()
    trials.play("trials", 3, again, Clock(0))
    assert again.played == [1]
    assert "played again" in capsys.readouterr().err


def test_the_clock_ends_the_playing_and_says_how_far_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What there is by then is reported."""
    player = Player()
    Trials(tmp_path, "some").play("trials", 6, player, Clock(1e-9))
    assert player.played == []
    assert "0 of 6 are there" in " ".join(capsys.readouterr().err.split())


def test_trials_of_another_setting_are_refused(tmp_path: Path) -> None:
    """Old scores under a new seed, or of mended code, would be bounds of nothing."""
    check_setting(tmp_path, {"seed": 1, "code": "a"})
    check_setting(tmp_path, {"seed": 1, "code": "a"})
    with pytest.raises(FolderError, match=r"code was a, is b.*--out"):
        check_setting(tmp_path, {"seed": 1, "code": "b"})
