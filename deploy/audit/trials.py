"""Trials that are kept: whatever was played is on disk, and the same command goes on after it.

FOLDER/NAME/0007.safetensors   arrays of trial 7, whole or not there
FOLDER/setting.json            what they were played with; of another setting they are not taken

A clock may end the playing; what was played by then is reported, and how much that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.arrays import Arrays
from common.errors import DamagedError, FolderError
from common.protocol.wire import Stored, write_arrays
from common.runtime.progress import say, track
from server.run_files import read_sealed, write_sealed


class Clock:
    """So many minutes for all trials together; 0: as long as it takes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")

    @property
    def is_over(self) -> bool:
        """Whether no more trials are to begin."""
        return time.monotonic() >= self._end


@dataclass(frozen=True, slots=True)
class Trials:
    """Numbered trials of one name in one folder."""

    folder: Path
    name: str

    def play(self, title: str, number: int, one: Callable[[int], Arrays], clock: Clock) -> None:
        """Play what is not there of trials 0 to `number`, in that order, while there is time."""
        left = [n for n in range(number) if self._kept(n) is None]
        with track(title, len(left)) as advance:
            for done, n in enumerate(left):
                if clock.is_over:
                    say(f"{title}: --minutes are over; {number - len(left) + done} of {number} are "
                        "there, the same command goes on")  # fmt: skip
                    return
                write_arrays(self._path(n), one(n), {})
                advance()

    def all(self, number: int) -> Iterator[Mapping[str, Any]]:
        """The arrays of each of trials 0 to `number` that was played."""
        for n in range(number):
            arrays = self._kept(n)
            if arrays is not None:
                yield arrays

    def _kept(self, n: int) -> Mapping[str, Any] | None:
        path = self._path(n)
        if not path.exists():
            return None
        try:
            return dict(Stored(path).all())
        except DamagedError as error:
            say(f"{error}; the trial is played again")
            return None

    def _path(self, n: int) -> Path:
        return self.folder / self.name / f"{n:05d}.safetensors"


def check_setting(folder: Path, setting: Mapping[str, Any]) -> None:
    """Say what a folder's trials are played with, or find that it is just that.

    Raises
    ------
    FolderError
        If it holds trials of something else.
    """
    path = folder / "setting.json"
    if not path.exists():
        write_sealed(path, setting)
        return
    before = read_sealed(path)
    changed = sorted(key for key in {*before, *setting} if before.get(key) != setting.get(key))
    if changed:
        told = "; ".join(f"{key} was {before.get(key)}, is {setting.get(key)}" for key in changed)
        raise FolderError(
            f"{folder} holds trials of another audit ({told}); give --out another folder, or "
            f"delete {folder}"
        )
