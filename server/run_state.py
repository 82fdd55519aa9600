"""What a coordinator wants of a run, and how it stands: two files in the run folder.

`wanted.json` is written by the coordinator's commands and read by the hub; `state.json` is written
by the hub and read by whoever looks on. Whoever restarts finds here what to do.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from common.protocol.bounded_json import parsed
from server.run_files import write_json

Wanted = Literal["running", "stopped"]
State = Literal["waiting", "running", "finished", "failed", "stopped"]

_WANTED: Final = "wanted.json"
_STATE: Final = "state.json"
_FAILURE: Final = "failure.json"
_BREAKS: Final = "breaks.json"
_MOST_BREAKS: Final = 3  # without any progress in between
_LONGEST_ERROR: Final = 500  # characters


class _Stands(BaseModel):
    """What `state.json` holds."""

    state: str = ""
    attempts: int = 0
    error: str = ""
    since: float = 0.0
    wanted: str | None = None


def want(folder: Path, wanted: Wanted) -> None:
    """Say what should become of the run; a failure of before is forgiven."""
    for file in (_FAILURE, _BREAKS):
        (folder / file).unlink(missing_ok=True)
    write_json(folder / _WANTED, {"wanted": wanted, "since": time.time()})


def wanted_of(folder: Path) -> Wanted | None:
    """What the coordinator wants of this run; None if no hub was asked to drive it."""
    found = read_state_file(folder / _WANTED).get("wanted")
    return found if found in ("running", "stopped") else None


def wanted_since(folder: Path) -> float:
    """When the coordinator last said so, as Unix time."""
    since = read_state_file(folder / _WANTED).get("since", 0.0)
    return float(since) if isinstance(since, int | float) else 0.0


def note_state(folder: Path, state: State, *, attempts: int, error: str = "") -> None:
    """Write how the run stands."""
    about = {"state": state, "attempts": attempts, "error": error, "since": time.time()}
    write_json(folder / _STATE, {**about, "wanted": wanted_of(folder)})


def state_of(folder: Path) -> dict[str, Any]:
    """How the hub says the run stands: state, attempts, error, since; empty before it said."""
    found = read_state_file(folder / _STATE)
    try:
        _Stands.model_validate(found, strict=True)
    except ValidationError:
        return {}
    return found


def note_failure(folder: Path, error: str) -> None:
    """Say that the run cannot go on without a person; nothing done so far is lost."""
    write_json(folder / _FAILURE, {"error": error, "at": time.time()})


def note_break(folder: Path, error: Exception) -> None:
    """Count an exception that nobody expected; at the third the run needs a person.

    An attempt that came further than the one before begins to count anew: what ends by itself is
    worth its attempts, and a run of weeks may break off now and then.
    """
    told = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
    before, done = read_state_file(folder / _BREAKS), _done(folder)
    times = 1 + (int(before.get("times", 0)) if before.get("done") == done else 0)
    write_json(folder / _BREAKS, {"error": told, "done": done, "times": times})
    if times >= _MOST_BREAKS:
        note_failure(folder, f"it broke off {times} times, and run.log says where: {told}")


def _done(folder: Path) -> int:
    """Reports, records and checkpoints that there are."""
    files = (*folder.rglob("*.safetensors"), *folder.rglob("record.json"))
    return sum(not file.name.startswith(".") for file in files)


def failure_of(folder: Path) -> str:
    """Why the run cannot go on without a person, or nothing."""
    return str(read_state_file(folder / _FAILURE).get("error", ""))


def is_finished(folder: Path) -> bool:
    """Whether every phase is done: results are the last that a run writes."""
    return (folder / "results.csv").exists()


def read_state_file(path: Path) -> dict[str, Any]:
    """A small JSON table; empty if it is not there or damaged."""
    try:
        found = parsed(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
