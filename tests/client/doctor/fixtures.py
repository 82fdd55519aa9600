"""What every test of the doctor begins with: a kit, a hub, and places that others can reach."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
import tomli_w

from client.kit import SiteKit, open_kit
from deploy.kits.provision import provision
from tests.client.doctor.loopback import CONSORTIUM, ROOT, Answers, Door


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kits as the coordinator makes them."""
    folder = tmp_path_factory.mktemp("consortium")
    (folder / "consortium.toml").write_text(tomli_w.dumps(CONSORTIUM))
    provision(folder / "consortium.toml", folder / "kits")
    return folder / "kits"


@pytest.fixture
def kit(kits: Path, tmp_path: Path) -> SiteKit:
    """One site's kit, to be spoilt."""
    shutil.copytree(kits / "alpha", tmp_path / "kit")
    return open_kit(tmp_path / "kit")


@pytest.fixture
def open_door(kits: Path) -> Iterator[Callable[..., Door]]:
    """Start a hub: `open_door(certificate, key, skew_s=60)`."""
    opened: list[Door] = []

    def start(
        certificate: Path | None = None,
        key: Path | None = None,
        host: str = "127.0.0.1",
        **state: Any,
    ) -> Door:
        context = SSLContext(PROTOCOL_TLS_SERVER)
        own = kits / "hub"
        context.load_cert_chain(certificate or own / "server.crt", key or own / "server.key")
        door = Door((host, 0), Answers)
        door.socket = context.wrap_socket(
            door.socket, server_side=True, do_handshake_on_connect=False
        )
        for name, value in state.items():
            setattr(door, name, value)
        threading.Thread(target=door.serve_forever, args=(0.02,), daemon=True).start()
        opened.append(door)
        return door

    yield start
    for door in opened:
        door.shutdown()
        door.server_close()


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that another user can reach, which pytest's are not."""
    if not ROOT:
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="callosum-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def socket_file() -> Iterator[Path]:
    """Where a Unix socket may be: its path must be short."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        yield Path(folder) / "agent.sock"
