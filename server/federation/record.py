"""What the coordinator makes of reports for people and tables, and a trial of it on one report.

Numbers are merged over sites before they are divided. Whatever is done with reports at any later
time is done with each alone before it is accepted, so that what cannot be borne is one site's
refusal and never the end of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common import metrics
from common.protocol.orders import Order, Report, read_report
from common.study import Study
from server.federation.census import held_by
from server.results import put_together


def weights(report: Report, study: Study) -> Mapping[str, int]:
    """What a site's arrays weigh, by group: its scans or its people."""
    by_people = study.aggregation.weight == "participants"
    return report.participants if by_people else report.support


def means(counts: Iterable[Mapping[str, Sequence[float]]], prefix: str) -> dict[str, float]:
    """Mean over all samples of what the sites counted as (sum, n)."""
    sums = metrics.merged(counts, prefix)
    return {name: float(total / n) for name, (total, n) in sums.items() if n}


def validation(study: Study, reports: Iterable[Report]) -> dict[str, dict[str, float]]:
    """The global model's metrics on the sites' validation participants, by target.

    Each is a mean over sites by scans, of what the sites measured.
    """
    rows = [row for report in reports for row in report.measurements if row.value is not None]
    found: dict[str, dict[str, float]] = {}
    for target, metric in sorted({(row.target, row.metric) for row in rows}):
        these = [row for row in rows if (row.target, row.metric) == (target, metric)]
        scans = [row.n_scans for row in these]
        value = metrics.together(metric, [float(row.value or 0.0) for row in these], scans)
        if value is not None and target in study.targets:
            found.setdefault(target, {"n": sum(scans)})[metric] = value
    return found


def line(report: Report, size: int) -> dict[str, Any]:
    """One site's line in a round's record; `size` is of the whole report, in bytes."""
    groups = report.support
    cost = {"cost": report.cost.model_dump()} if report.cost is not None else {}
    return {
        **cost,
        "support": groups,
        "participants": {name: report.participants.get(name, 0) for name in groups},
        "seconds": round(report.seconds, 3),
        "bytes": size,
    }


def try_out(study: Study, order: Order, report: Report) -> None:
    """Do with `report` alone all that will be done with it; any exception means that it cannot be.

    What is told must be JSON as everybody reads it, so without infinities, and come back the same.
    """
    told = [
        held_by(report),
        means([report.counts], "loss/"),
        means([report.counts], "validation-loss/"),
        validation(study, [report]),
        line(report, 0),
        dict(weights(report, study)),
        [row.model_dump(mode="json") for row in put_together([report.measurements] * 2)],
        [row.model_dump(mode="json") for row in report.measurements],
    ]
    json.dumps(told, allow_nan=False).encode()
    if read_report(report.model_dump_json()) != report:
        raise ValueError("a report that does not come back from its own text")
