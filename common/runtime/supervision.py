"""Child processes that are kept alive: started again after a rest, ended with their parent.

A child that keeps failing is started ever more rarely, one that ran for a while at once again. When
the parent dies, however it dies, the kernel ends its children.
"""

from __future__ import annotations

import ctypes
import os
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

_log = getLogger("callosum.supervision")
_SHORTEST_REST_S: Final = 1.0
_LONGEST_REST_S: Final = 15.0  # Flower lets a crashed node in again after a minute: not much later
_HEALTHY_S: Final = 60.0  # one that ran this long starts again without a long rest
_GRACE_S: Final = 5.0
_LARGEST_LOG: Final = 20 << 20
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Child:
    """One supervised process; its output goes to `log`.

    `after_end` is called when it ended by itself, before it is due again. Only a thread that lives
    as long as the process may tend it: the kernel ends children with the thread that made them.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    after_end: Callable[[], None] | None = None
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _began: float = 0.0
    _due: float = 0.0
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
            _log.warning("%s ended (%s); again in %.0f s", self.name, code, self._rest_s)
            self._due, self._rest_s = now + self._rest_s, min(2 * self._rest_s, _LONGEST_REST_S)
            if self.after_end is not None:
                self.after_end()
        if self._process is not None or now < self._due:
            return False
        self._start(now)
        return True

    def settle(self) -> None:
        """Forget earlier failures: it has been seen to work."""
        self._rest_s = _SHORTEST_REST_S

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

    def _start(self, now: float) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _LARGEST_LOG:
            self.log.replace(self.log.with_suffix(".1.log"))
        with self.log.open("ab") as output:
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
