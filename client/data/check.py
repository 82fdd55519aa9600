"""What a site has for a study, told before any voxel is read: counts by target, and what is odd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.dictionary import contradictions
from client.data.finding import Finding, Join
from client.data.identifiers import odd_identifiers
from client.data.labels import read_labels
from client.data.measures import read_measures
from client.data.reader import Source, find_sources, inspected
from client.data.repeats import repeats
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
    joins: tuple[Join, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What the site file promises and the data do not hold."""
        return tuple(finding for finding in self.findings if finding.error)


def check(study: Study, site: Site) -> Check:
    """Read every scan's header and every table that a run will read; write nothing.

    Raises
    ------
    DataError
        If the site's folder or table cannot be used at all.
    SettingError
        If the site file's codes do not fit the study.
    """
    found = find_sources(study, site)
    usable, odd = inspected(study, found.sources)
    scans = [source.scan for source in usable]
    which, rows = _rows(usable)
    names = [scans[index] for index in which]
    labels = read_labels(study.targets, site.targets, rows, names, found.columns)
    _, unread, joined = read_measures(study, site, scans)
    people = np.array([usable[index].participant for index in which], dtype=object)
    return Check(
        participants=len(set(people)),
        scans=len(usable),
        targets={
            name: _count(target, labels.values[name], people, np.array(which))
            for name, target in study.targets.items()
        },
        findings=(
            *found.findings,
            *odd,
            *contradictions(study.targets, site.targets, found.dictionary),
            *labels.findings,
            *unread,
            *odd_identifiers(study, site),
            *repeats(study, site, names, labels.values),
        ),
        joins=(*found.joins, *joined),
    )


def _rows(sources: Sequence[Source]) -> tuple[list[int], list[Mapping[str, str]]]:
    """Cells by column, and whose: one row a source, or one for each state that its samples have."""
    which: list[int] = []
    rows: list[Mapping[str, str]] = []
    for index, source in enumerate(sources):
        for number in range(max(map(len, source.states.values()), default=0) or 1):
            own = {column: cells[number] for column, cells in source.states.items() if cells}
            which.append(index)
            rows.append({**source.row, **own} if own else source.row)
    return which, rows


def _count(
    target: Target,
    values: NDArray[np.float32],
    people: NDArray[np.object_],
    which: NDArray[np.int64],
) -> Count:
    known = np.isfinite(values)
    classes: dict[str, int] = {}
    for index, word in enumerate(target.classes):
        classes[word] = len(set(people[values == index]))
    regression = target.kind == "regression" and bool(known.any())
    return Count(
        participants=len(set(people[known])),
        scans=len(set(which[known])),
        classes=classes if known.any() else {},
        span=(float(values[known].min()), float(values[known].max())) if regression else None,
    )
