"""The systemd units: what systemd itself says of them, and who may reach what."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = ("callosum-agent", "callosum-node", "callosum-hub")
EXPOSURE = {
    "callosum-agent": 1.5,
    "callosum-node": 1.2,
    "callosum-hub": 1.2,
}  # of 10; 9.6: none set
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)

REFUSES_WRITABLE_CODE = """
import ctypes, mmap, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, what MemoryDenyWriteExecute stands for
    sys.exit(77)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit(1)
except PermissionError:
    pass
import client.courier.node, client.link.caller, flwr.supernode.cli.flower_supernode, numpy
numpy.dot([1.0], [2.0])
"""


def settings(unit: str, *more: str) -> dict[str, list[str]]:
    """Every value of every key, in order; drop-ins come after the unit."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in (SYSTEMD / f"{unit}.service", *(SYSTEMD / name for name in more)):
        for line in file.read_text().splitlines():
            if "=" in line and not line.startswith("#"):
                key, _, value = line.partition("=")
                found[key].append(value)
    return found


def words(unit: str, key: str) -> list[str]:
    return " ".join(settings(unit)[key]).split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with the units installed and something executable where they look for it."""
    root = tmp_path_factory.mktemp("root")
    units = root / "etc/systemd/system"
    shutil.copytree(SYSTEMD, units, ignore=shutil.ignore_patterns("sysusers.d", "tmpfiles.d"))
    targets = root / "usr/lib/systemd/system"
    targets.mkdir(parents=True)
    for target in Path("/usr/lib/systemd/system").glob("*.target"):
        if target.is_file():
            shutil.copy(target, targets)
    programs = root / "opt/callosum/bin"
    programs.mkdir(parents=True)
    for name in ("callosum", "callosum-site"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    return root


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(root: Path, unit: str) -> None:
    """A misspelt restriction is only a warning to systemd, and then no restriction."""
    command = ["systemd-analyze", "verify", f"--root={root}", f"{unit}.service"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemds_own_measure_of_exposure_stays_low(root: Path, unit: str) -> None:
    """A restriction that is lifted must be lifted here too, where it is seen."""
    limit = f"--threshold={round(10 * EXPOSURE[unit])}"
    command = ["systemd-analyze", "security", "--offline=yes", f"--root={root}", limit]
    said = subprocess.run([*command, f"{unit}.service"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-200:] + said.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_the_commands_exist(unit: str) -> None:
    """What a unit starts is a command of ours with options that it has."""
    program, command, *options = words(unit, "ExecStart")
    assert Path(program).name in ("callosum", "callosum-site")
    script = Path(sys.executable).with_name(Path(program).name)
    helped = subprocess.run([script, command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0, helped.stderr
    known = set(re.findall(r"--[\w-]+", helped.stdout))
    assert {option for option in options if option.startswith("--")} <= known


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_calls_home(unit: str) -> None:
    """A hospital's machine speaks to one host."""
    environment = words(unit, "Environment")
    assert "FLWR_TELEMETRY_ENABLED=0" in environment
    assert "FLWR_DISABLE_UPDATE_CHECK=1" in environment
    assert settings(unit)["IPAddressDeny"] == ["any"]
    assert settings(unit)["IPAddressAllow"] == ["localhost"]


def test_agent_and_courier_are_different_users_who_share_a_socket() -> None:
    """Whoever takes the courier over has not taken the agent's files over."""
    agent, node = settings("callosum-agent"), settings("callosum-node")
    assert agent["User"] != node["User"]
    assert agent["Group"] != node["Group"]
    assert agent["SupplementaryGroups"] == node["SupplementaryGroups"] == ["callosum"]
    kit = "/var/lib/callosum/kit"
    assert f"-{kit}/agent" in words("callosum-node", "InaccessiblePaths")
    assert f"-{kit}/courier" in words("callosum-agent", "InaccessiblePaths")
    assert words("callosum-node", "ReadWritePaths") == [f"{kit}/courier"]
    socket = "/run/callosum/agent.sock"
    assert socket in words("callosum-agent", "ExecStart")
    assert f"unix:{socket}" in words("callosum-node", "ExecStart")


def test_the_courier_has_neither_data_nor_gpu() -> None:
    """It runs inside Flower, which runs what the network sends."""
    node = settings("callosum-node")
    assert node["PrivateDevices"] == ["yes"]
    assert node["ProtectHome"] == ["yes"]
    assert {"-/srv", "-/mnt", "-/media", "-/data"} <= set(
        words("callosum-node", "InaccessiblePaths")
    )
    assert "DeviceAllow" not in node


def test_only_the_sites_own_addition_opens_the_way_to_the_hub() -> None:
    """Unedited, the node reaches nobody; the unit itself is never edited."""
    added = settings("callosum-node", "callosum-node.service.d/site.conf")
    assert added["IPAddressAllow"] == ["localhost", "203.0.113.10"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_is_started_again_for_ever(unit: str) -> None:
    """systemd gives a unit up after five quick failures unless told otherwise."""
    unit_settings = settings(unit)
    assert unit_settings["Restart"] == ["always"]
    assert unit_settings["StartLimitIntervalSec"] == ["0"]


def test_the_agent_keeps_its_buffers() -> None:
    """Without these two a step of a 3D network takes half as long again."""
    environment = words("callosum-agent", "Environment")
    assert f"MALLOC_MMAP_THRESHOLD_={1 << 30}" in environment
    assert f"MALLOC_TRIM_THRESHOLD_={1 << 30}" in environment


def test_the_node_runs_where_memory_is_never_both_written_and_executed() -> None:
    """MemoryDenyWriteExecute would end it at the first import that needs such memory."""
    assert settings("callosum-node")["MemoryDenyWriteExecute"] == ["yes"]
    done = subprocess.run(
        [sys.executable, "-c", REFUSES_WRITABLE_CODE], capture_output=True, text=True
    )
    if done.returncode == 77:
        pytest.skip("this kernel is older than 6.3 and cannot refuse such memory by itself")
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_users_and_the_sockets_folder_are_made(tmp_path: Path) -> None:
    """Really made, in a root of their own: the group may pass the folder, and not write there."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (tmp_path / "etc").mkdir()
    for kind in ("sysusers.d", "tmpfiles.d"):
        shutil.copytree(SYSTEMD / kind, tmp_path / "usr/lib" / kind)
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True, capture_output=True)
    subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create"], check=True, capture_output=True
    )
    users = {
        line.split(":")[0]: line.split(":")
        for line in (tmp_path / "etc/passwd").read_text().splitlines()
    }
    groups = dict(
        line.split(":")[:3:2] for line in (tmp_path / "etc/group").read_text().splitlines()
    )
    made = {settings(unit)["User"][0] for unit in UNITS}
    assert made <= users.keys()
    assert all(users[user][6].endswith("nologin") for user in made)
    folder = (tmp_path / "run/callosum").stat()
    assert oct(folder.st_mode)[-4:] == "2750"
    assert folder.st_uid == int(users["callosum-agent"][2])
    assert folder.st_gid == int(groups["callosum"])
