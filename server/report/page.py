"""RUN/report.html: one page about a run, complete in itself, for a colleague who has nothing else.

The page loads nothing, runs nothing and holds no address; the same run folder gives the same bytes.
Whatever comes from a file is escaped, and what is missing is said.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from common import metrics
from common.runtime.durable import write_atomically
from common.study import Study
from server.report import charts, findings, participation
from server.report.charts import PENS, Pen, Series
from server.report.faithfulness import faithfulness
from server.report.findings import Record
from server.report.protocols import html, protocol_tables
from server.report.tables import (
    METRIC_NAMES,
    OTHER_NAMES,
    SMALL,
    UNDEFINED,
    WITHHELD,
    Cell,
    Comparison,
    PairedTable,
    TaskCell,
    TaskTable,
    cell_of,
    comparisons,
    digits_of,
    of_metric,
    p_shown,
    paired_tables,
    read_results,
    shown,
    task_tables,
)
from server.report.terminal import format_tables
from server.results import TOGETHER
from server.run import Run, read_json

__all__ = ["Picture", "format_tables", "write_report"]

_FEDERATED: Final = Pen(colour=0, width=2.2)
_POOLED: Final = Pen(colour=1, dashes="6 2.5")
_SINGLE: Final = Pen(colour=2, dashes="1.5 2", width=1.2)
_GROUPS: Final = {
    "as it comes": "The model as it comes",
    "scan unseen": "Without looking at a scan",
    "site's labels": "With this site's own labels, each participant predicted by a fit without her",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Slices of a synthetic scan: (X, Y) float arrays of any range, x to the right, y upwards."""

    site: str
    caption: str
    slices: tuple[NDArray[np.floating[Any]], ...]


def write_report(run: Run, pictures: Sequence[Picture] = ()) -> Path:
    """Write the page; `pictures` must be of synthetic scans, and the page says that they are.

    Raises
    ------
    FolderError
        If results.csv or a record of the run cannot be read.
    StorageError
        If the page cannot be written.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell_html
    environment.filters["p"] = p_shown
    source = (files("server.report") / "report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(_content(run, pictures))
    path = run.folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _content(run: Run, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Everything the template shows, in the order in which it shows it."""
    study, rows = run.study, read_results(run)
    records, census = participation.records(run.federated), participation.census(run)
    compared, tasks = comparisons(study, rows), task_tables(study, rows)
    paired = paired_tables(study, rows)
    percent = f"{100 * study.evaluation.confidence:g}\N{NO-BREAK SPACE}%"
    return {
        "study": study,
        "percent": percent,
        "small": SMALL,
        "withheld": WITHHELD,
        "opening": findings.opening(run, records),
        "findings": _main_findings(study, compared, percent),
        "glance": [_glance(comparison) for comparison in _worth_a_glance(compared)],
        "missing": findings.missing(run, census, records, compared, tasks),
        "compared": [_compared(i, comparison, study) for i, comparison in enumerate(compared)],
        "tasks": [_task(table, paired) for table in tasks],
        "protocols": Markup(html(protocol_tables(study, rows))),  # noqa: S704  escaped where made
        "loss": _loss(study, records, "loss"),
        "validation_loss": _loss(study, records, "validation_loss"),
        "validation": _validation(run),
        "participation": participation.participation(study, records, census),
        "census": participation.holdings(study, census),
        "traffic": [participation.traffic(branch) for branch in run.branches()],
        "traffic_sites": participation.traffic_by_site(study, records),
        "settings": list(_flat(study.model_dump(mode="json"))),
        "provenance": _provenance(run),
        "checkpoints": _checkpoints(run),
        "caveats": findings.caveats(run, compared, tasks, records),
        "pictures": [_picture(picture) for picture in pictures],
        "maps": list(_maps(run)),
        "faithful": list(faithfulness(rows)),
    }


def _main_findings(study: Study, compared: Sequence[Comparison], percent: str) -> list[list[str]]:
    """One paragraph a held-out site, for the first target of pretraining that it reported."""
    found = []
    for site, group in groupby(compared, key=lambda comparison: comparison.site):
        if site == TOGETHER:
            continue
        mine = {comparison.target: comparison for comparison in group}
        main = next((name for name in study.pretraining_targets if name in mine), next(iter(mine)))
        if main:
            found.append(findings.finding(mine[main], percent))
    return found


def _worth_a_glance(compared: Sequence[Comparison]) -> list[Comparison]:
    """Targets that the model predicts; if it predicts none, those that heads on it predict."""
    return [one for one in compared if one.federated is not None] or list(compared)


def _glance(comparison: Comparison) -> dict[str, Any]:
    federated = comparison.federated or comparison.probe
    rivals = comparison.rivals()
    singles = [line.verdict for line in rivals if line.model.startswith("single-")]
    order = ("federated better", "not distinguishable", "federated worse", "too few people")
    counted = [(word.removeprefix("federated "), singles.count(word)) for word in order]  # type: ignore[arg-type]
    return {
        "comparison": comparison,
        "metric": of_metric(comparison),
        "line": federated,
        "digits": _digits(comparison),
        "pooled": next(
            (findings.direction(line, comparison) for line in rivals if line.model == "pooled"), ""
        ),
        "singles": ", ".join(f"{word}: {n}" for word, n in counted if n),
    }


def _compared(number: int, comparison: Comparison, study: Study) -> dict[str, Any]:
    axis = of_metric(comparison)
    groups = dict(_GROUPS)
    if findings.reestimates(study):
        groups["as it comes"] += ", its normalisation statistics estimated anew on the judged scans"
    return {
        "comparison": comparison,
        "metric": axis,
        "digits": _digits(comparison),
        "groups": [
            (groups[name], list(lines))
            for name, lines in groupby(comparison.lines, key=lambda line: line.group)
        ],
        "figure": charts.forest(f"forest-{number}", comparison, axis) if comparison.lines else "",
        "others": _other_metrics(comparison),
    }


def _digits(comparison: Comparison) -> int:
    return digits_of(comparison.metric, *(line.cell.value for line in comparison.lines))


def _other_metrics(comparison: Comparison) -> dict[str, Any]:
    """The metrics that are not the primary one, a column each."""
    names = [name for name in OTHER_NAMES if any(r.metric == name for r in comparison.others)]
    by_model = {(row.model, row.metric): row for row in comparison.others}
    digits = {
        name: digits_of(name, *(row.value for row in comparison.others if row.metric == name))
        for name in names
    }
    lines = [line for line in comparison.lines if not line.is_made_here]
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


def _task(table: TaskTable, paired: Sequence[PairedTable]) -> dict[str, Any]:
    def cell(site: str, method: str) -> tuple[Cell, TaskCell] | None:
        found = table.cells.get((site, method))
        return (found.cell, found) if found else None

    own = (table.phase, table.task)
    return {
        "table": table,
        "paired": next((one for one in paired if (one.phase, one.task) == own), None),
        "metric": of_metric(table),
        "digits": digits_of(table.metric, *(row.cell.value for row in table.cells.values())),
        "lines": [(site, [cell(site, method) for method in table.methods]) for site in table.sites],
    }


def _loss(study: Study, records: Sequence[Record], which: str) -> dict[str, Any] | None:
    """Mean loss of each term; x is the round in which it was measured."""
    found = {name for record in records for name in record.get(which, {})}
    names = [name for name in study.pretraining_targets if name in found]
    names += sorted(found - set(names))
    series = [
        Series(
            name=name,
            points=tuple((r["round"], r[which][name]) for r in records if name in r.get(which, {})),
            pen=PENS[i % len(PENS)],
        )
        for i, name in enumerate(names)
    ]
    if not series:
        return None
    marked = [record["round"] for record in records if record["degraded"]]
    word = "training loss" if which == "loss" else "validation loss"
    title = f"{word.capitalize()} by term"
    figure = charts.curves(which, title, series, x="round", y=word, marked=marked)
    return {"figure": figure, "key": charts.legend(series), "marked": bool(marked)}


def _validation(run: Run) -> dict[str, Any] | None:
    """The primary metric of each model by target; a round judges the arrays that it starts from."""
    branches = [(branch, participation.records(branch)) for branch in run.branches()]
    figures = []
    key: dict[str, Pen] = {}
    for number, (name, target) in enumerate(run.study.targets.items()):
        metric = metrics.primary(target)
        series = [
            Series(name=_family(branch.model), points=points, pen=_pen(branch.model))
            for branch, records in branches
            if (points := _points(records, name, metric))
        ]
        if not series:
            continue
        label = METRIC_NAMES[metric] + (f" in {target.unit}" if target.unit else "")
        title = f"Validation {label} of {name}"
        # rivals first, so that the federated line lies on top
        figure = charts.curves(
            f"validation-{number}", title, series[::-1], x="rounds completed", y=label
        )
        figures.append((name, figure))
        key.update(charts.legend(series))
    return {"figures": figures, "key": list(key.items())} if figures else None


def _points(records: Sequence[Record], target: str, metric: str) -> tuple[tuple[float, float], ...]:
    found = ((r["round"] - 1, r["validation"].get(target, {}).get(metric)) for r in records)
    return tuple((x, y) for x, y in found if y is not None)


def _family(model: str) -> str:
    return "models of one training site alone" if model.startswith("single-") else model


def _pen(model: str) -> Pen:
    return {"federated": _FEDERATED, "pooled": _POOLED}.get(model, _SINGLE)


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of the resolved study."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, inner in enumerate(value, start=1):
            yield from _flat(inner, f"{at}[{number}]")
    else:
        yield at, json.dumps(value, ensure_ascii=False)


def _provenance(run: Run) -> list[tuple[str, str]]:
    about = read_json(run.folder / "provenance.json")
    versions = sorted(about.get("versions", {}).items())
    return [
        ("study digest (SHA-256)", run.study.digest),
        ("run", run.id),
        *((f"version of {name}", str(version)) for name, version in versions),
    ]


def _checkpoints(run: Run) -> list[tuple[str, str]]:
    """SHA-256 of every finished model, as `sha256sum` prints it."""
    found = []
    for branch in run.branches():
        if branch.final.exists():
            with branch.final.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found.append((branch.final.relative_to(run.folder).as_posix(), digest))
    return found


def _maps(run: Run) -> Iterator[dict[str, Any]]:
    """Pictures of group maps, where `callosum maps` has drawn any: task by task, way by way."""
    drawn = sorted((run.folder / "maps").glob("*/*/*.png"))
    for (task, way), paths in groupby(drawn, key=lambda path: path.parts[-3:-1]):
        images = [(path.stem, _embedded(path.read_bytes())) for path in paths]
        yield {"task": task, "way": way, "images": images}


def _picture(picture: Picture) -> dict[str, Any]:
    """Grey values are stretched alike over a picture's slices."""
    known = np.concatenate([part[np.isfinite(part)] for part in picture.slices] or [np.zeros(0)])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    return {
        "site": picture.site,
        "caption": picture.caption,
        "images": [_png(part, low, high) for part in picture.slices],
    }


def _png(part: NDArray[np.floating[Any]], low: float, high: float) -> str:
    from PIL import Image

    scaled = (np.nan_to_num(part, nan=low) - low) / ((high - low) or 1.0)
    grey = (np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    stream = io.BytesIO()
    # rows of an image run downwards, y runs upwards
    Image.fromarray(np.ascontiguousarray(grey.T[::-1])).save(stream, "PNG")
    return _embedded(stream.getvalue())


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _cell_html(cell: Cell | None, digits: int, *, signed: bool = False) -> Markup:
    """A value with its interval; `<data>` holds the full number for whoever reads the source."""
    if cell is None:
        return Markup('<span class="none">\N{EM DASH}</span>')
    if cell.value is None:
        why = UNDEFINED if cell.undefined else WITHHELD
        return Markup('<span class="none">{}</span>').format(why)
    value = _data(cell.value, digits, signed=signed)
    if cell.low is None or cell.high is None:
        return value
    return Markup('{} <span class="interval">({} to {})</span>').format(
        value, _data(cell.low, digits), _data(cell.high, digits)
    )


def _data(value: float, digits: int, *, signed: bool = False) -> Markup:
    return Markup('<data value="{}">{}</data>').format(
        repr(value), escape(shown(value, digits, signed=signed))
    )
