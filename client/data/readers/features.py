"""Reads tables of regional measures: one source a usable row."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from client.data.reader import Finding, Findings, Found, Prepared, Source
from client.data.tables import Line, TextTable, number, open_table, passes
from common.errors import ScanError
from common.kinds.features import Features


class FeaturesReader:
    """Rows of a CSV or TSV file; the columns are their own measures for the linear rival."""

    @staticmethod
    def find(study: Features.Study, site: Features.Site, root: Path) -> Found:
        """One source a usable row, in the table's order.

        Raises
        ------
        DataError
            If the table cannot be read, or lacks or repeats a column that is needed.
        """
        table = open_table(root / site.table, root)
        places = [table.column(site.rename.get(name, name)) for name in study.columns]
        local = frozenset(table.columns[place] for place in places)
        who = table.column(site.participant)
        for name in site.rows:
            table.column(name)
        sources: list[Source] = []
        findings = Findings()
        seen: dict[str, set[str]] = {}
        for line in table:
            row = table.row(line)
            if not passes(row, site.rows):
                continue
            participant = line.cells[who]
            what = f"{table.path.name}, line {line.number} ({participant or 'nobody'})"
            problem, values = _read(line, table, places, participant)
            stamp = hashlib.sha256(values).hexdigest()[:32]
            earlier = seen.setdefault(participant, set())
            if not problem and stamp in earlier:
                problem = "repeats an earlier row of the same participant"
            if problem:
                findings.append(Finding(what=what, problem=problem, left_out=True))
                continue
            earlier.add(stamp)
            scan = participant if len(earlier) == 1 else f"{participant}/{len(earlier)}"
            kept = table.row(line, local)
            sources.append(
                Source(participant=participant, scan=scan, stamp=stamp, row=kept, payload=values)
            )
        if not sources:
            findings.append(Finding(what=str(table.path), problem=_none(site), left_out=True))
        return Found(sources=tuple(sources), findings=findings.told())

    @staticmethod
    def prepare(study: Features.Study, source: Source) -> Prepared:
        """The row's numbers: (1, columns) float32, in the site's own unit."""
        values = np.frombuffer(source.payload, dtype="<f4").astype(np.float32)
        if values.size != len(study.columns):
            raise ScanError(f"{values.size} numbers found, {len(study.columns)} needed")
        return Prepared(samples=values[None, :])


def _read(line: Line, table: TextTable, places: list[int], participant: str) -> tuple[str, bytes]:
    """What is wrong with a row, and its features as little-endian float32."""
    if line.fault:
        return line.fault, b""
    if not participant or not participant.isprintable():
        return "names no participant", b""
    values = np.empty(len(places), dtype="<f4")
    for index, place in enumerate(places):
        value = number(line.cells[place])
        if value is None or abs(value) > 3e38:  # the largest float32 is 3.4e38
            found = f'"{line.cells[place][:40]}"' if line.cells[place] else "nothing"
            return f'column "{table.columns[place]}" holds {found}; a number is needed', b""
        values[index] = value
    return "", values.tobytes()


def _none(site: Features.Site) -> str:
    wanted = ", ".join(f"{name} = {value}" for name, value in site.rows.items())
    return f"no usable row{f' with {wanted}' if wanted else ''}"
