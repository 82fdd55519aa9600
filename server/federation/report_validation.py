"""Report validation: what a report must be before it is believed; each fault has its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import Refusal
from common.network.plan import Plan
from common.protocol.orders import Order, Report
from common.seams import LABELS, SHARED
from common.study import Study

# raises `Refusal` for arrays that are what was asked for, and that nobody may believe
Sound = Callable[[Mapping[str, NDArray[Any]]], None]

_MERGED: Final = {
    "train": ("loss/", "validation-loss/"),
}
_WITH_ARRAYS: Final = ("train", "settle", "explain", "send")
_HELD: Final = "scans"  # group of a census that holds everything


def accept(
    study: Study,
    order: Order,
    plan: Plan,
    report: Report,
    arrays: Arrays,
    census: Report | None = None,
) -> None:
    """Raise `Refusal` with a code unless `report` is a sound answer to `order`.

    `plan` says which arrays it must hold. A site that claims more scans, labels or people than its
    `census` would outweigh all others.
    """
    if report.site != order.site:
        raise Refusal("STRANGER", f"{report.site} answers an order for {order.site}")
    if report.order != order.id or report.round != order.round or report.kind != order.kind:
        raise Refusal("STALE", f"{report.site} answers order {report.order[:12]}")
    if report.refusal:
        raise Refusal(report.refusal)
    _counts_can_be_merged(order, report)
    _measurements_are_the_sites_own(order, report)
    if order.kind == "train":
        _support_is_whole(report, plan)
        _support_is_held(report, census)
    if order.kind in _WITH_ARRAYS:
        _arrays_fit(plan, arrays)
        if order.kind == "settle":
            _sums_are_held(report, arrays, census)
    elif order.kind != "linear" and arrays:
        raise Refusal("ARRAYS_MISNAMED", f"a report of kind {order.kind} holds no arrays")
    _arrays_are_finite(arrays)


def _counts_can_be_merged(order: Order, report: Report) -> None:
    """Sums of another length or sign would only show when they are added to everyone else's."""
    for name, sums in report.counts.items():
        if not np.all(np.isfinite(sums)):
            raise Refusal("NOT_FINITE", f"{report.site} sends {name} that is not finite")
        fits = name.startswith(_MERGED.get(order.kind, ())) and len(sums) == 2 and sums[1] >= 0
        if not fits:
            raise Refusal("REPORT_MALFORMED", f"{report.site} sends {name} with {len(sums)} sums")


def _measurements_are_the_sites_own(order: Order, report: Report) -> None:
    for row in report.measurements:
        if row.site != order.site or (row.phase != order.kind):
            raise Refusal("REPORT_MALFORMED", f"{report.site} reports for {row.site}/{row.phase}")


def _support_is_held(report: Report, census: Report | None) -> None:
    if census is None:
        return
    for claimed, held in (
        (report.support, census.support),
        ({g: report.participants[g] for g in report.support}, census.participants),
    ):
        for group, count in claimed.items():
            most = held.get(_HELD if group == SHARED else group, 0)
            if count > most:
                raise Refusal(
                    "SUPPORT", f"{report.site} claims {count} {group}, its census has {most}"
                )


def _sums_are_held(report: Report, arrays: Arrays, census: Report | None) -> None:
    """Sums over more samples than a site has would settle everyone's constants alone."""
    most = census.support.get(_HELD, 0) if census is not None else np.inf
    for name, array in arrays.items():
        if name.endswith("/n") and not np.all((array >= 0) & (array <= most)):
            raise Refusal("SUPPORT", f"{report.site} sums {name} over {array.max()} of {most}")


def _support_is_whole(report: Report, plan: Plan) -> None:
    """Counts are whole and not negative by type; here: all there, and no more people than scans."""
    groups = {rule.group for rule in plan.values() if rule.travels} | {SHARED}
    if set(report.support) != groups or not groups <= report.participants.keys():
        raise Refusal("SUPPORT", f"{report.site} counts {sorted(report.support)}")
    if report.support[SHARED] == 0:
        raise Refusal("SUPPORT", f"{report.site} used no scans")
    for group, count in report.support.items():
        people = report.participants[group]
        if people > count or bool(people) != bool(count):
            raise Refusal("SUPPORT", f"{report.site} counts {people} people on {count} {group}")
        if group.startswith(LABELS) and count > report.support[SHARED]:
            raise Refusal("SUPPORT", f"{report.site} has more labels than scans for {group}")


def _arrays_fit(plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> None:
    wanted = {name for name, rule in plan.items() if rule.travels}
    if set(arrays) != wanted:
        strange = sorted(set(arrays) ^ wanted)[:3]
        raise Refusal("ARRAYS_MISNAMED", f"missing or unknown: {', '.join(strange)}")
    for name, array in arrays.items():
        if array.shape != plan[name].shape:
            raise Refusal("ARRAYS_MISSHAPEN", f"{name} is {array.shape}, not {plan[name].shape}")
        if str(array.dtype) != plan[name].dtype:
            raise Refusal("ARRAYS_MISTYPED", f"{name} is {array.dtype}, not {plan[name].dtype}")


def _arrays_are_finite(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise Refusal("NOT_FINITE", f"{name} holds infinities or NaN")
        if name.endswith("running_var") and array.size and float(array.min()) < 0:
            raise Refusal("NOT_FINITE", f"{name} holds a negative variance")
