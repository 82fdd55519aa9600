"""`callosum-site node`: Flower's SuperNode and the courier, kept alive for ever.

The SuperNode speaks to the hub and to nobody else; the courier speaks to the SuperNode and to the
agent. Neither has the site's data. A SuperNode that crashed is refused by the hub until its old
session has ended: the hub is told so, and the rests between restarts outlast the minute without.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from logging import getLogger
from pathlib import Path
from typing import Final

from client.courier.node_deactivation import NAMED, deactivate_node
from client.kit import SiteKit
from client.link.hub_clock import LIKELY, clock_fault
from common.runtime.durable import write_secret
from common.runtime.proxies import spare_loopback, without_socks
from common.runtime.supervision import Child, told_to_stop

_log = getLogger("callosum.node")
_TICK_S: Final = 0.5
# flwr 1.41 ends so, and says no more, where the hub answers 401 (supercore/retry)
_STARTED: Final = "Starting Flower SuperNode"
_REFUSED: Final = "SuperNode terminated gracefully"


def flower_environment(home: Path) -> dict[str, str]:
    """What Flower's programs are started with: our own beside them, nothing told to anybody."""
    programs, path = Path(sys.executable).parent, os.environ.get("PATH", "")
    own = without_socks(os.environ)
    spare_loopback(own)
    return {
        **own,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(home),
        "PATH": f"{programs}{os.pathsep}{path}",
    }


def run_node(kit: SiteKit, *, agent: str = "", hub: str = "") -> None:
    """Serve as a Flower node until told to stop.

    Parameters
    ----------
    agent : the agent's address, ``unix:/path`` or ``host:port``; empty takes the kit's socket
    hub : overrides the hub's address of the kit
    """
    folder = kit.folder / "courier" / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in os.environ.keys() - without_socks(os.environ).keys():
        del os.environ[name]
    children = _children(kit, agent or f"unix:{kit.socket}", hub or kit.hub, folder)
    stop = told_to_stop()
    try:
        while not stop.wait(_TICK_S):
            for child in children:
                child.tend()
    finally:
        for child in reversed(children):
            child.stop()


def _children(kit: SiteKit, agent: str, hub: str, folder: Path) -> list[Child]:
    secret = folder / "runtime.secret"
    write_secret(secret, secrets.token_hex(32).encode())
    port = _free_port()
    keys = "" if agent.startswith("unix:") else str(kit.folder)
    config = f'agent="{agent}" kit="{keys}"'
    programs = Path(sys.executable).parent
    environment = flower_environment(folder / "flower")
    supernode = [
        str(programs / "flower-supernode"),
        *("--superlink", hub),
        *("--root-certificates", str(kit.ca)),
        *("--auth-supernode-private-key", str(kit.node_key)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", config),
    ]
    courier = [sys.executable, "-m", "client.courier.executor", f"127.0.0.1:{port}", str(secret)]
    log = folder / "supernode.log"
    carrier = Child("SuperNode", supernode, environment, log)
    carrier.after_end = lambda: _see_to(carrier, hub, kit)
    # what a courier that died was carrying is lost; a SuperNode that starts anew says so at once
    hands = Child("courier", courier, environment, folder / "courier.log", carrier.stop)
    return [carrier, hands]


def _see_to(carrier: Child, hub: str, kit: SiteKit) -> None:
    """After a SuperNode's end: tell the hub that it is gone, and people if the clock is why."""
    deactivate_node(hub, kit.ca, kit.node_key, carrier.log)
    if _REFUSED not in carrier.said:
        return
    fault = clock_fault(hub)
    never_in = _STARTED in carrier.said and NAMED.search(carrier.said) is None
    if fault is None and never_in:
        fault = LIKELY
    if fault:
        _log.error("%s", fault)


def _free_port() -> int:
    """A port that nobody uses now; SuperNode and courier keep it between their restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
