"""The last door before bytes leave a site: what is not expressly allowed stays.

Arrays must be the ones that the order's answer may hold, in name, shape and type, and finite; an
update must not be longer, nor a report larger than the site's policy says. Numbers must be finite,
and each must have enough people behind it, not their total: a measurement loses its value, a count
and a group's support stay, sums and maps are not sent at all. People are counted, never samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.answer import Answer, Measured
from client.site import Policy
from common.arrays import norm_of_difference
from common.errors import Refusal
from common.network.plan import Plan
from common.protocol.orders import Measurement, Order, Report
from common.seams import SHARED

_COUNT_PREFIXES: Final = ("loss/", "validation-loss/")
_OF_NOBODY: Final = ("keys", "shares", "unmask")  # random numbers, by which sums are masked
_WITH_ARRAYS: Final = ("overlap", "settle", "train", "explain", "send", "linear", *_OF_NOBODY)


def inspect(
    order: Order,
    policy: Policy,
    report: Report,
    answer: Answer,
    received: Mapping[str, NDArray[Any]],
) -> Report:
    """The report of `answer` as it may leave; its arrays are the answer's.

    Parameters
    ----------
    report : who answers what; its numbers come from `answer`
    received : the arrays that came with the order

    Raises
    ------
    Refusal
        EGRESS, COHORT_TOO_SMALL or REPORT_TOO_LARGE, with the reason for the site's own log.
    """
    for name, array in answer.arrays.items():
        if order.kind not in _WITH_ARRAYS or name not in answer.expected:
            raise Refusal("EGRESS", f"array {name} may not leave in a report of {order.kind}")
        _fits(name, array, answer.expected)
    _not_too_long(order, policy, answer.arrays, received)
    for name, sums in answer.counts.items():
        if not name.startswith(_COUNT_PREFIXES) or not np.all(np.isfinite(sums)):
            raise Refusal("EGRESS", f"count {name} may not leave")
    minimum, people = policy.minimum_support, answer.participants
    _enough_behind(order, minimum, answer)
    few = {name for name, n in people.items() if n < minimum}
    counts = {n: sums for n, sums in answer.counts.items() if n in people and n not in few}
    kept = {n: behind for n, behind in people.items() if n in counts or n in answer.support}
    inspected = report.model_copy(
        update={
            "support": {n: 0 if n in few else held for n, held in answer.support.items()},
            "participants": {n: 0 if n in few else behind for n, behind in kept.items()},
            "counts": counts,
            "measurements": tuple(_withhold(one, minimum) for one in answer.measured),
        }
    )
    size = size_of(inspected, answer.arrays)
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


def _enough_behind(order: Order, minimum: int, answer: Answer) -> None:
    """Raise `Refusal` unless far more people stand behind arrays than these could tell apart."""
    groups = {SHARED, *answer.support} if order.kind == "train" else set()
    for group in sorted(groups):  # a head that nobody here labels has not moved
        people = answer.participants.get(group, 0)
        if people < minimum and (group == SHARED or people):
            raise Refusal("COHORT_TOO_SMALL", f"{people} people trained {group}")
    needed = minimum * answer.reveals
    exempt = order.kind in ("train", *_OF_NOBODY)
    for name, array in answer.arrays.items() if not exempt else ():
        behind = answer.behind.get(name, 0)
        if behind < needed and (behind or array.any()):  # zeros of nobody tell of nobody
            raise Refusal(
                "COHORT_TOO_SMALL",
                f"{behind} people stand behind {name}, {needed} are needed: policy.minimum_support "
                f"for each of the {answer.reveals} numbers that it tells of each of theirs",
            )


def _withhold(one: Measured, minimum: int) -> Measurement:
    row = one.row
    if row.n_participants >= minimum and (one.people >= minimum or row.value is None):
        return row
    numbers = dict.fromkeys(("value", "ci_low", "ci_high", "p"))
    return row.model_copy(update={**numbers, "n_participants": 0, "n_scans": 0})
