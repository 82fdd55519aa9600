"""Reads T1-weighted scans of a BIDS folder onto the study's grid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from client.data.dictionary import read_dictionary
from client.data.finding import Finding
from client.data.identity import SESSIONS, bids_participant, name_in_table, session_place
from client.data.reader import Found, Prepared, Source
from client.data.anatomy import grid, orientation
from client.data.readers import bids
from client.data.anatomy.background import BRIGHT, head_of
from client.data.readers.nifti import Header, read_header, read_voxels
from client.data.readers.phenotypes import hardly, joined, read_people, read_visits
from client.data.tables import TextTable, number, open_table
from common.errors import ScanError
from common.kinds.t1w import T1w

_NAMES = frozenset({"participant_id", *SESSIONS})
_LEAST_ML = 150.0  # foreground; the smallest adult brains have about 900 ml
_LEAST_SHARE = 0.5  # of the foreground that lies inside the study's grid


class T1wReader:
    """NIfTI files by participant, session and name, with the rows of participants.tsv."""

    version: ClassVar[int] = 2

    @staticmethod
    def find(study: T1w.Study, site: T1w.Site, root: Path, columns: frozenset[str]) -> Found:
        """Every scan of the site's participants, by participant, session and name.

        Raises
        ------
        DataError
            If the folder is absent, or the row filter names a column that is not there.
        """
        home = root / site.root
        links = tuple(root / place for place in site.links)
        scans = bids.find_scans(home, site.derivative, site.suffix, site.entities, links)
        bids.one_version(scans, _in_mni if study.align == "world" else _as_acquired)
        people = read_people(home / "participants.tsv", site.rows, columns)
        join, unmatched = joined(people, scans, bool(site.rows))
        files = [
            scan
            for scan in scans.files
            if scan.participant not in people.refused
            and (not site.rows or scan.participant in people.rows)
        ]
        visits = read_visits(people, home, files, columns)
        findings = scans.findings
        findings.extend(people.findings.told())
        findings.extend(unmatched.told())
        if visits.hardly:
            names = [f"{who}/{when}" for who in people.visits for when in people.visits[who]]
            taken = [f"{scan.participant}/{scan.session}".rstrip("/") for scan in files]
            findings.append(hardly(visits, names, taken))
        sources = [
            _source(scan, people.entries(scan.participant, scan.session), site) for scan in files
        ]
        if not sources:
            problem = f"no usable *_{site.suffix}.nii or .nii.gz"
            findings.append(
                Finding(what=str(home / site.derivative), problem=problem, left_out=True)
            )
        dictionary = read_dictionary(home / "participants.json", home, findings)
        return Found(
            sources=tuple(sources),
            findings=findings.told(),
            joins=tuple(one for one in (join, visits) if one.rows),
            columns=people.columns,
            dictionary=dictionary,
        )

    @staticmethod
    def inspect(study: T1w.Study, source: Source) -> tuple[str, ...]:
        """Notes on a scan from its header alone.

        Raises
        ------
        ScanError
            If the header alone tells that the scan cannot be used.
        """
        return _header(source).notes

    @staticmethod
    def prepare(study: T1w.Study, source: Source) -> Prepared:
        """The scan on the study's grid: (1, X, Y, Z) float16.

        Raises
        ------
        ScanError
            With what was found and what was needed.
        """
        header = _header(source)
        plain, placed_at = grid.to_ras(read_voxels(header), header.affine)
        voxels, affine = grid.shrunk(plain, placed_at, study.spacing_mm)
        mask, lit = head_of(plain, voxels, placed_at, study.spacing_mm)
        if lit:  # what follows takes a background to be dark
            voxels = np.where(mask, voxels, voxels.min())
        volume_ml = float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)
        if volume_ml < _LEAST_ML:
            raise ScanError(f"its foreground has {volume_ml:.0f} ml; a head or brain is needed")
        # a negative would fit a template as well as anything
        doubt = _doubt(voxels, affine) if lit != BRIGHT else ()
        at_centre = study.align == "centre"
        centre = grid.head_centre(mask, affine) if at_centre else grid.MNI_CENTRE_MM
        target = grid.grid_affine(study.shape, study.spacing_mm, centre)
        placed = grid.resampled(voxels, affine, target, study.shape)
        inside = grid.resampled(mask.astype(np.float32), affine, target, study.shape) > 0.5
        _check(inside, study, volume_ml)
        sample = grid.normalised(placed, inside, study.intensity).astype(np.float16)
        notes = (*header.notes, *((lit,) if lit else ()), *doubt)
        return Prepared(samples=sample[None], notes=notes)

    @staticmethod
    def regions(
        study: T1w.Study, site: T1w.Site, root: Path
    ) -> Iterator[tuple[str, NDArray[np.float64]] | Finding]:
        """Regional measures by "sub-01" or "sub-01/ses-1"; NaN where a cell is no number.

        A row that cannot be used is a finding in their midst.

        Raises
        ------
        DataError
            If the table cannot be read or lacks one of the study's measures.
        """
        if not site.regions:
            return
        table = open_table(root / site.regions, root)
        who = table.column("participant_id")
        when = session_place(table.columns)
        places = [table.column(name) for name in study.regions or _measures(table)]
        for line in table:
            session = "" if when is None else line[when]
            name = name_in_table(line[who], session)
            participant = bids_participant(name.participant) if name else None
            if line.fault or name is None or participant is None:
                problem = line.fault or f'participant_id is "{line[who][:40]}"'
                what = f"{table.path.name}, line {line.number}"
                yield Finding(what=what, problem=problem, left_out=True)
                continue
            values = [number(cell) for cell in line.cells(places)]
            key = "/".join(part for part in (participant, name.session) if part)
            yield key, np.array([np.nan if v is None else v for v in values])


def _measures(table: TextTable) -> list[str]:
    """Columns that hold numbers, by name: the order of a site's file means nothing."""
    places = [place for place, name in enumerate(table.columns) if name not in _NAMES]
    numeric: set[int] = set()
    for line in table:
        waiting = [place for place in places if place not in numeric]
        cells = line.cells(waiting)
        numeric |= {p for p, cell in zip(waiting, cells, strict=True) if number(cell) is not None}
    return sorted(table.columns[place] for place in numeric)


def _in_mni(space: str) -> bool:
    return space.startswith("MNI")


def _as_acquired(space: str) -> bool:
    return space in ("", "T1w", "orig", "individual")


def _header(source: Source) -> Header:
    header = read_header(Path(source.payload["path"]))
    if header.unsure and not source.payload["unsure"]:
        raise ScanError(f"{'; '.join(header.notes)} (unsure_orientation is 'leave out')")
    return header


def _doubt(voxels: NDArray[np.float32], affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Refuse a scan that lies otherwise than its header says; a note where it only may."""
    turn, by = orientation.better_turn(voxels, affine)
    if by <= orientation.PERHAPS:
        return ()
    found = f"its axes seem to be {turn} where its header says RAS (fit better by {by:.2f})"
    if by > orientation.CLEARLY:
        raise ScanError(f"{found}; correct the header's orientation")
    return (f"{found}; look at it",)


def _source(scan: bids.ScanFile, row: Mapping[str, str], site: T1w.Site) -> Source:
    unsure = site.unsure_orientation == "keep"
    return Source(
        participant=scan.participant,
        scan=scan.name,
        stamp=scan.stamp + ("" if unsure else "-sure"),
        row=row,
        payload={"path": os.fspath(scan.path), "unsure": unsure},
    )


def _check(inside: NDArray[np.bool_], study: T1w.Study, volume_ml: float) -> None:
    """Refuse a scan that the study's grid misses."""
    placed_ml = float(inside.sum()) * study.spacing_mm**3 / 1000
    room_ml = float(np.prod(study.shape)) * study.spacing_mm**3 / 1000
    if placed_ml < _LEAST_SHARE * min(volume_ml, room_ml):
        remedy = '; a study of scans as acquired needs align = "centre"'
        raise ScanError(
            f"only {placed_ml:.0f} ml of its foreground of {volume_ml:.0f} ml lie in the study's "
            f"grid{remedy if study.align == 'world' else ''}"
        )
