"""What of an array is summed, and what the sum makes of it: the same as the plain weighted mean.

Of a running variance more is summed than its change: the square of how far the site's own mean
moved, so that the variance between sites' means, which a plain average adds, comes out as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.arrays import Rows
from common.network.plan import Plan, Rule
from common.secure_sums.ring import Scale
from common.study import Study

# statistics are few, and of any scale that activations have: steps of 4e-12 in twice the bytes
LARGEST_STATISTIC: Final = 2.0**24
Float64 = NDArray[np.float64]
Part = slice | EllipsisType


def centre_of(plan: Plan, name: str) -> str | None:
    """The running mean that belongs to a running variance."""
    layer, dot, kind = name.rpartition(".")
    centre = f"{layer}{dot}running_mean"
    statistic = name in plan and plan[name].role == "statistic"
    return centre if statistic and kind == "running_var" and centre in plan else None


def scale_of(study: Study, rule: Rule) -> Scale:
    """How an array is written in steps."""
    sites = len(study.sites.train)
    if rule.role == "statistic":
        return Scale(LARGEST_STATISTIC, sites, np.dtype(np.int64))
    return Scale(study.secure_sums.largest_update, sites, np.dtype(np.int32))


def update_of(
    plan: Plan, name: str, part: Part, trained: Mapping[str, Rows], start: Mapping[str, Rows]
) -> Float64:
    """What one site adds to the sum, before it is weighted."""
    change = _change(trained[name][part], start[name][part])
    centre = centre_of(plan, name)
    if centre is not None:
        change += np.square(_change(trained[centre][part], start[centre][part]))
    return change


def mean_of(now: NDArray[Any], change: Float64, moved: Float64 | None) -> Float64:
    """The plain weighted mean, from the mean of what sites added; `moved` is of a centre."""
    mean = now.astype(np.float64) + change
    return mean if moved is None else np.maximum(0.0, mean - np.square(moved))


def _change(after: NDArray[Any], before: NDArray[Any]) -> Float64:
    found: Float64 = np.subtract(after, before, dtype=np.float64)
    return found
