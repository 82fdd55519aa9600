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
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from common.comparisons import ENSEMBLE
from common.privacy.coverage import departures
from common.runtime.durable import write_atomically
from common.study import Study
from server.report import findings, out_of_site, participation, tuning
from server.report.answer import answer
from server.report.audit import read_audit, tables
from server.report.calibration import calibrations, notes
from server.report.comparisons import Comparison, comparisons
from server.report.cross_site import matrices, matrices_of_heads
from server.report.exposures import exposures
from server.report.faithfulness import faithfulness
from server.report.gains import judged_together
from server.report.learning_curves import learning_curves
from server.report.loss_curves import losses, validation
from server.report.paired_tables import paired_tables
from server.report.privacy import Paid, last_of, paid, write_paid
from server.report.protocols import html, protocol_tables
from server.report.recommendation import RULE, choices, in_short, size
from server.report.tables import (
    SMALL,
    UNDEFINED,
    WITHHELD,
    Cell,
    digits_of,
    of_metric,
    p_shown,
    read_results,
    shown,
)
from server.report.task_tables import task_tables
from server.report.terminal import format_tables
from server.run import Run
from server.run_files import read_json

__all__ = ["Picture", "format_tables", "write_report"]

RIVAL_TITLES: Final = {
    ENSEMBLE: "mean of several seeds",
    "pooled": "pooled network",
    "pooled-linear": "pooled linear model",
    "training-median": "training median",
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
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = _cell_html
    environment.filters["p"] = p_shown
    page = environment.get_template("report.html.j2").render(_content(run, pictures))
    path = run.folder / "report.html"
    write_atomically(path, page.encode())
    write_paid(run.folder, _paid(run))
    return path


def _paid(run: Run) -> list[Paid]:
    """What rounds of private training cost, from the records of all of its models."""
    if not run.study.privacy.has_cost:
        return []
    return list(paid({branch.model: participation.records(branch) for branch in run.branches()}))


def _template(name: str) -> str:
    return (files("server.report") / name).read_text(encoding="utf-8")


def _content(run: Run, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Everything the template shows, in the order in which it shows it."""
    study, rows = run.study, read_results(run)
    branches = {branch.model: participation.records(branch) for branch in run.branches()}
    records, census = branches[run.federated.model], participation.census(run)
    compared, tasks = comparisons(study, rows), task_tables(study, rows)
    paired = paired_tables(study, rows)
    percent = f"{100 * study.evaluation.confidence:g}\N{NO-BREAK SPACE}%"
    chosen = choices(study, compared, paired)
    calibrated = calibrations(study, compared)
    curves = learning_curves(study, rows, percent)
    return {
        "study": study,
        "percent": percent,
        "small": SMALL,
        "withheld": WITHHELD,
        "answer": answer(study, compared, paired, percent),
        "choices": chosen,
        "choice": in_short(chosen),
        "rule": RULE,
        "size": size(study, census),
        "opening": findings.opening(run, records),
        "glance": _glance(study, compared),
        "beside": [RIVAL_TITLES[model] for model in _beside(study)],
        "missing": findings.missing(run, census, records, compared, tasks),
        "compared": out_of_site.targets(study, compared, percent),
        "matrices": [*matrices(compared), *matrices_of_heads(study, rows)],
        "calibrations": calibrated,
        "calibration_notes": notes(calibrated),
        "tasks": tuning.tasks(tasks, paired, curves),
        "more_curves": [
            one
            for task in sorted(curves.keys() - {table.task for table in tasks})
            for one in curves[task]
        ],
        "protocols": Markup(html(protocol_tables(study, rows))),  # noqa: S704  escaped where made
        "loss": losses(study, records, "loss"),
        "validation_loss": losses(study, records, "validation_loss"),
        "validation": validation(study, branches),
        "participation": participation.participation(study, records, census),
        "census": participation.holdings(study, census),
        "exposures": exposures(run.folder, branches, (*study.sites.train, *study.sites.heldout)),
        "privacy": last_of(_paid(run)),
        "departures": departures(study) if study.privacy.has_cost or study.secure_sums.on else (),
        "audit": _audit(run),
        "traffic": [participation.traffic(*one) for one in branches.items()],
        "traffic_sites": participation.traffic_by_site(study, records),
        "settings": list(_flat(study.model_dump(mode="json"))),
        "provenance": _provenance(run),
        "checkpoints": _checkpoints(run),
        "caveats": findings.caveats(run, compared, tasks, records),
        "pictures": [_picture(picture) for picture in pictures],
        "maps": list(_maps(run)),
        "faithful": list(faithfulness(rows)),
    }


def _audit(run: Run) -> dict[str, Any] | None:
    """What attacks on the run have found, if somebody made any."""
    found = read_audit(run.folder)
    if found is None:
        return None
    return {"found": found, "tables": tables(found)}


def _beside(study: Study) -> list[str]:
    """Rivals in the table at a glance: those that the study compares."""
    return [model for model in RIVAL_TITLES if model in study.models]


def _glance(study: Study, compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A row a target: the federated model where most people judge it, and its rivals beside."""
    first = judged_together(study, compared)
    shown_at = {one.site for one in first} or {next((one.site for one in compared), "")}
    worth = [one for one in compared if one.federated is not None] or list(compared)
    return [
        {
            "comparison": one,
            "metric": of_metric(one),
            "line": one.federated or one.probe,
            "digits": digits_of(one.metric, *(line.cell.value for line in one.lines)),
            "rivals": [
                next((line for line in one.lines if line.model == model), None)
                for model in _beside(study)
            ],
            "singles": out_of_site.singles(one),
        }
        for one in worth
        if one.site in shown_at
    ]


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
