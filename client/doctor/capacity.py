"""The room that a study needs: memory, disk, shared memory, temporary files."""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from client.data.workers import socket_folder
from client.doctor.demand import Demand, scans_of
from client.doctor.finding import (
    CannotTellError,
    Finding,
    bad,
    good,
    note,
    size,
)
from client.doctor.folders import existing
from client.doctor.gpu import Machine
from client.site import Site
from common.errors import CallosumError

_SHM: Final = Path("/dev/shm")  # noqa: S108  where the system keeps it
_LEAST_FREE: Final = 5e9  # bytes, where no study tells how many are needed
_LEAST_FILES: Final = 1000
_LEAST_TEMPORARY: Final = 200e6  # what torch and Flower unpack


def shared_memory() -> Finding:
    """Room for what the preparing processes share; our loaders are threads and share nothing."""
    try:
        room = os.statvfs(_SHM)
        # as the pool of preparing processes does; a lock takes 32 bytes there
        multiprocessing.get_context("forkserver").Lock()
    except OSError as error:
        return bad(
            f"{_SHM} cannot be used ({os.strerror(error.errno or 0)}): preparing with several "
            "processes fails",
            f"mount a tmpfs at {_SHM} (docker run --shm-size 64m), or prepare with --workers 1",
        )
    whole = size(room.f_blocks * room.f_frsize)
    return good(f"{whole}; a few bytes are needed, because batches are loaded by threads")


def memory(machine: Machine, site: Site, demand: Demand | None = None) -> Finding:
    """Free memory against a rough estimate of a training step."""
    free, limit = _available()
    found = f"{size(free)} are free" + (f" of the cgroup's {size(limit)}" if limit else "")
    if demand is None:
        return good(found)
    gpus = () if site.device.kind == "cpu" else machine.torch.get("gpus", ())
    step = demand.memory_bytes
    needed = demand.process_bytes + (0 if gpus else step)
    asked = f"training needs about {size(needed)}"
    if gpus:
        asked += f" and {size(step)} of the GPU's {size(gpus[0]['total'])}"
    smaller = "ask the coordinator for a smaller pretraining.batch_size"
    if gpus and step > gpus[0]["total"]:
        return bad(f"{found}; {asked}", f"train on a GPU with more memory, or {smaller}")
    if needed > free:
        remedy = f"free memory, raise the container's limit, or {smaller}"
        return bad(f"{found}; {asked}", remedy)
    if needed > free / 2:
        return note(f"{found}; {asked}, roughly", "run nothing else beside the agent")
    return good(f"{found}; {asked}")


def disk(site: Site, demand: Demand | None = None) -> Finding:
    """Free bytes and files in the state folder, against what preparing will take."""
    room = os.statvfs(existing(site.state))
    free = room.f_bavail * room.f_frsize
    found = f"{size(free)} are free in {{state}}"
    if room.f_files and room.f_favail < _LEAST_FILES:
        return bad(
            f"{found}, but the file system can take only {room.f_favail} more files",
            "delete files on that file system, or give folder in {site_file} another one",
            state=site.state,
            site_file=site.file,
        )
    needed, why = _LEAST_FREE, "for most studies"
    if demand is not None:
        needed, why = _needed(site, demand)
    remedy = "free space there, or give folder in {site_file} another disk"
    names = {"state": site.state, "site_file": site.file}
    if needed > free:
        text, short = f"{found}; {size(needed)} are needed {why}", demand is not None
        return bad(text, remedy, **names) if short else note(text, remedy, **names)
    return good(f"{found}; {size(needed)} are needed {why}", state=site.state)


def temporary() -> Finding:
    """A folder for temporary files that can be written, as in a container with a read-only root."""
    try:
        with tempfile.TemporaryFile() as stream:
            stream.write(b"\0" * 65536)
            stream.flush()
            room = os.statvfs(tempfile.gettempdir())
    except OSError:
        return bad(
            "no folder for temporary files can be written",
            "mount a tmpfs at /tmp, or point TMPDIR to a folder that this user may write",
        )
    if socket_folder() is None:
        return note(
            "the name of the folder for temporary files is too long for a socket: scans are "
            "prepared by one process",
            "point TMPDIR to a folder with a short name, or mount a tmpfs at /tmp",
        )
    free = room.f_bavail * room.f_frsize
    if free < _LEAST_TEMPORARY:
        remedy = "free space there, or point TMPDIR elsewhere"
        return note(f"{size(free)} are free for temporary files", remedy)
    return good(f"{size(free)} are free for temporary files")


def _needed(site: Site, demand: Demand) -> tuple[float, str]:
    try:
        scans = scans_of(demand.study, site)
    except CallosumError:
        raise CannotTellError("the scans cannot be counted, see data folder") from None
    preparing = demand.preparing_bytes(site, scans)
    what = "to prepare the scans and keep reports" if preparing else "to keep reports"
    return preparing + demand.kept_bytes, f"{what} of {demand.study.name}"


def _available() -> tuple[float, float]:
    """Bytes of memory that can be had, and the cgroup's limit (0: none)."""
    told = Path("/proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"MemAvailable:\s+(\d+) kB", told)
    free = float(found[1]) * 1024 if found else 0.0
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = (_number(Path("/sys/fs/cgroup") / n) for n in (limit_file, used_file))
        if 0 < limit < 1 << 60:  # version 1 says "none" by a number near 2 ** 63
            return min(free, limit - used), limit
    return free, 0.0


def _number(path: Path) -> float:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or "max"
        return 0.0
