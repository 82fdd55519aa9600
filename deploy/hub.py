"""`callosum hub`: Flower's SuperLink and SuperExec kept alive, every wanted run driven to its end.

Flower's own memory is of no account: the truth lies in the run folders and at the sites. Whatever
dies is started again, the nodes are registered anew, and every run that should be going is handed
to Flower once more; it resumes by itself.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

import httpx

from client.kit import certificate_end, expiring
from client.node import FLOWER_SWITCHES
from common.durable import write_secret
from common.errors import FolderError, SettingError
from common.progress import say
from common.study import Study
from common.supervision import Child, told_to_stop
from deploy.bundle import stage
from deploy.control import Control
from deploy.kits import HubKit
from deploy.monitor import HubCollector
from server.desk import State, failure_of, is_finished, note_state, state_of, wanted_of
from server.run import alone

_log = getLogger("callosum.hub")
_TICK_S: Final = 0.5
_START_S: Final = 60.0
_LONGEST_REST_S: Final = 60.0


@dataclass(slots=True)
class Errand:
    """One run that the hub drives."""

    folder: Path
    flower: int | None = None  # Flower's id of the present attempt
    attempts: int = 0
    due: float = 0.0


@dataclass(slots=True)
class Hub:
    """The processes of one hub and the runs that they serve."""

    kit: HubKit
    bundle: bytes
    superlink: Child
    superexec: Child
    control: Control | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    online: set[int] = field(default_factory=set)
    errands: dict[Path, Errand] = field(default_factory=dict)

    def tick(self) -> None:
        """Look after processes and runs once."""
        if self.superlink.tend():
            self._forget()
        if self.control is None and not self._connect():
            return
        self.superexec.tend()
        try:
            self._serve()
        except httpx.HTTPError as error:
            _log.warning("SuperLink does not answer: %s", error)
            self._forget()

    def collector(self) -> HubCollector:
        """What Prometheus may see."""
        return HubCollector(
            self.kit.runs,
            restarts=lambda: {
                c.name: max(0, c.starts - 1) for c in (self.superlink, self.superexec)
            },
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
        self.control, self.nodes = None, {}
        for errand in self.errands.values():
            errand.flower = None

    def _connect(self) -> bool:
        """Register every node as soon as SuperLink answers."""
        control = Control.at(f"127.0.0.1:{self.kit.port}", self.kit.ca)
        try:
            self.nodes = {
                site: control.register(site, self.kit.node_public_key(site))
                for site in self.kit.sites
            }
        except httpx.HTTPError:
            control.close()
            return False
        self.control = control
        self.superlink.settle()
        say(f"SuperLink serves on 127.0.0.1:{self.kit.port}; {len(self.nodes)} nodes may connect")
        return True

    def _serve(self) -> None:
        assert self.control is not None
        self.online = self.control.online()
        for wanted in sorted(self.kit.runs.glob("*/wanted.json")):
            self.errands.setdefault(wanted.parent, Errand(wanted.parent))
        going = self.control.going() if any(e.flower for e in self.errands.values()) else set()
        for errand in self.errands.values():
            self._drive(errand, going)

    def _drive(self, errand: Errand, going: set[int]) -> None:
        """Bring one run closer to what the coordinator wants of it."""
        assert self.control is not None
        alive = errand.flower in going
        if wanted_of(errand.folder) == "stopped":
            if alive and errand.flower is not None:
                self.control.stop(errand.flower)
            errand.flower = None
            self._note(errand, "stopped")
        elif is_finished(errand.folder) and not alive:
            self._note(errand, "finished")
        elif alive:
            self._note(errand, "running")
        elif error := failure_of(errand.folder):
            self._note(errand, "failed", error)
        elif time.monotonic() >= errand.due:
            self._start(errand)

    def _start(self, errand: Errand) -> None:
        assert self.control is not None
        rest_s = min(2.0**errand.attempts, _LONGEST_REST_S)
        errand.attempts, errand.due = errand.attempts + 1, time.monotonic() + rest_s
        config = {
            "run": str(errand.folder.resolve()),
            "nodes": json.dumps(self.nodes),
            "key": str(self.kit.coordinator_key.resolve()),
        }
        errand.flower = self.control.start(self.bundle, config)
        say(f"{errand.folder.name}: handed to Flower, attempt {errand.attempts}")
        self._note(errand, "running")

    def _note(self, errand: Errand, state: State, error: str = "") -> None:
        before = state_of(errand.folder)
        if (before.get("state"), before.get("error")) != (state, error):
            note_state(errand.folder, state, attempts=errand.attempts, error=error)
            say(f"{errand.folder.name}: {state}" + (f": {error}" if error else ""))


def serve_hub(kit: HubKit, *, metrics: str = "") -> None:
    """Serve until told to stop; metrics at ``host:port`` if one is given."""
    stop = told_to_stop()
    kit.runs.mkdir(exist_ok=True)
    for certificate in expiring([kit.ca, kit.server_certificate]):
        say(f"warning: {certificate}")
    with alone(kit.folder):
        hub = Hub(kit, stage(kit.app), *_children(kit))
        if metrics:
            hub.collector().serve(metrics)
        try:
            while not stop.wait(_TICK_S):
                hub.tick()
        finally:
            hub.stop()


def hub_lives(kit: HubKit) -> bool:
    """Whether a hub is serving from this kit now."""
    try:
        with alone(kit.folder):
            return False
    except FolderError:
        return True


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
        **os.environ,
        **FLOWER_SWITCHES,
        "FLWR_HOME": str(kit.flower),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        # Flower's chunks of 5 MiB go back to the system when they are let go of
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
        "MALLOC_ARENA_MAX": "2",
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
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
        str(programs / "flower-superexec"),
        *("--runtime-api-address", f"127.0.0.1:{kit.port}"),
        *("--root-certificates", str(kit.ca)),
        *("--superexec-auth-secret-file", str(secret)),
    ]
    logs = kit.log
    return (
        Child("SuperLink", superlink, environment, logs / "superlink.log"),
        Child("SuperExec", superexec, environment, logs / "superexec.log"),
    )
