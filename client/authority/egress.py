"""The last door before bytes leave a site: what is not expressly allowed stays.

Arrays must be the ones that the order's answer may hold, in name, shape and type, and finite; an
update must not be longer, nor a report larger than the site's policy says. Numbers must be finite,
and have enough people behind them: a measurement with too few loses its value, counts stay, and
sums and maps are not sent at all. People are counted, never samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.site import Policy
from common.arrays import norm_of_difference
from common.errors import Refusal
from common.network.plan import Plan
from common.protocol.orders import Measurement, Order, Report

_COUNT_PREFIXES: Final = ("loss/", "validation/", "validation-loss/", "label/", "evaluation/")
_WITH_ARRAYS: Final = ("settle", "train", "explain", "send", "linear")
_OF_PEOPLE: Final = ("settle", "explain")  # kinds whose arrays are sums or means over people


def inspect(
    order: Order,
    expected: Plan,
    policy: Policy,
    report: Report,
    arrays: Mapping[str, NDArray[Any]],
    received: Mapping[str, NDArray[Any]],
) -> Report:
    """The report as it may leave.

    Parameters
    ----------
    expected : the arrays that may leave with it
    received : the arrays that came with the order

    Raises
    ------
    Refusal
        EGRESS, COHORT_TOO_SMALL or REPORT_TOO_LARGE, with the reason for the site's own log.
    """
    for name, array in arrays.items():
        linear = order.kind == "linear" and name.startswith("linear/")
        if not linear and (order.kind not in _WITH_ARRAYS or name not in expected):
            raise Refusal("EGRESS", f"array {name} may not leave in a report of {order.kind}")
        _fits(name, array, expected)
    _not_too_long(order, policy, arrays, received)
    for name, sums in report.counts.items():
        if not name.startswith(_COUNT_PREFIXES) or not np.all(np.isfinite(sums)):
            raise Refusal("EGRESS", f"count {name} may not leave")
    minimum, people = policy.minimum_support, report.participants
    if order.kind in _OF_PEOPLE and arrays and people.get(order.kind, 0) < minimum:
        behind = people.get(order.kind, 0)
        raise Refusal("COHORT_TOO_SMALL", f"{behind} people stand behind what would leave")
    withheld = {name for name in report.counts if people.get(name, 0) < minimum}
    rows = tuple(_withhold(row, minimum) for row in report.measurements)
    inspected = report.model_copy(
        update={
            "counts": {n: sums for n, sums in report.counts.items() if n not in withheld},
            "participants": {name: n for name, n in people.items() if name not in withheld},
            "measurements": rows,
        }
    )
    size = size_of(inspected, arrays)
    if size > policy.largest_report_bytes:
        most = policy.largest_report_bytes
        raise Refusal("REPORT_TOO_LARGE", f"it has {size:,} bytes, the policy allows {most:,}")
    return inspected


def size_of(report: Report, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of a report's text and of the numbers in its arrays."""
    text = len(report.model_dump_json().encode())
    return text + sum(array.nbytes for array in arrays.values())


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


def _withhold(row: Measurement, minimum: int) -> Measurement:
    if row.n_participants >= minimum:
        return row
    withheld = {"value": None, "ci_low": None, "ci_high": None, "n_participants": 0, "n_scans": 0}
    return row.model_copy(update=withheld)
