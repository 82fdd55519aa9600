"""Seconds of one round over a real hub, three nodes and three agents, and the coordinator's memory.

Local work is next to nothing, so that what is left is what a deployment costs: TLS, Flower's polls,
signatures, ledger and receipts, spooling, averaging. Three hospitals of twelve very coarse brains.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

from common.study import load_study
from deploy.hospitals.dataset import write_hospitals
from tests.conftest import BRAINS, overridden
from tests.deploy.standing import Standing, removed, short_folder, standing

SITES = ("amber", "birch", "cedar")
SIZES: dict[str, tuple[list[int], int]] = {
    "3 M": ([136, 272, 272], 10),
    "100 M": ([1180, 1570, 1180], 10),
}


def table(sizes: tuple[str, ...] = ("3 M", "100 M")) -> str:
    """One consortium for each size."""
    lines = [
        "three sites, SFCN, one pass over nine scans of 12 x 14 x 12 voxels in a round",
        "",
        "| numbers | rounds | first, s | median, s | longest, s | ServerApp peak, MB | of model |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        channels, rounds = SIZES[size]
        seconds, peak, model = run(channels, rounds)
        times = f"{seconds[0]:.1f} | {median(seconds):.1f} | {max(seconds):.1f}"
        lines.append(
            f"| {model / 4e6:.1f} M | {len(seconds)} | {times} | {peak:.0f} | {peak / model * 1e6:.2f} |"
        )
    return "\n".join(lines)


def run(
    channels: list[int], rounds: int, changes: dict[str, Any] | None = None
) -> tuple[list[float], float, float]:
    """Seconds of each round, the ServerApp's peak in MB, and the model's bytes."""
    folder = short_folder()
    try:
        write_hospitals(
            folder / "sites", names=SITES, heldout=[], participants=24, spacing_mm=14.0, seed=3
        )
        study_file = folder / "study.toml"
        study_file.write_text(
            tomli_w.dumps(
                overridden(
                    BRAINS,
                    {
                        "backbone.channels": channels,
                        "pretraining.rounds": rounds,
                        "pretraining.optimiser": "sgd",
                        "pretraining.batch_size": 16,
                        "sites": {"train": list(SITES), "time_limit_s": 900.0},
                        **(changes or {}),
                    },
                )
            )
        )
        files = {name: ("train", folder / "sites" / name / "site.toml") for name in SITES}
        with standing(folder, files) as there:
            there.introduce()
            there.stand(study_file)
            there.command("callosum", "run", study_file, "--hub", there.hub, "--detach")
            run = there.hub / "runs" / load_study(study_file).name
            peak = _watched(there, run)
            records = [json.loads(p.read_text()) for p in sorted(run.glob("rounds/*/record.json"))]
            model = (run / "checkpoints" / "final.safetensors").stat().st_size
            return [record["seconds"] for record in records], peak, model
    finally:
        removed(folder)


def _watched(there: Standing, run: Path) -> float:
    """Wait for the end; the highest memory that any ServerApp process reached, in MB of 10^6."""
    peak = 0.0
    while _state(run) not in ("finished", "failed"):
        try:
            pid = there.process("hub", "flwr-serverapp")
            status = Path(f"/proc/{pid}/status").read_text()
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
        except (AssertionError, OSError, IndexError):
            pass  # not yet, or no longer
        time.sleep(0.2)
    return peak


def _state(run: Path) -> Any:
    try:
        return json.loads((run / "state.json").read_text())["state"]
    except (OSError, ValueError):
        return ""
