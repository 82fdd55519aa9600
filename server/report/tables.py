"""What all tables of a run share: rows of results.csv, cells, names, and numbers for readers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pydantic import ValidationError

from common import metrics
from common.errors import FolderError
from common.printable import csv_text
from common.protocol.orders import Measurement
from server.results import TOGETHER
from server.run import Run

FEDERATED: Final = "federated"
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
    "balanced_accuracy" + metrics.CHOSEN: "balanced accuracy, threshold chosen on others",
    "r2": "R\N{SUPERSCRIPT TWO}",
    "slope": "slope of truth on prediction",
    "bias_slope": "slope of error on truth",
    "f1": "F1",
    "f1_macro": "F1, mean over classes",
    "f1_weighted": "F1, weighted by class",
    "brier": "Brier score",
    "ece": "calibration error",
}
OTHER_NAMES: Final = METRIC_NAMES | {
    name + metrics.OVER_SITES: f"{title}, mean over sites" for name, title in METRIC_NAMES.items()
}

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


class OfMetric(Protocol):
    """A table about one metric, which may have a unit."""

    @property
    def metric(self) -> str: ...
    @property
    def unit(self) -> str: ...


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


def tested(row: Measurement, family: Family) -> Cell:
    """A difference with its p-value, as it is and as adjusted."""
    return replace(cell_of(row), p=row.p, adjusted=family.get(row))


def of_metric(table: OfMetric) -> str:
    """`MAE in years`, or the metric alone where it has no unit."""
    name = METRIC_NAMES.get(table.metric, table.metric)
    return f"{name} in {table.unit}" if table.unit else name


def in_order(named: Sequence[str], found: set[str]) -> tuple[str, ...]:
    """The study's own order, then sites that came later by name, then all of them together."""
    later = sorted(found - set(named), key=lambda site: (site == TOGETHER, site))
    return (*named, *later)
