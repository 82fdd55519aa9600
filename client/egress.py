"""The last door before bytes leave a site: what is not expressly allowed stays.

Arrays must be the ones that the plan lets travel, in name, shape and type, and finite; numbers must
be finite; a measurement with too few participants behind it loses its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.site import Policy
from common.errors import Refusal
from common.network import Plan
from common.orders import Measurement, Order, Report

_CENSUS_ARRAYS = frozenset({"columns/sum", "columns/squares", "columns/n"})
_COUNT_PREFIXES = ("loss/", "validation/", "label/", "evaluation/")


def inspect(
    order: Order,
    plan: Plan,
    policy: Policy,
    report: Report,
    arrays: Mapping[str, NDArray[Any]],
) -> Report:
    """The report as it may leave, or `Refusal("EGRESS")` with the reason for the site's own log."""
    allowed = _allowed_arrays(order, plan)
    for name, array in arrays.items():
        if name not in allowed and not (order.kind == "linear" and name.startswith("linear/")):
            raise Refusal("EGRESS", f"array {name} may not leave in a report of {order.kind}")
        _fits(name, array, plan)
    for name, sums in report.counts.items():
        if not name.startswith(_COUNT_PREFIXES) or not np.all(np.isfinite(sums)):
            raise Refusal("EGRESS", f"count {name} may not leave")
    rows = tuple(_withhold(row, policy.minimum_support) for row in report.measurements)
    return report.model_copy(update={"measurements": rows})


def _allowed_arrays(order: Order, plan: Plan) -> frozenset[str]:
    if order.kind == "train":
        return frozenset(name for name, rule in plan.items() if rule.travels)
    return _CENSUS_ARRAYS if order.kind == "census" else frozenset()


def _fits(name: str, array: NDArray[Any], plan: Plan) -> None:
    rule = plan.get(name)
    if rule is not None and (array.shape != rule.shape or str(array.dtype) != rule.dtype):
        raise Refusal("EGRESS", f"array {name} is {array.dtype}{array.shape}, not as agreed")
    if not np.isfinite(array).all():
        raise Refusal("EGRESS", f"array {name} is not finite; training has diverged")


def _withhold(row: Measurement, minimum: int) -> Measurement:
    if row.n_participants >= minimum:
        return row
    return row.model_copy(update={"value": None, "ci_low": None, "ci_high": None})
