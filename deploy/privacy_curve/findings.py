"""What privacy costs: a study's figures over all held-out sites, by epsilon, beside the rivals.

Repeats differ in their noise and in the weights that they begin from. How far they lie apart is
told by the lowest and the highest; how surely one of them is known, by its interval over people.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from common import metrics
from common.label_sums import MEDIAN
from common.protocol.orders import Measurement
from common.runtime.durable import write_atomically
from deploy.privacy_curve.points import Design, Point
from server.report.privacy import paid
from server.report.tables import FEDERATED, Cell, cell_of, read_results
from server.results import TOGETHER
from server.run import Run

MODELS: Final = (FEDERATED, MEDIAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model's primary metric at one point; a line of curve.csv.

    epsilon: as asked, infinite without noise. spent: the largest of any site. site: all held-out
    sites together, or the only one.
    """

    target: str
    study: str
    epsilon: float
    repeat: int
    noise: float
    spent: float
    model: str
    site: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_participants: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """All repeats of one study at one epsilon, in one target: their mean, lowest and highest."""

    study: str
    epsilon: float
    noise: float
    spent: float
    repeats: int
    cell: Cell
    people: Cell  # the first repeat, with its interval over people


def rows_of(point: Point, run: Run, noise: float, targets: Iterable[str]) -> Iterator[Row]:
    """What a point's judges measured, over all of them.

    Raises
    ------
    FolderError
        If the run's results are not what was written.
    """
    found = [row for row in read_results(run) if row.phase == "evaluate" and row.model in MODELS]
    every = {
        branch.model: branch.records() for branch in run.branches()
    }  # all cost the same people
    trained = run.study.sites.train
    spent = max((each.epsilon for each in paid(every) if each.site in trained), default=0.0)
    for target in targets:
        metric = metrics.primary(run.study.targets[target])
        for model in MODELS:
            of = [r for r in found if (r.target, r.model, r.metric) == (target, model, metric)]
            if of:
                yield _row(point, _over_all(of), noise, spent)


def _over_all(rows: Sequence[Measurement]) -> Measurement:
    return next((row for row in rows if row.site == TOGETHER), rows[0])


def _row(point: Point, row: Measurement, noise: float, spent: float) -> Row:
    cell = cell_of(row)
    return Row(
        target=row.target, study=point.study, epsilon=point.epsilon, repeat=point.repeat,
        noise=noise, spent=spent, model=row.model, site=row.site, metric=row.metric,
        value=cell.value, ci_low=cell.low, ci_high=cell.high, n_participants=row.n_participants,
    )  # fmt: skip


def places(rows: Iterable[Row], target: str, model: str = FEDERATED) -> list[Place]:
    """Every study at every epsilon, in the order of the rows; what has no value is left out."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row.target == target and row.model == model and row.value is not None:
            found.setdefault((row.study, row.epsilon), []).append(row)
    return [_place(of) for of in found.values()]


def _place(of: Sequence[Row]) -> Place:
    values = [row.value for row in of if row.value is not None]
    first = of[0]
    return Place(
        study=first.study, epsilon=first.epsilon, noise=first.noise, repeats=len(of),
        spent=max(row.spent for row in of),
        cell=Cell(value=sum(values) / len(values), low=min(values), high=max(values)),
        people=Cell(value=first.value, low=first.ci_low, high=first.ci_high),
    )  # fmt: skip


def best_of(found: Sequence[Place], metric: str) -> dict[float, Place]:
    """By epsilon the study that does best there."""
    sign = 1 if metric == "mae" else -1
    best: dict[float, Place] = {}
    for one in found:
        held = best.get(one.epsilon)
        if held is None or sign * (one.cell.value or 0) < sign * (held.cell.value or 0):
            best[one.epsilon] = one
    return best


def targets_of(design: Design) -> list[str]:
    """What every study learns, in the first one's order."""
    first, *others = (study.pretraining_targets for study in design.studies.values())
    return [name for name in first if all(name in other for other in others)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write curve.csv: a measurement a line, floats in full, empty where there is no value."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    for row in rows:
        cells = asdict(row).items()
        table.writerow({key: "" if value is None else value for key, value in cells})
    write_atomically(path, text.getvalue().encode())
