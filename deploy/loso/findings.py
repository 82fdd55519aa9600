"""What leaving each site out showed: values by site, means over sites, paired differences.

A site is the unit: it counts once, however many people it has, and so do an interval (Student's t
over sites) and a test (Wilcoxon's signed ranks over the sites that both were judged by). Beside it
stands a mean in which every person counts once, whose interval is over sites all the same. Folds
share most of what they train on, so sites are not independent of each other: intervals are somewhat
too narrow, as they are for any cross-validation.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from scipy import stats

from common import metrics
from common.errors import SettingError
from common.protocol.orders import Measurement
from common.runtime.durable import write_atomically
from deploy.loso.folds import Design, Fold
from server.report.tables import FEDERATED, cell_of, read_results
from server.report.verdicts import LEVEL, holm
from server.run import Run

RIVALS: Final = (
    "pooled", "pooled-linear", "site-linear", "site-mean", "training-median", "training-mean",
    "constant",
)  # fmt: skip
_FEWEST: Final = 3  # sites of an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model of one study at the site that its fold held out; a line of folds.csv.

    value: None where it was withheld, or where the site holds one class alone.
    """

    target: str
    study: str
    model: str
    site: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    n_participants: int
    n_scans: int

    @property
    def is_undefined(self) -> bool:
        """Whether there are people, but of one class alone."""
        return self.value is None and self.n_participants > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over sites and its interval, which fewer than three sites have not."""

    sites: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """`first` minus `second` by site; p by Wilcoxon; adjusted by Holm over a target's pairs."""

    target: str
    metric: str
    first: str
    second: str
    difference: Mean
    ahead: int
    behind: int
    p: float
    adjusted: float

    @property
    def verdict(self) -> str:
        """What may be said of it at 5 %, all pairs of the target together."""
        if self.adjusted >= LEVEL:
            return "not distinguishable"
        gains = (self.difference.value > 0) != (self.metric == "mae")
        return f"{self.first if gains else self.second} better"


def rows_of(fold: Fold, run: Run, targets: Iterable[str]) -> list[Row]:
    """What a fold's site measured, by the primary metric of each target.

    Raises
    ------
    FolderError
        If the run's results are not what was written.
    """
    wanted = {name: metrics.primary(run.study.targets[name]) for name in targets}
    return [
        _row(fold, row)
        for row in read_results(run)
        if row.phase == "evaluate"
        and row.site == fold.site
        and row.model in (FEDERATED, *RIVALS)
        and wanted.get(row.target) == row.metric
    ]


def _row(fold: Fold, row: Measurement) -> Row:
    cell = cell_of(row)
    return Row(
        target=row.target, study=fold.study, model=row.model, site=fold.site, metric=row.metric,
        value=cell.value, ci_low=cell.low, ci_high=cell.high, n_participants=row.n_participants,
        n_scans=row.n_scans,
    )  # fmt: skip


def targets_of(design: Design, asked: Sequence[str]) -> list[str]:
    """The targets that every study learns, or those asked for.

    Raises
    ------
    SettingError
        If there is none, or one that some study does not learn.
    """
    learnt = {name: study.pretraining_targets for name, study in design.studies.items()}
    shared = [
        target
        for target in next(iter(learnt.values()))
        if all(target in found for found in learnt.values())
    ]
    for target in asked:
        lacking = [name for name, found in learnt.items() if target not in found]
        if lacking:
            raise SettingError(f"--target is {target}, which {', '.join(lacking)} does not learn")
    if not shared:
        told = "; ".join(f"{name}: {', '.join(found)}" for name, found in learnt.items())
        raise SettingError(f"the studies learn nothing in common, so no pair can be made; {told}")
    return list(asked) or shared


def contestants(rows: Sequence[Row], studies: Iterable[str]) -> dict[tuple[str, str], list[Row]]:
    """Rows by study and model: each study's own network, then rivals of the first that has them."""
    found: dict[tuple[str, str], list[Row]] = {}
    for study in studies:
        of = [row for row in rows if row.study == study and row.model == FEDERATED]
        if of:
            found[study, FEDERATED] = of
    for model in RIVALS:
        of = [row for row in rows if row.model == model]
        if of:
            found[of[0].study, model] = [row for row in of if row.study == of[0].study]
    return found


def mean(
    values: Sequence[float],
    people: Sequence[int] = (),
    *,
    confidence: float = 0.95,
    largest: float = math.inf,
) -> Mean:
    """Mean over sites, or with `people` over theirs, and Student's t of leaving each site out.

    `largest` is what a value can be at most, and with it an end of the interval; the least is 0
    then.

    >>> mean([0.5, 0.75]).value
    0.625
    >>> mean([2.0, 5.0], [200, 100]).value
    3.0
    """
    of, weights = np.asarray(values, dtype=np.float64), np.ones(len(values))
    if people:
        weights = np.asarray(people, dtype=np.float64)
    value = float(np.average(of, weights=weights))
    found = Mean(sites=len(of), value=value)
    if len(of) < _FEWEST:
        return found
    left_out = (weights @ of - weights * of) / (weights.sum() - weights)
    spread = float(np.square(left_out - left_out.mean()).sum())
    error = ((len(of) - 1) / len(of) * spread) ** 0.5
    half = float(stats.t.ppf((1 + confidence) / 2, len(of) - 1)) * error
    least = 0.0 if math.isfinite(largest) else -math.inf
    return replace(found, low=max(value - half, least), high=min(value + half, largest))


def pairs(rows: Sequence[Row], studies: Sequence[str], target: str) -> list[Pair]:
    """Every two studies, and each study against each rival, at the sites that judged both.

    p-values are Holm's over these pairs.
    """
    of = contestants([row for row in rows if row.target == target], studies)
    by_name = {
        study if model == FEDERATED else model: {
            row.site: row.value for row in found if row.value is not None
        }
        for (study, model), found in of.items()
    }
    metric = next((row.metric for row in rows if row.target == target), "")
    found = []
    for first, second in combinations(by_name, 2):
        if first not in studies:  # two rivals
            continue
        one, other = by_name[first], by_name[second]
        # rounded as values are: two equal metrics must not differ by what a sum leaves over
        apart = [round(one[site] - other[site], 9) for site in one if site in other]
        if apart:
            found.append(_pair(target, metric, first, second, apart))
    return [
        replace(pair, adjusted=p)
        for pair, p in zip(found, holm([pair.p for pair in found]), strict=True)
    ]


def _pair(target: str, metric: str, first: str, second: str, apart: Sequence[float]) -> Pair:
    p = float(stats.wilcoxon(apart).pvalue) if any(apart) else 1.0
    sign = -1 if metric == "mae" else 1
    return Pair(
        target=target, metric=metric, first=first, second=second, difference=mean(apart),
        ahead=sum(sign * value > 0 for value in apart),
        behind=sum(sign * value < 0 for value in apart), p=p, adjusted=p,
    )  # fmt: skip


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write folds.csv: a measurement a line, floats in full, empty where there is no value."""
    _write(path, [field.name for field in fields(Row)], (asdict(row) for row in rows))


def write_pairs(path: Path, found: Iterable[Pair]) -> None:
    """Write pairs.csv."""
    header = ["target", "metric", "first", "second", "sites", "difference", "ci_low", "ci_high",
              "ahead", "behind", "p", "adjusted"]  # fmt: skip
    _write(path, header, (
        {**{name: getattr(pair, name) for name in header if hasattr(pair, name)},
         "sites": pair.difference.sites, "difference": pair.difference.value,
         "ci_low": pair.difference.low, "ci_high": pair.difference.high}
        for pair in found
    ))  # fmt: skip


def _write(path: Path, header: Sequence[str], lines: Iterable[Mapping[str, object]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, header, lineterminator="\n")
    table.writeheader()
    for line in lines:
        table.writerow({key: "" if value is None else value for key, value in line.items()})
    write_atomically(path, text.getvalue().encode())
