"""Progress bars for people, plain lines for logs: whatever lasts is seen to move.

On a terminal every open task is one bar; elsewhere a task that took two seconds or more leaves one
line behind, so that a log of a night's run stays readable, and one that lasts says every minute how
much time it still needs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from common.printable import printable

_WORTH_A_LINE_S: Final = 2.0
_EVERY_S: Final = 60.0  # a line of what lasts

# what people wrote is neither markup nor a picture
console = Console(stderr=True, highlight=False, markup=False, emoji=False)
_lock = threading.Lock()
_open = 0
_drawn_elsewhere = False
_hushed = False
_bars = Progress(
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    console=console,
    transient=True,
)


@contextmanager
def track(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a task of `total` steps (None: not known yet); call what comes back once a step."""
    title = printable(title)
    if _drawn_elsewhere or _hushed:
        yield lambda: None
        return
    if not console.is_terminal:
        with _lines(title, total) as advance:
            yield advance
        return
    task = _start(title, total)
    try:
        yield lambda: _bars.advance(task)
    finally:
        _stop(task)


def say(text: str) -> None:
    """One line for people, beside any bars; what others wrote in it is shown and never obeyed."""
    if _hushed:
        return
    console.print(printable(text, lines=True), soft_wrap=True, markup=False, emoji=False)


def tell(text: str) -> None:
    """A command's own answer, on standard output; likewise."""
    print(printable(text, lines=True))


def draw_nothing() -> None:
    """Leave a terminal to the process that this one was forked from."""
    global _drawn_elsewhere  # noqa: PLW0603
    _drawn_elsewhere = console.is_terminal


@contextmanager
def hushed() -> Iterator[None]:
    """Tell nobody what is done inside the block: the same work for the hundredth time, say."""
    global _hushed  # noqa: PLW0603
    before, _hushed = _hushed, True
    try:
        yield
    finally:
        _hushed = before


def _start(title: str, total: int | None) -> TaskID:
    global _open  # noqa: PLW0603  one display for the process: rich allows no second
    with _lock:
        _open += 1
        if _open == 1:
            _bars.start()
        return _bars.add_task(title, total=total)


def _stop(task: TaskID) -> None:
    global _open  # noqa: PLW0603
    with _lock:
        _bars.remove_task(task)
        _open -= 1
        if _open == 0:
            _bars.stop()


def lasting(seconds: float) -> str:
    """A time that is still to come, as roughly as it is known.

    >>> lasting(40), lasting(400), lasting(40_000)
    ('1 min', '7 min', '11.1 h')
    """
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


@contextmanager
def _lines(title: str, total: int | None) -> Iterator[Callable[[], None]]:
    began, done = time.monotonic(), 0
    told = began

    def advance() -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if total is not None and done < total and now - told >= _EVERY_S:
            told = now
            left = lasting((now - began) / done * (total - done))
            print(f"{title}: {done} of {total}, {left} left", file=sys.stderr, flush=True)

    yield advance
    seconds = time.monotonic() - began
    if seconds >= _WORTH_A_LINE_S:
        of = "" if total is None else f" of {total}"
        print(f"{title}: {done}{of} in {seconds:.1f} s", file=sys.stderr, flush=True)
