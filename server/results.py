"""`results.csv`: one tidy table, a measurement a row, in an order that only content decides."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Final

from common import metrics
from common.comparisons import SINGLE_SITE
from common.printable import csv_cell
from common.protocol.orders import Measurement
from common.protocol.wire import read_spooled
from common.runtime.durable import write_atomically
from server.overlap import kept
from server.run import Run
from server.run_files import read_sealed

TOGETHER: Final = "all"  # in the column `site`: all sites that measured it, as one
GROUPS: Final = "groups"  # folder of those who judged later, a folder each group
EVALUATION: Final = "evaluation.json"  # in each: which group it is
COLUMNS: Final = tuple(Measurement.model_fields)


def measurements(run: Run) -> list[Measurement]:
    """Every measurement that sites reported in fine-tuning, of its maps, and in evaluation."""
    files = [
        *sorted((run.folder / "finetuning").glob("*/*/*.safetensors")),
        *sorted((run.folder / "protocols").glob("*/*/*.safetensors")),
        *sorted((run.folder / "judge").glob("*/*/*.safetensors")),
        *sorted((run.folder / "cross").glob("*/*/*.safetensors")),
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
    its interval is of the people of these sites, from theirs. From five held-out sites on, the mean
    over sites stands beside it, `METRIC_over_sites`, with Student's interval of sites like them.
    """
    found, copied = [], kept(run.folder).copies
    confidence = run.study.evaluation.confidence
    for folder in sorted((run.folder / "evaluation").glob("*")):
        found += [
            row.model_copy(update={"site": all_of(group_of(run.folder))})
            for row in put_together(_reported(folder, copied), confidence=confidence)
        ]
    for phase in ("finetuning", "protocols", "judge"):
        for folder in sorted((run.folder / phase).glob("*/*")):
            reported = map(_of_all_draws, _reported(folder))
            found += put_together(reported, confidence=confidence, by_people=True)
    return found


def put_together(
    by_site: Iterable[Sequence[Measurement]], *, confidence: float = 0.95, by_people: bool = False
) -> list[Measurement]:
    """What several sites measured of one model, as one row for each target and metric."""
    by_metric: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in (row for rows in by_site for row in rows):
        # each site begins from a model of its own, and all by one way
        model = SINGLE_SITE if row.init == SINGLE_SITE else row.model
        by_metric.setdefault((row.target, model, row.metric), []).append(row)
    found = []
    for (_, model, _), rows in by_metric.items():
        together = _together(rows, confidence, by_people=by_people)
        found += [row.model_copy(update={"model": model}) for row in together]
        found += [] if by_people else _over_sites(rows, confidence)
    return found


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


def _together(
    rows: Sequence[Measurement], confidence: float, *, by_people: bool
) -> list[Measurement]:
    metric, known = rows[0].metric, [row for row in rows if row.value is not None]
    scans, people = ([getattr(row, n) for row in known] for n in ("n_scans", "n_participants"))
    weights = people if by_people else scans
    values = [float(row.value or 0.0) for row in known]
    value = metrics.together(metric, values, weights)
    if value is None or len(known) < 2 or not _is_of_all(rows[0]):
        return []
    ends = [(row.ci_low, row.ci_high) for row in known
            if row.ci_low is not None and row.ci_high is not None]  # fmt: skip
    low = high = p = None
    if len(ends) == len(known):
        low, high = metrics.interval_together(metric, values, ends, weights)
        if "_minus_" in metric and _enough(known, sum(people)):
            p = _p(value, low if value > 0 else high, confidence)
    told = {
        "site": TOGETHER, "value": value, "ci_low": low, "ci_high": high, "p": p,
        "n_participants": sum(people), "n_scans": sum(scans),
    }  # fmt: skip
    return [rows[0].model_copy(update=told)]


def _enough(known: Sequence[Measurement], people: int) -> bool:
    """Whether people are as many as a verdict needs; of a class only a site's own p tells it."""
    of_errors = known[0].metric.startswith("mae")
    return people >= metrics.VERDICT_PEOPLE and (
        of_errors or any(row.p is not None for row in known)
    )


def _p(value: float, nearest: float, confidence: float) -> float:
    """Normal, by the interval's end on the side of zero; so below 5 % where 95 % leave out zero."""
    error = abs(value - nearest) / NormalDist().inv_cdf((1 + confidence) / 2)
    return 2 * NormalDist().cdf(-abs(value) / error) if error else float(value == 0)


def _over_sites(rows: Sequence[Measurement], confidence: float) -> list[Measurement]:
    """The mean over sites, each counting once, and Student's interval: a site is the unit."""
    known = [row for row in rows if row.value is not None]
    if len(known) < metrics.FEWEST_SITES or not _is_of_all(rows[0]):
        return []
    values = [float(row.value or 0.0) for row in known]
    value, error = mean(values), stdev(values) / len(values) ** 0.5
    half = students(len(values) - 1, confidence) * error
    told = {
        "site": TOGETHER, "metric": rows[0].metric + metrics.OVER_SITES, "p": None,
        "value": value, "ci_low": value - half, "ci_high": value + half,
        "n_participants": sum(row.n_participants for row in known),
        "n_scans": sum(row.n_scans for row in known),
    }  # fmt: skip
    return [rows[0].model_copy(update=told)]


def students(degrees: int, confidence: float) -> float:
    """How many standard errors hold `confidence` by Student's distribution, of whole degrees.

    By halving, from the finite series of Abramowitz and Stegun 26.7.3 and 26.7.4: the coordinator's
    server loads no scipy.

    >>> round(students(4, 0.95), 3)
    2.776
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(degrees, middle) < confidence else (low, middle)
    return high


def _within(degrees: int, errors: float) -> float:
    angle = math.atan(errors / degrees**0.5)
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    inside = math.sin(angle) * total
    return 2 / math.pi * (angle + inside) if odd else inside


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
