"""Scans a second from the prepared file on disk over the same scans held in memory, as batches."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.data.cohort import Cohort
from client.data.loading import batches, split_evenly
from client.learning.training import Recipe, train
from common.network.building import build
from tests.bench import federation

SCANS, REPEATS = 256, 5


def table() -> str:
    """Loader alone, and training from disk over training from memory."""
    with tempfile.TemporaryDirectory() as folder:
        held = _cohort(SCANS)
        path = Path(folder) / "samples.bin"
        path.write_bytes(np.ascontiguousarray(held.samples).tobytes())
        mapped = np.memmap(path, dtype=held.samples.dtype, mode="r", shape=held.samples.shape)
        disk = replace(held, samples=mapped)
        rates = {name: _loads(one) for name, one in (("memory", held), ("disk", disk))}
        steps = {name: _trains(one) for name, one in (("memory", held), ("disk", disk))}
    rows = [f"| {name} | {rates[name]:.0f} | {steps[name]:.1f} |" for name in ("memory", "disk")]
    return "\n".join(
        [
            f"{SCANS} scans of 32^3 float16, batch 8; the best of {REPEATS}",
            "",
            "| from | loader alone, scans/s | training, scans/s |",
            "|---|---|---|",
            *rows,
            (
                f"| disk / memory | {rates['disk'] / rates['memory']:.2f} "
                f"| {steps['disk'] / steps['memory']:.2f} |"
            ),
        ]
    )


def _cohort(scans: int) -> Cohort:
    one = federation.cohort("site-0")
    times = scans // len(one)
    people = tuple(f"sub-{number:03d}" for number in range(scans))
    return Cohort(
        samples=np.concatenate([one.samples] * times),
        participants=people,
        scans=people,
        labels={"age": np.concatenate([one.labels["age"]] * times)},
        measures=None,
        layout="volume",
        findings=(),
        contents=people,
        secrets=("",) * len(people),
    )


def _loads(one: Cohort) -> float:
    order = split_evenly(np.random.default_rng(0).permutation(SCANS), 8)
    best = 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _batch in batches(one, order, torch.device("cpu")):
            pass
        best = max(best, SCANS / (time.perf_counter() - began))
    return best


def _trains(one: Cohort) -> float:
    agreed = federation.study()
    network, best, part = build(agreed, seed=0), 0.0, 32
    for repeat in range(3):
        began = time.perf_counter()
        recipe = Recipe(
            steps=agreed.pretraining.model_copy(update={"batch_size": 8}),
            rate=1e-3,
            weight_decay=1e-3,
            epochs=1,
            of=1,
            seed=repeat,
        )
        train(network, one, np.arange(part), recipe, torch.device("cpu"))
        best = max(best, part / (time.perf_counter() - began))
    return best
