"""`callosum hub`: Flower's SuperLink and SuperExec kept alive, every wanted run driven to its end.

Flower's own memory is of no account: the truth lies in the run folders and at the sites. Whatever
dies is started again, the nodes are registered anew, and every run that should be going is handed
to Flower once more; it resumes by itself.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import time
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

import httpx

from client.courier.node import flower_environment
from client.kit import certificate_end, expiring
from common.errors import CallosumError, SettingError, reason
from common.runtime.durable import write_secret
from common.runtime.progress import say
from common.runtime.proxies import without_proxies
from common.runtime.supervision import Child, fault_in, told_to_stop
from common.study import Study
from deploy.hub.bundle import stage
from deploy.hub.control import Control
from deploy.hub.monitor import HubCollector
from deploy.hub.runs import HubRuns
from deploy.kits.hub_kit import HubKit, open_hub
from server.run import alone, is_held

_log = getLogger("callosum.hub")
_TICK_S: Final = 1.0
_SILENT_S: Final = 60.0  # SuperLink serves within seconds, on a busy machine within half a minute


@dataclass(slots=True)
class Hub:
    """The processes of one hub, the nodes that may connect, and the runs that are driven."""

    kit: HubKit
    superlink: Child
    superexec: Child
    runs: HubRuns
    control: Control | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    online: set[int] = field(default_factory=set)
    admitted: dict[Path, int] = field(default_factory=dict)  # when what was acted on was written
    told: float = field(default_factory=time.monotonic)  # when its silence was last spoken of

    def tick(self) -> None:
        """Look after processes, nodes and runs once."""
        if self.superlink.tend():
            self._forget()
        if self.superlink.pid is None:  # whoever else has its port may take a call and never answer
            why = fault_in(self.superlink.said)
            if why:  # one that was killed is back in a second
                self.runs.wait(f"the hub cannot serve: {why}")
            return
        control = self.control or Control.at(f"127.0.0.1:{self.kit.port}", self.kit.ca)
        try:
            self._admit(control)
            self.superexec.tend()
            self.online = control.online()
            told = {
                "nodes": json.dumps(self.nodes),
                "key": str(self.kit.coordinator_key),
                "books": str(self.kit.books),
                "peers": str(self.kit.peers) if self.kit.peers.exists() else "",
            }
            self.runs.drive(control, told)
        except httpx.HTTPError as error:
            now = time.monotonic()
            if self.control or now - self.told > _SILENT_S:  # else it has not served yet
                self.told = now
                _log.warning("SuperLink does not answer: %s", error)
            if control is not self.control:
                control.close()
            return
        except (CallosumError, OSError) as error:  # a kit half written, a key or a run unreadable
            _log.error("%s", error)
        self.control = control

    def collector(self) -> HubCollector:
        """What Prometheus may see."""
        children = (self.superlink, self.superexec)
        return HubCollector(
            self.kit.runs,
            restarts=lambda: {child.name: max(0, child.starts - 1) for child in children},
            online=lambda: {site: node in self.online for site, node in self.nodes.items()},
            certificates=lambda: {
                file.name: certificate_end(file).timestamp()
                for file in (self.kit.ca, self.kit.server_certificate)
            },
        )

    def stop(self) -> None:
        """End all processes; every run can be taken up again."""
        for child in (self.superexec, self.superlink):
            child.stop()

    def _forget(self) -> None:
        """A new SuperLink knows no node and no run."""
        if self.control is not None:
            self.control.close()
        self.control, self.nodes, self.admitted = None, {}, {}
        self.runs.forget()

    def _admit(self, control: Control) -> None:
        """Let in whom the kit names, with the key that it holds, and nobody else."""
        files = (self.kit.file, *self.kit.nodes.glob("*.pub"))
        written = {file: file.stat().st_mtime_ns for file in files}
        if written == self.admitted:
            return
        self.kit = open_hub(self.kit.folder)
        before, there = self.nodes, control.nodes()
        keys = {site: control.key_of(self.kit.node_public_key(site)) for site in self.kit.sites}
        for key, node in there.items():
            if key not in keys.values():
                control.unregister(node)
        self.nodes = {
            site: there[key] if key in there else control.register(site, key)
            for site, key in keys.items()
        }
        self.admitted = written
        self.superlink.settle()
        say(f"SuperLink serves on 127.0.0.1:{self.kit.port}; {len(self.nodes)} nodes may connect")
        if any(self.nodes.get(site) != node for site, node in before.items()):
            self.runs.interrupt(control)  # a run that goes on would ask a node that is gone


def serve_hub(kit: HubKit, *, metrics: str = "") -> None:
    """Serve until told to stop; metrics at ``host:port`` if one is given."""
    stop = told_to_stop()
    for name in os.environ.keys() - without_proxies(os.environ).keys():
        del os.environ[name]  # all that the hub and its children ask is on loopback
    kit.runs.mkdir(exist_ok=True)
    for certificate in expiring([kit.ca, kit.server_certificate]):
        say(f"warning: {certificate}")
    with alone(kit.folder):
        superlink, superexec = _children(kit)
        hub = Hub(kit, superlink, superexec, HubRuns(kit.runs, stage(kit.app), superexec.log))
        if metrics:
            hub.collector().serve(metrics)
        try:
            while not stop.wait(_TICK_S):
                hub.tick()
        finally:
            hub.stop()


def hub_lives(kit: HubKit) -> bool:
    """Whether a hub is serving from this kit now."""
    return is_held(kit.folder)


def check_sites(kit: HubKit, study: Study, file: Path) -> None:
    """Refuse a study whose sites have no kit, or another role in it.

    Raises
    ------
    SettingError
        Naming every such site.
    """
    wanted = dict.fromkeys(study.sites.train, "train") | dict.fromkeys(
        study.sites.heldout, "heldout"
    )
    strangers = sorted(wanted.keys() - kit.sites.keys())
    if strangers:
        raise SettingError(
            f"{', '.join(strangers)} {'has' if len(strangers) == 1 else 'have'} no kit; the hub "
            f"knows {', '.join(sorted(kit.sites)) or 'nobody'} ({file}; callosum provision adds)"
        )
    other = sorted(site for site, role in wanted.items() if kit.sites[site] != role)
    if other:
        site = other[0]
        raise SettingError(
            f'{site} is "{wanted[site]}" in the study and "{kit.sites[site]}" in its kit ({file})'
        )


def _children(kit: HubKit) -> tuple[Child, Child]:
    secret = kit.superexec_secret
    write_secret(secret, secrets.token_hex(32).encode())
    programs = Path(sys.executable).parent
    environment = {
        **flower_environment(kit.flower),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # Flower's chunks of 5 MiB go back to the system when they are let go of
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "MALLOC_ARENA_MAX": "2",
    }
    superlink = [
        str(programs / "flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(kit.port)),
        *("--ssl-certfile", str(kit.server_certificate), "--ssl-keyfile", str(kit.server_key)),
        *("--ssl-ca-certfile", str(kit.ca)),
        "--enable-supernode-auth",
        *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
        "--disable-runtime-dependency-installation",
    ]
    superexec = [
        *(sys.executable, "-m", "deploy.hub.superexec"),
        *("--runtime-api-address", f"127.0.0.1:{kit.port}"),
        *("--root-certificates", str(kit.ca)),
        *("--superexec-auth-secret-file", str(secret)),
    ]
    logs = kit.log
    serving = Child("SuperLink", superlink, environment, logs / "superlink.log")
    serving.hindrance = lambda: _taken(kit.port)
    return serving, Child("SuperExec", superexec, environment, logs / "superexec.log")


def _taken(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SuperLink does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            why = "is in use by another program" if in_use else f"cannot be had: {reason(error)}"
            return f"port {port} {why}"
    return ""
