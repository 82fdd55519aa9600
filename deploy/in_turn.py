"""Studies one after another: one that fails ends no other, one that another process runs is left.

The same command may run twice at once, in two shells: it then shares the studies out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Generic, Protocol, TypeVar

from common.errors import CallosumError, RunBusyError, StorageError, reason
from common.runtime.progress import say, track

_log = getLogger("callosum.studies")


class Named(Protocol):
    """One of many studies."""

    @property
    def name(self) -> str:
        """What a person is told that it is."""


One = TypeVar("One", bound=Named)
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing(Generic[Row]):
    """How many studies stand: what was measured, what failed and why, what was not run yet."""

    rows: tuple[Row, ...]
    finished: int
    failed: Mapping[str, str]
    waiting: tuple[str, ...]


def run_in_turn(
    word: str, whole: str, asked: Iterable[One], one: Callable[[One], str]
) -> dict[str, str]:
    """Let `one` take each of `asked` to its end; names of those that failed, and why.

    What another process works in, or towards, is looked at again at the end. `word` and `whole`
    are for people: a cell of the protocol.

    Raises
    ------
    StorageError
        If the disk is full, which no other would survive.
    """
    every = list(asked)
    failed: dict[str, str] = {}
    with track(f"{word}s of {whole}", len(every)) as advance:
        left = _pass(word, every, one, failed, advance)
        _pass(word, left, one, failed, advance)
    return failed


def standing(
    every: Iterable[One],
    failed: Mapping[str, str],
    read: Callable[[One], Sequence[Row] | None],
    unmeasured: Callable[[One], str] | None = None,
) -> Standing[Row]:
    """`read` what is finished, None of what is not; damaged files fail one, and end nothing.

    `unmeasured` says what it means if one that is finished measured nothing, where it may not.
    """
    rows: list[Row] = []
    problems, waiting, finished = dict(failed), [], 0
    for one in every:
        if one.name in problems:
            continue
        try:
            found = read(one)
        except CallosumError as error:
            problems[one.name] = " ".join(str(error).split())
            continue
        if found is None:
            waiting.append(one.name)
            continue
        rows += found
        finished += 1
        if not found and unmeasured is not None:
            problems[one.name] = unmeasured(one)
    return Standing(rows=tuple(rows), finished=finished, failed=problems, waiting=tuple(waiting))


def problem_of(name: str, work: Callable[[], object]) -> str:
    """Do it; why it failed in one line, or nothing."""
    try:
        work()
    except (StorageError, RunBusyError):
        raise
    except CallosumError as error:
        return " ".join(str(error).split())
    except OSError as error:
        _log.exception("%s failed", name)
        return f"{error.filename or 'this machine'}: {reason(error)}"
    except Exception as error:  # noqa: BLE001  one must never end the others
        _log.exception("%s failed", name)
        return f"{type(error).__name__}: {error}"
    return ""


def _pass(
    word: str,
    asked: Sequence[One],
    one: Callable[[One], str],
    failed: dict[str, str],
    advance: Callable[[], None],
) -> list[One]:
    """Go through them once; those that another process works in."""
    left = []
    for number, each in enumerate(asked, start=1):
        began = time.monotonic()
        try:
            problem = one(each)
        except RunBusyError:
            left.append(each)
            continue
        if problem:
            failed[each.name] = problem
        if problem or time.monotonic() - began > 1:
            what = problem or f"{time.monotonic() - began:.1f} s"
            say(f"{word} {number} of {len(asked)}, {each.name}: {what}")
        advance()
    return left
