"""Keys, certificates and a folder for everyone in a consortium, made once and never touched again.

Every file is written whole or not at all, secrets before what is derived from them. A site counts
as done when `hub/hub.toml` names it and `hub/nodes` has its key, which are written last: whatever
interrupted a command, running it again completes it, and a kit that was sent and deleted here
stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.kit import Role, expiring, split_address
from client.templates import site_template
from common.errors import FolderError, SettingError
from common.protocol.signing import read_public_keys
from common.runtime.durable import storage_checked, sync_folder
from common.runtime.locks import lock
from deploy.kits import certificates
from deploy.kits.consortium import Consortium, Hub, Member, load_consortium, refuse
from deploy.kits.files import (
    OWN,
    complete_hub,
    complete_site,
    issue_server,
    public_keys,
    remove,
    write_hub,
)
from deploy.kits.hub_kit import HubKit, open_hub
from deploy.kits.keys import make_folder, signing_key, write_public
from deploy.kits.readmes import hub_readme


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Sites whose kits were made or changed, and what people must do now, a line each."""

    sites: tuple[str, ...] = ()
    todo: tuple[str, ...] = ()


def provision(consortium_file: Path, out: Path, *, now: datetime | None = None) -> Outcome:
    """Make the kits of a consortium below `out`, or those that are still missing.

    Raises
    ------
    SettingError
        If the file is at fault, or contradicts kits that exist.
    FolderError
        If `out` holds something else, or another command is at work in it.
    """
    agreed, at = load_consortium(consortium_file), now or datetime.now(UTC)
    with storage_checked(out):
        out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        before = _held(out)
        hub = _agreed_hub(agreed, before, out, consortium_file)
        complete_hub(hub, out, at)
        write_public(hub.folder / "README.md", hub_readme(agreed).encode())
        missing = [site for site in agreed.sites if not _is_done(hub, site.name)]
        for site in missing:
            complete_site(hub, out / site.name, site.role, at, _site_file(site))
        admitted = {site.name: site.role for site in agreed.sites if site.name not in hub.revoked}
        hub = write_hub(hub, sites=admitted)
        for name in hub.revoked:
            remove(hub.node_public_key(name))
    added = tuple(site.name for site in missing)
    return Outcome(sites=added, todo=tuple(_todo(hub, before, out, added, at)))


def rotate_site(kits: Path, name: str, *, now: datetime | None = None) -> Outcome:
    """Give one site new keys, whether it is admitted or was revoked; its site file is not touched.

    Raises
    ------
    SettingError
        If the consortium has no such site.
    """
    with _alone(kits):
        hub, folder = open_hub(kits / "hub"), kits / name
        role = _role_of(hub, name)
        # the node key first: whatever happens next, nothing can admit it again
        remove(folder / "courier" / "node.key")
        remove(hub.node_public_key(name))
        remove(folder / "agent" / "agent.key")
        remove(folder / "courier" / "courier.key")
        complete_site(hub, folder, role, now or datetime.now(UTC), None)
        revoked = {site: held for site, held in hub.revoked.items() if site != name}
        write_hub(hub, sites={**hub.sites, name: role}, revoked=revoked)
    return Outcome(
        sites=(name,),
        todo=(
            f"send {folder} to {name}, which takes all of it but agent/site.toml",
            f"{name} is out until it has it, for the hub knows the new key alone",
            f"keep {name} in consortium.toml",
            "restart the hub",
        ),
    )


def revoke_site(kits: Path, name: str) -> Outcome:
    """Admit a site no longer, whatever consortium.toml says, until it is rotated.

    Raises
    ------
    SettingError
        If the consortium has no such site.
    """
    with _alone(kits):
        hub = open_hub(kits / "hub")
        role = _role_of(hub, name)
        admitted = {site: held for site, held in hub.sites.items() if site != name}
        # the mark first: a key without a mark would be brought back by the next provisioning
        write_hub(hub, sites=admitted, revoked={**hub.revoked, name: role})
        remove(hub.node_public_key(name))
    return Outcome(
        sites=(name,),
        todo=(
            "restart the hub",
            f"{kits / name} is of no use any more; delete it",
            _way_back(kits, name),
        ),
    )


def renew_server(kits: Path, *, now: datetime | None = None) -> Outcome:
    """Give the hub a new key and certificate by the same authority; no site notices.

    Raises
    ------
    SettingError
        If the authority's key is not at hand, or its own time is over.
    """
    with _alone(kits):
        issue_server(open_hub(kits / "hub"), kits, now or datetime.now(UTC))
    return Outcome(todo=("restart the hub and nginx",))


def rotate_coordinator(kits: Path, *, finish: bool = False) -> Outcome:
    """Make the coordinator's next signing key known; with `finish`, sign with it from now on.

    In between sites trust both keys, so that none of them is left out while others already know.

    Raises
    ------
    SettingError
        If there is nothing to finish.
    """
    with _alone(kits):
        hub = open_hub(kits / "hub")
        if finish:
            _adopt_next_key(hub)
        else:
            signing_key(hub.next_coordinator_key)
        content = public_keys(hub)
        for name in hub.sites:
            if (kits / name).is_dir():  # others were sent and deleted here
                write_public(kits / name / "coordinator.pem", content)
        write_public(hub.coordinator_keys, content)  # last: it says that a rotation is under way
    return Outcome(sites=tuple(hub.sites), todo=_coordinator_todo(hub, kits, finish=finish))


@contextmanager
def _alone(kits: Path) -> Iterator[None]:
    """Keep other commands away from the same folder."""
    try:
        handle = os.open(kits, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise FolderError(f"{kits} is no folder of kits: {error.strerror}") from None
    try:
        try:
            lock(handle, kits, wait=False, remedy="give --out a place on a local disk")
        except BlockingIOError:
            raise FolderError(f"another command is at work in {kits}; wait for it") from None
        yield
    finally:
        os.close(handle)


def _held(out: Path) -> HubKit | None:
    folder = out / "hub"
    return open_hub(folder) if (folder / "hub.toml").exists() else None


def _agreed_hub(agreed: Consortium, held: HubKit | None, out: Path, file: Path) -> HubKit:
    """The hub as the consortium's file wants it, with the sites that it has so far; written."""
    if held is None:
        _refuse_strangers(out, [site.name for site in agreed.sites])
        make_folder(out / "hub", OWN)
    else:
        _refuse_contradictions(agreed, held, file)
    hub = HubKit(
        **{key: getattr(agreed, key) for key in Hub.model_fields},
        consortium=agreed.name,
        address=agreed.hub,
        sites=held.sites if held else {},
        revoked=held.revoked if held else {},
        folder=(out / "hub").absolute(),
    )
    return write_hub(hub)


def _refuse_strangers(out: Path, names: list[str]) -> None:
    rubbish = ".hub.toml."  # of a first run that was killed
    taken = [out / name for name in ("ca", *names) if (out / name).exists()]
    taken += [file for file in (out / "hub").glob("*") if not file.name.startswith(rubbish)]
    if taken:
        raise FolderError(
            f"{taken[0]} exists, but {out / 'hub' / 'hub.toml'} does not; choose an empty folder, "
            "or bring the hub's kit back"
        )


def _refuse_contradictions(agreed: Consortium, held: HubKit, file: Path) -> None:
    kits = held.folder.parent
    if agreed.name != held.consortium:
        raise refuse(
            file, "name", f'is "{agreed.name}"; {kits} is of {held.consortium}, choose another'
        )
    for number, site in enumerate(agreed.sites):
        if held.sites.get(site.name, site.role) != site.role:
            raise refuse(
                file,
                f"sites.{number}.role",
                f'is "{site.role}", its kit says "{held.sites[site.name]}"; change it back, or '
                "revoke the site and let it join under another name",
            )
    gone = sorted(held.sites.keys() - {site.name for site in agreed.sites})
    if gone:
        raise SettingError(
            f"{file} no longer has {', '.join(gone)}; put it back, or revoke it first: "
            f"callosum provision --out {kits} --revoke {gone[0]}"
        )
    host = split_address(agreed.hub)[0]
    if host != split_address(held.address)[0] and not _is_served(held, host):
        raise refuse(
            file,
            "hub",
            f'is "{agreed.hub}", but sites know {held.address} and the hub\'s certificate does '
            f"not hold {host}; first add it to names, and run with --renew-server",
        )


def _site_file(site: Member) -> bytes:
    text = site_template(site.name, site.data)
    if site.role == "heldout":
        text = text.replace('role = "train"  ', 'role = "heldout"', 1)
    return text.encode()


def _adopt_next_key(hub: HubKit) -> None:
    if hub.next_coordinator_key.exists():
        with storage_checked(hub.coordinator_key):
            hub.next_coordinator_key.replace(hub.coordinator_key)
            sync_folder(hub.folder)
    elif len(read_public_keys(hub.coordinator_keys)) == 1:
        raise SettingError(
            f"there is nothing to finish: {hub.coordinator_keys} holds one key, and the hub signs "
            f"with it; to begin: callosum provision --out {hub.folder.parent} --rotate-coordinator"
        )


def _coordinator_todo(hub: HubKit, kits: Path, *, finish: bool) -> tuple[str, ...]:
    everyone = ", ".join(hub.sites)
    if finish:
        return (
            "restart the hub: it signs with the new key",
            f"send {hub.coordinator_keys} to {everyone}: with it they trust the old key no longer",
        )
    return (
        f"send {hub.coordinator_keys} to {everyone}: it replaces coordinator.pem in their kits",
        "they restart their agents then; the hub signs with the old key until you finish",
        _unfinished(kits),
    )


def _todo(
    hub: HubKit, before: HubKit | None, out: Path, added: tuple[str, ...], now: datetime
) -> Iterator[str]:
    for name in added:
        yield f"send {out / name} to {name} and to nobody else, then delete it here"
    if before is not None and added:
        yield "restart the hub"
    if hub.next_coordinator_key.exists():
        yield _unfinished(out)
    for name in hub.revoked:
        yield f"{name} is revoked and stays so; {_way_back(out, name)}"
    if before is not None and before.address != hub.address:
        yield f'sites that have their kit: set hub = "{hub.address}" in kit.toml'
    lacking = [name for name in hub.names if not _is_served(hub, name)]
    if lacking:
        yield (
            f"the hub's certificate does not hold {', '.join(lacking)}: "
            f"callosum provision --out {out} --renew-server"
        )
    yield from map(str, expiring([hub.ca, hub.server_certificate], now))


def _unfinished(kits: Path) -> str:
    return (
        "when every site has the coordinator.pem with both keys: "
        f"callosum provision --out {kits} --finish-coordinator"
    )


def _way_back(kits: Path, name: str) -> str:
    return f"to admit it again, with new keys: callosum provision --out {kits} --rotate {name}"


def _role_of(hub: HubKit, name: str) -> Role:
    known = {**hub.sites, **hub.revoked}
    if name not in known:
        raise SettingError(
            f'there is no site "{name}" in {hub.file}; there are {", ".join(sorted(known))}'
        )
    return known[name]


def _is_done(hub: HubKit, name: str) -> bool:
    return name in hub.revoked or (name in hub.sites and hub.node_public_key(name).exists())


def _is_served(hub: HubKit, host: str) -> bool:
    file = hub.server_certificate
    return file.exists() and certificates.covers(file.read_bytes(), host)
