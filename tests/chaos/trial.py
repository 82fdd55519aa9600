"""One small federation, copied for every trial, and the command that is run, hurt and run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

torch.set_num_threads(1)  # before any work: a pool of threads does not survive a fork

from common.runtime.command import _exit_code  # noqa: E402
from deploy.cli import app  # noqa: E402
from tests.conftest import write_federation  # noqa: E402
from tests.deploy.killed_run import digests  # noqa: E402

CHANGES: Final[dict[str, Any]] = {  # every phase; arrays that stay at sites; moments at the hub
    "objective.targets": ["age"],
    "sites.train": ["alpha", "beta"],
    "sites.heldout": ["omega"],
    "pretraining.rounds": 3,
    "aggregation": {"normalisation": "silobn", "server_optimiser": "fedadam"},
    "comparisons": {"single_site": True, "pooled": True},
    "evaluation": {"bootstrap": 100, "head": False},
    "finetuning": [
        {
            "name": "dementia",
            "target": "diagnosis",
            "methods": ["pretrained/full"],
            "epochs": 2,
            "learning_rates": [0.01],
            "then": ["judge"],
        }
    ],
}
ERRORS: Final = (3, 4, 5, 6, 7, 8)  # exit codes of our tree; 1 is a defect


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: exit code (negative: by a signal) and what it said."""

    code: int
    said: str

    @property
    def is_clear(self) -> bool:
        """Whether it was one of our errors, told in a sentence."""
        return self.code in ERRORS and "error: " in self.said and "Traceback" not in self.said


_WRITING: dict[int, subprocess.Popen[bytes]] = {}  # the log of each child


@dataclass(frozen=True, slots=True)
class Trial:
    """A copy of the federation with its run folder."""

    work: Path
    log: Path

    @property
    def run(self) -> Path:
        return self.work / "run"

    def begin(self, before: Callable[[], object] = lambda: None) -> int:
        """Start the command; the process id of a child that is warm from the start."""
        # through a pipe: where no file may grow, a log that is a file could not say so
        with self.log.open("wb") as log:
            writing = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
        assert writing.stdin is not None
        output = writing.stdin.fileno()
        child = os.fork()
        if child:
            writing.stdin.close()
            _WRITING[child] = writing
            return child
        code = 1
        try:
            before()
            os.dup2(output, 1)
            os.dup2(output, 2)
            study, sites = str(self.work / "study.toml"), str(self.work / "sites")
            sys.argv = ["callosum", "simulate", study, "--sites", sites, "--out", str(self.run)]
            code = _exit_code(app, "callosum")
        except BaseException:  # noqa: BLE001  the child must not return into the parent's loop
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(self, child: int) -> Ended:
        """Wait for it."""
        _, status = os.waitpid(child, 0)
        _WRITING.pop(child).wait()
        said = self.log.read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), said)

    def simulated(self, before: Callable[[], object] = lambda: None) -> Ended:
        """The command from its start to its end."""
        return self.end(self.begin(before))

    def fault(self, ended: Ended, wanted: dict[str, str]) -> str:
        """What is wrong with an ending: anything but the same bits, or one clear error."""
        if ended.is_clear:
            return ""
        if ended.code != 0:
            return f"ended with {ended.code}: {ended.said[-1500:]}"
        found = digests(self.run)
        unlike = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        return f"another result, exit 0: {', '.join(unlike)}" if unlike else ""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where trials are made: the federation as it was written, a finished run, and its digests."""

    folder: Path
    wanted: dict[str, str]
    seconds: float

    def fresh(self) -> Trial:
        """Nothing done yet."""
        return self._copy("sound")

    def finished(self) -> Trial:
        """Everything done."""
        return self._copy("finished")

    def half(self) -> Trial:
        """Killed in the middle of its rounds."""
        return self._copy("half")

    def _copy(self, name: str) -> Trial:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.folder / name, work)
        return Trial(work, self.folder / "log.txt")


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """Write the federation, run it once to be warm, and keep it finished and half done."""
    # the judge has ages alone: cross-fitted logistic heads were most of a run's time
    made = write_federation(folder / "sound", CHANGES, lacks={"omega": ("sex", "diagnosis")})
    assert made.study_file.exists()
    begun = Ground(folder, {}, 0.0)
    trial = begun.fresh()
    from deploy.local import simulate

    simulate(trial.work / "study.toml", trial.work / "sites", trial.run)  # imports are warm now
    began = os.times().elapsed
    trial = begun.fresh()
    ended = trial.simulated()
    assert ended.code == 0, ended.said
    seconds = os.times().elapsed - began
    shutil.copytree(trial.work, folder / "finished")
    shutil.copytree(trial.work, folder / "half")
    for path in ("results.csv", "report.html", "evaluation", "checkpoints/final.safetensors"):
        _gone(folder / "half/run" / path)
    yield Ground(folder, digests(trial.run), seconds)


def _gone(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
