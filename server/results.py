"""`results.csv`: one tidy table, a measurement a row, in an order that only content decides."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from common import metrics
from common.printable import csv_cell
from common.protocol.orders import Measurement
from common.protocol.wire import read_spooled
from common.runtime.durable import write_atomically
from server.overlap import kept
from server.run import Run, read_sealed

TOGETHER: Final = "all"  # in the column `site`: all sites that measured it, as one
GROUPS: Final = "groups"  # folder of those who judged later, a folder each group
EVALUATION: Final = "evaluation.json"  # in each: which group it is
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
    for folder in sorted((run.folder / GROUPS).glob("*")):
        rows += measurements(replace(run, folder=folder))
    return sorted([*rows, *together(run)], key=_place)


def all_of(group: str) -> str:
    """What stands in the column `site` for all sites of a group; the study's own has no name.

    >>> all_of(""), all_of("later")
    ('all', 'all-later')
    """
    return f"{TOGETHER}-{group}" if group else TOGETHER


def group_of(folder: Path) -> str:
    """The group of held-out sites whose answers a folder holds; "" is the study's own."""
    path = folder / EVALUATION
    return str(read_sealed(path).get("group", "")) if path.exists() else ""


def together(run: Run) -> list[Measurement]:
    """Each model over all held-out sites at once: the mean of what they measured, by scans.

    A site that holds scans of an earlier one is left out, so that each counts once.

    Likewise each way of fine-tuning over the sites that tuned by it, by people: its mean over
    draws, and what is between it and another. Over those that have the metric, which its n tells;
    its interval is normal, from the widths of theirs, as of people of whom none is at two sites.
    """
    found, copied = [], kept(run.folder).copies
    for folder in sorted((run.folder / "evaluation").glob("*")):
        found += [
            row.model_copy(update={"site": all_of(group_of(run.folder))})
            for row in put_together(_reported(folder, copied))
        ]
    for phase in ("finetuning", "judge"):
        for folder in sorted((run.folder / phase).glob("*/*")):
            found += put_together(map(_of_all_draws, _reported(folder)), by_people=True)
    return found


def put_together(
    by_site: Iterable[Sequence[Measurement]], *, by_people: bool = False
) -> list[Measurement]:
    """What several sites measured of one model, as one row for each target and metric."""
    by_metric: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in (row for rows in by_site for row in rows):
        by_metric.setdefault((row.target, row.model, row.metric), []).append(row)
    return [one for rows in by_metric.values() for one in _together(rows, by_people=by_people)]


def _reported(folder: Path, without: Container[str] = ()) -> Iterator[tuple[Measurement, ...]]:
    """What each site said in answer to one order, but for some."""
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem not in without:
            yield read_spooled(file).measurements


def _of_all_draws(rows: Sequence[Measurement]) -> list[Measurement]:
    """Rows that speak of all draws at once; of a single draw, all its rows."""
    if not any(row.metric.endswith(metrics.OVER_DRAWS) for row in rows):
        return list(rows)
    return [row for row in rows if metrics.is_of_all_draws(row.metric)]


def _together(rows: Sequence[Measurement], *, by_people: bool) -> list[Measurement]:
    known = [row for row in rows if row.value is not None]
    scans = [row.n_scans for row in known]
    weights = [row.n_participants for row in known] if by_people else scans
    value = metrics.together(rows[0].metric, [float(row.value or 0.0) for row in known], weights)
    if value is None or len(known) < 2 or not _is_of_all(rows[0]):
        return []
    bounds: tuple[float | None, float | None] = (None, None)
    widths = [row.ci_high - row.ci_low for row in known if row.ci_high is not None
              and row.ci_low is not None]  # fmt: skip
    if len(widths) == len(known):
        bounds = metrics.interval_together(value, widths, weights)
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
