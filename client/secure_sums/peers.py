"""Whom a site adds up with: its own identity, and those that it knows the others by.

In a deployment both are in the kit: `agent/identity.key` is the site's alone, `peers.toml` names
every training site's public half. Whoever hands out that list could put in keys of his own, so
sites compare its number by telephone; approving a study keeps the number. Sites of a simulation
make their own identities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import Field

from client.site import Site
from common.errors import SettingError
from common.protocol.signing import read_private_key
from common.runtime.durable import write_secret
from common.sections import Name
from common.settings import Table, checked, read_toml
from common.study import Study, canonical

PEERS: Final = "peers.toml"
IDENTITY: Final = "identity.key"
_GROUPS: Final = 6  # of five digits: 99 bits, more than anyone can make up a match for


class PeersFile(Table):
    """What `peers.toml` says."""

    sites: dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        description="Public identity (Ed25519) of each training site, in hex."
    )


@dataclass(frozen=True, slots=True)
class Peers:
    """A site's own identity and those that it knows."""

    own: Ed25519PrivateKey
    known: Mapping[str, bytes]

    def number(self, sites: Iterable[str]) -> str:
        """Digits that stand for the identities of `sites`: the same at each that knows the same.

        Raises
        ------
        SettingError
            If one of them is not known.
        """
        names = sorted(sites)
        if missing := [name for name in names if name not in self.known]:
            raise SettingError(
                f"{PEERS} has no identity of {', '.join(missing)}; each site shows its own with "
                "callosum-site identity, and the coordinator sends everybody the list"
            )
        text = canonical([[name, self.known[name].hex()] for name in names])
        digits = str(int.from_bytes(hashlib.sha256(text).digest(), "big"))[-5 * _GROUPS :]
        return " ".join(digits[start : start + 5] for start in range(0, len(digits), 5))


def public_of(key: Ed25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def identity_in(path: Path) -> Ed25519PrivateKey:
    """The identity kept in a file; made if there is none."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return read_private_key(path)


def peers_file(site: Site) -> Path:
    """The list in the kit that the site file lies in."""
    return site.root.parent / PEERS


def peers_in_kit(site: Site) -> Peers:
    """Identity and peers of a deployed site.

    Raises
    ------
    SettingError
        If the kit has no identity or no list, or the list has another identity of this site.
    """
    own, listed = site.root / IDENTITY, peers_file(site)
    for file in (own, listed):
        if not file.exists():
            raise SettingError(
                f"{file} is missing: secure sums need each site's identity and everybody's list. "
                "callosum-site identity makes the one, the coordinator sends the other"
            )
    key = read_private_key(own)
    table = checked(PeersFile, read_toml(listed), file=listed)
    known = {name: bytes.fromhex(text) for name, text in table.sites.items()}
    if known.get(site.name) != public_of(key):
        raise SettingError(
            f"{listed} has another identity of {site.name} than {own}; tell the coordinator the "
            "one that callosum-site identity shows"
        )
    return Peers(key, known)


def number_of(site: Site, study: Study) -> str:
    """The number of a secure study's peers; empty of any other study."""
    return peers_in_kit(site).number(study.sites.train) if study.secure_sums.on else ""
