"""What a report must be before it is believed; whatever it is not has a code, and the round goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import Refusal
from common.network import Plan
from common.orders import Order, Report
from common.seams import LABELS, SCANS


def accept(order: Order, plan: Plan, report: Report, arrays: Arrays) -> None:
    """Raise `Refusal` with a code unless `report` is a sound answer to `order`."""
    if report.site != order.site:
        raise Refusal("STRANGER", f"{report.site} answers an order for {order.site}")
    if report.order != order.id or report.round != order.round or report.kind != order.kind:
        raise Refusal("STALE", f"{report.site} answers order {report.order[:12]}")
    if report.refusal:
        raise Refusal(report.refusal)
    _numbers_are_finite(report)
    _measurements_are_the_sites_own(order, report)
    if order.kind == "train":
        _support_is_whole(report, plan)
        _arrays_fit(plan, arrays)
    elif order.kind not in ("census", "linear") and arrays:
        raise Refusal("ARRAYS_MISNAMED", f"a report of kind {order.kind} holds no arrays")
    _arrays_are_finite(arrays)


def _numbers_are_finite(report: Report) -> None:
    for name, sums in report.counts.items():
        if not np.all(np.isfinite(sums)):
            raise Refusal("NOT_FINITE", f"{report.site} sends {name} that is not finite")


def _measurements_are_the_sites_own(order: Order, report: Report) -> None:
    for row in report.measurements:
        if row.site != order.site or (row.phase != order.kind):
            raise Refusal("REPORT_MALFORMED", f"{report.site} reports for {row.site}/{row.phase}")


def _support_is_whole(report: Report, plan: Plan) -> None:
    """Counts are whole and not negative by type; here: all are there, and labels do not exceed scans."""
    groups = {rule.group for rule in plan.values() if rule.travels} | {SCANS}
    missing = groups - set(report.support)
    if missing or set(report.support) - groups:
        raise Refusal("SUPPORT", f"{report.site} counts {sorted(report.support)}")
    if report.support[SCANS] == 0:
        raise Refusal("SUPPORT", f"{report.site} used no scans")
    for group, count in report.support.items():
        if group.startswith(LABELS) and count > report.support[SCANS]:
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
