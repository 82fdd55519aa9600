"""What the sites hold, as the coordinator may know it: counts and sums, never anyone's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from common import metrics
from common.protocol.orders import Report
from common.study import Study

POOLED: Final = "pooled"  # all training data in one place, where the coordinator holds them


def summarise(
    study: Study, reports: Mapping[str, Report], refused: Mapping[str, str]
) -> dict[str, Any]:
    """Each site's role and counts, or the code of its refusal, for `census.json`."""
    sites = [*study.sites.train, *study.sites.heldout]
    training = set(study.sites.train)
    return {
        site: {
            "role": "train" if site in training else "heldout",
            "refused": refused.get(site, ""),
            **held_by(reports.get(site)),
        }
        for site in sites
    }


def held_by(report: Report | None) -> dict[str, dict[str, int]]:
    """One site's counts; none of one that declined."""
    held = dict(sorted(report.support.items())) if report else {}
    people = {name: report.participants.get(name, 0) for name in held} if report else {}
    return {"held": held, "participants": people}


def constants(study: Study, reports: Sequence[Report]) -> dict[str, float]:
    """Mean label of every target over the training sites: the model that knows nothing.

    For a binary target it is the share of positives, for a regression target the mean.
    """
    found = {}
    merged = metrics.merged((report.counts for report in reports), "label/")
    for name, (n, total, *_) in merged.items():
        if name in study.targets and n:
            found[name] = float(total / n)
    return found
