"""What is done to runs: signals at random moments, disks that fill or close, bits that flip."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

from tests.chaos.trial import Ended, Ground, Trial

Fault = str  # nothing, where all is well
_SIGNALS: Final = (*[signal.SIGKILL] * 8, signal.SIGTERM, signal.SIGINT)
_NAMESPACES: Final = 0x10000000 | 0x00020000  # CLONE_NEWUSER | CLONE_NEWNS
_RDONLY: Final = 1
_REMOUNT: Final = 32


def kills(ground: Ground, random: Random, count: int) -> Iterator[Fault]:
    """Signals at random moments, up to four to one run; then the same command, and the same bits."""
    left = count
    while left > 0:
        trial, told = ground.fresh(), []
        for _ in range(min(left, random.choice((1, 1, 2, 4)))):
            sign, moment = random.choice(_SIGNALS), random.uniform(0, ground.seconds)
            child = trial.begin()
            time.sleep(moment)
            os.kill(child, sign)
            ended = trial.end(child)
            told.append(f"{sign.name} after {moment:.2f} s")
            left -= 1
            fault = _signalled(ended, sign)
            yield f"{', '.join(told)}: {fault}" if fault else ""
        fault = _resumed(trial, ground)
        if fault:
            yield f"{', '.join(told)}: then {fault}"


def _signalled(ended: Ended, sign: signal.Signals) -> Fault:
    """Ctrl-C is answered with a line; the others end it, unless it was over before."""
    if ended.code in (0, -sign) or (sign == signal.SIGINT and ended.code == 130):
        return f"a traceback: {ended.said[-1500:]}" if "Traceback" in ended.said else ""
    return f"ended with {ended.code}: {ended.said[-1500:]}"


def _resumed(trial: Trial, ground: Ground) -> Fault:
    ended = trial.simulated()
    return trial.fault(ended, ground.wanted) if ended.code == 0 else f"no end: {ended.said[-1500:]}"


def large_files(ground: Ground, random: Random, count: int) -> Iterator[Fault]:
    """No file may grow beyond a size (RLIMIT_FSIZE, which needs no rights): an error, then the bits."""
    sizes = [path.stat().st_size for path in (ground.folder / "finished").rglob("*")]
    for _ in range(count):
        most = random.choice(sizes) * random.choice((0.5, 1.0)) + random.choice((0, 1))
        trial = random.choice((ground.fresh, ground.half))()

        def limited(most: int = int(most)) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        ended = trial.simulated(limited)
        fault = trial.fault(ended, ground.wanted) or _resumed(trial, ground)
        yield f"no file above {most:.0f} bytes: {fault}" if fault else ""


def full_disks(ground: Ground, random: Random, count: int) -> Iterator[Fault]:
    """A tmpfs of our own that is full at some moment, or read-only, and then is not."""
    used = sum(path.stat().st_blocks * 512 for path in (ground.folder / "finished").rglob("*"))
    begun = sum(path.stat().st_blocks * 512 for path in (ground.folder / "sound").rglob("*"))
    for number in range(count):
        most = int(random.uniform(begun, used))
        closed = number % 4 == 3
        where = "read-only folder" if closed else f"disk of {most >> 10} of {used >> 10} KiB"
        fault = _apart(ground, lambda m=most, c=closed: _on_disk(ground, m, closed=c))
        yield f"{where}: {fault}" if fault else ""


def can_mount() -> bool:
    """Whether this machine lets us mount a file system of our own, which needs no rights on most."""
    child = os.fork()
    if child == 0:
        try:
            _own_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _apart(ground: Ground, work: Callable[[], Fault]) -> Fault:
    """`work` in a child with mounts of its own."""
    told = ground.folder / "told.txt"
    told.write_text("the child died")
    child = os.fork()
    if child == 0:
        try:
            _own_namespace()
            told.write_text(work())
        except BaseException as error:  # noqa: BLE001  the child must not return
            told.write_text(repr(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return told.read_text()


def _on_disk(ground: Ground, most: int, *, closed: bool) -> Fault:
    work = ground.folder / "disk"
    work.mkdir(exist_ok=True)
    _mount(work, f"size={1 << 30 if closed else most}")
    shutil.copytree(ground.folder / ("half" if closed else "sound"), work, dirs_exist_ok=True)
    trial = Trial(work, ground.folder / "log.txt")
    if closed:
        _mount(work, "", _REMOUNT | _RDONLY)
    ended = trial.simulated()
    fault = trial.fault(ended, ground.wanted)
    if fault:
        return fault
    _mount(work, f"size={1 << 30}", _REMOUNT)
    return _resumed(trial, ground)


def _own_namespace() -> None:
    user, group = os.getuid(), os.getgid()
    _called("unshare", _NAMESPACES)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(place: Path, options: str, flags: int = 0) -> None:
    _called("mount", b"tmpfs", os.fsencode(place), b"tmpfs", flags, options.encode())


def _called(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


def flips(ground: Ground, random: Random, count: int) -> Iterator[Fault]:
    """One bit of one file of a run or of a site's own folder; all files in turn."""
    files = [
        (state, path.relative_to(ground.folder / state))
        for state in ("finished", "half")
        for top in ("run", "sites")
        for path in sorted((ground.folder / state / top).rglob("*"))
        if path.is_file() and path.stat().st_size and _is_ours(path)
    ]
    random.shuffle(files)
    for state, name in files[:count]:
        trial = getattr(ground, state)()
        data = bytearray((trial.work / name).read_bytes())
        place, bit = random.randrange(len(data)), random.randrange(8)
        data[place] ^= 1 << bit
        (trial.work / name).write_bytes(data)
        fault = trial.fault(trial.simulated(), ground.wanted)
        yield f"{state}: bit {bit} of byte {place} of {name}: {fault}" if fault else ""


def _is_ours(path: Path) -> bool:
    """What people wrote has no digest: their site files and tables are what they say."""
    return "sites" not in path.parts or ".callosum" in path.parts
