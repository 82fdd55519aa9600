"""The hub's kit: whom it serves, under which address, and where its files are."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from client.kit import Address, Role, read_kit
from common.sections import Name
from deploy.kits.consortium import Hub


class HubKit(Hub):
    """What `hub.toml` says, and where the kit's files are."""

    consortium: Name = Field(description="Whom the hub serves.")
    address: Address = Field(description='Where sites reach the hub, as "host:port".')
    sites: dict[Name, Role] = Field({}, description="Sites that are admitted, and their roles.")
    revoked: dict[Name, Role] = Field({}, description="Sites that were, and are no longer.")
    folder: Path = Field(Path(), exclude=True, description="The kit itself; not a key.")

    @property
    def file(self) -> Path:
        """What all of this was read from."""
        return self.folder / "hub.toml"

    @property
    def ca(self) -> Path:
        """Certificate of the consortium's authority."""
        return self.folder / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """What the hub shows to sites."""
        return self.folder / "server.crt"

    @property
    def server_key(self) -> Path:
        """Private key of that certificate."""
        return self.folder / "server.key"

    @property
    def coordinator_key(self) -> Path:
        """Private key that orders are signed with."""
        return self.folder / "coordinator.key"

    @property
    def next_coordinator_key(self) -> Path:
        """The one that follows it, while sites are still being told."""
        return self.folder / "coordinator.next.key"

    @property
    def coordinator_keys(self) -> Path:
        """Public keys that sites check orders with."""
        return self.folder / "coordinator.pem"

    @property
    def nodes(self) -> Path:
        """Folder of the sites' public node keys."""
        return self.folder / "nodes"

    def node_public_key(self, site: str) -> Path:
        """The public node key of one site."""
        return self.nodes / f"{site}.pub"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.folder / "runs"

    @property
    def books(self) -> Path:
        """What was last seen of each site's books: beside the runs, which outlive a container."""
        return self.runs / ".books"

    @property
    def peers(self) -> Path:
        """Identities of sites for secure sums, where the coordinator has collected them."""
        return self.folder / "peers.toml"

    @property
    def flower(self) -> Path:
        """What Flower calls its home."""
        return self.folder / "flower"

    @property
    def app(self) -> Path:
        """The staged app bundle."""
        return self.folder / "app"

    @property
    def log(self) -> Path:
        """Folder of the logs of what the hub supervises."""
        return self.folder / "log"

    @property
    def superexec_secret(self) -> Path:
        """What SuperExec shows to SuperLink, made anew by the hub."""
        return self.folder / "superexec.secret"


def open_hub(folder: Path) -> HubKit:
    """Read and check the hub's kit in `folder`.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    return read_kit(HubKit, folder / "hub.toml")
