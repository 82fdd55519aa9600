"""OUT/protocol.html, OUT/cells.csv and the table that is printed: a protocol's cells, so far.

The page is complete in itself: it loads nothing and runs nothing. Cells that failed, or were not
run yet, are named on it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from rich.console import Console

from common import metrics
from common.printable import printable
from common.runtime.durable import write_atomically
from deploy.in_turn import standing
from deploy.protocols.findings import (
    MEASURES,
    PRETRAINING,
    RIVAL,
    RIVALS,
    Contrast,
    Row,
    Spread,
    contrasts,
    digits_of,
    rows_of,
    sentences,
    spread,
    write_rows,
)
from deploy.protocols.protocol import SCRATCH, Cell, Protocol
from deploy.protocols.studies import TASKS, Cells
from server.report import charts
from server.report.charts import PENS, Series
from server.report.tables import METRIC_NAMES
from server.report.terminal import table_in_text

_WIDTH: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a protocol stands: what was measured, what failed and why, what was not run yet."""

    protocol: Protocol
    rows: tuple[Row, ...]
    finished: int
    failed: Mapping[str, str]
    waiting: tuple[str, ...]


def outcome(cells: Cells, every: Sequence[Cell], failed: Mapping[str, str]) -> Outcome:
    """Read what is finished; a cell whose files are damaged has failed, and ends nothing."""

    def read(cell: Cell) -> list[Row] | None:
        run = cells.finished(cell)
        return None if run is None else list(rows_of(cell, run))

    stands = standing(every, failed, read)
    return Outcome(
        protocol=cells.protocol, rows=stands.rows, finished=stands.finished,
        failed=stands.failed, waiting=stands.waiting,
    )  # fmt: skip


def write_page(out: Path, found: Outcome) -> Path:
    """Write cells.csv and the page."""
    write_rows(out / "cells.csv", found.rows)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (files("deploy.protocols") / "protocol.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(_content(found))
    write_atomically(out / "protocol.html", page.encode())
    return out / "protocol.html"


def format_protocol(found: Outcome) -> str:
    """The same tables as plain text, and the sentences."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, markup=False, highlight=False, color_system=None)
    for task in _content(found)["tasks"]:
        for part in task["parts"]:
            title = f"{task['name']}, {part['name']}: {task['metric']}, median (range)"
            lines = [line for line in part["lines"] if any(cell.strip("—") for cell in line[2:])]
            console.print(table_in_text(title, part["columns"], lines))
        title = f"{task['name']}: rivals at the unseen hospital"
        console.print(table_in_text(title, task["rivals"]["columns"], task["rivals"]["lines"]))
    text = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*text, *sentences(found.rows), *map(printable, _state(found))])


def _content(found: Outcome) -> dict[str, Any]:
    """Everything the template shows."""
    protocol, against = found.protocol, contrasts(found.rows)
    return {
        "protocol": protocol,
        "sentences": sentences(found.rows),
        "state": _state(found),
        "measures": MEASURES,
        "tasks": [_task(found, name, against) for name in protocol.tasks],
        "pretraining": _pretraining(found),
        "failed": dict(found.failed),
        "waiting": found.waiting,
    }


def _state(found: Outcome) -> list[str]:
    counts = f"{found.finished} cells are finished, {len(found.failed)} failed"
    failed = [f"failed: {name}: {why}" for name, why in found.failed.items()]
    return [f"{counts}, {len(found.waiting)} were not run yet.", *failed]


def _task(found: Outcome, name: str, against: Sequence[Contrast]) -> dict[str, Any]:
    task = TASKS[name]  # type: ignore[index]
    metric = metrics.primary(task.of_target)
    unit = f" in {task.of_target.unit}" if task.of_target.unit else ""
    rows = [row for row in found.rows if row.task == name]
    label = f"{METRIC_NAMES[metric]}{unit}"
    return {
        "name": name,
        "title": task.title,
        "metric": f"{label} ({'lower' if metric == 'mae' else 'higher'} is better)",
        "parts": [
            {
                "name": measured,
                "what": what,
                **_table(found.protocol, rows, measured, metric, against),
                "figures": _figures(found.protocol, rows, measured, label),
            }
            for measured, what in MEASURES.items()
        ],
        "rivals": _rivals(found.protocol, rows, metric),
    }


def _table(
    protocol: Protocol,
    rows: Sequence[Row],
    measured: str,
    metric: str,
    against: Sequence[Contrast],
) -> dict[str, Any]:
    """A line a network and beginning; for each share the value, and the difference to scratch."""
    columns = ["network", "begins from"]
    for share in sorted(protocol.shares):
        columns += [f"{share:.0%}{_people(rows, share)}", "minus scratch (better)"]
    task = rows[0].task if rows else ""
    pairs = {(c.task, c.measured, c.architecture, c.initialisation, c.share): c for c in against}
    lines = []
    for architecture in protocol.architectures:
        for source in protocol.initialisations:
            cells = [architecture, source]
            for share in sorted(protocol.shares):
                values = spread(
                    rows, measured=measured, architecture=architecture, initialisation=source,
                    share=share,
                )  # fmt: skip
                pair = pairs.get((task, measured, architecture, source, share))
                cells += [_shown(values, metric), _difference(pair, source)]
            lines.append(cells)
    return {"columns": columns, "lines": lines}


def _people(rows: Sequence[Row], share: float) -> str:
    """How many people a share was, over seeds."""
    found = {row.people for row in rows if row.share == share}
    ends = dict.fromkeys((min(found), max(found))) if found else {}
    return f", {' to '.join(map(str, ends))} people" if found else ""


def _rivals(protocol: Protocol, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    shares = sorted(protocol.shares)
    lines = [
        [what, *(_shown(_once(rows, model, share), metric) for share in shares)]
        for model, what in RIVALS.items()
        if any(row.model == model for row in rows)
    ]
    return {"columns": ["without a network", *(f"{share:.0%}" for share in shares)], "lines": lines}


def _once(rows: Sequence[Row], model: str, share: float) -> Spread | None:
    """A rival's value once a seed: every cell of a seed tells the same."""
    of = {row.seed: row for row in rows if (row.measured, row.model, row.share)
          == (RIVAL, model, share)}  # fmt: skip
    return spread(of.values())


def _pretraining(found: Outcome) -> list[list[str]]:
    """What each pretraining cell's validation losses were in its first and its last round."""
    ends: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in found.rows:
        if row.measured == PRETRAINING:
            key = (row.architecture, row.initialisation, row.metric)
            ends.setdefault(key, {})[row.model] = row.value
    return [
        [*key, f"{values['first round']:.3f}", f"{values['last round']:.3f}"]
        for key, values in ends.items()
    ]


def _figures(
    protocol: Protocol, rows: Sequence[Row], measured: str, label: str
) -> list[dict[str, Any]]:
    """A figure a network: the median over seeds by share, a line a beginning."""
    found = []
    for architecture in protocol.architectures:
        series = []
        for pen, source in zip(PENS, protocol.initialisations, strict=False):
            values = [
                (100 * share, spread(rows, measured=measured, architecture=architecture,
                                     initialisation=source, share=share))
                for share in sorted(protocol.shares)
            ]  # fmt: skip
            points = tuple((share, value.median) for share, value in values if value)
            if points:
                series.append(Series(name=source, points=points, pen=pen))
        if series:
            name = f"{rows[0].task}-{measured}-{architecture}".replace(" ", "-")
            title = f"{label} by share of training people, {architecture}"
            drawn = charts.curves(name, title, series[::-1], x="% of training people", y=label)
            found.append({
                "architecture": architecture, "drawn": drawn, "key": charts.legend(series),
            })  # fmt: skip
    return found


def _shown(values: Spread | None, metric: str) -> str:
    return "" if values is None else values.in_words(digits_of(metric))


def _difference(pair: Contrast | None, source: str) -> str:
    if pair is None:
        return "" if source != SCRATCH else "\N{EM DASH}"
    middle = Spread(values=(pair.differences.median,))
    told = middle.in_words(digits_of(pair.metric), signed=True)
    return f"{told} ({pair.gains} of {len(pair.differences.values)})"
