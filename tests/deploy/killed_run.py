"""Kill a simulation just before or after its n-th durable rename, run it again, compare what is left.

Run as `python killed_run.py FEDERATION WORK [MOMENT:PLACE ...]`, in a process of its own: it
simulates once, so that all is imported and warm, and every further simulation is a fork, which
takes milliseconds where a new process takes seconds. FEDERATION holds `study.toml` and `sites/`,
nothing prepared yet. PLACE is a regular expression for the path of a rename below WORK, whose first
match is killed; MOMENT is `before` or `after`. Without any, every rename is killed at both moments.
Prints JSON: the digests of a calm run, and the faults found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

torch.set_num_threads(1)  # before any work: a pool of threads does not survive a fork

from deploy import local  # noqa: E402

KILLED = -signal.SIGKILL


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every final model and of results.csv, by their place in the run folder."""
    files = [*folder.rglob("final.safetensors"), folder / "results.csv"]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.exists()
    }


def forked(work: Callable[[], None], log: Path) -> int:
    """Do `work` in a child; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            work()
        except BaseException:  # noqa: BLE001  the child must not return into the parent's loop
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def renames_watched(seen: Callable[[str, str], None]) -> None:
    """Call `seen("before" or "after", target)` around every rename of this process."""
    for name in ("replace", "rename"):
        plain = getattr(os, name)

        def watched(source, target, *, plain=plain, **more):
            seen("before", str(target))
            plain(source, target, **more)
            seen("after", str(target))

        setattr(os, name, watched)


class Folders:
    """A fresh copy of the federation, and the run folder beside it."""

    def __init__(self, federation: Path, work: Path) -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(federation, work)
        self.work = work
        self.run = work / "run"
        self.log = work / "log.txt"

    def simulate(self) -> None:
        local.simulate(self.work / "study.toml", self.work / "sites", self.run)

    def watched(self) -> int:
        """Simulate, with one line in `renames.txt` for each durable rename."""

        def note(when: str, target: str) -> None:
            if when == "before":
                with (self.work / "renames.txt").open("a") as stream:
                    stream.write(os.path.relpath(target, self.work) + "\n")

        return forked(lambda: (renames_watched(note), self.simulate()), self.log)

    def killed(self, number: int, moment: str) -> int:
        """Simulate, and SIGKILL ourselves at the given moment of the given rename (from 0)."""
        counts = {"before": -1, "after": -1}

        def kill(when: str, _: str) -> None:
            counts[when] += 1
            if when == moment and counts[when] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        return forked(lambda: (renames_watched(kill), self.simulate()), self.log)

    def resumed(self) -> int:
        """Simulate without any trick."""
        return forked(self.simulate, self.log)


def main(federation: Path, work: Path, places: list[str]) -> dict[str, object]:
    """Every kill asked for, each from a fresh start; what went wrong, in words."""
    Folders(federation, work).simulate()
    calm = Folders(federation, work)
    if calm.watched() != 0:
        return {"faults": [f"the calm run fails: {calm.log.read_text()}"]}
    wanted = digests(calm.run)
    renames = (work / "renames.txt").read_text().splitlines()
    kills = [(n, moment) for n in range(len(renames)) for moment in ("before", "after")]
    faults: list[str] = []
    if places:
        kills = []
        for moment, _, place in (asked.partition(":") for asked in places):
            hits = [n for n, path in enumerate(renames) if re.search(place, path)]
            kills += [(n, moment) for n in hits[:1]]
            faults += [] if hits else [f"no rename matches {place}"]
    for number, moment in kills:
        where = f"killed {moment} rename {number} ({renames[number]})"
        folders = Folders(federation, work)
        code = folders.killed(number, moment)
        if code != KILLED:
            faults.append(f"{where}: the kill ended with {code}: {folders.log.read_text()}")
            continue
        code = folders.resumed()
        left = digests(folders.run)
        if code != 0:
            faults.append(f"{where}: resuming ended with {code}: {folders.log.read_text()}")
        elif left != wanted:
            differ = sorted(k for k in wanted | left if wanted.get(k) != left.get(k))
            faults.append(f"{where}: {', '.join(differ)} differ")
    return {"digests": wanted, "renames": renames, "kills": len(kills), "faults": faults}


if __name__ == "__main__":
    result = main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    print(json.dumps(result))
