"""Report validation: what a report must be before it is believed; each fault has its code.

First whose it is and what it answers, then its numbers, then its arrays, and last all that will be
done with it, done with it alone: what goes wrong there is this report's fault and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.comparisons import CLOSED_FORM
from common.errors import CallosumError, Refusal
from common.network.plan import Plan
from common.protocol.bounded_json import told
from common.protocol.orders import Order, Report
from common.protocol.tokens import fault_in
from common.seams import SHARED
from common.sections import Target
from common.secure_sums.rosters import about_keys, read_keys
from common.study import Study
from server.federation.expectation import Most, targets_of
from server.federation.record import try_out
from server.federation.report_numbers import check_numbers

# raises `Refusal` for arrays that are what was asked for, and that nobody may believe
Sound = Callable[[Mapping[str, NDArray[Any]]], None]

_RANDOM: Final = ("keys", "shares", "unmask")
_WITH_ARRAYS: Final = ("train", "settle", "explain", "send", *_RANDOM)
# sums over a million scans of squares of numbers whose squares float32 still holds
_LARGEST: Final = {"settle": 1e45}
_ROUNDED: Final = 1e-6
_SAFE: Final = 1e18  # the square of any number of a network, and of its gradient, fits float32


def accept(
    study: Study,
    order: Order,
    plan: Plan,
    report: Report,
    arrays: Mapping[str, NDArray[Any]],
    census: Report | None = None,
    sound: Sound | None = None,
) -> None:
    """Raise `Refusal` with a code unless `report` is a sound answer to `order`, and bearable.

    `plan` says which arrays it must hold. A site that claims more scans, labels or people than its
    `census` would outweigh all others.
    """
    if report.site != order.site:
        raise Refusal("STRANGER", f"{told(report.site)} answers an order for {order.site}")
    if report.order != order.id or report.round != order.round or report.kind != order.kind:
        raise Refusal("STALE", f"{report.site} answers order {report.order[:12]}")
    if report.refusal:
        raise Refusal(report.refusal)
    try:
        _check(study, order, plan, report, arrays, census)
        if sound is not None:
            sound(arrays)
        try_out(study, order, report)
    except CallosumError:
        raise
    except Exception as error:  # noqa: BLE001  what it is, everybody's run would meet
        text = f"{type(error).__name__}: {told(str(error), 200)}"
        raise Refusal("REPORT_MALFORMED", f"it cannot be borne: {text}") from None


def _check(
    study: Study,
    order: Order,
    plan: Plan,
    report: Report,
    arrays: Mapping[str, NDArray[Any]],
    census: Report | None,
) -> None:
    most = Most(study, order.site, census)
    if not set(report.holds) <= {order.arrays, order.base}:
        raise Refusal("REPORT_MALFORMED", "it holds what nobody asked about")
    if bool(report.cohort) != (order.kind == "census"):
        raise Refusal("REPORT_MALFORMED", "a census has a cohort, and nothing else has")
    _check_cost(study, order, report)
    check_numbers(study, order, plan, report, most)
    if order.kind == "send" and order.method in CLOSED_FORM:
        if not arrays:
            raise Refusal("ARRAYS_MISNAMED", "it holds no head")
        _models_fit(targets_of(study, order), arrays)
    elif order.kind in _WITH_ARRAYS:
        _arrays_fit(plan, arrays)
        _are_sound(order, report, arrays, most)
    elif order.kind == "overlap":
        _are_tokens(arrays, most)
        return
    elif order.kind == "linear":
        _models_fit(study.targets, arrays)
    elif arrays:
        raise Refusal("ARRAYS_MISNAMED", f"a report of kind {order.kind} holds no arrays")
    if not _are_random(study, order):
        _arrays_are_safe(arrays, _LARGEST.get(order.kind, _SAFE))


def _are_sound(
    order: Order, report: Report, arrays: Mapping[str, NDArray[Any]], most: Most
) -> None:
    """What can be said of sums, and of keys: ones that nobody can use would keep all others out."""
    if order.kind == "settle":
        _sums_are_held(report, arrays, most)
    elif order.kind == "keys":
        read_keys(order.site, arrays["keys"]).check(about_keys(order))


def _are_random(study: Study, order: Order) -> bool:
    """Whether an answer's arrays are whole numbers, none of which is less likely than another."""
    return order.kind in _RANDOM or (order.kind == "train" and study.secure_sums.on)


def _check_cost(study: Study, order: Order, report: Report) -> None:
    """A round of private training says what it cost, by the study's noise; nothing else does."""
    cost, privacy = report.cost, study.privacy
    if (cost is not None) != (privacy.has_cost and order.kind == "train"):
        raise Refusal("REPORT_MALFORMED", "a round of private training has a cost, nothing else")
    if cost is None:
        return
    if privacy.hides_sites:
        if (cost.noise, cost.rate, cost.steps) != (privacy.noise / 2, 1.0, 1):
            raise Refusal("REPORT_MALFORMED", "its noise or its steps are not the study's")
        return
    passes = study.pretraining.local_epochs
    drawn = cost.steps * cost.rate / passes  # people over people: one pass, and part of a step
    if cost.noise != privacy.noise or not 1 - _ROUNDED <= drawn <= 1 + cost.rate + _ROUNDED:
        raise Refusal("REPORT_MALFORMED", "its noise or its steps are not the study's")


def _sums_are_held(report: Report, arrays: Mapping[str, NDArray[Any]], most: Most) -> None:
    """Sums over more samples than a site has would settle everyone's constants alone."""
    held = most.scans(SHARED)
    for name, array in arrays.items():
        counts = name.rpartition("/")[2]
        if (counts == "n" or counts.startswith("n_")) and not np.all(
            (array >= 0) & (array <= held) & (array == np.floor(array))
        ):
            raise Refusal("SUPPORT", f"{report.site} sums {name} over what is no part of {held}")


def _are_tokens(arrays: Mapping[str, NDArray[Any]], most: Most) -> None:
    if fault := fault_in(arrays, most.scans(SHARED), most.people(SHARED)):
        raise Refusal("ARRAYS_MISNAMED", f"these are no tokens: {fault}")


def _arrays_fit(plan: Plan, arrays: Mapping[str, NDArray[Any]]) -> None:
    wanted = {name for name, rule in plan.items() if rule.travels}
    if set(arrays) != wanted:
        strange = sorted(set(arrays) ^ wanted)[:3]
        raise Refusal(
            "ARRAYS_MISNAMED", f"missing or unknown: {', '.join(told(name) for name in strange)}"
        )
    for name, array in arrays.items():
        if array.shape != plan[name].shape:
            raise Refusal(
                "ARRAYS_MISSHAPEN", f"{name} is {told(array.shape)}, not {plan[name].shape}"
            )
        if str(array.dtype) != plan[name].dtype:
            raise Refusal("ARRAYS_MISTYPED", f"{name} is {array.dtype}, not {plan[name].dtype}")


def _models_fit(targets: Mapping[str, Target], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Linear models of as many measures as their site has, which only it knows."""
    for target in {name.split("/")[1] for name in arrays if name.count("/") == 2}:
        parts = {
            name.rpartition("/")[2]: array.shape
            for name, array in arrays.items()
            if name.startswith(f"linear/{target}/")
        }
        outputs = targets[target].outputs if target in targets else 0
        features = parts.get("centre", ())
        wanted = {
            "centre": features, "scale": features,
            "coefficients": (*features, outputs), "intercepts": (outputs,),
        }  # fmt: skip
        if parts != wanted or len(features) != 1 or not outputs:
            raise Refusal("ARRAYS_MISSHAPEN", f"no linear model of {told(target)}")
    for name, array in arrays.items():
        if name.count("/") != 2 or not name.startswith("linear/") or array.dtype != np.float64:
            raise Refusal("ARRAYS_MISNAMED", f"{told(name)} is no part of a linear model")


def _arrays_are_safe(arrays: Mapping[str, NDArray[Any]], largest: float) -> None:
    for name, array in arrays.items():
        if not array.size:
            continue
        low, high = float(array.min()), float(array.max())  # a NaN is in both
        if not np.isfinite([low, high]).all():
            raise Refusal("NOT_FINITE", f"{name} holds infinities or NaN")
        if name.endswith("running_var") and low < 0:
            raise Refusal("NOT_FINITE", f"{name} holds a negative variance")
        if max(-low, high) > largest:
            raise Refusal("UPDATE_TOO_LONG", f"{name} reaches from {low:g} to {high:g}")
