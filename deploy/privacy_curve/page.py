"""OUT/curve.html, OUT/curve.csv and what is printed: what is lost as epsilon falls.

The page is complete in itself: it loads nothing and runs nothing. Points that failed or were not
run yet are named on it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from rich.console import Console

from common import metrics
from common.label_sums import MEDIAN
from common.printable import printable
from common.runtime.durable import write_atomically
from deploy.in_turn import standing
from deploy.privacy_curve.findings import (
    Place,
    Row,
    best_of,
    places,
    rows_of,
    targets_of,
    write_rows,
)
from deploy.privacy_curve.points import Design, Point, Points
from server.report import charts
from server.report.charts import Band
from server.report.figures import Figure
from server.report.tables import METRIC_NAMES, digits_of, sentence, shown
from server.report.terminal import table_in_text

_WIDTH: Final = 140
_COLUMNS: Final = (
    "study", "epsilon asked", "spent", "noise", "repeats", "mean (lowest to highest)",
    "first, interval over people", "beyond no noise",
)  # fmt: skip
_DRAWN: Final = ("study", "epsilon", "value", "lowest", "highest", "repeats")
UNIT: Final = (
    "Epsilon is that of the site where it is largest, of one run's rounds alone, by the Renyi "
    "accountant; inf is clipping without noise, or a study that is not private. All held-out sites "
    "together; beyond no noise: the mean less that of the same study at inf. Settings that were "
    "chosen by looking at participants are not counted."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a design stands: what was measured, what failed and why, what was not run yet."""

    design: Design
    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    finished: int
    failed: Mapping[str, str]
    waiting: tuple[str, ...]


def outcome(points: Points, every: Sequence[Point], failed: Mapping[str, str]) -> Outcome:
    """Read what is finished; a point whose files are damaged has failed, and ends nothing."""
    targets = targets_of(points.design)

    def read(point: Point) -> list[Row] | None:
        run = points.finished(point)
        return None if run is None else list(rows_of(point, run, points.noise(point), targets))

    stands = standing(every, failed, read, lambda _: "nobody judged; its run says why")
    return Outcome(
        design=points.design, targets=tuple(targets), rows=stands.rows, finished=stands.finished,
        failed=stands.failed, waiting=stands.waiting,
    )  # fmt: skip


def write_page(out: Path, found: Outcome) -> Path:
    """Write curve.csv and the page."""
    write_rows(out / "curve.csv", found.rows)
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    content = {
        "studies": list(found.design.studies),
        "unit": UNIT,
        "columns": _COLUMNS,
        "state": _state(found),
        "targets": [_target(found, number) for number in range(len(found.targets))],
    }
    page = environment.get_template("curve.html.j2").render(content)
    write_atomically(out / "curve.html", page.encode())
    return out / "curve.html"


def _template(name: str) -> str:
    """Our page, or what it takes from the run's report: its style and how a figure is set."""
    room = "deploy.privacy_curve" if name == "curve.html.j2" else "server.report"
    return (files(room) / name).read_text(encoding="utf-8")


def format_outcome(found: Outcome) -> str:
    """The same as plain text."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, markup=False, highlight=False, color_system=None)
    told: list[str] = []
    for number in range(len(found.targets)):
        part = _target(found, number)
        console.print(table_in_text(part["title"], _COLUMNS, part["lines"]))
        told += part["told"]
    text = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*text, *map(printable, told), UNIT, *map(printable, _state(found))])


def _target(found: Outcome, number: int) -> dict[str, Any]:
    name = found.targets[number]
    target = next(iter(found.design.studies.values())).targets[name]
    metric = metrics.primary(target)
    of = places(found.rows, name)
    rivals = places(found.rows, name, MEDIAN)
    digits = digits_of(metric, *(one.cell.value for one in of))
    unit = f" in {target.unit}" if target.unit and metric == "mae" else ""
    label = METRIC_NAMES[metric] + unit
    better = "lower" if metric == "mae" else "higher"
    return {
        "title": f"{name}: {label} ({better} is better)",
        "lines": [_line(one, of, digits) for one in of],
        "told": _told(name, metric, of, rivals, digits),
        "figure": _figure(f"curve-{number}", name, label, of, rivals, metric) if of else None,
    }


def _line(one: Place, every: Sequence[Place], digits: int) -> list[str]:
    noiseless = next((o for o in every if o.study == one.study and math.isinf(o.epsilon)), None)
    beyond = "" if noiseless is None or noiseless is one else shown(
        (one.cell.value or 0) - (noiseless.cell.value or 0), digits, signed=True
    )  # fmt: skip
    return [
        one.study, f"{one.epsilon:g}", f"{one.spent:.3g}" if one.spent else "",
        f"{one.noise:.3g}" if one.noise else "", str(one.repeats),
        sentence(one.cell, digits) if one.repeats > 1 else shown(one.cell.value or 0, digits),
        sentence(one.people, digits), beyond,
    ]  # fmt: skip


def _told(
    name: str, metric: str, of: Sequence[Place], rivals: Sequence[Place], digits: int
) -> list[str]:
    """The best of all studies at each epsilon, and what knows nothing."""
    best = best_of(of, metric)
    told = [
        f"{name}, best at epsilon {epsilon:g}: {one.study}, {shown(one.cell.value or 0, digits)}"
        for epsilon, one in sorted(best.items(), reverse=True)
    ]
    return [
        *told,
        *(
            f"{name}, the training median: {sentence(one.people, digits)}"
            for one in rivals[:1]
        ),
    ]  # fmt: skip


def _figure(
    figure: str, name: str, label: str, of: Sequence[Place], rivals: Sequence[Place], metric: str
) -> Figure:
    studies = dict.fromkeys(one.study for one in of)
    bands = [
        Band(name=study, points=tuple(sorted(
            (one.epsilon, one.cell) for one in of if one.study == study
        )))
        for study in studies
    ]  # fmt: skip
    median = rivals[0].cell.value if rivals else None
    rule = 0.5 if metric == "auc" else median
    title = f"{name}: {label} by epsilon"
    drawn = charts.learning(figure, title, bands, x="epsilon", y=label, rule=rule)
    rows = tuple(
        (one.study, one.epsilon, one.cell.value, one.cell.low, one.cell.high, one.repeats)
        for one in of
    )
    key = [(study, charts.PENS[place]) for place, study in enumerate(studies)]
    against = "chance" if metric == "auc" else "the training median"
    note = "Bars go from the lowest to the highest repeat" + (
        f"; the dashed rule is {against}." if rule is not None else "."
    )
    return Figure(name=figure, title=title, drawn=drawn, columns=_DRAWN, rows=rows, key=key,
                  note=note, beside=True)  # fmt: skip


def _state(found: Outcome) -> list[str]:
    counts = f"{found.finished} points are finished, {len(found.failed)} failed"
    failed = [f"failed: {name}: {why}" for name, why in found.failed.items()]
    waiting = [f"not run yet: {', '.join(found.waiting)}"] if found.waiting else []
    return [f"{counts}, {len(found.waiting)} were not run yet.", *failed, *waiting]
