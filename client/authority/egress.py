"""The last door before bytes leave a site: what is not expressly allowed stays.

Arrays must be the ones that the plan lets travel, in name, shape and type, and finite; an update
must not be longer, nor a report larger than the site's policy says. Numbers must be finite; a
measurement with too few participants behind it loses its value, and sums over too few scans stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.site import Policy
from common import metrics
from common.arrays import norm_of_difference
from common.errors import Refusal
from common.plan import Plan
from common.protocol.orders import Measurement, Order, Report
from common.study import Study

_CENSUS_ARRAYS = frozenset({"columns/sum", "columns/squares", "columns/n"})
_COUNT_PREFIXES = ("loss/", "validation/", "label/", "evaluation/")


def inspect(
    study: Study,
    order: Order,
    plan: Plan,
    policy: Policy,
    report: Report,
    arrays: Mapping[str, NDArray[Any]],
    received: Mapping[str, NDArray[Any]],
) -> Report:
    """The report as it may leave; `received` are the arrays that came with the order.

    Raises
    ------
    Refusal
        EGRESS or REPORT_TOO_LARGE, with the reason for the site's own log.
    """
    allowed = _allowed_arrays(order, plan)
    for name, array in arrays.items():
        if name not in allowed and not (order.kind == "linear" and name.startswith("linear/")):
            raise Refusal("EGRESS", f"array {name} may not leave in a report of {order.kind}")
        _fits(name, array, plan)
    _not_too_long(order, policy, arrays, received)
    for name, sums in report.counts.items():
        if not name.startswith(_COUNT_PREFIXES) or not np.all(np.isfinite(sums)):
            raise Refusal("EGRESS", f"count {name} may not leave")
    minimum = policy.minimum_support
    counts = {
        name: sums for name, sums in report.counts.items() if _behind(study, name, sums) >= minimum
    }
    rows = tuple(_withhold(row, minimum) for row in report.measurements)
    inspected = report.model_copy(update={"counts": counts, "measurements": rows})
    size = size_of(inspected, arrays)
    if size > policy.largest_report_bytes:
        most = policy.largest_report_bytes
        raise Refusal("REPORT_TOO_LARGE", f"it has {size:,} bytes, the policy allows {most:,}")
    return inspected


def size_of(report: Report, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of a report's text and of the numbers in its arrays."""
    text = len(report.model_dump_json().encode())
    return text + sum(array.nbytes for array in arrays.values())


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


def _not_too_long(
    order: Order,
    policy: Policy,
    arrays: Mapping[str, NDArray[Any]],
    received: Mapping[str, NDArray[Any]],
) -> None:
    """An update far longer than usual has learnt something by heart, or has diverged."""
    most = policy.largest_update_norm
    if order.kind != "train" or not most:
        return
    if not arrays.keys() <= received.keys():
        raise Refusal("EGRESS", "the update cannot be measured: the order came without its arrays")
    norm = norm_of_difference(arrays, received)
    if norm > most:
        raise Refusal("EGRESS", f"the update's norm is {norm:g}, policy.largest_update_norm {most}")


def _behind(study: Study, name: str, sums: tuple[float, ...]) -> float:
    """Samples behind mergeable sums: those of two people would tell what each of them is."""
    what, _, target = name.partition("/")
    if what in ("label", "loss"):
        return sums[0] if what == "label" else sums[1]
    return metrics.n_of(study.targets[target], np.array(sums))


def _withhold(row: Measurement, minimum: int) -> Measurement:
    if row.n_participants >= minimum:
        return row
    withheld = {"value": None, "ci_low": None, "ci_high": None, "n_participants": 0, "n_scans": 0}
    return row.model_copy(update=withheld)
