"""How far ways of fine-tuning lie apart: one minus another, on the same test participants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from common import metrics
from common.label_sums import MEDIAN
from common.protocol.orders import Measurement
from common.sections import FineTuning
from common.study import Study
from server.report.tables import Family, in_order, tested
from server.report.task_tables import TaskCell, measured, method_of
from server.report.verdicts import LEVEL, adjusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One way of learning minus another, by site; `k` people were learnt from, 0 being all."""

    own: str
    rival: str
    k: int
    cells: dict[str, TaskCell]

    @property
    def title(self) -> str:
        """`scratch full minus pretrained full, k = 6`."""
        return f"{self.own} minus {self.rival}" + (f", k = {self.k}" if self.k else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTable:
    """How far the methods of one task lie apart: one minus another, on the same participants."""

    phase: str
    task: str
    metric: str
    unit: str
    sites: tuple[str, ...]
    lines: tuple[Pair, ...]

    def winner(self, pair: Pair, site: str) -> str:
        """Which of the two is better at a site; nothing where it is undecided, or not told."""
        cell = pair.cells[site].cell if site in pair.cells else None
        if cell is None or not cell.value or cell.adjusted is None or cell.adjusted >= LEVEL:
            return ""
        return pair.own if (cell.value > 0) == (self.metric != "mae") else pair.rival


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
    pairs: dict[tuple[str, str, int], Pair] = {}
    ways = {way.replace("/", "-"): way.replace("/", " ") for way in task.methods}
    ways[MEDIAN] = MEDIAN.replace("-", " ")
    order = {k: place for place, k in enumerate(task.participants)}
    for row in sorted(rows, key=lambda row: order.get(row.k, len(order))):
        rival = row.metric.partition("_minus_")[2]
        own = method_of(row.init, row.method, 0)
        key = (own, ways.get(rival, rival), row.k)
        pair = pairs.setdefault(key, Pair(own=key[0], rival=key[1], k=row.k, cells={}))
        pair.cells[row.site] = replace(measured(row), cell=tested(row, family))
    found = {site for pair in pairs.values() for site in pair.cells}
    return PairedTable(
        phase=phase,
        task=task.name,
        metric=metric,
        unit=target.unit if metric == "mae" else "",
        sites=tuple(site for site in in_order(study.sites.train, found) if site in found),
        lines=tuple(pairs.values()),
    )
