"""The runs that a hub drives: handed to Flower, watched, handed over again until they are done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

from common.errors import CallosumError
from common.progress import say
from deploy.control import Control
from server.desk import (
    State,
    failure_of,
    is_finished,
    note_state,
    state_of,
    wanted_of,
    wanted_since,
)
from server.run import is_held

_log = getLogger("callosum.hub")
_LONGEST_REST_S: Final = 60.0
_ABSENT_S: Final = 15.0  # longer than a ServerApp takes to start on a busy machine
_HEALTHY_S: Final = 60.0  # an attempt that lasted this long does not count as a failed start


@dataclass(slots=True)
class Errand:
    """One run: Flower's id of the present attempt, and when it may be tried next."""

    folder: Path
    flower: int | None = None
    attempts: int = 0
    began: float = 0.0
    seen: float = 0.0  # when its ServerApp last held the run folder
    due: float = 0.0


@dataclass(slots=True)
class Errands:
    """Every run that a coordinator has asked for, brought closer to what is wanted of it.

    Parameters
    ----------
    runs : the folder of run folders
    bundle : the app bundle that each is handed over with
    """

    runs: Path
    bundle: bytes
    known: dict[Path, Errand] = field(default_factory=dict)

    def drive(self, control: Control, config: Mapping[str, str]) -> None:
        """Look at every run once. `config` is what all runs are told, beside their folder."""
        for wanted in sorted(self.runs.glob("*/wanted.json")):
            self.known.setdefault(wanted.parent, Errand(wanted.parent))
        going = control.going() if any(errand.flower for errand in self.known.values()) else set()
        for errand in self.known.values():
            try:
                self._drive(control, errand, going, config)
            except (CallosumError, OSError) as error:  # one run's folder must not stop the others
                _log.error("%s: %s", errand.folder.name, error)

    def forget(self) -> None:
        """Flower knows none of them any more."""
        for errand in self.known.values():
            errand.flower = None

    def interrupt(self, control: Control) -> None:
        """End the present attempts; each run is handed over anew."""
        going = control.going()
        for errand in self.known.values():
            if errand.flower is not None and errand.flower in going:
                control.stop(errand.flower)

    def _drive(
        self, control: Control, errand: Errand, going: set[int], config: Mapping[str, str]
    ) -> None:
        alive = errand.flower in going
        if wanted_of(errand.folder) == "stopped":
            if alive and errand.flower is not None:
                control.stop(errand.flower)
            errand.flower = None
            _note(errand, "stopped")
        elif alive:
            self._look_after(control, errand)
            _note(errand, "running")
        elif is_finished(errand.folder):
            _note(errand, "finished")
        elif error := failure_of(errand.folder):
            _note(errand, "failed", error)
        elif time.monotonic() >= errand.due:
            self._start(control, errand, config)

    def _look_after(self, control: Control, errand: Errand) -> None:
        """A ServerApp that was killed holds its folder no longer; Flower would wait a minute."""
        now = time.monotonic()
        if is_held(errand.folder) or is_finished(errand.folder):
            errand.seen = now
        elif now - max(errand.began, errand.seen) > _ABSENT_S and errand.flower is not None:
            say(f"{errand.folder.name}: its ServerApp is gone")
            control.stop(errand.flower)
            errand.seen = now

    def _start(self, control: Control, errand: Errand, config: Mapping[str, str]) -> None:
        now = time.monotonic()
        if errand.flower is not None and now - errand.began > _HEALTHY_S:
            errand.attempts = 0
        rest_s = min(2.0 ** min(errand.attempts, 9), _LONGEST_REST_S)
        errand.attempts, errand.began, errand.due = errand.attempts + 1, now, now + rest_s
        told = {**config, "run": str(errand.folder.resolve())}
        errand.flower = control.start(self.bundle, told)
        say(f"{errand.folder.name}: handed to Flower, attempt {errand.attempts}")
        _note(errand, "running")


def _note(errand: Errand, state: State, error: str = "") -> None:
    before = state_of(errand.folder)
    now = (state, error, errand.attempts)
    asked = wanted_since(errand.folder)
    stale = before.get("since", 0.0) < asked
    if stale or (before.get("state"), before.get("error"), before.get("attempts")) != now:
        note_state(errand.folder, state, attempts=errand.attempts, error=error)
        if before.get("state") != state or error:
            say(f"{errand.folder.name}: {state}" + (f": {error}" if error else ""))
