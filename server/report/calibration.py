"""Whether what models say may be taken at its word: slopes of numbers, errors of probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from common.protocol.orders import Measurement
from common.study import Study
from server.report import charts
from server.report.charts import Whisker
from server.report.comparisons import Comparison
from server.report.figures import Figure
from server.report.tables import FEDERATED, METRIC_NAMES, cell_of
from server.results import TOGETHER

COLUMNS: Final = (
    "site", "model", "metric", "value", "ci_low", "ci_high", "n_participants", "n_scans",
)  # fmt: skip
_MODELS: Final = (FEDERATED, "pooled", "pooled-linear")
_MOST_ROWS: Final = 60
_IDEAL: Final = {"slope": 1.0, "brier": None, "ece": None}
NOTES: Final = {
    "slope": "at 1, the dashed line, a person who is predicted ten higher is ten higher on "
    "average; below, predictions are spread too far; above, too little",
    "brier": "the mean squared error of the probability; lower is better, and what says the share "
    "of the ill of everybody gets that share times the rest, a quarter where half are ill",
    "ece": "how far probabilities lie from the shares that come true, over ten bins; lower is "
    "better; without an interval, for in small samples it is too high by itself",
}


def calibrations(study: Study, compared: Sequence[Comparison]) -> list[Figure]:
    """A forest of sites for each target and measure of calibration that sites told."""
    found = []
    ordered = sorted(compared, key=lambda one: list(study.targets).index(one.target))
    for number, (target, group) in enumerate(groupby(ordered, key=lambda one: one.target)):
        places = list(group)
        for metric, rule in _IDEAL.items():
            rows = list(_rows(places, metric))
            if rows:
                name = f"calibration-{number}-{metric}"
                found.append(_figure(name, target, metric, rows, rule))
    return found


def notes(found: Sequence[Figure]) -> list[tuple[str, str]]:
    """What the measures among some figures mean."""
    told = {str(row[2]) for one in found for row in one.rows}
    return [(METRIC_NAMES[metric], note) for metric, note in NOTES.items() if metric in told]


def _rows(places: Sequence[Comparison], metric: str) -> Iterator[Measurement]:
    """What the federated model and its nearest rivals told; of very many sites, it alone."""
    found = [
        row
        for one in places
        for row in one.others
        if row.metric == metric and row.model in _MODELS and row.value is not None
    ]
    many = len(found) + len(places) > _MOST_ROWS
    yield from (row for row in found if not many or row.model == FEDERATED)


def _figure(
    name: str, target: str, metric: str, rows: Sequence[Measurement], rule: float | None
) -> Figure:
    several = len({row.site for row in rows}) > 1
    one_model = len({row.model for row in rows}) == 1
    whiskers = []
    for site, group in groupby(rows, key=lambda row: row.site):
        place = "all held-out sites" if site == TOGETHER else site
        whiskers += [Whisker(label=place)] if several and not one_model else []
        whiskers += [
            Whisker(
                label=place if one_model else row.model.replace("-", " "), cell=cell_of(row),
                main=row.model == FEDERATED, over=site.startswith(TOGETHER),
            )
            for row in group
        ]  # fmt: skip
    where = "" if several else f" at {rows[0].site}"
    title = f"{target}{where}: {METRIC_NAMES[metric]}"
    drawn = charts.forest(name, title, whiskers, x=METRIC_NAMES[metric], rule=rule)
    numbers = tuple(
        (row.site, row.model, row.metric, row.value, row.ci_low, row.ci_high,
         row.n_participants, row.n_scans)
        for row in rows
    )  # fmt: skip
    return Figure(name=name, title=title, drawn=drawn, columns=COLUMNS, rows=numbers)
