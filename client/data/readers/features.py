"""Reads tables of regional measures: one source a usable row."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.dictionary import read_dictionary, sidecar
from client.data.finding import Finding, Findings
from client.data.identity import Name, ambiguous, like_visits, name_in_table
from client.data.reader import Found, Prepared, Source
from client.data.readers.column_findings import column_findings
from client.data.tables import Filtered, Line, Row, TextTable, nearest, number, open_table
from common.errors import DataError, ScanError
from common.kinds.features import MEAN, Features, ratio_of

_LARGEST: Final = 3e38  # the largest float32 is 3.4e38
_MOST_TOLD: Final = 5
_NOTHING: Final = ("", "na", "n/a", "nan")  # cells that are missing, where a study lets them be
_COMMA: Final = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_RENAME: Final = "(data.rename maps the study's names to the table's)"
_ONCE: Final = "(rename the other in the table)"


class FeaturesReader:
    """Rows of a CSV or TSV file; the columns are their own measures for the linear rival."""

    @staticmethod
    def find(
        study: Features.Study, site: Features.Site, root: Path, columns: frozenset[str]
    ) -> Found:
        """One source a usable row, in the table's order.

        Raises
        ------
        DataError
            If the table cannot be read, or lacks or repeats a column that is needed.
        """
        table = open_table(root / site.table, root)
        findings = Findings()
        places = _places(table, study, site, findings)
        wanted = {table.column(name): value for name, value in site.rows.items()}
        who, when = table.column(site.participant), site.session and table.column(site.session)
        taken = {table.columns[place] for place in places.values()}  # no label is a feature, too
        kept = table.picker(columns - taken)
        filtered = Filtered(wanted, table.columns)
        rows: list[_Row] = []
        for line in table:
            if not line.fault and not filtered.passes(line):
                continue
            cell = line[who]
            name = name_in_table(cell, line[when] if when != "" else "")
            problem, values = _read(line, table, places, study)
            if name is None or problem:
                what = f"{table.path.name}, line {line.number} ({cell[:40] or 'nobody'})"
                problem = problem or "names no participant"
                findings.append(Finding(what=what, problem=problem, left_out=True))
                continue
            rows.append(_Row(line.number, name, values, kept(line)))
        sources = _sources(rows, table.path.name, findings)
        findings.extend(column_findings(study.columns, _columns(sources, study)))
        findings.extend(filtered.findings(str(table.path)))
        if not sources:
            findings.append(Finding(what=str(table.path), problem=_none(site), left_out=True))
        dictionary = read_dictionary(sidecar(table.path), root, findings)
        return Found(
            sources=tuple(sources),
            findings=findings.told(),
            columns=tuple(name for name in table.columns if name not in taken),
            dictionary=dictionary,
        )

    @staticmethod
    def prepare(study: Features.Study, source: Source) -> Prepared:
        """The row's numbers: (1, columns) float32, in the site's own unit."""
        values = np.frombuffer(source.payload, dtype="<f4").astype(np.float32)
        if values.size != len(study.columns):
            raise ScanError(f"{values.size} numbers found, {len(study.columns)} needed")
        return Prepared(samples=values[None, :])


class _Row(NamedTuple):
    line: int
    name: Name
    values: bytes
    kept: Row

    @property
    def stamp(self) -> str:
        return hashlib.sha256(self.values).hexdigest()[:32]


def _sources(rows: list[_Row], table: str, findings: Findings) -> list[Source]:
    """Rows as scans of people; a row that stands twice is one, and a doubtful one is none."""
    doubtful = ambiguous(dict.fromkeys(row.name.participant for row in rows))
    clashing = _clashing(rows)
    found: list[Source] = []
    seen: dict[tuple[str, str], int] = {}  # participant and stamp -> line
    number = Counter[str]()
    for row in rows:
        who, key = row.name.participant, (row.name.participant, row.stamp)
        problem = ""
        if who in doubtful:
            problem = f'"{who}" and "{doubtful[who]}" may be one person; give each one spelling'
        elif row.line in clashing:
            problem = f"contradicts line {clashing[row.line]}; neither is read"
        elif key in seen:
            problem = f"repeats an earlier row of the same participant (line {seen[key]})"
        if problem:
            what = f"{table}, line {row.line} ({who})"
            findings.append(Finding(what=what, problem=problem, left_out=True))
            continue
        seen[key] = row.line
        number[row.name.scan] += 1
        scan = row.name.scan + (f"/{number[row.name.scan]}" if number[row.name.scan] > 1 else "")
        found.append(
            Source(participant=who, scan=scan, stamp=key[1], row=row.kept, payload=row.values)
        )
    alike = like_visits(source.participant for source in found)
    if alike:
        problem = (
            f'"{alike[0]}" and "{alike[1]}" look like two visits of one person, and count as two '
            f"people; name the person in data.participant and the visit in data.session"
        )
        findings.append(Finding(what=table, problem=problem))
    return found


def _clashing(rows: list[_Row]) -> dict[int, int]:
    """Lines that contradict another: two measures of one visit, or two labels of one measure."""
    found: dict[int, int] = {}
    visits: dict[str, _Row] = {}
    measures: dict[tuple[str, bytes], _Row] = {}
    for row in rows:
        if row.name.session and row.name.more == "":
            other = visits.setdefault(row.name.scan, row)
            if other.values != row.values:
                found |= {row.line: other.line, other.line: row.line}
        other = measures.setdefault((row.name.participant, row.values), row)
        if other is not row and other.kept != row.kept:
            found |= {row.line: other.line, other.line: row.line}
    return found


def _read(
    line: Line, table: TextTable, places: Mapping[str, int], study: Features.Study
) -> tuple[str, bytes]:
    """What is wrong with a row, and its features as little-endian float32, NaN where missing."""
    if line.fault:
        return line.fault, b""
    held = dict.fromkeys(study.needed, math.nan)
    cells = line.cells(list(places.values()))
    for (name, place), cell in zip(places.items(), cells, strict=True):
        value = number(cell)
        if value is None and study.missing_columns and cell.casefold() in _NOTHING:
            continue
        if value is None or abs(value) > _LARGEST:
            found = f'"{cell[:40]}"' if cell else "nothing"
            remedy = ", with a point for its decimals" if _COMMA.fullmatch(cell) else ""
            return f'column "{table.columns[place]}" holds {found}; a number is needed{remedy}', b""
        held[name] = value
    plain = [held[name] for name, by in map(ratio_of, study.columns) if not by]
    known = [value for value in plain if not math.isnan(value)]
    held[MEAN] = sum(known) / len(known) if known else math.nan if plain else 0.0
    values = np.empty(len(study.columns), dtype="<f4")
    for index, (name, by) in enumerate(map(ratio_of, study.columns)):
        if by and (not held[by] or abs(held[name]) > _LARGEST * abs(held[by])):
            return f"{by} is {held[by]:g}, and {name} is to be divided by it", b""
        values[index] = held[name] / held[by] if by else held[name]
    values[np.isnan(values)] = np.nan  # one NaN of many: bytes decide what is the same scan
    lacks = int(np.isnan(values).sum())
    if lacks > study.missing_columns * len(values):
        return (
            f"lacks {lacks} of {len(values)} columns; data.missing_columns of the study is "
            f"{study.missing_columns:g}"
        ), b""
    return "", values.tobytes()


def _columns(sources: list[Source], study: Features.Study) -> NDArray[np.float32]:
    """(N, F) of all usable rows."""
    rows = [np.frombuffer(source.payload, dtype="<f4") for source in sources]
    return np.stack(rows) if rows else np.empty((0, len(study.columns)), dtype=np.float32)


def _places(
    table: TextTable, study: Features.Study, site: Features.Site, findings: Findings
) -> dict[str, int]:
    """Where the table has each column that is needed, but those that it may lack.

    Raises
    ------
    DataError
        If some are there twice, or more are not there than the study lets be missing.
    """
    named = {name: site.rename.get(name, name) for name in study.needed}
    absent = {name for name, theirs in named.items() if theirs not in table.columns}
    lacking = [named[name] for name in study.needed if name in absent]
    shown = ", ".join(f'"{name}"' for name in lacking[:_MOST_TOLD])
    shown += ", ..." if len(lacking) > _MOST_TOLD else ""
    told = f"lacks {len(lacking)} of {len(named)} columns: {shown}; "
    if lacking and study.may_lack(absent):
        problem = f"{told}the training sites' mean stands in for them {_RENAME}"
        findings.append(Finding(what=table.path.name, problem=problem))
        named = {name: theirs for name, theirs in named.items() if name not in absent}
    elif len(lacking) > 1:
        raise DataError(f"{table.path} {told}{nearest(lacking[0], table.columns)} {_RENAME}")
    try:
        return {name: table.column(theirs) for name, theirs in named.items()}
    except DataError as error:
        raise DataError(f"{error} {_RENAME if lacking else _ONCE}") from None


def _none(site: Features.Site) -> str:
    wanted = ", ".join(f"{name} = {value}" for name, value in site.rows.items())
    return f"no usable row{f' with {wanted}' if wanted else ''}"
