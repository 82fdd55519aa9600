"""The runs that a hub drives: handed to Flower, watched, handed over again until they are done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

from common.errors import CallosumError
from common.runtime.progress import say
from common.runtime.supervision import end_of, fault_in
from deploy.hub.control import Control
from server.run import is_held
from server.run_state import (
    State,
    failure_of,
    is_finished,
    note_state,
    state_of,
    wanted_of,
    wanted_since,
)

_log = getLogger("callosum.hub")
_LONGEST_REST_S: Final = 60.0
_ABSENT_S: Final = 15.0  # of a ServerApp that was there
_STARTING_S: Final = 60.0  # times the attempt: on a busy machine Python and torch take their time
_HEALTHY_S: Final = 60.0  # an attempt that lasted this long does not count as a failed start


@dataclass(slots=True)
class HubRun:
    """One run: Flower's id of the present attempt, and when it may be tried next."""

    folder: Path
    flower: int | None = None
    attempts: int = 0
    began: float = 0.0
    seen: float = 0.0  # when its ServerApp last held the run folder
    due: float = 0.0
    log_from: int = 0  # where in SuperExec's log this attempt begins
    why: str = ""  # what an attempt that came to nothing said last


@dataclass(slots=True)
class HubRuns:
    """Every run that a coordinator has asked for, brought closer to what is wanted of it.

    Parameters
    ----------
    runs : the folder of run folders
    bundle : the app bundle that each is handed over with
    log : what ServerApps write before they have a run folder, and SuperExec beside them
    """

    runs: Path
    bundle: bytes
    log: Path
    known: dict[Path, HubRun] = field(default_factory=dict)

    def drive(self, control: Control, config: Mapping[str, str]) -> None:
        """Look at every run once. `config` is what all runs are told, beside their folder."""
        for wanted in sorted(self.runs.glob("*/wanted.json")):
            self.known.setdefault(wanted.parent, HubRun(wanted.parent))
        going = control.going() if any(run.flower for run in self.known.values()) else set()
        for run in self.known.values():
            try:
                self._drive(control, run, going, config)
            except (CallosumError, OSError) as error:  # one run's folder must not stop the others
                _log.error("%s: %s", run.folder.name, error)

    def forget(self) -> None:
        """Flower knows none of them any more."""
        for run in self.known.values():
            run.flower = None

    def wait(self, why: str) -> None:
        """Note at every run that should be going why it does not."""
        for wanted in sorted(self.runs.glob("*/wanted.json")):
            folder = wanted.parent
            over = is_finished(folder) or failure_of(folder)
            if wanted_of(folder) == "running" and not over:
                _note(self.known.setdefault(folder, HubRun(folder)), "waiting", why)

    def interrupt(self, control: Control) -> None:
        """End the present attempts; each run is handed over anew."""
        going = control.going()
        for run in self.known.values():
            if run.flower is not None and run.flower in going:
                control.stop(run.flower)

    def _drive(
        self, control: Control, run: HubRun, going: set[int], config: Mapping[str, str]
    ) -> None:
        alive = run.flower in going
        if wanted_of(run.folder) == "stopped":
            if alive and run.flower is not None:
                control.stop(run.flower)
            run.flower = None
            _note(run, "stopped")
        elif alive:
            self._look_after(control, run)
            _note(run, "running", run.why)
        elif is_finished(run.folder):
            _note(run, "finished")
        elif error := failure_of(run.folder):
            _note(run, "failed", error)
        elif time.monotonic() >= run.due:
            self._start(control, run, config)

    def _look_after(self, control: Control, run: HubRun) -> None:
        """A ServerApp that was killed holds its folder no longer; Flower would wait a minute."""
        now = time.monotonic()
        # whoever ends what is still starting starts it for ever
        patience_s = _ABSENT_S if run.seen > run.began else _STARTING_S * run.attempts
        if is_held(run.folder) or is_finished(run.folder):
            run.seen, run.why = now, ""
        elif now - max(run.began, run.seen) > patience_s and run.flower is not None:
            run.why = self._last_words(run)
            say(f"{run.folder.name}: its ServerApp is gone{': ' if run.why else ''}{run.why}")
            control.stop(run.flower)
            if run.seen <= run.began:  # it never was there, so this attempt lasted no time
                run.began = now
            run.seen = now

    def _start(self, control: Control, run: HubRun, config: Mapping[str, str]) -> None:
        now = time.monotonic()
        if run.flower is not None and now - run.began > _HEALTHY_S:
            run.attempts = 0
        elif run.attempts:
            run.why = run.why or self._last_words(run)
        run.log_from = self.log.stat().st_size if self.log.exists() else 0
        rest_s = min(2.0 ** min(run.attempts, 9), _LONGEST_REST_S)
        run.attempts, run.began, run.due = run.attempts + 1, now, now + rest_s
        told = {**config, "run": str(run.folder.resolve())}
        run.flower = control.start(self.bundle, told)
        say(f"{run.folder.name}: handed to Flower, attempt {run.attempts}")
        _note(run, "running", run.why)

    def _last_words(self, run: HubRun) -> str:
        return fault_in(end_of(self.log, run.log_from))


def _note(run: HubRun, state: State, error: str = "") -> None:
    before = state_of(run.folder)
    now = (state, error, run.attempts)
    asked = wanted_since(run.folder)
    stale = before.get("since", 0.0) < asked
    if stale or (before.get("state"), before.get("error"), before.get("attempts")) != now:
        note_state(run.folder, state, attempts=run.attempts, error=error)
        if before.get("state") != state or error:
            say(f"{run.folder.name}: {state}" + (f": {error}" if error else ""))
