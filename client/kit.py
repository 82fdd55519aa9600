"""A site's kit: the folder from its coordinator with all that its agent and its courier need.

What both may read lies at its top; `agent` and `courier` are folders of the two processes' own,
so that a user who runs one of them never reads what belongs to the other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from cryptography import x509
from pydantic import AfterValidator, Field

from common.errors import SettingError
from common.sections import Name
from common.settings import Table, checked, line_of, read_toml

WARNING_DAYS: Final = 30  # hospitals' change requests take weeks
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_LONGEST_NAME: Final = 253  # of a host, RFC 1035
_LARGEST_PORT: Final = 65535
_DAY_S: Final = 86_400.0
_REMEDIES: Final = {
    "ca.crt": "the coordinator provisions a new folder of kits and sends every site its own",
    "server.crt": "on the coordinator's machine: callosum provision --out KITS --renew-server",
    "agent.crt": "ask the coordinator to rotate this site and send the new kit",
    "courier.crt": "ask the coordinator to rotate this site and send the new kit",
}


def check_host(host: str) -> str:
    """`host` itself if it is a DNS name or an IP address, else `ValueError`.

    >>> check_host("hub.example.org"), check_host("10.0.0.7"), check_host("::1")
    ('hub.example.org', '10.0.0.7', '::1')
    """
    try:
        if "%" not in host:  # an interface of one machine is no address for others
            return str(ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    # a name whose last label is a number is a mistyped IP address, to browsers and to us
    if (
        len(host) > _LONGEST_NAME
        or labels[-1].isdigit()
        or not all(_LABEL.fullmatch(label) for label in labels)
    ):
        raise ValueError("a DNS name or an IP address is needed, such as hub.example.org")
    return host


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``"host:port"``, else `ValueError`.

    >>> split_address("hub.example.org:443"), split_address("[::1]:9092")
    (('hub.example.org', 443), ('::1', 9092))
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        bracketed != (":" in host)
        or not re.fullmatch(r"[0-9]{1,5}", port)
        or not 0 < int(port) <= _LARGEST_PORT
    ):
        raise ValueError('host:port is needed, such as "hub.example.org:443"')
    return check_host(host[1:-1] if bracketed else host), int(port)


def _checked_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]
Role = Literal["train", "heldout"]
Kit = TypeVar("Kit", bound=Table)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """One end of a pinned connection: its own certificate and key, and the one peer it accepts."""

    certificate: Path
    key: Path
    peer: Path


class SiteKit(Table):
    """What `kit.toml` says, and where the kit's files are."""

    name: Name = Field(description="The site's name, as in the study.")
    role: Role = Field(description="train: contributes to weights. heldout: only judges.")
    consortium: Name = Field(description="Whom the site works with.")
    hub: Address = Field(description='Where the site finds the hub, as "host:port".')
    expires: date = Field(description="Day on which the first of the kit's certificates ends.")
    folder: Path = Field(Path(), exclude=True, description="The kit itself; not a key.")

    @property
    def ca(self) -> Path:
        """Certificate of the consortium's authority, which vouches for the hub."""
        return self.folder / "ca.crt"

    @property
    def coordinator_keys(self) -> Path:
        """Public keys of whoever may sign orders."""
        return self.folder / "coordinator.pem"

    @property
    def site_file(self) -> Path:
        """The hospital's own site file."""
        return self.folder / "agent" / "site.toml"

    @property
    def node_key(self) -> Path:
        """Private key that Flower knows the site by."""
        return self.folder / "courier" / "node.key"

    @property
    def node_public_key(self) -> Path:
        """Its public half, which the hub has."""
        return self.folder / "courier" / "node.pub"

    @property
    def socket(self) -> Path:
        """Unix socket between agent and courier, unless they are told another."""
        return self.folder / "run" / "agent.sock"

    @property
    def agent_tls(self) -> TlsFiles:
        """The agent's end, for agent and courier on different machines or in containers."""
        own = self.folder / "agent"
        return TlsFiles(
            certificate=own / "agent.crt", key=own / "agent.key", peer=own / "courier.crt"
        )

    @property
    def courier_tls(self) -> TlsFiles:
        """The courier's end."""
        own = self.folder / "courier"
        return TlsFiles(
            certificate=own / "courier.crt", key=own / "courier.key", peer=own / "agent.crt"
        )


def open_kit(folder: Path) -> SiteKit:
    """Read and check the kit in `folder`.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    return read_kit(SiteKit, folder / "kit.toml")


def read_kit(model: type[Kit], file: Path) -> Kit:
    """A site's or a hub's kit from its file; `folder` is where the file lies, and no key of it."""
    table = read_toml(file)
    if "folder" in table:
        raise SettingError(f"folder is not a known key ({file}{line_of(file, 'folder')})")
    # absolute, because daemons and what they start work in other folders
    return checked(model, {**table, "folder": file.parent.absolute()}, file=file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiring:
    """A certificate that ends soon, or has ended; `str` of it is one line for people."""

    name: str
    file: Path
    days_left: int
    remedy: str

    def __str__(self) -> str:
        days = abs(self.days_left)
        span = f"{days} day{'' if days == 1 else 's'}"
        when = f"ended {span} ago" if self.days_left < 0 else f"ends in {span}"
        return f"{self.name} {when} ({self.file}); {self.remedy}"


def expiring(
    certificates: Path | Iterable[Path],
    now: datetime | None = None,
    days: int = WARNING_DAYS,
) -> list[Expiring]:
    """Certificates with fewer than `days` whole days left at `now`, soonest first.

    Parameters
    ----------
    certificates : files, or a kit, of which those that may be read are looked at
    now : a time with its zone; None is this moment

    Raises
    ------
    SettingError
        If a file holds no certificate.
    """
    files = _certificates(certificates) if isinstance(certificates, Path) else certificates
    at = now or datetime.now(UTC)
    found: dict[
        tuple[str, datetime], Expiring
    ] = {}  # agent and courier hold copies of each other's
    for file in files:
        end = certificate_end(file)
        # rounded down: "0 days left" is the last day, -1 the first day without
        left = math.floor((end - at).total_seconds() / _DAY_S)
        if left < days:
            remedy = _REMEDIES.get(file.name, "ask the coordinator for a new one")
            finding = Expiring(name=file.name, file=file, days_left=left, remedy=remedy)
            found.setdefault((file.name, end), finding)
    return sorted(found.values(), key=lambda finding: finding.days_left)


def certificate_end(file: Path) -> datetime:
    """When the certificate in a PEM file ends, in UTC."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise SettingError(f"{file} cannot be read as a certificate: {error}") from None


def _certificates(folder: Path) -> Iterator[Path]:
    """Certificates at the top and one below; whom a folder is closed to, it is not about."""
    for pattern in ("*.crt", "*/*.crt"):
        yield from sorted(folder.glob(pattern))
