"""Seconds and peak memory of one aggregation at 4, 16 and 64 sites, from spooled replies on disk."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from common.network.plan import Plan, Rule
from common.protocol.wire import Stored, write_arrays
from common.seams import SHARED
from common.sections import Aggregation
from server.federation.aggregation import Contribution, aggregate

NUMBERS, ARRAYS = 10_000_000, 50


def table() -> str:
    """One fresh process for each number of sites, so that peaks do not mix."""
    rows = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder))
        for sites in (4, 16, 64):
            with context.Pool(1) as pool:
                seconds, before, peak = pool.apply(_average, (Path(folder), sites))
            rows.append(f"| {sites} | {seconds:.2f} | {peak - before:.0f} |")
    size = NUMBERS * 4 / 1e6
    return "\n".join(
        [
            f"{NUMBERS / 1e6:.0f} M float32 in {ARRAYS} arrays ({size:.0f} MB a reply), FedAvg",
            "",
            "| sites | seconds | peak above start, MB |",
            "|---|---|---|",
            *rows,
        ]
    )


def _write(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for reply in range(4):
        arrays = {
            f"layer-{n:02d}": generator.normal(size=NUMBERS // ARRAYS).astype(np.float32)
            for n in range(ARRAYS)
        }
        write_arrays(folder / f"{reply}.safetensors", arrays, {})


def _average(folder: Path, sites: int) -> tuple[float, float, float]:
    shape = (NUMBERS // ARRAYS,)
    rule = Rule(shape=shape, dtype="float32", group=SHARED, role="parameter", kept=False)
    plan: Plan = {f"layer-{n:02d}": rule for n in range(ARRAYS)}
    current = {name: np.ones(shape, dtype=np.float32) for name in plan}
    before = _peak_mb()
    began = time.perf_counter()
    contributions = [
        Contribution(
            site=f"site-{n:02d}",
            support={SHARED: 100 + n},
            read=Stored(folder / f"{n % 4}.safetensors").by_rows().__getitem__,
        )
        for n in range(sites)
    ]
    aggregate(plan, current, contributions, Aggregation(), {}, 1)
    return time.perf_counter() - began, before, _peak_mb()


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
