"""How far ways of fine-tuning lie apart: one minus another, on the same test participants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from common import metrics
from common.protocol.orders import Measurement
from common.sections import FineTuning
from common.study import Study
from server.report.tables import Family, in_order, tested
from server.report.task_tables import TaskCell, measured, method_of
from server.report.verdicts import adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTable:
    """How far the methods of one task lie apart: one minus another, on the same participants.

    lines: for each pair, what it is called and its cell by site.
    """

    phase: str
    task: str
    metric: str
    unit: str
    sites: tuple[str, ...]
    lines: tuple[tuple[str, dict[str, TaskCell]], ...]


def paired_tables(study: Study, rows: Iterable[Measurement]) -> list[PairedTable]:
    """Differences of a task's methods, for each task that has any."""
    every = list(rows)
    family = adjusted(every)
    apart = [row for row in every if row.task and "_minus_" in row.metric]
    asked = [(phase, task) for phase in ("finetune", "judge") for task in study.finetuning]
    found = [
        _paired_table(study, task, phase,
                      [row for row in apart if (row.phase, row.task) == (phase, task.name)],
                      family)
        for phase, task in asked
    ]  # fmt: skip
    return [table for table in found if table.lines]


def _paired_table(
    study: Study, task: FineTuning, phase: str, rows: Sequence[Measurement], family: Family
) -> PairedTable:
    target = study.targets[task.target]
    metric = metrics.primary(target)
    lines: dict[str, dict[str, TaskCell]] = {}
    ways = {way.replace("/", "-"): way.replace("/", " ") for way in task.methods}
    order = {k: place for place, k in enumerate(task.participants)}
    for row in sorted(rows, key=lambda row: order.get(row.k, len(order))):
        rival = row.metric.partition("_minus_")[2]
        own = method_of(row.init, row.method, 0)
        title = f"{own} minus {ways.get(rival, rival)}" + (f", k = {row.k}" if row.k else "")
        told = replace(measured(row), cell=tested(row, family))
        lines.setdefault(title, {})[row.site] = told
    found = {site for cells in lines.values() for site in cells}
    return PairedTable(
        phase=phase,
        task=task.name,
        metric=metric,
        unit=target.unit if metric == "mae" else "",
        sites=tuple(site for site in in_order(study.sites.train, found) if site in found),
        lines=tuple(lines.items()),
    )
