"""Reads T1-weighted scans of a BIDS folder onto the study's grid."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from client.data.anatomy import grid
from client.data.anatomy.preparation import Scan, prepare_scan
from client.data.dictionary import read_dictionary
from client.data.finding import Finding
from client.data.identity import SESSIONS, bids_participant, name_in_table, session_place
from client.data.reader import Found, Prepared, Source
from client.data.readers import bids
from client.data.readers.brain_masks import Masks, find_masks, read_header, read_mask
from client.data.readers.nifti import Header, read_voxels
from client.data.readers.phenotypes import people_with_scans
from client.data.tables import TextTable, number, open_table
from common.errors import DataError, ScanError
from common.kinds.t1w import T1w
from common.printable import name_as_text

_NAMES = frozenset({"participant_id", *SESSIONS})


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
        registered = study.align == "world" and study.registration == "none"
        bids.one_version(scans, _in_mni if registered else _as_acquired)
        people, files, joins = people_with_scans(home, scans, site.rows, columns)
        findings = scans.findings
        masks = _masks(study, site, home, files, scans.homes)
        findings.extend(masks.findings.told())
        sources = [
            _source(
                scan,
                people.entries(scan.participant, scan.session),
                site,
                masks.found.get(scan.name),
            )
            for scan in files
            if study.brain != "derivative" or scan.name in masks.found
        ]
        if not sources:
            problem = f"no usable *_{site.suffix}.nii or .nii.gz (.mgh, .mgz)"
            findings.append(
                Finding(what=str(home / site.derivative), problem=problem, left_out=True)
            )
        dictionary = read_dictionary(home / "participants.json", home, findings)
        return Found(
            sources=tuple(sources),
            findings=findings.told(),
            joins=joins,
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
        header, mask = _header(source), source.payload.get("mask")
        if mask:
            try:
                read_header(Path(mask))
            except ScanError as error:
                name = name_as_text(Path(mask).name)
                raise ScanError(f"its brain mask {name}: {error}") from None
        return header.notes

    @staticmethod
    def prepare(study: T1w.Study, source: Source) -> Prepared:
        """The scan on the study's grid: (1, X, Y, Z) float16.

        Raises
        ------
        ScanError
            With what was found and what was needed.
        """
        header = _header(source)
        mask = source.payload.get("mask")
        scan = Scan.seen(*grid.to_ras(read_voxels(header), header.affine), study.spacing_mm)
        prepared = prepare_scan(study, scan, read_mask(Path(mask)) if mask else None)
        return replace(prepared, notes=(*header.notes, *prepared.notes))

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


def _masks(
    study: T1w.Study,
    site: T1w.Site,
    home: Path,
    files: Sequence[bids.ScanFile],
    homes: tuple[Path, ...],
) -> Masks:
    """The site's own brain masks, where the study asks for them."""
    if study.brain != "derivative":
        return Masks()
    if not site.masks:
        raise DataError(
            'the study takes each site\'s own brain masks (data.brain is "derivative"), and '
            "data.masks names no folder; name it in the site file"
        )
    base = home / site.masks
    if not base.is_dir():
        raise DataError(f"data.masks names {base}, which is no folder that can be read")
    return find_masks(base, site.masks, files, homes)


def _source(
    scan: bids.ScanFile, row: Mapping[str, str], site: T1w.Site, mask: tuple[Path, str] | None
) -> Source:
    unsure = site.unsure_orientation == "keep"
    path, stamp = (os.fspath(mask[0]), f"-mask-{mask[1]}") if mask else ("", "")
    return Source(
        participant=scan.participant,
        scan=scan.name,
        stamp=scan.stamp + ("" if unsure else "-sure") + stamp,
        row=row,
        payload={"path": os.fspath(scan.path), "unsure": unsure, "mask": path},
    )
