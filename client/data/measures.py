"""Regional measures that a site holds in a table of its own, for the linear rival."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding, Findings, Join
from client.data.reader import reader_of
from client.data.tables import nearest
from client.site import Site
from common.errors import DataError
from common.study import Study

_MOST: Final = 1 << 28  # numbers, 2 GiB

Measured = tuple[NDArray[np.float64] | None, tuple[Finding, ...], tuple[Join, ...]]


def read_measures(study: Study, site: Site, scans: Sequence[str]) -> Measured:
    """(N, R) measures of the scans, NaN where the table has none; None without a table.

    A table that cannot be used costs the linear rival its measures, and nothing else.
    """
    regions = getattr(reader_of(study.kind_name), "regions", None)
    findings = Findings()
    try:
        measures = (
            _once_each(regions(study.data, site.data, site.root), findings) if regions else {}
        )
        if not measures:
            return None, findings.told(), ()
        table, join = _matched(measures, scans, site)
    except DataError as error:
        problem = f"{error}; the linear rival does without it"
        findings.append(Finding(what="regions", problem=problem, error=True))
        return None, findings.told(), ()
    lacking = int((~np.isfinite(table)).any(axis=1).sum())
    if join.hardly:
        hint = nearest(scans[0], list(measures)) if scans else ""
        problem = f"hardly any row belongs to a scan, such as {scans[0]}; {hint}"
        findings.append(Finding(what="regions", problem=problem, error=True))
    elif lacking:
        problem = f"{lacking} of {len(scans)} scans lack a measure; the linear rival does without"
        findings.append(Finding(what="regions", problem=problem))
    return table, findings.told(), (join,)


def _once_each(
    rows: Iterator[tuple[str, NDArray[np.float64]] | Finding], findings: Findings
) -> dict[str, NDArray[np.float64]]:
    """Measures by scan; of two rows that contradict each other, neither."""
    found: dict[str, NDArray[np.float64]] = {}
    twice: dict[str, None] = {}
    for row in rows:
        if isinstance(row, Finding):
            findings.append(row)
            continue
        name, values = row
        if name in found and not np.array_equal(found[name], values, equal_nan=True):
            twice[name] = None
        found[name] = values
    for name in twice:
        del found[name]
        problem = f"{name} has two rows with different measures; neither is used"
        findings.append(Finding(what="regions", problem=problem))
    return found


def _matched(
    measures: Mapping[str, NDArray[Any]], scans: Sequence[str], site: Site
) -> tuple[NDArray[np.float64], Join]:
    """The measures whose name is the scan's, or the longest beginning of it."""
    width = len(next(iter(measures.values())))
    if width * len(scans) > _MOST:
        raise DataError(
            f"{site.name} has {width:,} measures for each of {len(scans):,} samples; at most "
            f"{_MOST:,} numbers are held; list fewer in the study's data.regions"
        )
    table = np.full((len(scans), width), np.nan)
    used: set[str] = set()
    matched = 0
    for index, scan in enumerate(scans):
        parts = scan.replace("_ses-", "/ses-", 1).split("/")  # a FreeSurfer subject is sub-1_ses-2
        names = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
        name = next((name for name in names if name in measures), None)
        if name is not None:
            table[index] = measures[name]
            used.add(name)
            matched += 1
    join = Join(
        what="regions",
        rows=len(measures),
        matched_rows=len(used),
        others=len(scans),
        matched_others=matched,
        other="scans",
    )
    return table, join
