"""`results.csv`: one tidy table, a measurement a row, in an order that only content decides."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
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
    """Every measurement that sites reported in fine-tuning, of its maps, and in evaluation."""
    files = [
        *sorted((run.folder / "finetuning").glob("*/*/*.safetensors")),
        *sorted((run.folder / "judge").glob("*/*/*.safetensors")),
        *sorted((run.folder / "explain").glob("*/*/*.safetensors")),
        *sorted((run.folder / "evaluation").glob("*/*.safetensors")),
    ]
    rows = [row for file in files for row in read_spooled(file).measurements]
    return sorted([*rows, *together(run)], key=_place)


def together(run: Run) -> list[Measurement]:
    """Each model over all held-out sites at once: the mean of what they measured, by scans.

    Over those that have the metric, which its n tells; its interval is normal, from the widths of
    theirs.
    """
    found = []
    for folder in sorted((run.folder / "evaluation").glob("*")):
        files = sorted(folder.glob("*.safetensors"))
        found += put_together(read_spooled(file).measurements for file in files)
    return found


def put_together(by_site: Iterable[Sequence[Measurement]]) -> list[Measurement]:
    """What several sites measured of one model, as one row for each target and metric."""
    by_metric: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in (row for rows in by_site for row in rows):
        by_metric.setdefault((row.target, row.model, row.metric), []).append(row)
    return [one for rows in by_metric.values() for one in _together(rows)]


def _together(rows: Sequence[Measurement]) -> list[Measurement]:
    known = [row for row in rows if row.value is not None]
    scans = [row.n_scans for row in known]
    value = metrics.together(rows[0].metric, [float(row.value or 0.0) for row in known], scans)
    if value is None or len(known) < 2 or not _is_of_all(rows[0]):
        return []
    bounds: tuple[float | None, float | None] = (None, None)
    widths = [row.ci_high - row.ci_low for row in known if row.ci_high is not None
              and row.ci_low is not None]  # fmt: skip
    if len(widths) == len(known):
        bounds = metrics.interval_together(value, widths, scans)
    told = {
        "site": TOGETHER,
        "value": value,
        "ci_low": bounds[0],
        "ci_high": bounds[1],
        "n_participants": sum(row.n_participants for row in known),
        "n_scans": sum(scans),
    }
    return [rows[0].model_copy(update=told)]


def _is_of_all(row: Measurement) -> bool:
    """Whether a model is one and the same at all sites; heads of a site's own are not."""
    return not row.model.startswith("site-") and not row.model.endswith("+head")


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
