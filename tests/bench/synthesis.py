"""Heads and films a second, in one thread and in two, and what training waits for them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.data.cohort import Cohort
from client.data.lazy import Lazy
from client.data.loading import Loader
from client.data.reader import reader_of
from client.learning.training import Recipe, train
from common import catalogue
from common.network.building import build
from common.study import Study, parse_study

SAMPLES, REPEATS = 48, 3
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "heads, 16x20x16 at 10 mm": (
        {"kind": "synthetic-t1w", "shape": [16, 20, 16], "spacing_mm": 10.0, "align": "world"},
        {"seed": 1, "people": SAMPLES},
        "sex",
    ),
    "heads, 48^3 at 4 mm": (
        {"kind": "synthetic-t1w", "shape": [48, 48, 48], "spacing_mm": 4.0, "align": "world"},
        {"seed": 1, "people": SAMPLES},
        "sex",
    ),
    "films, 16x32x32": (
        {"kind": "synthetic-video", "shape": [16, 32, 32]},
        {"seed": 1, "clips": SAMPLES},
        "motion",
    ),
}


def table() -> str:
    """One row a source."""
    columns = ("source", "one thread, samples/s", "two", "training from memory, samples/s",
               "made on the fly over that, 1 / 2 loaders")  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    for name, (data, site, target) in SOURCES.items():
        study = _study(data, target)
        kept = _cohort(study, site, target)
        one, two = (_made(kept.samples, threads) for threads in (1, 2))
        held = replace(kept, samples=kept.samples[np.arange(SAMPLES)])
        rates = [_trains(study, *each) for each in ((held, 1), (kept, 1), (kept, 2))]
        ratios = " / ".join(f"{rate / rates[0]:.2f}" for rate in rates[1:])
        rows.append(f"| {name} | {one:.0f} | {two:.0f} | {rates[0]:.0f} | {ratios} |")
    head = f"SFCN of demo.toml, batch 8; the best of {REPEATS}; ratios are to training from memory"
    return "\n".join([head, "", *rows])


def _study(data: dict[str, Any], target: str) -> Study:
    keys = catalogue.load("kinds", data["kind"]).targets[target]
    return parse_study(
        {
            "name": "made",
            "seed": 1,
            "data": data,
            "targets": {target: keys},
            "backbone": {"name": "sfcn", "channels": [8, 32, 64], "top": 32},
            "objective": {"name": "multitask"},
            "pretraining": {"rounds": 1, "batch_size": 8, "learning_rate": 1e-3},
            "sites": {"train": ["a", "b"]},
        },
        Path("made.toml"),
    )


def _cohort(study: Study, site: dict[str, Any], target: str) -> Cohort:
    model = catalogue.load("kinds", study.kind_name).Site(kind=study.kind_name, **site)
    found = reader_of(study.kind_name).find(study.data, model, Path(), frozenset({target}))
    names = tuple(source.scan for source in found.sources)
    classes = study.targets[target].classes
    labels = [classes.index(source.row[target]) for source in found.sources]
    return Cohort(
        samples=Lazy(study, found.sources),
        layout="volume",
        participants=names,
        scans=names,
        labels={target: np.array(labels, dtype=np.float32)},
        measures=None,
        findings=(),
        contents=names,
        secrets=("",) * len(names),
    )


def _made(samples: Any, threads: int) -> float:
    samples[0]  # what is precomputed for a grid is made once
    best = 0.0
    for _ in range(REPEATS):
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(samples.__getitem__, range(SAMPLES)))
        best = max(best, SAMPLES / (time.perf_counter() - began))
    return best


def _trains(study: Study, cohort: Cohort, threads: int) -> float:
    network, best = build(study, seed=0), 0.0
    for repeat in range(REPEATS):
        recipe = Recipe(
            steps=study.pretraining, rate=1e-3, weight_decay=1e-3, epochs=1, of=1, seed=repeat,
            loader=Loader(threads=threads),
        )  # fmt: skip
        began = time.perf_counter()
        train(network, cohort, np.arange(SAMPLES), recipe, torch.device("cpu"))
        best = max(best, SAMPLES / (time.perf_counter() - began))
    return best
