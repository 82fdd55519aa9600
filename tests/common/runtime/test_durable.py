"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import StorageError
from common.runtime import durable
from common.runtime.durable import write_atomically


@contextmanager
def disk_that_ends_at(size: int) -> Iterator[None]:
    """Let the kernel refuse to grow any file beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child that kills itself at its step-th fsync or rename; true if it died."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*args: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)

            return wrapped

        durable.os.fsync = dying(os.fsync)  # type: ignore[assignment]
        durable.os.replace = dying(os.replace)  # type: ignore[assignment]
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@settings(deadline=None)  # a disk may be slow
@given(old=st.binary(max_size=300), new=st.binary(max_size=300))
def test_the_new_content_replaces_the_old(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    """Any bytes, shorter or longer than what was there: nothing of the old file shines through."""
    path = tmp_path_factory.mktemp("durable") / "file"
    write_atomically(path, old)
    write_atomically(path, new)
    assert path.read_bytes() == new
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_content_and_leaves_no_rubbish(tmp_path: Path) -> None:
    """A coordinator's checkpoint must survive the disk that the next one did not fit on."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with disk_that_ends_at(1000), pytest.raises(StorageError, match=r"file cannot.*free space"):
        write_atomically(path, b"n" * 5000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not every failure is a full disk; all of them are storage."""
    (tmp_path / "taken").write_bytes(b"a file, no folder")
    with pytest.raises(StorageError, match=r"taken/file cannot be written"):
        write_atomically(tmp_path / "taken" / "file", b"")


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    """Whoever writes a round's record need not know whether it is the first of its folder."""
    write_atomically(tmp_path / "rounds" / "0001" / "record.json", b"{}")
    assert (tmp_path / "rounds" / "0001" / "record.json").read_bytes() == b"{}"


def test_a_kill_at_any_step_leaves_one_whole_content(tmp_path: Path) -> None:
    """SIGKILL before each fsync and rename: what is read is all old or all new."""
    path = tmp_path / "file"
    old, new = b"old" * 10_000, b"new" * 20_000
    step = 1
    write_atomically(path, old)
    while killed_at(step, lambda: write_atomically(path, new)):
        assert path.read_bytes() in (old, new)
        step += 1
    assert step == 4  # the file's fsync, the rename, the folder's fsync
    assert path.read_bytes() == new


def test_the_file_gets_the_permissions_that_the_umask_asks_for(tmp_path: Path) -> None:
    """A temporary file readable by its owner alone would lock a group out of its own results."""
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
