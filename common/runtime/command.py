"""What both commands share: errors become one clear line and a documented exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any, Final

import click
import typer

from common.errors import INTERRUPTED, CallosumError, StorageError, reason
from common.printable import in_log, printable
from common.runtime.progress import say
from common.runtime.proxies import spare_loopback

# what disks, permissions and limits refuse, whatever a program does
_DISKS: Final = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "EIO", "ESTALE", "EMFILE", "ENFILE", "ETIMEDOUT")
)
_LONGEST_TRACEBACK: Final = 20_000  # characters
_ALLOCATOR: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


class Shown(logging.Formatter):
    """Lines of a log in which what others wrote stays one line, and data."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the library's name
        """The line without the traceback that may follow it."""
        record.message = in_log(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, whose last lines quote whatever was wrong."""
        return printable(super().formatException(ei), lines=True, most=_LONGEST_TRACEBACK)


def fix_allocator(argv: Sequence[str]) -> None:
    """Start this program again with glibc told to keep its buffers.

    3D convolutions map and unmap theirs at every step otherwise, which costs a third of the time;
    the weights are the same to the bit.
    """
    if os.name != "posix" or all(name in os.environ for name in _ALLOCATOR):
        return
    os.environ.update(dict.fromkeys(_ALLOCATOR, str(1 << 30)))
    os.execvpe(argv[0], list(argv), os.environ)  # noqa: S606  our own command line again


def run(app: typer.Typer, name: str) -> None:
    """Run a command line and leave with its exit code; a traceback means a defect of ours."""
    spare_loopback(os.environ)  # children have it from here
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters of ours
    log = logging.StreamHandler()
    log.setFormatter(Shown("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    logging.getLogger("callosum.site").setLevel(logging.ERROR)  # sites write their own logs
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every call to Flower
    sys.exit(_exit_code(app, name))


def _main(app: typer.Typer, name: str) -> Any:
    """Carry a command out; whatever breaks after Ctrl-C is Ctrl-C.

    A library in C that is being loaded, or calls back into Python, makes an error of its own of the
    interruption: "initialization failed".
    """
    stopped: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.default_int_handler(number, frame)

    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, note)
    try:
        return typer.main.get_command(app).main(prog_name=name, standalone_mode=False)
    except Exception:
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit_code(app: typer.Typer, name: str) -> int:
    try:
        code = _main(app, name)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except CallosumError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            say(f"error: the disk is full ({error.filename}); free space and run again")
        elif error.errno in _DISKS:
            say(f"error: {error.filename or 'this machine'}: {reason(error)}; see to it, run again")
        else:
            raise
        return StorageError.exit_code
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code without a word
        say("stopped; the same command goes on from here")
    return code if isinstance(code, int) else 0
