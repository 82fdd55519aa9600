"""`results.csv`: one tidy table, a measurement a row, in an order that only content decides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from common import metrics
from common.printable import csv_cell
from common.protocol.orders import Measurement
from common.protocol.wire import read_spooled
from common.runtime.durable import write_atomically
from server.run import Run

TOGETHER: Final = "all"  # in the column `site`: every held-out site's scans at once
COLUMNS: Final = tuple(Measurement.model_fields)


def measurements(run: Run) -> list[Measurement]:
    """Every measurement that sites reported in fine-tuning and evaluation."""
    files = [
        *sorted((run.folder / "finetuning").glob("*/*/*.safetensors")),
        *sorted((run.folder / "judge").glob("*/*/*.safetensors")),
        *sorted((run.folder / "evaluation").glob("*/*.safetensors")),
    ]
    rows = [row for file in files for row in read_spooled(file).measurements]
    return sorted([*rows, *together(run)], key=_place)


def together(run: Run) -> list[Measurement]:
    """Each model over all held-out sites at once, from their merged counts.

    Scans of all sites are ranked together, so an AUC also pays for scores that differ by site.
    The interval of a mean absolute error is normal, from its own sum of squares.
    """
    rows = []
    for folder in sorted((run.folder / "evaluation").glob("*")):
        reports = [read_spooled(file) for file in sorted(folder.glob("*.safetensors"))]
        if len(reports) < 2:
            continue
        merged = metrics.merged((report.counts for report in reports), "evaluation/")
        for name, sums in merged.items():
            people = sum(report.participants.get(f"evaluation/{name}", 0) for report in reports)
            rows += _rows_together(run, name, folder.name, sums, people)
    return rows


def _rows_together(
    run: Run, name: str, model: str, sums: metrics.Counts, people: int
) -> list[Measurement]:
    target = run.study.targets[name]
    n = metrics.n_of(target, sums)
    found = metrics.ratios(target, sums)
    bounds: tuple[float | None, float | None] = (None, None)
    if target.kind == "regression":
        bounds = metrics.mae_interval(sums, people, run.study.evaluation.confidence)
    return [
        Measurement(
            phase="evaluate",
            target=name,
            model=model,
            site=TOGETHER,
            role="heldout",
            metric=metric,
            value=value,
            ci_low=bounds[0] if metric == "mae" else None,
            ci_high=bounds[1] if metric == "mae" else None,
            n_participants=people,
            n_scans=n,
        )
        for metric, value in found.items()
    ]


def write_results(run: Run, rows: Iterable[Measurement] | None = None) -> Path:
    """Write the table of a run; floats in full, so that a reader loses nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in measurements(run) if rows is None else rows:
        table.writerow([_cell(value) for value in row.model_dump().values()])
    path = run.folder / "results.csv"
    write_atomically(path, text.getvalue().encode())
    return path


def _cell(value: object) -> object:
    """Numbers as they are; texts, which sites wrote, as no spreadsheet's formula."""
    return csv_cell(value) if isinstance(value, str) else "" if value is None else value


def _place(row: Measurement) -> tuple[str, ...]:
    what = (row.phase, row.task, row.target, row.site, row.model, row.init, row.method)
    return (*what, f"{row.k:09d}", f"{row.repeat:09d}", row.metric)
