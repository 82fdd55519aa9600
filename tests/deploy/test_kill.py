"""`kill -9` at any moment, then the same command: the same weights, the same table."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

PHASES = {
    "preparing": r"before:sites/alpha/\.callosum/prepared/.*/generation-",
    "opening the run": r"after:^run/study\.json$",
    "census, at the site": r"after:sites/beta/\.callosum/runs/.*/census/",
    "census, at the coordinator": r"after:^run/census/beta\.safetensors$",
    "sums, at the site": r"after:sites/beta/\.callosum/runs/.*/settle/",
    "sums, at the coordinator": r"after:^run/settle/0000/beta\.safetensors$",
    "first checkpoint": r"before:^run/checkpoints/0000",
    "arrays that a site holds": r"after:sites/beta/\.callosum/arrays/",
    "first reply trained, not spooled": r"before:^run/rounds/0001/replies/alpha",
    "after the first reply of a round": r"after:^run/rounds/0002/replies/alpha",
    "before the last reply of a round": r"before:^run/rounds/0001/replies/gamma",
    "record written but no checkpoint": r"after:^run/rounds/0001/record\.json$",
    "checkpoint written": r"after:^run/checkpoints/0001",
    "final checkpoint": r"before:^run/checkpoints/final",
    "comparison": r"before:^run/comparisons/single-beta/checkpoints/0001",
    "tuned model, at the site": r"after:sites/beta/.*/tuned/dementia/pretrained/full/",
    "fine-tuning": r"after:^run/finetuning/dementia/pretrained-full/beta",
    "predictions, at the site": r"after:sites/omega/.*/predictions/federated",
    "evaluation": r"before:^run/evaluation/federated/omega",
    "results": r"before:^run/results\.csv$",
}


def killed_run(federation: Any, work: Path, places: Sequence[str], limit_s: float) -> Any:
    """Run `killed_run.py` with a session of its own, so that nothing outlives its time limit."""
    (federation.folder / "study.toml").write_text(federation.study_file.read_text())
    script = Path(__file__).with_name("killed_run.py")
    child = subprocess.Popen(
        [sys.executable, str(script), str(federation.folder), str(work), *places],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=limit_s)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    assert child.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def complete(federation, everything):
    """Every phase of a study, small: three training sites, a judge, rivals and a task."""
    return federation(everything, participants=dict.fromkeys(["alpha", "beta", "gamma"], 40))


@pytest.mark.timeout(900)
def test_kill_in_every_phase_changes_no_bit(complete, tmp_path_factory):
    """A power cut costs time, never the result: one kill in each phase."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_run(complete, work, list(PHASES.values()), 840)
    assert found["faults"] == []
    assert found["kills"] == len(PHASES)
    assert sorted(found["digests"]) == [
        "checkpoints/final.safetensors",
        "comparisons/pooled/checkpoints/final.safetensors",
        "comparisons/single-alpha/checkpoints/final.safetensors",
        "comparisons/single-beta/checkpoints/final.safetensors",
        "comparisons/single-gamma/checkpoints/final.safetensors",
        "results.csv",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_at_every_write_changes_no_bit(complete, tmp_path_factory):
    """The same before and after every single durable rename of the whole study."""
    work = tmp_path_factory.mktemp("killed") / "work"
    found = killed_run(complete, work, [], 1700)
    assert found["faults"] == []
    assert found["kills"] == 2 * len(found["renames"])
    assert found["kills"] > 150


class Command:
    """The real command line, `callosum simulate`, in a session of its own."""

    def __init__(self, made: Any, out: str) -> None:
        self.out = made.folder / out
        program = "import sys; from deploy.cli import main; sys.argv[0] = 'callosum'; main()"
        self.words = [
            sys.executable, "-c", program, "simulate",
            str(made.study_file), "--sites", str(made.sites), "--out", str(self.out),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.words,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> str:
        child = self.start()
        try:
            output, _ = child.communicate(timeout=240)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        assert child.returncode == 0, output
        return output

    def digests(self) -> dict[str, str]:
        files = [*self.out.rglob("final.safetensors"), self.out / "results.csv"]
        return {
            str(file.relative_to(self.out)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }


def ended(child: subprocess.Popen[str], sign: signal.Signals) -> tuple[int, str]:
    """Send `sign` and wait; whatever is left of the session is killed."""
    os.kill(child.pid, sign)
    try:
        output, _ = child.communicate(timeout=60)
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return child.returncode, output


def until(path: Path, child: subprocess.Popen[str], limit_s: float = 120.0) -> None:
    """Wait for a file that the child writes: progress, not luck."""
    deadline = time.monotonic() + limit_s
    while not path.exists():
        assert child.poll() is None, f"ended before {path}: {child.stdout.read()}"
        assert time.monotonic() < deadline, f"no {path} after {limit_s} s"
        time.sleep(0.005)


LONG = {
    "pretraining.rounds": 25,
    "comparisons": {"single_site": True, "pooled": True},
    "evaluation.head": False,
}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_kills_of_the_real_command_change_no_bit(brains):
    """What the forks above cannot show: loaders, threads and half-written files of a real process."""
    made = brains(LONG)
    calm = Command(made, "calm")
    calm.finish()
    torn = Command(made, "torn")
    draw = random.Random(5)
    kills = 0
    for mark in ("census", "rounds/0004", "rounds/0015", "comparisons/single-amber", "evaluation"):
        child = torn.start()
        until(torn.out / mark, child)
        try:
            child.wait(draw.uniform(0.0, 0.3))
        except subprocess.TimeoutExpired:
            kills += 1
        ended(child, signal.SIGKILL)
    assert kills >= 3
    torn.finish()
    assert torn.digests() == calm.digests()
    assert len(calm.digests()) == 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupt_says_how_to_go_on_and_resumes(brains):
    """Ctrl-C is no accident: one line for people, exit code 130, and nothing lost."""
    made = brains(LONG)
    calm = Command(made, "calm")
    calm.finish()
    stopped = Command(made, "stopped")
    for mark in ("rounds/0001/replies/amber.safetensors", "rounds/0010"):
        child = stopped.start()
        until(stopped.out / mark, child)
        code, output = ended(child, signal.SIGINT)
        assert code == 130, output
        assert "stopped; the same command goes on from here" in output
        assert "Traceback" not in output
    stopped.finish()
    assert stopped.digests() == calm.digests()
