"""One site's trouble in a simulation is that site's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from deploy.local import find_sites


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_folder_that_cannot_be_listed_hides_no_other_site(
    federation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Site files are looked for among the data; a stale handle there ended the simulation."""
    made = federation()
    closed = made.sites / "alpha" / "data"
    closed.mkdir(exist_ok=True)
    original = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path) == str(closed):
            raise OSError(number, os.strerror(number), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names = [*made.study.sites.train, *made.study.sites.heldout]
    assert [site.name for site in find_sites(made.study, made.sites)] == names
