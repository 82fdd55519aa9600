"""The kit is to be whole, its keys kept, its certificates alive, and the versions to fit."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from packaging.requirements import Requirement

from client.doctor.finding import CannotTellError, Finding, bad, good, note
from client.kit import SiteKit, TlsFiles, expiring
from client.site import Site
from common.errors import SettingError
from common.protocol.code import agreed_digest
from common.protocol.signing import read_public_keys
from common.study import Study

_CLOSED: Final = stat.S_IRWXG | stat.S_IRWXO
_MANY: Final = 3


def files(kit: SiteKit) -> Finding:
    """Every file of the kit that this user may see is there; secrets are their owner's alone."""
    missing, loose, unseen = list[str](), list[str](), set[str]()
    absent = [home for home in _homes(kit) if not home.exists()]
    if len(absent) == len(_homes(kit)):
        remedy = "copy agent and courier from the kit, each for its own process"
        return bad("the kit holds neither the agent's folder nor the courier's", remedy)
    # the two processes may live on two machines
    for path in (path for path in _needed(kit) if not {path, path.parent} & {*absent}):
        try:
            mode = path.stat().st_mode
        except PermissionError:
            unseen.add(path.relative_to(kit.folder).parts[0])
        except OSError:
            missing.append(_inside(kit, path))
        else:
            if path in _secrets(kit) and mode & _CLOSED:
                loose.append(f"{_inside(kit, path)} ({stat.S_IMODE(mode):04o})")
    if missing:
        remedy = "copy them from the coordinator's kit, which was sent whole, or ask for a new one"
        return bad(f"the kit lacks {', '.join(missing)}", remedy)
    if loose:
        return bad(
            f"others may read {', '.join(loose)}",
            "in {kit}: chmod 700 agent courier; chmod 600 agent/agent.key courier/*.key",
            kit=kit.folder,
        )
    if unseen:
        return good(
            f"complete, as far as this user sees; {', '.join(sorted(unseen))} is not its own"
        )
    return good("complete, and its keys are their owner's alone")


def same(kit: SiteKit, site: Site) -> Finding:
    """The kit and the site file are about the same site in the same role."""
    if (kit.name, kit.role) == (site.name, site.role):
        return good(f"{site.name}, {site.role}; as in the kit")
    return bad(
        f"the kit is for {kit.name} ({kit.role}), the site file says {site.name} ({site.role})",
        "correct name and role in {site_file}; another role needs another kit",
        site_file=site.file,
    )


def apart(kit: SiteKit) -> Finding:
    """Agent and courier as two users: what Flower is told to run must not reach the agent's key."""
    if os.geteuid() == 0:
        raise CannotTellError("root reads everything, see user")
    both = [kit.agent_tls.key, kit.node_key]
    if all(_is_readable(path) for path in both):
        return note(
            "one user reads the agent's key and the courier's: nothing keeps the two apart",
            "run agent and courier as users of their own (deploy/systemd), each with its folder",
        )
    return good("this user reads the keys of one of the two processes at most")


def keys(kit: SiteKit) -> Finding:
    """Private and public halves fit, both processes pin each other, orders can be checked."""
    problems = [*_faults(kit)]
    if problems:
        found = "; ".join(problems[:_MANY])
        return bad(found, "ask the coordinator to rotate this site's keys and send the new kit")
    count = len(read_public_keys(kit.coordinator_keys))
    also = " (an old key gives way to a new)" if count > 1 else ""
    return good(f"all pairs fit; orders are checked with {count} key{'s'[: count > 1]}{also}")


def certificates(kit: SiteKit) -> Finding:
    """When the first of the kit's certificates ends."""
    try:
        ending = expiring(kit.folder)
    except SettingError:
        raise CannotTellError("a certificate of the kit cannot be read, see keys") from None
    if not ending:
        return good(f"the first of the kit's certificates ends on {kit.expires}")
    first = ending[0]
    if first.days_left < 0:
        return bad(f"{first.name} of the kit ended {-first.days_left} days ago", first.remedy)
    return note(f"{first.name} of the kit ends in {first.days_left} days", first.remedy)


def versions() -> Finding:
    """What is installed against what this version of Callosum was tested with."""
    try:
        asked = [Requirement(line) for line in metadata.requires("callosum") or ()]
        own = metadata.version("callosum")
    except metadata.PackageNotFoundError:
        return note(
            "callosum is not installed, it runs from its source",
            "pip install callosum -c constraints.txt, so that its requirements are checked",
        )
    wrong = [text for one in asked if (text := _skewed(one))]
    found = f"callosum {own}, flwr {_version('flwr')}, torch {_version('torch')}, "
    found += f"Python {platform.python_version()}"
    if wrong:
        remedy = "reinstall into an environment of its own: pip install callosum -c constraints.txt"
        return bad(f"{', '.join(wrong)}; {found}", remedy)
    return good(found)


def code(study: Study) -> Finding:
    """The source that this site and the coordinator must share, told by a digest."""
    digest = agreed_digest(study)[:12]
    return good(f"code {digest} for {study.name}; callosum study check must print the same")


def _needed(kit: SiteKit) -> tuple[Path, ...]:
    ends = (kit.agent_tls, kit.courier_tls)
    pinned = [path for end in ends for path in (end.certificate, end.peer)]
    top = (kit.ca, kit.coordinator_keys, kit.site_file, kit.node_public_key)
    return (*top, *pinned, *_secrets(kit))


def _homes(kit: SiteKit) -> tuple[Path, Path]:
    """The folders of the two processes."""
    return kit.agent_tls.key.parent, kit.courier_tls.key.parent


def _secrets(kit: SiteKit) -> tuple[Path, ...]:
    """Folders and files that only their owner may open."""
    return (*_homes(kit), kit.agent_tls.key, kit.courier_tls.key, kit.node_key)


def _faults(kit: SiteKit) -> Iterator[str]:
    """What does not belong together, of what this user may read."""
    try:
        read_public_keys(kit.coordinator_keys)
    except SettingError:
        yield "coordinator.pem holds no Ed25519 public keys: no order can be checked"
    if _is_readable(kit.node_key):
        try:
            private = load_ssh_private_key(kit.node_key.read_bytes(), password=None)
            public = load_ssh_public_key(kit.node_public_key.read_bytes())
            if _bytes(private.public_key()) != _bytes(public):
                yield "courier/node.key is not the key of courier/node.pub, which the hub knows"
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
            yield "courier/node.key or node.pub is no OpenSSH key without a passphrase"
    for own, other in ((kit.agent_tls, kit.courier_tls), (kit.courier_tls, kit.agent_tls)):
        if _is_readable(own.key):
            yield from _tls_faults(kit, own, other)


def _tls_faults(kit: SiteKit, own: TlsFiles, other: TlsFiles) -> Iterator[str]:
    try:
        certificate = x509.load_pem_x509_certificate(own.certificate.read_bytes())
        private = load_pem_private_key(own.key.read_bytes(), password=None)
        if _bytes(private.public_key()) != _bytes(certificate.public_key()):
            names = _inside(kit, own.key), _inside(kit, own.certificate)
            yield f"{names[0]} is not the key of {names[1]}"
        pinned = x509.load_pem_x509_certificate(own.peer.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        yield f"a key or certificate of {own.key.parent.name} cannot be read"
        return
    if _is_readable(other.certificate):
        shown = x509.load_pem_x509_certificate(other.certificate.read_bytes())
        if pinned != shown:
            yield f"{_inside(kit, own.peer)} is not what {_inside(kit, other.certificate)} is"


def _skewed(asked: Requirement) -> str:
    """What is wrong with one requirement; empty if nothing is, or it is another environment's."""
    if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
        return ""
    found = _version(asked.name)
    if found and asked.specifier.contains(found, prereleases=True):
        return ""
    return f"{asked.name} is {found or 'absent'}, {asked.specifier} is needed"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _bytes(key: Any) -> bytes:
    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def _inside(kit: SiteKit, path: Path) -> str:
    return path.relative_to(kit.folder).as_posix()
