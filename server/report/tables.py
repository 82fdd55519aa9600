"""The headline tables of a run as values, for page and terminal: out of site, and fine-tuning.

Every number comes from results.csv as it stands there. Two rows are made here and say so: the mean
of the single-site models' values, and the single-site model that turned out best.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import ValidationError

from common import metrics
from common.errors import FolderError
from common.printable import csv_text
from common.protocol.orders import Measurement
from common.sections import FineTuning, Target
from common.study import Study
from server.report.verdicts import Verdict, adjusted, verdict
from server.results import TOGETHER
from server.run import Run

Group = Literal["as it comes", "scan unseen", "site's labels"]

FEDERATED: Final = "federated"
MEAN_OF_SINGLES: Final = "mean of single-site models"
BEST_SINGLE: Final = "best single site, in hindsight"
WITHHELD: Final = "withheld (n < minimum)"
UNDEFINED: Final = "undefined (one class)"
SMALL: Final = 50  # participants; below it one person moves a metric visibly
METRIC_NAMES: Final = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r": "r",
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "slope": "slope of truth on prediction",
    "bias_slope": "slope of error on truth",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "calibration error",
}
OTHER_NAMES: Final = METRIC_NAMES | {
    name + metrics.OVER_SITES: f"{title}, mean over sites" for name, title in METRIC_NAMES.items()
}
_SINGLE: Final = "single-"

Family = Mapping[Measurement, float]  # adjusted p-values of all differences of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value with its interval; no value where it was withheld or is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: bool = False  # there are people, but of one class alone
    p: float | None = None  # of a difference: as it is, and adjusted for all of the run
    adjusted: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model at one held-out site; `difference` is this model minus the federated one."""

    model: str
    title: str
    group: Group
    cell: Cell
    participants: int
    scans: int
    difference: Cell | None = None
    verdict: Verdict = ""

    @property
    def is_made_here(self) -> bool:
        """Whether the row was derived from others and is no measurement of its own."""
        return self.model in (MEAN_OF_SINGLES, BEST_SINGLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Every model for one target at one held-out site, by the target's primary metric."""

    site: str
    target: str
    unit: str
    metric: str
    lines: tuple[Line, ...]
    others: tuple[Measurement, ...]

    @property
    def place(self) -> str:
        """The site in words; the scans of all held-out sites may stand for one."""
        return "all held-out sites together" if self.site == TOGETHER else self.site

    @property
    def federated(self) -> Line | None:
        """The federated model's own line, where the site measured it."""
        return next((line for line in self.lines if line.model == FEDERATED), None)

    @property
    def probe(self) -> Line | None:
        """A head of the site's own on the federated network's features."""
        return next((line for line in self.lines if line.model == f"{FEDERATED}+head"), None)

    def rivals(self) -> list[Line]:
        """Lines that have a paired interval against the federated model."""
        return [line for line in self.lines if line.verdict and not line.is_made_here]


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


def read_results(run: Run) -> list[Measurement]:
    """Rows of results.csv, or none where the run has not got that far.

    Raises
    ------
    FolderError
        If a line is not a measurement; the message names it.
    """
    path = run.folder / "results.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{path} cannot be read: {error}") from None
    rows = []
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for cells in reader:
        # an empty cell is a number that was withheld, or a name that does not apply
        given = {
            key: csv_text(cell) if isinstance(cell, str) else cell
            for key, cell in cells.items()
            if cell != ""
        }
        try:
            rows.append(Measurement.model_validate({"value": None, **given}))
        except (ValidationError, TypeError) as error:
            raise FolderError(
                f"{path}, line {reader.line_num} is not a measurement: {error}; "
                "the run's own command writes the table anew"
            ) from None
    return rows


def comparisons(study: Study, rows: Iterable[Measurement]) -> list[Comparison]:
    """A comparison for each held-out site and target, in the study's order of targets."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    every = list(rows)
    family = adjusted(every)
    for row in every:
        if row.phase == "evaluate" and row.target in study.targets:
            found.setdefault((row.site, row.target), []).append(row)
    sites = _in_order(study.sites.heldout, {site for site, _ in found})
    return [
        _comparison(site, name, study.targets[name], found[site, name], family)
        for site in sites
        for name in study.targets
        if (site, name) in found
    ]


def task_tables(study: Study, rows: Iterable[Measurement]) -> list[TaskTable]:
    """A table for each fine-tuning task of the study; what was not reported has no cell."""
    kept = list(rows)
    asked = [("finetune", task) for task in study.finetuning if task.repeats]
    asked += [("judge", task) for task in study.finetuning if "judge" in task.then]
    return [
        _task_table(study, task, phase, [row for row in kept if row.phase == phase])
        for phase, task in asked
    ]


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


def decimals(*values: float | None) -> int:
    """Digits behind the point so that the largest of `values` shows three figures.

    >>> decimals(12.348), decimals(0.8437), decimals(148.2), decimals(None)
    (1, 3, 0, 0)
    """
    largest = max((abs(value) for value in values if value), default=0.0)
    return min(max(2 - math.floor(math.log10(largest)), 0), 5) if largest else 0


def shown(value: float, digits: int, *, signed: bool = False) -> str:
    r"""A number for readers, with a true minus sign.

    >>> shown(-0.5, 1), shown(0.5, 1, signed=True), shown(-0.001, 1)
    ('\u22120.5', '+0.5', '0.0')
    """
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        return f"{0:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def p_shown(p: float) -> str:
    """Three digits, and never 0.

    >>> p_shown(0.0312), p_shown(0.00002)
    ('0.031', 'below 0.001')
    """
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"


def digits_of(metric: str, *values: float | None) -> int:
    """Shares and correlations show three digits; a metric with a unit shows three figures."""
    with_unit = metric.removesuffix(metrics.OVER_SITES) in ("mae", "rmse")
    return decimals(*values) if with_unit else 3


def sentence(cell: Cell, digits: int, *, signed: bool = False) -> str:
    """`12.3 (10.6 to 14.2)`, or why there is no number."""
    if cell.value is None:
        return UNDEFINED if cell.undefined else WITHHELD
    value = shown(cell.value, digits, signed=signed)
    if cell.low is None or cell.high is None:
        return value
    low, high = (shown(end, digits) for end in (cell.low, cell.high))
    return f"{value} ({low} to {high})"


def cell_of(row: Measurement) -> Cell:
    """A measurement's value and interval."""
    undefined = row.value is None and row.n_participants > 0
    return Cell(value=row.value, low=row.ci_low, high=row.ci_high, undefined=undefined)


def of_metric(comparison: Comparison | TaskTable | PairedTable) -> str:
    """`MAE in years`, or the metric alone where it has no unit."""
    name = METRIC_NAMES.get(comparison.metric, comparison.metric)
    return f"{name} in {comparison.unit}" if comparison.unit else name


def _comparison(
    site: str, name: str, target: Target, rows: Sequence[Measurement], family: Family
) -> Comparison:
    metric = metrics.primary(target)
    against = {row.model: row for row in rows if row.metric == f"{metric}_minus_{FEDERATED}"}
    lines = {
        row.model: _line(row, site, target, against.get(row.model), family)
        for row in rows
        if row.metric == metric
    }
    singles = [lines[model] for model in sorted(lines) if _is_single(model)]
    made = [_mean(singles), _best(target, singles)] if len(singles) > 1 else []
    return Comparison(
        site=site,
        target=name,
        unit=target.unit if metric == "mae" else "",
        metric=metric,
        lines=tuple(sorted([*lines.values(), *made], key=_place)),
        others=tuple(row for row in rows if row.metric in OTHER_NAMES and row.metric != metric),
    )


def _line(
    row: Measurement, site: str, target: Target, paired: Measurement | None, family: Family
) -> Line:
    difference = _tested(paired, family) if paired else None
    return Line(
        model=row.model,
        title=_title(row.model, site),
        group=_group(row.model),
        cell=cell_of(row),
        participants=row.n_participants,
        scans=row.n_scans,
        difference=difference,
        verdict=verdict(target, difference.value, difference.adjusted) if difference else "",
    )


def _tested(row: Measurement, family: Family) -> Cell:
    """A difference with its p-value, as it is and as adjusted."""
    return replace(cell_of(row), p=row.p, adjusted=family.get(row))


def _mean(singles: Sequence[Line]) -> Line:
    """Mean of the models' values: a summary over models, all on the same participants."""
    apart = _average([line.difference.value if line.difference else None for line in singles])
    return Line(
        model=MEAN_OF_SINGLES,
        title=f"mean of {len(singles)} single sites",
        group="as it comes",
        cell=Cell(value=_average([line.cell.value for line in singles])),
        participants=min(line.participants for line in singles),
        scans=min(line.scans for line in singles),
        difference=None if apart is None else Cell(value=apart),
    )


def _average(values: Sequence[float | None]) -> float | None:
    """None if any is missing: the mean over those that happen to be there is another number."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _best(target: Target, singles: Sequence[Line]) -> Line:
    best = singles[0]
    for line in singles[1:]:
        if line.cell.value is not None and (
            best.cell.value is None or metrics.better(target, line.cell.value, best.cell.value)
        ):
            best = line
    if best.cell.value is None:
        return replace(best, model=BEST_SINGLE, title="best in hindsight")
    where = best.model.removeprefix(_SINGLE)
    return replace(best, model=BEST_SINGLE, title=f"best in hindsight: {where}")


def _is_single(model: str) -> bool:
    return model.startswith(_SINGLE) and not model.endswith("+head")


def _title(model: str, site: str) -> str:
    known = {
        "pooled-linear": "pooled linear model",
        "constant": "the study's constant",
        "training-mean": "mean of the training sites",
        "training-median": "median of the training sites",
        "site-mean": f"{site}'s own mean",
        "site-linear": f"{site}'s own linear model",
    }
    if model in known:
        return known[model]
    if model.endswith("+head"):
        return f"{_title(model.removesuffix('+head'), site)} + own head"
    return f"{model.removeprefix(_SINGLE)} alone" if model.startswith(_SINGLE) else model


def _group(model: str) -> Group:
    if model in ("constant", "training-mean", "training-median"):
        return "scan unseen"
    if model in ("site-mean", "site-linear") or model.endswith("+head"):
        return "site's labels"
    return "as it comes"


def _place(line: Line) -> tuple[int, int, str]:
    groups: tuple[Group, ...] = ("as it comes", "scan unseen", "site's labels")
    bare = line.model.removesuffix("+head")
    first = ("site-mean", "site-linear", FEDERATED, "pooled", "pooled-linear", MEAN_OF_SINGLES)
    rank = first.index(bare) if bare in first else len(first) + (line.model == BEST_SINGLE)
    return (groups.index(line.group), rank, line.model)


def _task_table(
    study: Study, task: FineTuning, phase: str, rows: Sequence[Measurement]
) -> TaskTable:
    target = study.targets[task.target]
    metric = metrics.primary(target)
    found: dict[tuple[str, str], list[Measurement]] = {}
    told = (metric, metric + metrics.OVER_DRAWS)
    for row in rows:
        if row.task == task.name and row.target == task.target and row.metric in told:
            found.setdefault((row.site, _method(row)), []).append(row)
    named = [
        _method_of(*way.rpartition("/")[::2], k)
        for k in task.participants or (0,)
        for way in task.methods
    ]
    return TaskTable(
        phase=phase,
        task=task.name,
        target=task.target,
        unit=target.unit if metric == "mae" else "",
        metric=metric,
        methods=tuple(dict.fromkeys([*named, *sorted(method for _, method in found)])),
        sites=_in_order(study.sites.train, {site for site, _ in found}),
        cells={place: _task_cell(same) for place, same in found.items()},
    )


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
        own = _method_of(row.init, row.method, 0)
        title = f"{own} minus {ways.get(rival, rival)}" + (f", k = {row.k}" if row.k else "")
        told = replace(_measured(row), cell=_tested(row, family))
        lines.setdefault(title, {})[row.site] = told
    found = {site for cells in lines.values() for site in cells}
    return PairedTable(
        phase=phase,
        task=task.name,
        metric=metric,
        unit=target.unit if metric == "mae" else "",
        sites=tuple(site for site in _in_order(study.sites.train, found) if site in found),
        lines=tuple(lines.items()),
    )


def _method(row: Measurement) -> str:
    return _method_of(row.init, row.method, row.k)


def _method_of(init: str, method: str, k: int) -> str:
    """`pretrained full`, `linear`, `scratch full, k = 5`."""
    return " ".join(word for word in (init, method) if word) + (f", k = {k}" if k else "")


def _task_cell(rows: Sequence[Measurement]) -> TaskCell:
    """The mean over draws, or one measurement, as it is.

    Of several without their mean, the median, and the lowest and the highest.
    """
    single = [row for row in rows if not row.metric.endswith(metrics.OVER_DRAWS)]
    means = [row for row in rows if row.metric.endswith(metrics.OVER_DRAWS)]
    if means or len(rows) == 1:
        return _measured((means or rows)[0], repeats=len(single), made="mean" if means else "")
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


def _measured(row: Measurement, repeats: int = 1, made: Literal["", "mean"] = "") -> TaskCell:
    return TaskCell(
        site=row.site,
        cell=cell_of(row),
        n_participants=row.n_participants,
        n_scans=row.n_scans,
        repeats=repeats,
        made=made,
    )


def _in_order(named: Sequence[str], found: set[str]) -> tuple[str, ...]:
    """The study's own order, then sites that came later by name, then all of them together."""
    later = sorted(found - set(named), key=lambda site: (site == TOGETHER, site))
    return (*named, *later)
