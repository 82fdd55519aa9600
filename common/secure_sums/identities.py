"""`peers.toml`: the public identity of each training site, by which secure sums know the sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.sections import Name
from common.settings import Table, checked, read_toml


class PeersFile(Table):
    """What the list says."""

    sites: dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        description="Public identity (Ed25519) of each training site, in hex."
    )


def read_identities(path: Path) -> dict[str, bytes]:
    """Each site's identity, 32 bytes.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    table = checked(PeersFile, read_toml(path), file=path)
    return {name: bytes.fromhex(text) for name, text in table.sites.items()}
