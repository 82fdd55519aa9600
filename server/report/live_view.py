"""The live view: a run as it goes on, in a table, or in lines where no terminal is.

It reads the run folder and nothing else, so looking on disturbs nobody, and leaving ends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from rich.live import Live
from rich.table import Table
from rich.text import Text

from common.errors import SENTENCES
from common.printable import printable
from common.runtime.progress import console, say
from server.report.terminal import table_in_text
from server.run import Run
from server.run_state import read_state_file, state_of

ROUND: Final = ("phase", "answered", "refused", "seconds", "MB", "loss")
_PAUSE_S: Final = 0.5
_SHOWN: Final = 8  # finished rounds above the present exchange
_OVER: Final = ("finished", "failed", "stopped")


def follow(run: Run, *, hub_lives: Callable[[], bool], since: float) -> dict[str, Any]:
    """Show the run until it is over; the state in which it ended.

    `since` is the time of the request: what the hub said before does not count.
    """
    if not console.is_terminal:
        return _in_lines(run, since)
    state: dict[str, Any] = {}
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for now in _states(run.folder, since):
            state = now
            live.update(table_of(run, state, hub_lives=hub_lives()))
    console.print(table_of(run, state, hub_lives=True))
    return state


def table_of(run: Run, state: dict[str, Any], *, hub_lives: bool) -> Table:
    """The last rounds and the present exchange: who answered, in which time, with how much."""
    name = state.get("state", "waiting for the hub")
    records = run.federated.records()[-_SHOWN:]
    rows = [row_of(record, run.study.pretraining.rounds) for record in records]
    if state.get("state") not in _OVER:
        rows.append(present_of(read_state_file(run.folder / "progress.json")))
    found = table_in_text(f"{run.study.name}: {name}", ROUND, rows, section=len(records))
    found.caption = Text(printable(_caption(state, hub_lives=hub_lives)))
    return found


def row_of(record: dict[str, Any], rounds: int) -> tuple[str, ...]:
    """One finished round as a line of a table."""
    size = sum(line["bytes"] for line in record["answered"].values()) / 1e6
    return (
        f"{record['model']}: round {record['round']} of {rounds}"
        + (" DEGRADED" if record["degraded"] else ""),
        ", ".join(record["answered"]),
        ", ".join(f"{site}: {code}" for site, code in record["refused"].items()),
        f"{record['seconds']:.1f}",
        f"{size:.1f}",
        ", ".join(f"{name} {value:.3f}" for name, value in record["loss"].items()),
    )


def present_of(progress: dict[str, Any]) -> tuple[str, ...]:
    """The exchange that is going on as a line of a table."""
    if not progress:
        return ("starting", "", "", "", "", "")
    try:
        return _present(progress)
    except (AttributeError, KeyError, TypeError, ValueError):  # a damaged file; the next is sound
        return ("progress.json makes no sense", "", "", "", "", "")


def _present(progress: dict[str, Any]) -> tuple[str, ...]:
    answered, refused = progress.get("answered", {}), progress.get("refused", {})
    waiting = [site for site in progress.get("asked", []) if site not in refused | answered]
    title = " ".join(str(progress.get(key, "")) for key in ("phase", "task", "method")).strip()
    if progress.get("round") and progress.get("phase") not in ("keys", "shares"):
        what = "unmasking round" if progress.get("phase") == "unmask" else "round"
        title = f"{progress.get('model')}: {what} {progress['round']} of {progress.get('rounds')}"
    size = sum(about["bytes"] for about in answered.values()) / 1e6
    missing = f"; waiting for {', '.join(waiting)}" if waiting else ""
    return (
        title,
        (", ".join(answered) or "nobody yet") + missing,
        ", ".join(f"{site}: {code}" for site, code in refused.items()),
        f"{max((about['seconds'] for about in answered.values()), default=0):.1f}",
        f"{size:.1f}",
        "",
    )


def _caption(state: dict[str, Any], *, hub_lives: bool) -> str:
    if not hub_lives:
        return "no hub is running; start it with: callosum hub --kit"
    error = str(state.get("error", ""))
    attempts = int(state.get("attempts", 0))
    return error or (f"attempt {attempts}" if attempts > 1 else "")


def _states(folder: Path, since: float) -> Iterator[dict[str, Any]]:
    """The run's state, again and again, the last time when it is over."""
    while True:
        state = state_of(folder)
        fresh = state.get("since", 0) >= since
        yield state if fresh else {}
        if fresh and state.get("state") in _OVER:
            return
        time.sleep(_PAUSE_S)


def _in_lines(run: Run, since: float) -> dict[str, Any]:
    """One line for every round that was finished, and for every refusal."""
    told = len(run.federated.records())
    state: dict[str, Any] = {}
    for now in _states(run.folder, since):
        error = now.get("error")
        if error and error != state.get("error") and now["state"] not in _OVER:
            say(f"{now['state']}: {error}")
        state = now
        for record in run.federated.records()[told:]:
            phase, answered, _, seconds, size, loss = row_of(record, run.study.pretraining.rounds)
            say(f"{phase}: {answered} in {seconds} s, {size} MB{'; ' if loss else ''}{loss}")
            for site, code in record["refused"].items():
                say(f"  {site}: {code}: {SENTENCES.get(code, 'unknown to this version')}")
            told += 1
    return state
