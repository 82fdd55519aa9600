"""How far so many people get one: a way of learning by how many were learnt from, with intervals.

Rows of fine-tuning and of protocols that say `k` are the same thing here: a value, learnt from k.
"""

from __future__ import annotations

from collections.abc import Iterable

from common import metrics
from common.protocol.orders import Measurement
from common.study import Study
from server.report import charts
from server.report.charts import PENS, Band
from server.report.figures import Figure, Value
from server.report.tables import METRIC_NAMES
from server.report.task_tables import TaskCell, method_of, task_cell, way_of
from server.results import TOGETHER

COLUMNS = (
    "site", "way", "learnt_from", "metric", "value", "ci_low", "ci_high", "n_participants",
    "repeats", "stands_for",
)  # fmt: skip
_PHASES = ("finetune", "protocol")
_MOST_SITES = 6  # that are drawn where no row is of all sites

Curve = dict[tuple[str, int], list[Measurement]]  # by way, and how many were learnt from


def learning_curves(
    study: Study, rows: Iterable[Measurement], percent: str
) -> dict[str, list[Figure]]:
    """Figures by task or protocol: of all sites together, or of each where there are few."""
    found: dict[tuple[str, str], dict[str, Curve]] = {}
    for row in rows:
        if row.phase not in _PHASES or not learnt_from(row) or row.target not in study.targets:
            continue
        primary = metrics.primary(study.targets[row.target])
        if row.metric in (primary, primary + metrics.OVER_DRAWS):
            curve = found.setdefault((row.task, row.target), {}).setdefault(row.site, {})
            curve.setdefault((method_of(*way_of(row), 0), learnt_from(row)), []).append(row)
    drawn: dict[str, list[Figure]] = {}
    for number, ((task, target), by_site) in enumerate(found.items()):
        for site in _sites(by_site):
            if len({k for _, k in by_site[site]}) > 1:
                name = f"learning-{number}-{len(drawn.get(task, []))}"
                figure = _figure(name, task, study, target, site, by_site[site], percent)
                drawn.setdefault(task, []).append(figure)
    return drawn


def learnt_from(row: Measurement) -> int:
    """How many people, or images, a row's model was learnt from; 0 for all that there are."""
    return row.k


def _sites(by_site: Iterable[str]) -> list[str]:
    known = sorted(by_site)
    return [TOGETHER] if TOGETHER in known else known[:_MOST_SITES]


def _figure(
    name: str, task: str, study: Study, target: str, site: str, curve: Curve, percent: str
) -> Figure:
    metric = metrics.primary(study.targets[target])
    unit = study.targets[target].unit if metric == "mae" else ""
    label = METRIC_NAMES[metric] + (f" in {unit}" if unit else "")
    place = "all sites together" if site == TOGETHER else site
    cells = {at: task_cell(rows) for at, rows in curve.items()}
    ways = list(dict.fromkeys(way for way, _ in cells))
    bands = [
        Band(name=way, points=tuple(sorted((k, cell.cell) for (own, k), cell in cells.items()
                                           if own == way)))
        for way in ways
    ]  # fmt: skip
    title = f"{task} at {place}: {label} by how many were learnt from"
    chance = 0.5 if metric == "auc" else None
    drawn = charts.learning(name, title, bands, x="learnt from", y=label, rule=chance)
    medians = any(cell.made == "median" for cell in cells.values())
    bars = "lowest and highest repeat" if medians else f"{percent} intervals over test people"
    return Figure(
        name=name,
        title=title,
        drawn=drawn,
        columns=COLUMNS,
        rows=tuple(_row(site, way, k, metric, cell) for (way, k), cell in sorted(cells.items())),
        key=[(way, PENS[place % len(PENS)]) for place, way in enumerate(ways)],
        note=f"Bars: {bars}." + (" The dashed line is chance." if chance else ""),
    )


def _row(site: str, way: str, k: int, metric: str, told: TaskCell) -> tuple[Value, ...]:
    cell = told.cell
    return (site, way, k, metric, cell.value, cell.low, cell.high, told.n_participants,
            told.repeats, told.made or "measured")  # fmt: skip
