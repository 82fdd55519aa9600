"""Locks on open files, which the kernel lets go of however their process ends."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from common.errors import StorageError, reason


def lock(file: IO[bytes] | IO[str] | int, path: Path, *, wait: bool, remedy: str) -> None:
    """Lock the open `file`, which is or lies in `path`; its closing ends that.

    Raises
    ------
    BlockingIOError
        If another process holds it and `wait` is False.
    StorageError
        With `remedy`, if the file system cannot lock, as Lustre and some NFS cannot.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be locked ({reason(error)}); this file system cannot lock: {remedy}"
        ) from None
