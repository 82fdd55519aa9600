"""A consortium that really stands: kits, nginx, a hub, agents and nodes, all as processes of ours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from client.authority import approvals
from client.authority.consent import consent
from client.secure_sums.peers import line_of_identity, take_up
from client.site import load_site
from common.runtime.private_folder import own_folder
from common.study import load_study

PROGRAMS = Path(sys.executable).parent
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Standing:
    """Kits below `folder`, and the processes that use them."""

    folder: Path
    roles: Mapping[str, str]
    nginx: bool = False
    programs: Path = PROGRAMS
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def kits(self) -> Path:
        return self.folder / "KITS"

    @property
    def hub(self) -> Path:
        return self.kits / "hub"

    def provision(self) -> None:
        self.port, self.door = free_port(), free_port()
        about = {
            "name": "standing",
            "hub": f"127.0.0.1:{self.door if self.nginx else self.port}",
            "port": self.port,
            "contact": "Jane Doe, jane@example.org",
            "sites": [{"name": n, "role": r, "data": "features"} for n, r in self.roles.items()],
        }
        file = self.folder / "consortium.toml"
        file.write_text(tomli_w.dumps(about))
        self.command("callosum", "provision", file, "--out", self.kits)

    def settle(self, site: str, site_file: Path) -> None:
        """Fill in a kit's site file as a hospital would; data stay where they are."""
        table = tomllib.loads(site_file.read_text())
        for key, value in table["data"].items():
            if isinstance(value, str) and (site_file.parent / value).exists():
                table["data"][key] = str((site_file.parent / value).resolve())
        (self.kits / site / "agent" / "site.toml").write_text(tomli_w.dumps(table))

    def state(self, site: str) -> Path:
        return self.kits / site / "agent" / ".callosum"

    def command(self, program: str, *arguments: object, **more: Any) -> str:
        """Run one of our commands to its end; what it printed."""
        done = subprocess.run(
            [str(self.programs / program), *map(str, arguments)],
            env=os.environ | QUIET,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=more.pop("timeout", 240),
            **more,
        )
        assert done.returncode == 0, f"{program} {arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, name: str, program: str, *arguments: object) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.started[name] = subprocess.Popen(
                [str(self.programs / program), *map(str, arguments)],
                env=os.environ | QUIET,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_hub(self) -> None:
        self.start("hub", "callosum", "hub", "--kit", self.hub)

    def start_agent(self, site: str) -> None:
        self.start(f"agent-{site}", "callosum-site", "serve", "--kit", self.kits / site)

    def start_node(self, site: str) -> None:
        self.start(f"node-{site}", "callosum-site", "node", "--kit", self.kits / site)

    def start_nginx(self) -> None:
        from deploy.kits.hub_kit import open_hub
        from deploy.nginx.proxy import render_nginx

        site = render_nginx(open_hub(self.hub), f"127.0.0.1:{self.door}", str(self.folder / "door"))
        temporary = "".join(
            f"{what}_temp_path {self.folder}/nginx-{what};\n"
            for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = self.folder / "nginx.conf"
        conf.write_text(
            f"daemon off; pid {self.folder}/nginx.pid; worker_processes 1;\n"
            f"error_log {self.folder}/nginx.log; events {{}}\n"
            f"http {{ {temporary}\n{site}\n}}\n"
        )
        with (self.folder / "nginx.out").open("ab") as output:
            self.started["nginx"] = subprocess.Popen(
                ["nginx", "-c", str(conf), "-p", str(self.folder)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def introduce(self) -> str:
        """Each site makes its identity, all take up one list; the number that they compare."""
        sites = [load_site(self.kits / name / "agent" / "site.toml") for name in self.roles]
        for site in sites:
            own_folder(site.state)
        listed = self.folder / "peers.toml"
        lines = [line_of_identity(site) for site in sites]
        listed.write_text("[sites]\n" + "\n".join(lines) + "\n")
        numbers = {take_up(site, listed).number(self.roles) for site in sites}
        assert len(numbers) == 1
        return numbers.pop()

    def approve(self, study: Path) -> None:
        """What `callosum-site approve --yes` does, without starting Python for each site."""
        agreed = load_study(study)
        for name in self.roles:
            site = load_site(self.kits / name / "agent" / "site.toml")
            approvals.approve(site, study, consent(site, agreed).report_bytes)

    def stand(self, study: Path) -> None:
        """Start everything; nodes wait for the hub by themselves, so order does not matter."""
        self.start_hub()
        if self.nginx:
            self.start_nginx()
        self.approve(study)
        for site in self.roles:
            self.start_agent(site)
            self.start_node(site)

    def process(self, of: str, wanted: str) -> int:
        """A descendant of what was started as `of` whose command line has `wanted` in it."""
        top = self.started[of].pid
        return until(lambda: next(descendants(top, wanted), None), 60, f"{wanted} below {of}")

    def stop(self) -> None:
        for process in self.started.values():
            if process.poll() is None:
                process.terminate()
        for process in self.started.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    def said(self) -> str:
        """The last lines of everybody, for a test that failed."""
        files = [
            *self.folder.glob("*.out"),
            *self.hub.glob("log/*.log"),
            *self.hub.glob("runs/*/run.log"),
        ]
        files += self.kits.glob("*/courier/run/*.log")
        tails = ((file, file.read_text(errors="replace")[-1500:]) for file in files)
        return "\n".join(f"--- {file.relative_to(self.folder)}\n{tail}" for file, tail in tails)


@contextmanager
def standing(
    folder: Path,
    sites: Mapping[str, tuple[str, Path]],
    *,
    nginx: bool = False,
    programs: Path = PROGRAMS,
) -> Iterator[Standing]:
    """A provisioned consortium of `sites` (role and site file); whatever was started is stopped."""
    roles = {name: role for name, (role, _) in sites.items()}
    made = Standing(folder, roles, nginx, programs)
    made.provision()
    for name, (_, file) in sites.items():
        made.settle(name, file)
    try:
        yield made
    except BaseException:
        print(made.said())
        raise
    finally:
        made.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for something that comes by itself; say what did not come."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s there is no {what}")


def descendants(top: int, wanted: str) -> Iterator[int]:
    """Processes below `top` whose command line has `wanted` in it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except (OSError, IndexError):
            continue
    for pid in parents:
        line, above = pid, pid
        while above not in (0, 1, top):
            above = parents.get(above, 0)
        try:
            command = Path(f"/proc/{line}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if above == top and wanted in command:
            yield pid


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def short_folder() -> Path:
    """A folder whose path leaves room for a socket's (the kernel takes 107 bytes)."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="callosum-"))


def removed(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
