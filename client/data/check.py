"""What a site has for a study, told before any voxel is read: counts by target, and what is odd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.labels import read_labels
from client.site import Site
from common.errors import ScanError
from common.seams import Finding, Source
from common.study import Study, Target


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
    found = study.kind.find(study.data, site.data, site.root)
    usable, odd = _inspected(study, found.sources)
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


def _inspected(study: Study, sources: tuple[Source, ...]) -> tuple[list[Source], list[Finding]]:
    """Sources whose header is sound, and what the headers tell; kinds without headers have none."""
    inspect = getattr(study.kind, "inspect", None)
    usable: list[Source] = []
    findings: list[Finding] = []
    for source in sources:
        try:
            notes = inspect(study.data, source) if inspect else ()
        except (ScanError, OSError) as error:
            findings.append(Finding(what=source.scan, problem=str(error), left_out=True))
            continue
        usable.append(source)
        findings += [Finding(what=source.scan, problem=note, left_out=False) for note in notes]
    return usable, findings


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
