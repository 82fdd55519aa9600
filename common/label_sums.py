"""Mean and median of all training sites' labels, from sums that show nobody's label.

The constants that any model must beat. A median is no sum; counts by cell are. A site fills cells
only in runs of at least its minimum of people, spread evenly over the run, and of all sites'
cells together the median is read by interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal
from common.metrics import figures
from common.network.plan import Plan, Rule
from common.seams import SHARED
from common.sections import Target
from common.study import Study
from common.target_transform import restored, transformed

BASELINES: Final = "baselines"  # what an order to settle is about
MEAN: Final = "training-mean"
MEDIAN: Final = "training-median"
CONSTANTS: Final = (MEAN, MEDIAN)  # models that say one and the same of everyone
_CELLS: Final = 64
_WIDEST: Final = 4.0  # scales around the centre; one more cell a side counts what lies beyond

Floats = NDArray[np.floating[Any]]


def numbers(study: Study) -> dict[str, Target]:
    """The pretraining targets that are numbers."""
    found = study.pretraining_targets
    return {name: target for name, target in found.items() if target.kind == "regression"}


def plan_of_sums(study: Study) -> Plan:
    """Names and shapes of what a site adds up."""
    shapes = {"n": (), "sum": (), "cells": (_CELLS + 2,)}
    return {
        f"{part}_{name}": Rule(
            shape=shape, dtype="float64", group=SHARED, role="statistic", kept=False
        )
        for name in numbers(study)
        for part, shape in shapes.items()
    }


def sums_of(
    name: str, target: Target, labels: Floats, people: NDArray[np.int64], minimum: int
) -> dict[str, NDArray[Any]]:
    """One site's sums; labels (N,) and the person of each, all known. Zeros where too few are.

    >>> ages = np.repeat([20.0, 40.0], 6)
    >>> found = sums_of("age", Target(kind="regression", scale=10.0), ages, np.arange(12), 6)
    >>> float(found["n_age"]), float(found["sum_age"])
    (12.0, 360.0)
    """
    cells = np.zeros(_CELLS + 2)
    if len(np.unique(people)) < minimum:
        return {f"n_{name}": np.zeros(()), f"sum_{name}": np.zeros(()), f"cells_{name}": cells}
    z = (transformed(target, labels) - _centre(target)) / target.scale
    places = _placed(np.searchsorted(_edges(), z, side="right"), people, minimum)
    cells[0], cells[-1] = (places == 0).sum(), (places == _CELLS + 1).sum()
    for first, last in _runs(places, people, minimum):
        inside = (places >= first) & (places <= last)
        cells[first : last + 1] = inside.sum() / (last + 1 - first)
    # rounded as all that leaves: of two targets whose bounds differ by one person, the sums would
    # differ by her label
    total = figures(float(np.asarray(labels, dtype=np.float64).sum()))
    return {
        f"n_{name}": np.array(float(len(labels))),
        f"sum_{name}": np.array(total),
        f"cells_{name}": cells,
    }


def refuse_unsound(sums: Mapping[str, NDArray[Any]]) -> None:
    """Raise `Refusal` for sums that no labels have."""
    for name in (key.removeprefix("n_") for key in sums if key.startswith("n_")):
        n, cells = float(sums[f"n_{name}"]), sums[f"cells_{name}"]
        if (cells < 0).any() or not np.isclose(cells.sum(), n, rtol=1e-9, atol=1e-6):
            raise Refusal("REPORT_MALFORMED", f"cells of {name} do not add up to {n:g}")


def constants_of(
    study: Study, parts: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """For each constant model its value by target, of all sites' sums together.

    A median beyond four scales of the centre is not known, and has no value.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {MEAN: {}, MEDIAN: {}}
    for name, target in numbers(study).items():
        n = sum(float(part[f"n_{name}"]) for part in parts)
        if not n:
            continue
        mean = sum(float(part[f"sum_{name}"]) for part in parts) / n
        found[MEAN][_key(name)] = np.array(mean)
        cells = np.sum([part[f"cells_{name}"] for part in parts], axis=0)
        below = np.concatenate([[0.0], np.cumsum(cells)]) / cells.sum()
        if below[1] < 0.5 < below[-2]:
            z = np.interp(0.5, below[1:-1], _edges())
            middle = restored(target, np.array(z * target.scale + _centre(target)))
            found[MEDIAN][_key(name)] = middle
    return found


def plan_of_constants(study: Study) -> Plan:
    """The arrays of a constant model."""
    rule = Rule(shape=(), dtype="float64", group=SHARED, role="statistic", kept=False)
    return {_key(name): rule for name in numbers(study)}


def told_by(arrays: Mapping[str, NDArray[Any]], study: Study) -> dict[str, float]:
    """The value by target of a constant model that came with an order; it may be anybody's."""
    known = {_key(name): name for name in numbers(study)}
    if not arrays.keys() <= known.keys() or any(array.shape for array in arrays.values()):
        raise Refusal("ORDER_MALFORMED", "the arrays are no constants of the study's targets")
    return {known[key]: float(array) for key, array in arrays.items()}


def _key(name: str) -> str:
    return f"constant/{name}"


def _edges() -> NDArray[np.float64]:
    return np.linspace(-_WIDEST, _WIDEST, _CELLS + 1)


def _centre(target: Target) -> float:
    return float(transformed(target, np.array(target.centre)))


def _placed(
    places: NDArray[np.int64], people: NDArray[np.int64], minimum: int
) -> NDArray[np.int64]:
    """Cells of labels, where what lies beyond, or within, is of nobody or of enough people."""
    found = places.copy()
    for end, nearest in ((0, 1), (_CELLS + 1, _CELLS)):
        if len(np.unique(people[found == end])) < minimum:
            found[found == end] = nearest
    inside = (found > 0) & (found <= _CELLS)
    if len(np.unique(people[inside])) < minimum:
        found[inside] = 0 if (found == 0).sum() > (found > _CELLS).sum() else _CELLS + 1
    return found


def _runs(
    places: NDArray[np.int64], people: NDArray[np.int64], minimum: int
) -> list[tuple[int, int]]:
    """First and last cell of each run; every run holds `minimum` people, what is left the last."""
    runs: list[tuple[int, int]] = []
    first = 1
    while first <= _CELLS:
        last = first
        while last <= _CELLS and (
            len(np.unique(people[(places >= first) & (places <= last)])) < minimum
        ):
            last += 1
        if last > _CELLS:  # too few are left
            if runs:
                runs[-1] = (runs[-1][0], _CELLS)
            break
        runs.append((first, last))
        first = last + 1
    return runs
