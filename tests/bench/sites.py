"""Server time per site and peak memory at 10, 100 and 1,000 sites that cost nothing themselves."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from common.protocol.orders import Order, Report, digest_of
from common.protocol.wire import array_record, pack_report, unpack_order
from common.study import Study, parse_study
from deploy.local import LocalGrid
from server.app import app
from server.run import open_run, read_run

COUNTS, ROUNDS, SCANS = (10, 100, 1000), 3, 40
COLUMNS = tuple(f"column-{number}" for number in range(20))
REPEATS = 3


def table() -> str:
    """A fresh process for each number of sites; the first run in it warms up and is not counted."""
    context = multiprocessing.get_context("spawn")
    found = []
    for sites in COUNTS:
        with context.Pool(1) as pool:
            found.append((sites, *pool.apply(measure, (sites,))))
    _, first_s, first_mb = found[0]
    rows = [
        f"| {sites} | {1e3 * seconds:.2f} | {seconds / first_s:.2f} | {mb:.0f} | {mb / first_mb:.3f} |"
        for sites, seconds, mb in found
    ]
    return "\n".join(
        [
            f"census, constants and {ROUNDS} rounds of a table network; sites answer at once",
            "",
            f"| sites | server ms a site and exchange (processor) | over {COUNTS[0]} | peak MB | over {COUNTS[0]} |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def measure(sites: int) -> tuple[float, float]:
    """Least seconds of the server for each site and exchange, and the process's peak in MB."""
    with tempfile.TemporaryDirectory() as folder:
        _server_s(Path(folder) / "warm", COUNTS[0])
        repeats = max(1, REPEATS * COUNTS[0] // sites) if sites < COUNTS[-1] else 1
        least = min(_server_s(Path(folder) / str(n), sites) for n in range(max(repeats, 1)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return least / sites / (ROUNDS + 2), peak


def _server_s(folder: Path, sites: int) -> float:
    """Seconds of processor time of a whole run, less what the sites took to answer.

    What the disk takes depends on who else writes, and is the same for every site.
    """
    agreed = study(sites)
    with open_run(folder, agreed):
        pass
    grid = Answering(agreed)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(),
        run_config={"run": str(folder), "nodes": json.dumps(grid.nodes), "key": "", "books": ""},
    )  # fmt: skip
    began = time.process_time()
    app(grid, context)
    seconds = time.process_time() - began - grid.answering_s
    assert read_run(folder).federated.final.exists()
    return seconds


def study(sites: int) -> Study:
    """Training rounds and nothing beside."""
    return parse_study(
        {
            "name": "bench",
            "data": {"kind": "features", "columns": list(COLUMNS)},
            "targets": {"age": {"kind": "regression", "unit": "years", "centre": 50, "scale": 18}},
            "backbone": {"name": "mlp", "hidden": [16]},
            "objective": {"name": "multitask"},
            "pretraining": {"rounds": ROUNDS},
            "sites": {"train": [f"site-{number:04d}" for number in range(sites)]},
            "comparisons": {"single_site": False, "pooled": False},
        },
        Path("bench.toml"),
    )


class Answering(LocalGrid):
    """A grid whose sites answer at once, with numbers that a site could have."""

    def __init__(self, agreed: Study) -> None:
        super().__init__([])
        self.nodes = {name: 100 + place for place, name in enumerate(agreed.sites.train)}
        self.answering_s = 0.0

    def _answer(self, message: Message) -> Message:
        began = time.thread_time()
        order, arrays = unpack_order(message.content)
        reports: dict[str, Callable[..., tuple[dict[str, Any], dict[str, NDArray[Any]]]]] = {
            "census": _census, "settle": _settle, "train": _train,
        }  # fmt: skip
        told, sent = reports[order.kind](order, arrays)
        report = Report(
            order=order.id, site=order.site, kind=order.kind, round=order.round, seconds=0.1, **told
        )
        reply = Message(pack_report(report, array_record(sent)), reply_to=message)
        self.answering_s += time.thread_time() - began
        return reply


def _census(order: Order, _: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    held = {"scans": SCANS, "labels/age": SCANS}
    cohort = digest_of({order.site: np.zeros(1)})
    return {"support": held, "participants": held, "cohort": cohort}, {}


def _settle(order: Order, _: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    place, width = "backbone.standardise", len(COLUMNS)
    sums = {"sum": np.ones(width), "squares": np.full(width, 40.0), "n": np.full(1, 26.0)}
    return {}, {f"{place}/{name}": value for name, value in sums.items()}


def _train(order: Order, arrays: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    scans = {"shared": 26, "labels/age": 26}
    frozen = ("backbone.standardise.mean", "backbone.standardise.deviation")
    sent = {name: array * 1.01 for name, array in arrays.items() if name not in frozen}
    counts = {"loss/age": (10.0, 26.0), "validation-loss/age": (3.0, 6.0)}
    return {"support": scans, "participants": scans, "counts": counts}, sent
