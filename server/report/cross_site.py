"""Where a model was trained against where it is judged: a matrix for each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from server.report import charts
from server.report.comparisons import Comparison, Line
from server.report.figures import Figure
from server.report.tables import FEDERATED, digits_of, of_metric, shown
from server.results import TOGETHER

COLUMNS: Final = (
    "trained_at", "judged_at", "metric", "value", "ci_low", "ci_high", "n_participants",
)  # fmt: skip
_MOST: Final = 30  # rows or columns that can still be read
_ALONE: Final = "single-"

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
