"""Where a model was trained, or a head tuned, against where it is judged: a matrix for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from common import metrics
from common.comparisons import HEAD
from common.label_sums import MEDIAN
from common.protocol.orders import Measurement
from common.study import Study
from server.report import charts
from server.report.comparisons import Comparison, Line
from server.report.figures import Figure
from server.report.tables import (
    FEDERATED,
    METRIC_NAMES,
    cell_of,
    digits_of,
    of_metric,
    sentence,
    shown,
)
from server.report.task_tables import method_of
from server.results import TOGETHER

COLUMNS: Final = (
    "trained_at", "judged_at", "metric", "value", "ci_low", "ci_high", "n_participants",
)  # fmt: skip
_MOST: Final = 30  # rows or columns that can still be read
_MOST_WITH_INTERVALS: Final = 8  # columns
_ALONE: Final = "single-"

Way = tuple[str, str, str, int]  # task, start, method, how many were learnt from
Lines = Mapping[tuple[str, str], Line]  # by model and judging site


def matrices(compared: Sequence[Comparison]) -> list[Figure]:
    """For each target that two sites and more judged, and that single sites' models predict."""
    found = []
    at_sites = [one for one in compared if not one.site.startswith(TOGETHER)]
    ordered = sorted(at_sites, key=lambda one: one.target)
    for number, (_, group) in enumerate(groupby(ordered, key=lambda one: one.target)):
        places = list(group)
        lines: dict[tuple[str, str], Line] = {
            (line.model, one.site): line
            for one in places
            for line in one.lines
            if line.cell.value is not None and _is_of_training(line.model)
        }
        models = list(dict.fromkeys(model for model, _ in lines))
        if 2 <= len(places) <= _MOST and 2 < len(models) <= _MOST:
            found.append(_figure(f"matrix-{number}", places, models, lines))
    return found


def matrices_of_heads(study: Study, rows: Iterable[Measurement]) -> list[Figure]:
    """For each task, way and number of people: heads that sites sent, and judged for each other.

    What a site's head gives at home is the first draw of its own fine-tuning.
    """
    found: dict[Way, dict[tuple[str, str], Measurement]] = {}
    crossed = set()
    for row in rows:
        way = (row.task, row.init, row.method, row.k)
        if row.target not in study.targets or row.repeat:
            continue
        if row.metric != metrics.primary(study.targets[row.target]):
            continue
        if row.phase == "cross":
            crossed.add(way)
            found.setdefault(way, {})[row.model.removeprefix(HEAD), row.site] = row
        elif row.phase == "finetune" and row.site != TOGETHER and row.model != MEDIAN:
            found.setdefault(way, {})[row.site, row.site] = row
    return [
        _of_heads(f"heads-{n}", study, way, found[way]) for n, way in enumerate(sorted(crossed))
    ]


def _of_heads(
    name: str, study: Study, way: Way, told: Mapping[tuple[str, str], Measurement]
) -> Figure:
    task, init, method, k = way
    first = next(iter(told.values()))
    sent = sorted({own for own, site in told if own != site})
    sites = [one for one in study.sites.train if any(one == site for _, site in told)]
    known = [row.value for (own, _), row in told.items() if own in sent and row.value is not None]
    digits = digits_of(first.metric, *known)
    best, worst = (min, max) if first.metric == "mae" else (max, min)
    span = best(known) - worst(known) if known else 0.0

    def cell(own: str, site: str) -> tuple[float, str] | None:
        if (own, site) not in told:
            return None
        value = told[own, site].value
        if value is None:
            return 0.0, "undefined" if cell_of(told[own, site]).undefined else "withheld"
        full = len(sites) <= _MOST_WITH_INTERVALS
        words = sentence(cell_of(told[own, site]), digits) if full else shown(value, digits)
        return (value - worst(known)) / span if span else 0.5, words

    unit = study.targets[first.target].unit if first.metric == "mae" else ""
    what = METRIC_NAMES[first.metric] + (f" in {unit}" if unit else "")
    title = f"{task} by {method_of(init, method, k)}: {what} by where the head was tuned and judged"
    drawn = charts.matrix(
        name, title, sent, sites, [[cell(own, site) for site in sites] for own in sent],
        y="tuned", x="judged",
    )  # fmt: skip
    return Figure(
        name=name, title=title, drawn=drawn, columns=("tuned_at", *COLUMNS[1:]),
        rows=tuple(
            (own, site, row.metric, row.value, row.ci_low, row.ci_high, row.n_participants)
            for (own, site), row in sorted(told.items()) if own in sent
        ),
        note="On each site's test participants; on the diagonal stands what a head gives at home. "
        "Sites differ in their people: compare within a column.",
    )  # fmt: skip


def _is_of_training(model: str) -> bool:
    own_head = model.endswith("+head")
    return model in (FEDERATED, "pooled") or (model.startswith(_ALONE) and not own_head)


def _figure(name: str, places: Sequence[Comparison], models: Sequence[str], lines: Lines) -> Figure:
    first = places[0]
    sites = [one.site for one in places]
    values = [line.cell.value for line in lines.values()]
    digits = digits_of(first.metric, *values)
    known = [value for value in values if value is not None]
    best, worst = (min, max) if first.metric == "mae" else (max, min)
    span = best(known) - worst(known)

    def cell(model: str, site: str) -> tuple[float, str] | None:
        value = lines[model, site].cell.value if (model, site) in lines else None
        if value is None:
            return None
        return (value - worst(known)) / span if span else 0.5, shown(value, digits)

    title = f"{first.target}: {of_metric(first)} by where it was trained and judged"
    drawn = charts.matrix(
        name, title, [_trained(model) for model in models], sites,
        [[cell(model, site) for site in sites] for model in models],
        y="trained", x="judged",
    )  # fmt: skip
    rows = tuple(
        (_trained(model), site, first.metric, line.cell.value, line.cell.low, line.cell.high,
         line.participants)
        for (model, site), line in lines.items()
    )  # fmt: skip
    better = "lower" if first.metric == "mae" else "higher"
    return Figure(
        name=name, title=title, drawn=drawn, columns=COLUMNS, rows=rows,
        note=f"The stronger the colour, the better; {better} numbers are. Sites differ in their "
        "people: compare within a column.",
    )  # fmt: skip


def _trained(model: str) -> str:
    known = {FEDERATED: "all together", "pooled": "pooled data"}
    return known.get(model, model.removeprefix(_ALONE))
