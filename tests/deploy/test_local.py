"""One site's trouble in a simulation is that site's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from common.errors import SettingError
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


def test_a_role_is_the_sites_own_unless_roles_are_recast(federation: Callable[..., Any]) -> None:
    """Where one person holds all data each site may judge in turn; its file says what it said."""
    made = federation({"sites": {"train": ["alpha", "beta"], "heldout": ["omega"]}})
    made.changes["sites"] = {"train": ["beta", "omega"], "heldout": ["alpha"]}
    with pytest.raises(SettingError, match="the site decides"):
        find_sites(made.study, made.sites)
    before = (made.sites / "alpha" / "site.toml").read_bytes()
    found = find_sites(made.study, made.sites, recast=True)
    assert {site.name: site.role for site in found} == {
        "beta": "train", "omega": "train", "alpha": "heldout",
    }  # fmt: skip
    assert (made.sites / "alpha" / "site.toml").read_bytes() == before
