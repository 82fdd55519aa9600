"""What the kits hold: each file is made if it is missing, secrets before what is derived from them.

Every file is written whole or not at all, so that work that was interrupted is completed by doing
it again; what is complete is not touched.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Final

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from client.kit import Role, SiteKit, TlsFiles, certificate_end, split_address
from common.errors import FolderError, SettingError
from common.protocol.signing import read_private_key
from common.runtime.durable import storage_checked, sync_folder
from deploy.kits import certificates
from deploy.kits.hub_kit import HubKit
from deploy.kits.keys import (
    make_folder,
    node_key,
    node_public_line,
    public_pem,
    signing_key,
    tls_key,
    write_public,
)
from deploy.kits.readmes import site_readme

OWN: Final = 0o700
_SHARED: Final = 0o755  # agent and courier are different users, and both read a kit's top
_HUB_HEADER: Final = "# Written by callosum provision: change consortium.toml and run it again.\n"
_KIT_HEADER: Final = "# From your coordinator; README.md says what it is for.\n"


def write_hub(hub: HubKit, **changes: Any) -> HubKit:
    """Write `hub.toml` with `changes`; return what it says now."""
    changed = hub.model_copy(update=changes)
    write_public(hub.file, (_HUB_HEADER + tomli_w.dumps(changed.model_dump())).encode())
    return changed


def complete_hub(hub: HubKit, kits: Path, now: datetime) -> None:
    """Write what the authority and the hub's kit lack.

    Raises
    ------
    FolderError
        If it lacks what sites already rely on.
    """
    for file in (hub.ca, hub.coordinator_keys):
        if hub.sites and not file.exists():
            raise FolderError(f"{file} is missing; copy it back from the kit of any site")
    if not hub.ca.exists():
        make_folder(kits / "ca", OWN)
        key, own = tls_key(kits / "ca" / "ca.key"), kits / "ca" / "ca.crt"
        certificate = certificates.authority(key, hub.consortium, now=now, days=hub.days.ca)
        write_public(own, certificate)
        write_public(hub.ca, certificate)
    if not hub.server_key.exists() or not _is_of(hub.server_certificate, tls_key(hub.server_key)):
        issue_server(hub, kits, now)
    if not hub.coordinator_keys.exists():
        signing_key(hub.coordinator_key)
        write_public(hub.coordinator_keys, public_keys(hub))
    if not hub.nodes.is_dir():
        make_folder(hub.nodes, OWN)


def issue_server(hub: HubKit, kits: Path, now: datetime) -> None:
    """Give the hub a new key and certificate; a crash between the two leaves no key.

    Raises
    ------
    SettingError
        If the authority's key is missing or another's, or its own time is over.
    """
    key_file, ca = kits / "ca" / "ca.key", x509.load_pem_x509_certificate(hub.ca.read_bytes())
    if not key_file.exists():
        raise SettingError(f"{key_file} is needed to sign {hub.server_certificate}; bring it back")
    ca_key = tls_key(key_file)
    if not _is_of(hub.ca, ca_key):
        raise SettingError(f"{key_file} is not the key of {hub.ca}; bring the right one back")
    if ca.not_valid_after_utc <= now:
        raise SettingError(
            f"{hub.ca} ended on {ca.not_valid_after_utc.date()}; provision into a new folder and "
            "send every site its new kit"
        )
    remove(hub.server_key)
    names = (split_address(hub.address)[0], *hub.names, *certificates.LOOPBACK)
    certificate = certificates.server(
        tls_key(hub.server_key), names, ca=ca, ca_key=ca_key, now=now, days=hub.days.server
    )
    write_public(hub.server_certificate, certificate)


def complete_site(
    hub: HubKit, folder: Path, role: Role, now: datetime, site_file: bytes | None
) -> None:
    """Write what a site's kit lacks, and last the hub's copy of its public key."""
    make_folder(folder, _SHARED)
    kit = SiteKit(
        name=folder.name,
        role=role,
        consortium=hub.consortium,
        hub=hub.address,
        expires=now.date(),
        folder=folder,
    )
    _pair(kit, now, hub.days.site)
    key = node_key(kit.node_key)
    write_public(kit.node_public_key, node_public_line(key, kit.name))
    write_public(kit.ca, hub.ca.read_bytes())
    write_public(kit.coordinator_keys, hub.coordinator_keys.read_bytes())
    # not the server's certificate: the hub renews that without any site
    ends = (kit.ca, kit.agent_tls.certificate, kit.courier_tls.certificate)
    kit = kit.model_copy(update={"expires": min(certificate_end(end) for end in ends).date()})
    write_public(folder / "kit.toml", (_KIT_HEADER + tomli_w.dumps(kit.model_dump())).encode())
    write_public(folder / "README.md", site_readme(kit, hub.contact).encode())
    if site_file is not None and not kit.site_file.exists():
        write_public(kit.site_file, site_file)
    write_public(hub.node_public_key(kit.name), kit.node_public_key.read_bytes())


def public_keys(hub: HubKit) -> bytes:
    """Public halves of the keys that the hub signs with now and next."""
    held = (hub.coordinator_key, hub.next_coordinator_key)
    return b"".join(public_pem(read_private_key(file)) for file in held if file.exists())


def remove(path: Path) -> None:
    """Delete a file durably, if it is there."""
    with storage_checked(path):
        if path.exists():
            path.unlink()
            sync_folder(path.parent)


def _pair(kit: SiteKit, now: datetime, days: int) -> None:
    """The two ends of the line between agent and courier; each gets a copy of the other's face."""
    ends: dict[str, TlsFiles] = {"agent": kit.agent_tls, "courier": kit.courier_tls}
    for process, end in ends.items():
        make_folder(end.key.parent, OWN)
        key = tls_key(end.key)
        if not _is_of(end.certificate, key):
            content = certificates.pinned(key, kit.name, process, now=now, days=days)
            write_public(end.certificate, content)
    write_public(ends["agent"].peer, ends["courier"].certificate.read_bytes())
    write_public(ends["courier"].peer, ends["agent"].certificate.read_bytes())


def _is_of(certificate: Path, key: EllipticCurvePrivateKey) -> bool:
    return certificate.exists() and certificates.belongs(certificate.read_bytes(), key)
