"""Which arrays an order may bring, and how large: told from the study, before any is fetched.

What an asking announces is the coordinator's word. The study that the site approved says which
arrays its network has; a linear model has as many numbers as the site has measures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from client.authority.admission import TUNING
from client.data.cohort import Cohort
from client.learning.linear import features_width
from client.learning.prediction import own_features
from client.link.frames import Sizes
from common.comparisons import ENSEMBLE, brings_arrays
from common.errors import Refusal
from common.label_sums import CONSTANTS, plan_of_constants
from common.network.building import plan_of
from common.network.plan import Plan, Rule
from common.network.settling import sent_to_settle
from common.network.size import outline
from common.protocol.orders import Order
from common.protocol.wire import view_npy
from common.seams import SHARED
from common.sections import Target
from common.secure_sums.rosters import plan_of_rosters
from common.secure_sums.tables import plan_of_passed
from common.site_shortcuts import MODELS as SHORTCUTS
from common.study import Study

LINEAR: Final = "-linear"  # end of the names of linear models
_ORDER: Final = "ORDER_MALFORMED"


def expected(order: Order, study: Study, cohort: Cohort) -> Plan:
    """The arrays that may come with `order`; some may be held here and need not come."""
    if order.kind == "evaluate" and not _is_network(order.model):
        return _simple(order.model, study, cohort)
    if order.kind == "cross":
        return _heads(order, study, cohort)
    if order.kind in ("shares", "unmask"):
        return _of_sums(order, study)
    if (
        (order.kind == "settle" and order.model in SHORTCUTS)
        or order.kind in ("train", "evaluate")
        or (order.kind in TUNING and brings_arrays(order.init))
    ):
        return _plan(study)[0]
    if order.kind == "settle":
        plan, sent = _plan(study)
        return {name: plan[name] for name in sent}
    return {}


def _is_network(model: str) -> bool:
    return not model.endswith(LINEAR) and model not in (*CONSTANTS, ENSEMBLE)


def _simple(model: str, study: Study, cohort: Cohort) -> Plan:
    """What comes with a judged model that is no network; nothing with a mean of kept answers."""
    if model == ENSEMBLE:
        return {}
    if model in CONSTANTS:
        return plan_of_constants(study)
    return _linear(study.pretraining_targets, features_width(cohort))


def check_announced(order: Order, sizes: Sizes, plan: Plan) -> None:
    """Refuse to fetch what the order may not bring.

    Raises
    ------
    Refusal
        NO_DATA if a linear model is of other measures than the site's, else ORDER_MALFORMED.
    """
    for name, size in sizes:
        rule = plan.get(name)
        if rule is None:
            raise Refusal(_ORDER, f"array {name!r} has no part in an order of {order.kind}")
        if size != _npy_size(rule):
            measured = name.startswith("linear/") and not name.endswith("/intercepts")
            code = "NO_DATA" if measured else _ORDER  # the model may be of another site's measures
            raise Refusal(code, f"array {name!r} of {size:,} bytes, not {_npy_size(rule):,}")


def viewed(name: str, data: bytes, rule: Rule) -> NDArray[Any]:
    """Fetched npy bytes as the array that `rule` describes, or `Refusal`."""
    try:
        found = view_npy(data)
    except Exception as error:  # noqa: BLE001  whatever a hostile header provokes
        raise Refusal(_ORDER, f"array {name!r} cannot be read: {error}") from None
    if found.shape != rule.shape or str(found.dtype) != rule.dtype:
        raise Refusal(
            _ORDER, f"array {name!r} is {found.dtype}{found.shape}, not {rule.dtype}{rule.shape}"
        )
    return found


@lru_cache(maxsize=8)
def _plan(study: Study) -> tuple[Plan, frozenset[str]]:
    """The rules of the network's arrays, and which it is settled by; nothing is allocated."""
    network = outline(study, most=sys.maxsize)  # it was measured when it was approved
    plan = plan_of(network, study.aggregation.normalisation)
    return plan, frozenset(sent_to_settle(network, plan))


def _of_sums(order: Order, study: Study) -> Plan:
    """Everybody's keys and what all hold, or shares of one slot that are for this site."""
    if order.kind == "unmask":
        return plan_of_passed(study)
    groups = {rule.group for rule in _plan(study)[0].values() if rule.travels} | {SHARED}
    return plan_of_rosters(study, len(groups))


def _npy_size(rule: Rule) -> int:
    """Bytes of the array as npy 1.0, header and numbers."""
    start = BytesIO()
    about = {"descr": np.dtype(rule.dtype).str, "fortran_order": False, "shape": rule.shape}
    write_array_header_1_0(start, about)
    return start.tell() + rule.nbytes


def _heads(order: Order, study: Study, cohort: Cohort) -> Plan:
    """A head of each training site, and the network that they stand on."""
    task = next((task for task in study.finetuning if task.name == order.task), None)
    if task is None:
        return {}
    width = features_width(cohort) if order.method == "linear" else _width(study)
    head = _linear({task.target: study.targets[task.target]}, width)
    found = {f"{site}/{name}": rule for site in study.sites.train for name, rule in head.items()}
    return {**found, **(_plan(study)[0] if brings_arrays(order.init) else {})}


@lru_cache(maxsize=8)
def _width(study: Study) -> int:
    """How many features the network makes of a sample; told by one without numbers."""
    network = outline(study, most=sys.maxsize).eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        return int(own_features(network, torch.zeros((2, *study.shape), device=device)).shape[1])


def _linear(targets: Mapping[str, Target], features: int) -> Plan:
    """A linear model of each target, on so many features."""
    plan: Plan = {}
    for name, target in targets.items():
        shapes: Mapping[str, tuple[int, ...]] = {
            "centre": (features,),
            "scale": (features,),
            "coefficients": (features, target.outputs),
            "intercepts": (target.outputs,),
        }
        for part, shape in shapes.items():
            plan[f"linear/{name}/{part}"] = Rule(
                shape=shape, dtype="float64", group=SHARED, role="statistic", kept=False
            )
    return plan
