"""A border: where something from outside is read; and what reading it may do, and may not."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from common.errors import CallosumError

LONGEST_S: Final = 2.0  # of processor time for one input
MOST_BYTES: Final = 500_000_000  # of the whole process
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Border:
    """One kind of input.

    share: how many of all inputs are of this kind; what is read fast gets more.
    make: an input from a generator; the same generator makes the same input.
    read: reads it as our code does; returns, or raises an error of ours.
    """

    name: str
    share: float
    make: Callable[[Random], Any]
    read: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that did what none may do; `border --at number` with the same seed makes it again."""

    border: str
    number: int
    what: str
    where: str


_UNSEEN: Final = 64 << 20  # bytes, in a process that is larger already, as a test's may be


class _Hang(BaseException):
    pass


def tried(border: Border, seed: int, number: int) -> Finding | None:
    """Make and read one input."""
    value = border.make(Random(f"{seed}/{border.name}/{number}"))
    began, before = time.process_time(), _peak()
    try:
        with _limited():
            border.read(value)
    except CallosumError:
        pass
    except _Hang as hang:
        return Finding(border.name, number, f"more than {LONGEST_S} s", _place(hang))
    except Exception as error:  # noqa: BLE001  this is what is looked for
        what = f"{type(error).__name__}: {str(error)[:150]}"
        return Finding(border.name, number, what, _place(error))
    spent, peak = time.process_time() - began, _peak()
    if spent > LONGEST_S:  # in C, where no signal reaches
        return Finding(border.name, number, f"more than {LONGEST_S} s", f"{spent:.1f} s")
    if peak > max(MOST_BYTES, before + _UNSEEN):
        return Finding(border.name, number, "too much memory", f"{peak >> 20} MiB")
    return None


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The innermost line of our own tree."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _is_ours(frame.filename)]
    last = (ours or list(frames))[-1]
    return f"{last.filename.removeprefix(f'{_ROOT}/')}:{last.lineno}"


def _is_ours(file: str) -> bool:
    rooms = ("common", "client", "server", "deploy")
    return file.startswith(tuple(f"{_ROOT}/{room}/" for room in rooms))
