"""A file system that cannot lock is told with its remedy, whoever needs the lock."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.authority.ledger import Ledger
from client.data.prepare import prepare
from client.site import load_site
from common.errors import StorageError
from common.runtime.locks import lock
from deploy.kits.provision import _alone
from server.federation.books import SiteBooks
from server.run import alone


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EBADF], ids=errno.errorcode.get)
def number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Lustre without flock, NFS without its lock daemon, NFS with a file open for reading."""
    found: int = request.param

    def refuse(*_: object) -> None:
        raise OSError(found, os.strerror(found))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return found


def test_each_lock_names_the_reason_and_a_remedy(
    tmp_path: Path, federation: Callable[..., Any], number: int
) -> None:
    """Each of these ended in a traceback."""
    made = federation()
    site = load_site(made.sites / "alpha" / "site.toml")
    books = SiteBooks(tmp_path)
    askings: list[tuple[Callable[[], Any], str]] = [
        (lambda: prepare(made.study, site), "set folder in the site file"),
        (lambda: Ledger(site.state / "ledger.sqlite"), "set folder in the site file"),
        (lambda: alone(tmp_path).__enter__(), "give the folder a place"),
        (lambda: _alone(tmp_path).__enter__(), "give --out a place"),
        (lambda: books._alone().__enter__(), "give the hub's kit a place"),
    ]
    for ask, remedy in askings:
        with pytest.raises(StorageError) as told:
            ask()
        assert f"({os.strerror(number)}); this file system cannot lock: {remedy}" in str(told.value)


def test_a_lock_that_another_holds_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """Whoever asks says what it means that somebody else is at work."""
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        lock(first, path, wait=False, remedy="")
        with pytest.raises(BlockingIOError):
            lock(second, path, wait=False, remedy="")
