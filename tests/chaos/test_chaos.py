"""A share of `make chaos` that takes seconds; the whole of it is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chaos(*arguments: str, limit_s: float) -> str:
    """Run `python -m tests.chaos` in a process of its own, which it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_few_hurt_runs_end_in_the_same_bits_or_one_error():
    """Whatever happens to a machine at night costs time, or says what it is: never the result."""
    said = chaos("--share", "0.005", "--quick", limit_s=280)
    for what in ("kills", "large-files", "disks", "flips", "site-flips"):
        assert f"\n{what}: " in f"\n{said}"
    assert "0 faults" in said


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_hurt_runs_end_in_the_same_bits_or_one_error():
    """Two hundred kills, full and closed disks, a bit of every file, and a deployment."""
    assert "0 faults" in chaos(limit_s=7100)
