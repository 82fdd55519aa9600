"""Child processes that are kept alive: started again after a rest, ended with their parent.

A child that keeps failing is started ever more rarely, one that ran for a while at once again. When
the parent dies, however it dies, the kernel ends its children.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Final

from common.printable import printable

_log = getLogger("callosum.supervision")
_SHORTEST_REST_S: Final = 1.0
_LONGEST_REST_S: Final = 15.0  # Flower lets a crashed node in again after a minute: not much later
_HEALTHY_S: Final = 60.0  # one that ran this long starts again without a long rest
_GRACE_S: Final = 5.0
_LARGEST_LOG: Final = 20 << 20
_LAST: Final = 1 << 14  # bytes of a log that are looked through for last words
_LONGEST_WORDS: Final = 300  # characters
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_TELLING: Final = re.compile(
    r"error|exception|refused|denied|in use|cannot|no space", re.IGNORECASE
)
_CALM: Final = re.compile(r"\b(INFO|DEBUG)\b")
_IN_USE: Final = re.compile(r"(\d{1,5})\D*address already in use", re.IGNORECASE)
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Child:
    """One supervised process; its output goes to `log`.

    `hindrance` is asked before each start: a text says why it would come to nothing. `after_end` is
    called when it ended by itself, before it is due again. Only a thread that lives
    as long as the process may tend it: the kernel ends children with the thread that made them.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    after_end: Callable[[], None] | None = None
    hindrance: Callable[[], str] | None = None
    starts: int = 0
    said: str = ""  # the end of its log, if it ended and has not been seen to work since
    _process: subprocess.Popen[bytes] | None = None
    _began: float = 0.0
    _due: float = 0.0
    _from: int = 0  # where in the log its last start begins
    _rest_s: float = field(default=_SHORTEST_REST_S)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    def tend(self) -> bool:
        """Start it if it is due; note its end. Whether it was started just now."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            self._end_group(signal.SIGKILL)  # what it left behind would hold its ports
            self._process = None
            if now - self._began > _HEALTHY_S:
                self._rest_s = _SHORTEST_REST_S
            self.said = end_of(self.log, self._from)
            why = last_words(self.said) if code else fault_in(self.said)
            told = f"{code}: {why}" if why else code
            _log.warning("%s ended (%s); again in %.0f s", self.name, told, self._rest_s)
            self._rest(now)
            if self.after_end is not None:
                self.after_end()
        if self._process is not None or now < self._due:
            return False
        why = self.hindrance() if self.hindrance is not None else ""
        if why:
            self.said = why
            _log.warning("%s cannot start: %s; again in %.0f s", self.name, why, self._rest_s)
            self._rest(now)
            return False
        self._start(now)
        return True

    def settle(self) -> None:
        """Forget earlier failures: it has been seen to work."""
        self._rest_s, self.said = _SHORTEST_REST_S, ""

    def stop(self) -> None:
        """End it politely, then by force."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            _log.warning("%s does not stop; it is killed", self.name)
        self._end_group(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _rest(self, now: float) -> None:
        self._due, self._rest_s = now + self._rest_s, min(2 * self._rest_s, _LONGEST_REST_S)

    def _start(self, now: float) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".1.log"))
        with self.log.open("ab") as output:
            self._from = output.tell()
            self._process = subprocess.Popen(  # noqa: S603  our own command line, without a shell
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the parent, who then ends it in order
                preexec_fn=partial(_die_with_parent, os.getpid()),  # noqa: PLW1509  system calls alone
            )
        self._began, self.starts = now, self.starts + 1
        _log.info("%s started, process %d", self.name, self._process.pid)

    def _end_group(self, number: int) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return


def last_words(said: str) -> str:
    """Why a program ended, by what it said: the fault that it named, else its last line."""
    return fault_in(said) or printable(said.strip().rpartition("\n")[2], most=_LONGEST_WORDS)


def fault_in(said: str) -> str:
    r"""The last line of what a program said that names a fault, or nothing.

    Libraries end in order after a fault, and say so in lines that explain nothing.

    >>> fault_in("OSError: cannot bind ('127.0.0.1', 80): address already in use\nGood bye.")
    'port 80 is in use by another program'
    """
    lines = [line.strip() for line in said.splitlines() if not _CALM.search(line)]
    told = next((line for line in reversed(lines) if _TELLING.search(line)), "")
    in_use = _IN_USE.search(told)
    if in_use:
        return f"port {in_use[1]} is in use by another program"
    return printable(told, most=_LONGEST_WORDS)


def end_of(log: Path, since: int = 0) -> str:
    """The end of what was written to a log behind `since`, without colours."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(since, log.stat().st_size - _LAST))
            return _COLOURS.sub("", stream.read().decode(errors="replace"))
    except OSError:
        return ""


def told_to_stop() -> threading.Event:
    """An event that SIGTERM and Ctrl-C set, for a main loop that ends in order."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _die_with_parent(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
