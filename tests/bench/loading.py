"""Scans a second from the prepared file on disk over the same scans held in memory, as batches.

And training on augmented samples, and on views of them, over training on what memory holds.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import PLAIN, Loader, batches, split_evenly
from client.learning.training import Recipe, train
from client.site import Device
from common.network.buildable import augmentations
from common.network.building import build
from common.objectives.multitask import Multitask
from common.seams import Terms
from common.sections import Pretraining
from common.study import parse_study
from tests.bench import federation

SCANS, REPEATS, PASSES = 256, 5, 2
_LOADERS = Device().loader_threads
_ALL = "all of SimCLR's"
SIDES: dict[int, int] = {32: 48, 64: 16}  # voxels of a side: scans of a measurement
# what 3D contrastive learning makes its views by, see reference/models.md
LISTS: dict[str, list[dict[str, Any]]] = {
    "flip, shift": [{"name": "flip"}, {"name": "shift"}],
    "flip, crop, noise": [{"name": "flip"}, {"name": "crop"}, {"name": "noise"}],
    "flip, affine, gamma": [{"name": "flip"}, {"name": "affine"}, {"name": "gamma"}],
    _ALL: [
        {"name": name}
        for name in ("flip", "affine", "crop", "gamma", "bias-field", "blur", "noise", "cutout")
    ],
}


class Twice(Multitask):
    """Two views of a sample, each with the sample's label: a step as large as SimCLR's."""

    def terms(self, x: torch.Tensor, labels: Mapping[str, torch.Tensor]) -> dict[str, Terms]:
        """Loss of every sample, over its views."""
        if x.dim() == 4:
            return super().terms(x, labels)
        both = {name: label.repeat_interleave(2) for name, label in labels.items()}
        return {
            name: Terms(
                values=term.values.view(-1, 2).mean(1), counted=term.counted.view(-1, 2).all(1)
            )
            for name, term in super().terms(x.flatten(0, 1), both).items()
        }


def table() -> str:
    """Loader alone and training from disk, and training on augmented samples, over memory's."""
    return f"{_disk()}\n\n{_augmented()}"


def _augmented() -> str:
    """Where a core is left to the loader, as beside a GPU, and where training takes every core."""
    cores = torch.get_num_threads()
    try:
        spare = _ratios(max(cores - 1, 1), 1, views=(1,), names=("flip, affine, gamma", _ALL))
    finally:
        torch.set_num_threads(cores)
    return f"{spare}\n\n{_ratios(cores, _LOADERS, views=(1, 2), names=tuple(LISTS))}"


def _ratios(threads: int, loaders: int, *, views: tuple[int, ...], names: tuple[str, ...]) -> str:
    torch.set_num_threads(threads)
    rows = []
    for side, scans in SIDES.items():
        for number in views:
            best = dict.fromkeys(("none", *names), math.inf)
            for _ in range(PASSES):  # in turn: other work on the machine then slows all of them
                for name in best:
                    spent = _seconds(side, scans, number, LISTS.get(name, []), loaders)
                    best[name] = min(best[name], spent)
            rows += [
                f"| {side}^3 | {number} | {name} | {scans / spent:.1f} | {best['none'] / spent:.2f} |"
                for name, spent in best.items()
            ]
    return "\n".join(
        [
            (
                f"the SFCN, batch 8, loader threads: {loaders}, beside training's: {threads}, on "
                f"{os.cpu_count()} cores; the best of {PASSES}"
            ),
            "",
            "| volumes | views | augmentation | scans/s | of training from memory |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def _seconds(
    side: int, scans: int, views: int, listed: list[dict[str, Any]], loaders: int
) -> float:
    """One epoch's time."""
    agreed = parse_study(
        {
            **federation.study().model_dump(mode="json"),
            "data": {"kind": "t1w", "shape": [side] * 3, "spacing_mm": 160 / side},
            "augmentation": listed,
        },
        Path("bench.toml"),
    )
    network = build(agreed, seed=0)
    network.__class__ = Twice
    network.views = views
    random = np.random.default_rng(0)
    people = tuple(f"sub-{number:03d}" for number in range(scans))
    held = Cohort(
        samples=random.standard_normal((scans, side, side, side), np.float32).astype(np.float16),
        participants=people,
        scans=people,
        labels={"age": random.uniform(20, 80, scans).astype(np.float32)},
        measures=None,
        layout="volume",
        findings=(),
        contents=people,
        secrets=("",) * scans,
    )
    loader = Loader(augmentations(agreed), 1, loaders if listed else 1)
    began = time.perf_counter()
    _train(network, held, np.arange(scans), agreed.pretraining, loader)
    return time.perf_counter() - began


def _disk() -> str:
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
        _train(network, one, np.arange(part), agreed.pretraining, seed=repeat)
        best = max(best, part / (time.perf_counter() - began))
    return best


def _train(
    network: Any,
    one: Cohort,
    indices: NDArray[np.int64],
    steps: Pretraining,
    loader: Loader = PLAIN,
    seed: int = 0,
) -> None:
    recipe = Recipe(
        steps=steps.model_copy(update={"batch_size": 8}),
        rate=1e-3,
        weight_decay=1e-3,
        epochs=1,
        of=1,
        seed=seed,
        loader=loader,
    )
    train(network, one, indices, recipe, torch.device("cpu"))
