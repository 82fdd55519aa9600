"""Fine-tuning tasks: a value for each site and way of learning, of one model or of many draws."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from common import metrics
from common.label_sums import MEDIAN
from common.protocol.orders import Measurement
from common.sections import FineTuning
from common.study import Study
from server.report.tables import Cell, cell_of, in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCell:
    """One method at one site: its measurement, or that of the mean of its repeats.

    Where a site told no mean, the median of the repeats and their range.
    """

    site: str
    cell: Cell
    n_participants: int
    n_scans: int
    repeats: int = 1
    made: Literal["", "mean", "median"] = ""  # of several, with an interval or with their range


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTable:
    """One fine-tuning task: a value, or nothing, for each site and method.

    phase: "finetune", or "judge" where tuned models were measured anew.
    """

    phase: str
    task: str
    target: str
    unit: str
    metric: str
    methods: tuple[str, ...]
    sites: tuple[str, ...]
    cells: dict[tuple[str, str], TaskCell]

    @property
    def repeated(self) -> bool:
        """Whether any value is a median, beside the range of what it stands for."""
        return any(cell.made == "median" for cell in self.cells.values())

    @property
    def averaged(self) -> bool:
        """Whether any value is a mean over draws."""
        return any(cell.made == "mean" for cell in self.cells.values())


def task_tables(study: Study, rows: Iterable[Measurement]) -> list[TaskTable]:
    """A table for each fine-tuning task of the study; what was not reported has no cell."""
    kept = list(rows)
    asked = [("finetune", task) for task in study.finetuning if task.repeats]
    asked += [("judge", task) for task in study.finetuning if "judge" in task.then]
    return [
        _task_table(study, task, phase, [row for row in kept if row.phase == phase])
        for phase, task in asked
    ]


def _task_table(
    study: Study, task: FineTuning, phase: str, rows: Sequence[Measurement]
) -> TaskTable:
    target = study.targets[task.target]
    metric = metrics.primary(target)
    found: dict[tuple[str, str], list[Measurement]] = {}
    told = (metric, metric + metrics.OVER_DRAWS)
    for row in rows:
        if row.task == task.name and row.target == task.target and row.metric in told:
            found.setdefault((row.site, method_of(*way_of(row), row.k)), []).append(row)
    known = {method for _, method in found}
    beside = MEDIAN.replace("-", " ")
    named = [
        method_of(*way.rpartition("/")[::2], k)
        for k in task.participants or (0,)
        for way in (*task.methods, beside)
        if way != beside or method_of("", beside, k) in known
    ]
    return TaskTable(
        phase=phase,
        task=task.name,
        target=task.target,
        unit=target.unit if metric == "mae" else "",
        metric=metric,
        methods=tuple(dict.fromkeys([*named, *sorted(known)])),
        sites=in_order(study.sites.train, {site for site, _ in found}),
        cells={place: task_cell(same) for place, same in found.items()},
    )


def way_of(row: Measurement) -> tuple[str, str]:
    """Where a model began and how it was learnt; the rival that is told beside has no beginning."""
    return ("", MEDIAN.replace("-", " ")) if row.model == MEDIAN else (row.init, row.method)


def method_of(init: str, method: str, k: int) -> str:
    """`pretrained full`, `linear`, `scratch full, k = 5`."""
    return " ".join(word for word in (init, method) if word) + (f", k = {k}" if k else "")


def task_cell(rows: Sequence[Measurement]) -> TaskCell:
    """The mean over draws, or one measurement, as it is.

    Of several without their mean, the median, and the lowest and the highest.
    """
    single = [row for row in rows if not row.metric.endswith(metrics.OVER_DRAWS)]
    means = [row for row in rows if row.metric.endswith(metrics.OVER_DRAWS)]
    if means or len(rows) == 1:
        return measured((means or rows)[0], repeats=len(single), made="mean" if means else "")
    values = [row.value for row in rows]
    known = sorted(value for value in values if value is not None)
    cell = Cell(value=None, undefined=all(cell_of(row).undefined for row in rows))
    if len(known) == len(values):
        cell = Cell(value=statistics.median(known), low=known[0], high=known[-1])
    return TaskCell(
        site=rows[0].site,
        cell=cell,
        n_participants=min(row.n_participants for row in rows),
        n_scans=min(row.n_scans for row in rows),
        repeats=len(rows),
        made="median",
    )


def measured(row: Measurement, repeats: int = 1, made: Literal["", "mean"] = "") -> TaskCell:
    """One measurement as a cell; `repeats` and `made` say what it stands for."""
    return TaskCell(
        site=row.site,
        cell=cell_of(row),
        n_participants=row.n_participants,
        n_scans=row.n_scans,
        repeats=repeats,
        made=made,
    )
