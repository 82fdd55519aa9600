"""Writing that survives a crash: a file is the old one or the new one, never half of each."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import StorageError

# EFBIG is a limit on the size of one file; to whoever runs the site it is the same trouble
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, durably; a crash leaves the old content or the new.

    Raises
    ------
    StorageError
        If the disk is full or the folder cannot be written; `path` then holds what it held before.
    """
    # the same folder, because a rename is atomic only inside one file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def storage_checked(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names `path` and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{path} cannot be written: {os.strerror(error.errno)}; "
                "free space there and run the same command again, it resumes"
            ) from error
        raise StorageError(f"{path} cannot be written: {error}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: without it a crash may undo a rename."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
