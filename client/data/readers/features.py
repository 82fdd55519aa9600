"""Reads tables of regional measures: one source a usable row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from client.data.dictionary import read_dictionary, sidecar
from client.data.finding import Finding, Findings
from client.data.identity import Name, ambiguous, like_visits, name_in_table
from client.data.reader import Found, Prepared, Source
from client.data.tables import Filtered, Line, Row, TextTable, number, open_table
from common.errors import ScanError
from common.kinds.features import MEAN, Features, ratio_of

_LARGEST: Final = 3e38  # the largest float32 is 3.4e38
_ENOUGH: Final = 10  # rows; of fewer, whole numbers are easily alike
_MOST_TOLD: Final = 5


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
        places = [table.column(site.rename.get(name, name)) for name in study.needed]
        wanted = {table.column(name): value for name, value in site.rows.items()}
        who, when = table.column(site.participant), site.session and table.column(site.session)
        taken = {table.columns[place] for place in places}  # no label is a feature, too
        kept = table.picker(columns - taken)
        findings, filtered = Findings(), Filtered(wanted, table.columns)
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
        findings.extend(_unvaried(study, sources))
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
    line: Line, table: TextTable, places: list[int], study: Features.Study
) -> tuple[str, bytes]:
    """What is wrong with a row, and its features as little-endian float32."""
    if line.fault:
        return line.fault, b""
    held: dict[str, float] = {}
    for name, place, cell in zip(study.needed, places, line.cells(places), strict=True):
        value = number(cell)
        if value is None or abs(value) > _LARGEST:
            found = f'"{cell[:40]}"' if cell else "nothing"
            return f'column "{table.columns[place]}" holds {found}; a number is needed', b""
        held[name] = value
    plain = [held[name] for name, by in map(ratio_of, study.columns) if not by]
    held[MEAN] = sum(plain) / len(plain) if plain else 0.0
    values = np.empty(len(study.columns), dtype="<f4")
    for index, (name, by) in enumerate(map(ratio_of, study.columns)):
        if by and abs(held[name]) > _LARGEST * abs(held[by]):
            return f"{by} is {held[by]:g}, and {name} is to be divided by it", b""
        values[index] = held[name] / held[by] if by else held[name]
    return "", values.tobytes()


def _unvaried(study: Features.Study, sources: list[Source]) -> Iterator[Finding]:
    """Columns that hold the same for everyone: zeros of a pipeline that did not measure, say."""
    if len(sources) < _ENOUGH:
        return
    wide = np.stack([np.frombuffer(source.payload, dtype="<f4") for source in sources])
    still = np.flatnonzero((wide == wide[0]).all(axis=0))
    if len(still):
        told = [f"{study.columns[place]} ({wide[0, place]:g})" for place in still[:_MOST_TOLD]]
        more = f" and {len(still) - len(told)} more" if len(still) > len(told) else ""
        problem = (
            f"{', '.join(told)}{more} {'are' if len(still) > 1 else 'is'} the same in all "
            f"{len(sources)} rows: was it measured here?"
        )
        yield Finding(what="columns", problem=problem)


def _none(site: Features.Site) -> str:
    wanted = ", ".join(f"{name} = {value}" for name, value in site.rows.items())
    return f"no usable row{f' with {wanted}' if wanted else ''}"
