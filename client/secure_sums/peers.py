"""Whom a site adds up with: its own identity, and those that it knows the others by.

Both lie in the site's state: `identity.key`, which the site made and nobody else ever had, and
`peers.toml` with the public half of every training site. Whoever hands out that list could put in
identities of his own making, so sites compare its number by telephone, and approving a study keeps
the number. In a simulation one process makes all identities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from client.site import Site
from common.errors import SettingError
from common.protocol.signing import read_private_key
from common.runtime.durable import write_atomically, write_secret
from common.secure_sums.identities import read_identities
from common.study import Study, canonical

PEERS: Final = "peers.toml"
IDENTITY: Final = "identity.key"
_GROUPS: Final = 6  # of five digits: 99 bits, more than anyone can make up a match for


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
                f"the list of peers has no identity of {', '.join(missing)}; each site shows its "
                "own with callosum-site identity, and takes up the list of all with --peers FILE"
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


def identity_of(site: Site) -> Ed25519PrivateKey:
    """A site's own identity; made if there is none."""
    return identity_in(site.state / IDENTITY)


def line_of_identity(site: Site) -> str:
    """A site's line in everybody's list."""
    return f'{site.name} = "{public_of(identity_of(site)).hex()}"'


def read_peers(site: Site, file: Path) -> Peers:
    """A list of identities, which must have this site's own.

    Raises
    ------
    SettingError
        If there is no such list, or it has another identity of this site.
    """
    if not file.exists():
        raise SettingError(
            f"{file} is missing: for secure sums each site shows its identity (callosum-site "
            "identity), and takes up the list of all (callosum-site identity --peers FILE)"
        )
    known, own = read_identities(file), identity_of(site)
    if known.get(site.name) != public_of(own):
        raise SettingError(
            f"{file} has no identity of {site.name}, or another one; its line must be: "
            f"{line_of_identity(site)}"
        )
    return Peers(own, known)


def take_up(site: Site, file: Path) -> Peers:
    """Know the sites of a list from now on; studies that were approved with another end."""
    peers = read_peers(site, file)
    write_atomically(site.state / PEERS, file.read_bytes())
    return peers


def peers_of(site: Site) -> Peers:
    """Identity and peers of a deployed site, or `SettingError`."""
    return read_peers(site, site.state / PEERS)


def number_of(site: Site, study: Study) -> str:
    """The number of a secure study's peers; empty of any other study, and where a site judges."""
    sums = study.secure_sums.on and site.role == "train"
    return peers_of(site).number(study.sites.train) if sums else ""
