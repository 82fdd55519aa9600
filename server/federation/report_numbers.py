"""The numbers of a report: counts, sums and measurements that can be what they are called.

Counts are whole and within what the site holds, sums fit the counts beside them, a measurement is
named by the study and the order, and told once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from common import metrics
from common.errors import Refusal
from common.network.plan import Plan
from common.protocol.bounded_json import told
from common.protocol.orders import Measurement, Order, Report
from common.schemes import seed_of_repeat
from common.seams import LABELS, SHARED
from common.study import Study
from server.federation.expectation import (
    COUNTED,
    HELD,
    LARGEST,
    WITH_ROWS,
    Most,
    bounds_of,
    groups_of,
    metrics_of,
    models_of,
    repeats_of,
    role_of,
    targets_of,
)

_ROUNDED: Final = 1e-5  # labels are float32, and sums are told as they were added up


def check_numbers(study: Study, order: Order, plan: Plan, report: Report, most: Most) -> None:
    """Raise `Refusal` unless all numbers of `report` can be a site's answer to `order`."""
    if order.kind == "train" and study.secure_sums.on:
        if report.support or report.participants or report.counts or report.measurements:
            raise Refusal("SUPPORT", "it tells numbers of its own beside the masked ones")
        return
    _check_support(study, order, plan, report, most)
    for name, sums in report.counts.items():
        if not _fits(study, order, name, sums, most):
            raise Refusal("REPORT_MALFORMED", f"{told(name)} has sums that no scans can have")
    _check_rows(study, order, report, most)


# Scans and people.


def _check_support(study: Study, order: Order, plan: Plan, report: Report, most: Most) -> None:
    groups = groups_of(study, order)
    if order.kind == "train":
        groups = frozenset({rule.group for rule in plan.values() if rule.travels} | {SHARED})
    everything = SHARED if order.kind == "train" else HELD
    support, people = report.support, report.participants
    strange = support.keys() - groups
    lacking = groups - support.keys() if order.kind == "train" else {everything} & groups
    if strange or lacking - support.keys():
        raise Refusal("SUPPORT", f"it counts {len(support)} groups, {len(groups)} are asked for")
    for group in support:
        _check_group(group, support[group], people.get(group), most)
        if group.startswith(LABELS) and support[group] > support[everything]:
            raise Refusal("SUPPORT", f"it has more labels than scans for {group}")
    if groups and support[everything] == 0:
        raise Refusal("SUPPORT", "it used no scans")
    of_counts = people.keys() - support.keys()
    if not of_counts <= {*report.counts, order.kind}:
        raise Refusal("SUPPORT", "it counts people behind what it does not send")
    for name in of_counts:
        if people[name] > most.people(SHARED):
            raise Refusal("SUPPORT", f"it counts {people[name]} people behind {told(name)}")


def _check_group(group: str, scans: int, people: int | None, most: Most) -> None:
    if people is None or people > scans or bool(people) != bool(scans):
        raise Refusal("SUPPORT", f"it counts {people} people on {scans} {group}")
    for count, held in ((scans, most.scans(group)), (people, most.people(group))):
        if count > held:
            raise Refusal("SUPPORT", f"it claims {count} {group}, at most {held} can be there")


# Sums.


def _fits(study: Study, order: Order, name: str, sums: Sequence[float], most: Most) -> bool:
    what, _, of = name.partition("/")
    if what not in COUNTED.get(order.kind, ()):
        return False
    passes = study.pretraining.local_epochs if what == "loss" else 1
    return of.isprintable() and _is_loss(sums, passes * most.scans(SHARED))


def _is_loss(sums: Sequence[float], most: int) -> bool:
    """(sum, n), whose mean a network can have lost."""
    if len(sums) != 2 or not _is_count(sums[1], most):
        return False
    return abs(sums[0]) <= LARGEST * sums[1]


def _is_count(number: float, most: int) -> bool:
    return 0 <= number <= most and number == int(number)


# Measurements.


def _check_rows(study: Study, order: Order, report: Report, most: Most) -> None:
    if report.measurements and order.kind not in WITH_ROWS:
        raise Refusal("REPORT_MALFORMED", f"an answer of kind {order.kind} measures nothing")
    seen = set()
    for row in report.measurements:
        place = (row.target, row.model, row.metric, row.repeat)  # the rest is the order's
        if place in seen or not _is_named(study, order, row, most):
            raise Refusal(
                "REPORT_MALFORMED", f"a measurement of {told(row.model)} nobody asked for"
            )
        seen.add(place)
        if not _is_possible(study, row, most):
            raise Refusal("REPORT_MALFORMED", f"a measurement of {row.model} that none can be")


def _is_named(study: Study, order: Order, row: Measurement, most: Most) -> bool:
    """Whether study and order ask for such a row, and for no other of its name."""
    own = (row.phase, row.task, row.init, row.method, row.k, row.site, row.role)
    role = role_of(study, order.site)
    if own != (order.kind, order.task, order.init, order.method, order.k, order.site, role):
        return False
    targets = targets_of(study, order)
    return (
        _is_of_its_draw(study, order, row, most)
        and row.target in targets
        and row.model in models_of(study, order)
        and row.metric in metrics_of(study, order, targets[row.target], row.model)
        and row.repeat < repeats_of(study, order, row.metric)
    )


def _is_of_its_draw(study: Study, order: Order, row: Measurement, most: Most) -> bool:
    """Whether a row has the seed of its draw, and was learnt from no more than there is."""
    protocol = study.protocol(order.task) if order.kind == "protocol" else None
    if protocol is None or metrics.is_of_all_draws(row.metric):
        return row.n_train == row.seed == 0
    seed = seed_of_repeat(study.seed, order.site, protocol, order.k, row.repeat)
    drawn = protocol.scheme == "resampled"  # with replacement
    return row.seed == seed and row.n_train <= (
        order.k if drawn else most.scans(LABELS + row.target)
    )


def _is_possible(study: Study, row: Measurement, most: Most) -> bool:
    """Whether value, interval and counts of a row go together."""
    people, scans = row.n_participants, row.n_scans
    group = LABELS + row.target
    if people > scans or scans > most.scans(group) or people > most.people(group):
        return False
    if (row.ci_low is None) != (row.ci_high is None):
        return False
    if row.p is not None and ("_minus_" not in row.metric or row.value is None):
        return False
    told_of = [value for value in (row.value, row.ci_low, row.ci_high) if value is not None]
    if told_of and (row.value is None or not people):
        return False
    least, largest = bounds_of(study.targets[row.target], row.metric)
    slack = _ROUNDED * min(largest, 1.0)
    if not all(least - slack <= value <= largest + slack for value in told_of):
        return False
    return row.ci_low is None or row.ci_high is None or row.ci_low <= row.ci_high
