"""What the sites hold, as the coordinator may know it: counts, never anyone's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
