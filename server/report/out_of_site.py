"""Out of site, target by target: a forest of all held-out sites, then a table for each.

Of very many sites and targets each gets one row of a table, with its paired differences; every
model at every site stands in results.csv.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from common.study import Study
from server.report import charts, findings
from server.report.charts import Whisker
from server.report.comparisons import Comparison, Line
from server.report.figures import Figure, Value
from server.report.tables import (
    FEDERATED,
    OTHER_NAMES,
    Cell,
    cell_of,
    digits_of,
    of_metric,
    p_shown,
    sentence,
)
from server.results import TOGETHER

_MOST_TABLES: Final = 60  # a site and target each; beyond it a site is a row
_MOST_ROWS: Final = 60  # of a forest that shows every model
_KEY: Final = (FEDERATED, "pooled-linear", "training-median")
_GROUPS: Final = {
    "as it comes": "The model as it comes",
    "scan unseen": "Without looking at a scan",
    "site's labels": "With this site's own labels, each participant predicted by a fit without her",
}
COLUMNS: Final = (
    "site", "model", "metric", "value", "ci_low", "ci_high", "n_participants", "n_scans",
    "minus_federated", "minus_low", "minus_high", "p", "p_adjusted",
)  # fmt: skip


def targets(study: Study, compared: Sequence[Comparison], percent: str) -> list[dict[str, Any]]:
    """What the page shows of each target, in the study's order."""
    at_once = len(compared) > _MOST_TABLES
    ordered = sorted(compared, key=lambda one: list(study.targets).index(one.target))
    found = []
    for number, (name, group) in enumerate(groupby(ordered, key=lambda one: one.target)):
        places = sorted(group, key=lambda one: one.site != TOGETHER)
        whole = [one for one in places if one.site.startswith(TOGETHER)] if at_once else places
        found.append({
            "name": name,
            "metric": of_metric(places[0]),
            "lower": places[0].metric == "mae",
            "figure": _forest(f"forest-{number}", places, percent),
            "places": [_place(one, study, percent) for one in whole],
            "by_site": _by_site(places) if len(places) > 2 or at_once else None,
            "at_once": at_once,
        })  # fmt: skip
    return found


def _place(one: Comparison, study: Study, percent: str) -> dict[str, Any]:
    groups = dict(_GROUPS)
    if findings.reestimates(study):
        groups["as it comes"] += ", its normalisation statistics estimated anew on the judged scans"
    return {
        "comparison": one,
        "metric": of_metric(one),
        "finding": findings.finding(one, percent) if one.lines else [],
        "digits": _digits(one),
        "groups": [
            (groups[name], list(lines))
            for name, lines in groupby(one.lines, key=lambda line: line.group)
        ],
        "others": _other_metrics(one),
    }


def _digits(one: Comparison) -> int:
    return digits_of(one.metric, *(line.cell.value for line in one.lines))


def _forest(name: str, places: Sequence[Comparison], percent: str) -> Figure | None:
    """Every model at every site where they are few; else the weightiest, or the federated alone."""
    first = places[0]
    if not any(line.cell.value is not None for one in places for line in one.lines):
        return None
    shown = list(_drawn(places))
    whiskers = list(_whiskers(shown, single=len(places) == 1))
    federated = first.federated
    title = f"{first.target}: {of_metric(first)}, with {percent} intervals"
    drawn = charts.forest(
        name, title, whiskers, x=of_metric(first),
        rule=federated.cell.value if federated else None,
    )  # fmt: skip
    rows = tuple(_row(one, line) for one, lines in shown for line in lines)
    return Figure(name=name, title=title, drawn=drawn, columns=COLUMNS, rows=rows, beside=True)


def _drawn(places: Sequence[Comparison]) -> Iterator[tuple[Comparison, list[Line]]]:
    every = [(one, [line for line in one.lines if line.cell.value is not None]) for one in places]
    if sum(len(lines) + 1 for _, lines in every) <= _MOST_ROWS:
        yield from every
        return
    key = _KEY if len(places) * (len(_KEY) + 1) <= 2 * _MOST_ROWS else (FEDERATED,)
    kept = [(one, [line for line in lines if line.model in key]) for one, lines in every]
    yield from sorted(kept, key=_by_value) if len(key) == 1 else kept


def _by_value(shown: tuple[Comparison, list[Line]]) -> tuple[bool, float]:
    """All sites first, then one below another by their value."""
    one, lines = shown
    value = lines[0].cell.value if lines else None
    return not one.site.startswith(TOGETHER), math.inf if value is None else value


def _whiskers(shown: Sequence[tuple[Comparison, list[Line]]], *, single: bool) -> Iterator[Whisker]:
    alone = all(len(lines) <= 1 for _, lines in shown)
    for one, lines in shown:
        if not alone and not single:
            yield Whisker(label=one.place)
        for line in lines:
            yield Whisker(
                label=one.place if alone else line.title,
                cell=line.cell,
                main=line.model == FEDERATED,
                over=one.site.startswith(TOGETHER) and not line.is_made_here,
                open=line.is_made_here,
            )


def _row(one: Comparison, line: Line) -> tuple[Value, ...]:
    cell, apart = line.cell, line.difference or Cell(value=None)
    return (
        one.site, line.model, one.metric, cell.value, cell.low, cell.high, line.participants,
        line.scans, apart.value, apart.low, apart.high, apart.p, apart.adjusted,
    )  # fmt: skip


def _by_site(places: Sequence[Comparison]) -> dict[str, Any]:
    """A row a site: the federated value, and how far the others lie from it."""
    titles = {
        line.model: line.title
        for one in places
        for line in one.rivals()
        if not line.model.startswith("single-")
    }
    digits = digits_of(places[0].metric, *(line.cell.value for one in places for line in one.lines))
    return {
        "rivals": list(titles.values()),
        "lines": [
            (
                one.place,
                sentence(one.federated.cell, digits) if one.federated else "\N{EM DASH}",
                one.federated.participants if one.federated else "",
                [_apart(one, model, digits) for model in titles],
                singles(one),
            )
            for one in places
        ],
    }


def _apart(one: Comparison, model: str, digits: int) -> str:
    line = next((line for line in one.lines if line.model == model), None)
    if line is None or line.difference is None:
        return "\N{EM DASH}"
    cell = line.difference
    p = "" if cell.adjusted is None else f", p {p_shown(cell.adjusted)}"
    return f"{sentence(cell, digits, signed=True)}{p}; {line.verdict}"


def singles(one: Comparison) -> str:
    """How often the federated model is better, or not, than those of one site alone."""
    told = [line.verdict for line in one.rivals() if line.model.startswith("single-")]
    order = ("federated better", "not distinguishable", "federated worse", "too few people")
    counted = [(word.removeprefix("federated "), told.count(word)) for word in order]  # type: ignore[arg-type]
    return ", ".join(f"{word}: {n}" for word, n in counted if n) or "\N{EM DASH}"


def _other_metrics(one: Comparison) -> dict[str, Any]:
    """The metrics that are not the primary one, a column each."""
    names = [name for name in OTHER_NAMES if any(r.metric == name for r in one.others)]
    by_model = {(row.model, row.metric): row for row in one.others}
    digits = {
        name: digits_of(name, *(row.value for row in one.others if row.metric == name))
        for name in names
    }
    lines = [line for line in one.lines if not line.is_made_here]
    return {
        "names": [OTHER_NAMES[name] for name in names],
        "lines": [
            (
                line.title,
                [
                    (cell_of(row) if (row := by_model.get((line.model, name))) else None)
                    for name in names
                ],
            )
            for line in lines
        ],
        "digits": [digits[name] for name in names],
    }
