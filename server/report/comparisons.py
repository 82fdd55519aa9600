"""Out of site: every model beside the federated one, by target and held-out site.

Every number comes from results.csv as it stands there. Two rows are made here and say so: the mean
of the single-site models' values, and the single-site model that turned out best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from common import metrics
from common.comparisons import ENSEMBLE, SEEDED
from common.protocol.orders import Measurement
from common.sections import CALIBRATED, Target
from common.study import Study
from server.report.tables import FEDERATED, OTHER_NAMES, Cell, Family, cell_of, in_order, tested
from server.report.verdicts import Verdict, adjusted, verdict
from server.results import TOGETHER

Group = Literal["as it comes", "scan unseen", "site's labels"]

MEAN_OF_SINGLES: Final = "mean of single-site models"
BEST_SINGLE: Final = "best single site, in hindsight"
_SINGLE: Final = "single-"


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


def comparisons(study: Study, rows: Iterable[Measurement]) -> list[Comparison]:
    """A comparison for each held-out site and target, in the study's order of targets."""
    found: dict[tuple[str, str], list[Measurement]] = {}
    every = list(rows)
    family = adjusted(every)
    for row in every:
        if row.phase == "evaluate" and row.target in study.targets:
            found.setdefault((row.site, row.target), []).append(row)
    sites = in_order(study.sites.heldout, {site for site, _ in found})
    return [
        _comparison(site, name, study.targets[name], found[site, name], family)
        for site in sites
        for name in study.targets
        if (site, name) in found
    ]


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
    difference = tested(paired, family) if paired else None
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
        ENSEMBLE: "mean of several seeds",
        "site-mean": f"{site}'s own mean",
        "site-linear": f"{site}'s own linear model",
    }
    if model in known:
        return known[model]
    if model.endswith("+head"):
        return f"{_title(model.removesuffix('+head'), site)} + own head"
    of, _, people = model.partition(CALIBRATED)
    if people:
        return f"{_title(of, site)}, calibrated on {people} unlabelled scans of the site"
    if model.startswith(SEEDED):
        return f"seed {model.removeprefix(SEEDED)}"
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
    first = (
        "site-mean",
        "site-linear",
        FEDERATED,
        ENSEMBLE,
        "pooled",
        "pooled-linear",
        MEAN_OF_SINGLES,
    )
    rank = first.index(bare) if bare in first else len(first) + (line.model == BEST_SINGLE)
    return (groups.index(line.group), rank, line.model)
