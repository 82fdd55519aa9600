"""Writing that survives a crash: a file is the old one or the new one, never half of each."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import StorageError
from common.runtime.private_folder import make_folder, mode_in

# EFBIG is a limit on the size of one file; to whoever runs the site it is the same trouble
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomically(
    path: Path, data: bytes | Iterable[bytes | memoryview], mode: int = 0o666
) -> None:
    """Replace the content of `path` by `data`, durably; a crash leaves the old content or the new.

    `data` may come in parts, of which one is held at a time; the user's umask narrows `mode`, and
    so does a private folder.

    Raises
    ------
    StorageError
        If the disk is full or the folder cannot be written; `path` then holds what it held before.
    """
    # the same folder, because a rename is atomic only inside one file system
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_checked(path):
        make_folder(path.parent)
        try:
            allowed = mode_in(path.parent, mode)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, allowed)
            with os.fdopen(handle, "wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_secret(path: Path, data: bytes) -> None:
    """The same for what only this user may read: 0600 from the first byte on."""
    write_atomically(path, data, mode=0o600)


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
