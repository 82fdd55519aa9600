"""`results.csv`: one tidy table, a measurement a row, in an order that depends on nothing but content."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from common.durable import write_atomically
from common.orders import Measurement
from common.wire import read_spooled
from server.run import Run

COLUMNS: Final = tuple(Measurement.model_fields)


def measurements(run: Run) -> list[Measurement]:
    """Every measurement that sites reported in fine-tuning and evaluation."""
    files = [
        *sorted((run.folder / "finetuning").glob("*/*/*.safetensors")),
        *sorted((run.folder / "evaluation").glob("*/*.safetensors")),
    ]
    rows = [row for file in files for row in read_spooled(file).measurements]
    return sorted(rows, key=_place)


def write_results(run: Run, rows: Iterable[Measurement] | None = None) -> Path:
    """Write the table of a run; floats in full, so that a reader loses nothing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in measurements(run) if rows is None else rows:
        table.writerow(["" if value is None else value for value in row.model_dump().values()])
    path = run.folder / "results.csv"
    write_atomically(path, text.getvalue().encode())
    return path


def _place(row: Measurement) -> tuple[str, ...]:
    return (row.phase, row.task, row.target, row.site, row.model, row.init, row.metric)
