"""What a site has for a study, told before any voxel is read: counts by target, and what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.labels import read_labels
from client.data.reader import Finding, find_sources, inspected
from client.site import Site
from common.sections import Target
from common.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What the site holds for one target; for the site's own screen, never sent.

    classes: participants by class (binary, categorical). span: lowest and highest value
    (regression). Both empty without labels.
    """

    participants: int
    scans: int
    classes: Mapping[str, int] = field(default_factory=dict)
    span: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Usable participants and scans, as far as headers and tables tell, and every finding."""

    participants: int
    scans: int
    targets: Mapping[str, Count]
    findings: tuple[Finding, ...]


def check(study: Study, site: Site) -> Check:
    """Read every scan's header and every phenotype row; write nothing.

    Raises
    ------
    DataError
        If the site's folder or table cannot be used at all.
    SettingError
        If the site file's codes do not fit the study.
    """
    found = find_sources(study, site)
    usable, odd = inspected(study, found.sources)
    rows = [source.row for source in usable]
    labels = read_labels(study.targets, site.targets, rows, [source.scan for source in usable])
    people = np.array([source.participant for source in usable], dtype=object)
    return Check(
        participants=len(set(people)),
        scans=len(usable),
        targets={
            name: _count(target, labels.values[name], people)
            for name, target in study.targets.items()
        },
        findings=(*found.findings, *odd, *labels.findings),
    )


def _count(target: Target, values: NDArray[np.float32], people: NDArray[np.object_]) -> Count:
    known = np.isfinite(values)
    classes: dict[str, int] = {}
    for index, word in enumerate(target.classes):
        classes[word] = len(set(people[values == index]))
    regression = target.kind == "regression" and bool(known.any())
    return Count(
        participants=len(set(people[known])),
        scans=int(known.sum()),
        classes=classes if known.any() else {},
        span=(float(values[known].min()), float(values[known].max())) if regression else None,
    )
