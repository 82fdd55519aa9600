"""What the coordinator makes of reports for people and tables, and a trial of it on one report.

Numbers are merged over sites before they are divided. Whatever is done with reports at any later
time is done with each alone before it is accepted, so that what cannot be borne is one site's
refusal and never the end of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from common import metrics
from common.protocol.orders import Order, Report, read_report
from common.study import Study
from server.federation.census import constants, held_by


def weights(report: Report, study: Study) -> Mapping[str, int]:
    """What a site's arrays weigh, by group: its scans or its people."""
    by_people = study.aggregation.weight == "participants"
    return report.participants if by_people else report.support


def means(reports: Iterable[Report], prefix: str) -> dict[str, float]:
    """Mean over all samples of what the sites counted as (sum, n)."""
    sums = metrics.merged((report.counts for report in reports), prefix)
    return {name: float(total / n) for name, (total, n) in sums.items() if n}


def validation(study: Study, reports: Iterable[Report]) -> dict[str, dict[str, float]]:
    """The global model's metrics on the sites' validation participants, by target."""
    merged = metrics.merged((report.counts for report in reports), "validation/")
    return {
        name: {
            "n": metrics.n_of(study.targets[name], sums),
            **metrics.ratios(study.targets[name], sums),
        }
        for name, sums in merged.items()
        if name in study.targets
    }


def line(report: Report, size: int) -> dict[str, Any]:
    """One site's line in a round's record; `size` is of the whole report, in bytes."""
    groups = report.support
    return {
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
        constants(study, [report]),
        means([report], "loss/"),
        means([report], "validation-loss/"),
        validation(study, [report]),
        line(report, 0),
        dict(weights(report, study)),
        _together(study, report),
        [row.model_dump(mode="json") for row in report.measurements],
    ]
    json.dumps(told, allow_nan=False).encode()
    if read_report(report.model_dump_json()) != report:
        raise ValueError("a report that does not come back from its own text")


def _together(study: Study, report: Report) -> list[Any]:
    """What results over all held-out sites are made of."""
    found: list[Any] = []
    for name, sums in metrics.merged([report.counts], "evaluation/").items():
        target, people = study.targets[name], report.participants.get(f"evaluation/{name}", 0)
        found.append(metrics.ratios(target, sums))
        if target.kind == "regression":
            found.append(metrics.mae_interval(sums, people, study.evaluation.confidence))
    return found
