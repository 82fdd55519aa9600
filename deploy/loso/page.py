"""OUT/loso.html, OUT/folds.csv, OUT/pairs.csv and what is printed: each site held out in turn.

The page is complete in itself: it loads nothing and runs nothing. Folds that failed or were not run
yet, and values that are not defined, are named on it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from rich.console import Console

from common.printable import printable
from common.runtime.durable import write_atomically
from common.sections import Target
from deploy.in_turn import standing
from deploy.loso.findings import (
    Mean,
    Pair,
    Row,
    contestants,
    mean,
    pairs,
    rows_of,
    write_pairs,
    write_rows,
)
from deploy.loso.folds import Design, Fold, Folds
from server.report.tables import (
    FEDERATED,
    METRIC_NAMES,
    UNDEFINED,
    WITHHELD,
    Cell,
    digits_of,
    sentence,
    shown,
)
from server.report.terminal import table_in_text

_WIDTH: Final = 140
UNIT: Final = (
    "A site counts once, in the last line each person. Intervals are Student's t over sites, at "
    "95 %; p is Wilcoxon's of signed ranks over sites, and behind it Holm's over all pairs of a "
    "target. Folds share most of what they train on, which makes intervals somewhat too narrow."
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

    def target(self, name: str) -> Target:
        """What is predicted."""
        return next(iter(self.design.studies.values())).targets[name]

    def rows_of(self, target: str) -> list[Row]:
        """Everything about one target."""
        return [row for row in self.rows if row.target == target]

    def pairs(self, target: str) -> list[Pair]:
        """Every two studies."""
        return pairs(self.rows, list(self.design.studies), target)


def outcome(
    folds: Folds, every: Sequence[Fold], failed: Mapping[str, str], targets: Sequence[str]
) -> Outcome:
    """Read what is finished; a fold whose files are damaged has failed, and ends nothing."""

    def read(fold: Fold) -> list[Row] | None:
        run = folds.finished(fold)
        return None if run is None else rows_of(fold, run, targets)

    stands = standing(
        every, failed, read, lambda fold: f"{fold.site} did not judge; its run says why"
    )
    return Outcome(
        design=folds.design, targets=tuple(targets), rows=stands.rows, finished=stands.finished,
        failed=stands.failed, waiting=stands.waiting,
    )  # fmt: skip


def write_page(out: Path, found: Outcome) -> Path:
    """Write folds.csv, pairs.csv and the page."""
    write_rows(out / "folds.csv", found.rows)
    write_pairs(out / "pairs.csv", (pair for name in found.targets for pair in found.pairs(name)))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (files("deploy.loso") / "loso.html.j2").read_text(encoding="utf-8")
    content = {
        "studies": list(found.design.studies),
        "unit": UNIT,
        "state": _state(found),
        "targets": [_target(found, name) for name in found.targets],
    }
    write_atomically(out / "loso.html", environment.from_string(source).render(content).encode())
    return out / "loso.html"


def format_outcome(found: Outcome) -> str:
    """The same as plain text."""
    stream = io.StringIO()
    console = Console(file=stream, width=_WIDTH, markup=False, highlight=False, color_system=None)
    told = []
    for name in found.targets:
        part = _target(found, name)
        console.print(table_in_text(part["title"], part["columns"], part["lines"]))
        title = f"{name}: differences over sites"
        console.print(table_in_text(title, part["compared"], part["pairs"]))
        told += part["undefined"]
    text = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*text, UNIT, *map(printable, [*told, *_state(found)])])


def _target(found: Outcome, name: str) -> dict[str, Any]:
    rows, target = found.rows_of(name), found.target(name)
    columns = contestants(rows, found.design.studies)
    metric = rows[0].metric if rows else ""
    digits = digits_of(metric, *(row.value for row in rows))
    unit = f" in {target.unit}" if target.unit else ""
    better = "lower" if metric == "mae" else "higher"
    label = f"{METRIC_NAMES.get(metric, metric)}{unit} ({better} is better)" if rows else "none yet"
    return {
        "title": f"{name}: {label}",
        "columns": ["held out", "people", *(_title(*one) for one in columns)],
        "lines": [*_sites(rows, columns, digits), *_means(columns, metric, digits)] if rows else [],
        "compared": ["pair", "sites", "mean difference", "ahead", "behind", "p", "Holm", "verdict"],
        "pairs": [_pair(pair, digits) for pair in found.pairs(name)],
        "undefined": _undefined(name, rows),
    }


def _title(study: str, model: str) -> str:
    return study if model == FEDERATED else f"{model} ({study})"


def _sites(
    rows: Sequence[Row], columns: Mapping[tuple[str, str], Sequence[Row]], digits: int
) -> list[list[str]]:
    lines = []
    for site in dict.fromkeys(row.site for row in rows):
        at = {one: next((row for row in of if row.site == site), None)
              for one, of in columns.items()}  # fmt: skip
        people = max(row.n_participants for row in at.values() if row is not None)
        lines.append([site, str(people), *(_value(row, digits) for row in at.values())])
    return lines


def _value(row: Row | None, digits: int) -> str:
    if row is None:
        return ""
    if row.value is None:
        return UNDEFINED if row.is_undefined else WITHHELD
    return shown(row.value, digits)


def _means(
    columns: Mapping[tuple[str, str], Sequence[Row]], metric: str, digits: int
) -> list[list[str]]:
    """The mean over sites, and that over people, of each contestant."""
    largest = math.inf if metric == "mae" else 1.0
    over_sites, over_people = [], []
    for of in columns.values():
        known = [row for row in of if row.value is not None]
        values = [row.value for row in known if row.value is not None]
        people = [row.n_participants for row in known]
        over_sites.append(_interval(mean(values, largest=largest), digits) if values else "")
        over_people.append(
            _interval(mean(values, people, largest=largest), digits) if values else ""
        )
    return [["mean over sites", "", *over_sites], ["mean over people", "", *over_people]]


def _interval(found: Mean, digits: int, *, signed: bool = False) -> str:
    cell = Cell(value=found.value, low=found.low, high=found.high)
    return sentence(cell, digits, signed=signed)


def _pair(pair: Pair, digits: int) -> list[str]:
    return [
        f"{pair.first} minus {pair.second}", str(pair.difference.sites),
        _interval(pair.difference, digits, signed=True), str(pair.ahead), str(pair.behind),
        f"{pair.p:.3f}", f"{pair.adjusted:.3f}", pair.verdict,
    ]  # fmt: skip


def _undefined(name: str, rows: Sequence[Row]) -> list[str]:
    """Sites without a value, by name: they are in no mean and no pair."""
    found = dict.fromkeys(
        (row.site, UNDEFINED if row.is_undefined else WITHHELD)
        for row in rows
        if row.value is None and row.model == FEDERATED
    )
    return [f"{name} at {site}: {why}; it is in no mean and no pair" for site, why in found]


def _state(found: Outcome) -> list[str]:
    counts = f"{found.finished} folds are finished, {len(found.failed)} failed"
    failed = [f"failed: {name}: {why}" for name, why in found.failed.items()]
    begun = [f"{one.study} begins from {one.earlier} of the same fold ({one.take})"
             for one in found.design.begins.values()]  # fmt: skip
    waiting = [f"not run yet: {', '.join(found.waiting)}"] if found.waiting else []
    return [f"{counts}, {len(found.waiting)} were not run yet.", *begun, *failed, *waiting]
