"""Makes a connectome of each run, of time series by region or of volumes and the study's atlas."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from client.data.connectivity import Matrix, Signals, edges, matrix, signals
from client.data.dictionary import read_dictionary
from client.data.finding import Finding
from client.data.functional.confounds import unknown_motion
from client.data.functional.parcels import Run, find_runs, folders_of, parcelled, run_of
from client.data.reader import Found, Prepared, Source
from client.data.readers.bids import ScanFile, Scans
from client.data.readers.phenotypes import people_with_scans
from client.data.readers.series import read_series
from client.data.readers.series_files import MEMBER, find_series
from common.errors import ScanError
from common.kinds.connectome import Connectome

POINTS: Final = "time_points"  # the column that says of how many a connectome is made
_TASK: Final = "task"  # the column that says what BIDS names say; a table's own goes before it
_NAMED: Final = 8  # silent regions that a note lists


class ConnectomeReader:
    """Files of series, archives of them, or functional runs, with the rows of participants.tsv."""

    version: ClassVar[int] = 1

    @staticmethod
    def find(
        study: Connectome.Study, site: Connectome.Site, root: Path, columns: frozenset[str]
    ) -> Found:
        """Every run of the site's participants, by participant and name.

        Raises
        ------
        DataError
            If the folder is absent, or the row filter names a column that is not there.
        """
        home = root / site.root
        if site.atlas:
            scans = find_runs(study, site, root)
        else:
            scans = find_series(home, site.files, tuple(root / place for place in site.links))
        people, files, joins = people_with_scans(home, scans, site.rows, columns - {POINTS})
        findings = scans.findings
        payloads = _payloads(site, root, scans, files)
        if site.atlas and study.most_motion_mm:
            findings.extend(unknown_motion([payload.confounds for _, _, payload in payloads]))
        if scans.files and not files:
            problem = "none of the runs is of somebody whom the table gives to this site"
            findings.append(Finding(what=str(home), problem=problem, left_out=True))
        named = {_TASK} - set(people.columns)
        return Found(
            sources=tuple(
                Source(
                    participant=scan.participant,
                    scan=scan.name,
                    stamp=stamp,
                    row={
                        **({_TASK: scan.entities.get(_TASK, "")} if named & columns else {}),
                        **people.entries(scan.participant, scan.session),
                    },
                    payload=payload,
                )
                for scan, stamp, payload in payloads
            ),
            findings=findings.told(),
            joins=joins,
            columns=(*(name for name in people.columns if name != POINTS), *named, POINTS),
            dictionary=read_dictionary(home / "participants.json", home, findings),
        )

    @staticmethod
    def prepare(study: Connectome.Study, source: Source) -> Prepared:
        """The connectome, (1, R, R) float32, and Fisher-z edges for the linear rival.

        Raises
        ------
        ScanError
            With what was found and what was needed.
        """
        notes: tuple[str, ...] = ()
        quality: dict[str, float] = {}
        if isinstance(source.payload, Run):
            series, notes, quality = parcelled(study, source.payload)
        else:
            path, member, time = source.payload
            series = _turned(read_series(Path(path), member, study.names), time, study.regions)
        found = signals(series)
        points, silent = len(found.series), int(found.silent.sum())
        if points < study.least_points:
            raise ScanError(
                f"has {points} usable time points{_dropped(found)}; the study's data.least_points "
                f"is {study.least_points}"
            )
        if silent > study.most_silent * study.regions:
            raise ScanError(
                f"{silent} of {study.regions} regions have no signal ({_places(found, study)}); "
                f"the study's data.most_silent is {study.most_silent:g}"
            )
        sample = matrix(found, study.measure)
        return Prepared(
            samples=sample[None].astype(np.float32),
            measures=edges(matrix(found, "fisher-z"))[None],
            notes=(*notes, *_notes(found, study)),
            labels={POINTS: [str(points)]},
            quality={
                POINTS: points,
                "silent_regions": silent,
                "mean_edge": edges(sample).mean(),
                **quality,
            },
        )


def _payloads(
    site: Connectome.Site, root: Path, scans: Scans, files: Sequence[ScanFile]
) -> list[tuple[ScanFile, str, Any]]:
    """Each usable run with its stamp, and what reading it needs."""
    if not site.atlas:
        return [
            (scan, f"{scan.stamp}-{site.time}",
             (os.fspath(scan.path), scan.entities.get(MEMBER, ""), site.time))
            for scan in files
        ]  # fmt: skip
    folders, found = folders_of(site, root, scans), []
    for scan in files:
        run = run_of(scan, site, root, folders)
        if isinstance(run, Finding):
            scans.findings.append(run)
        else:
            found.append((scan, run[1], run[0]))
    if not found:
        what, problem = str(root / site.root / site.derivative), "no usable *_bold.nii.gz or .nii"
        scans.findings.append(Finding(what=what, problem=problem, left_out=True))
    return found


def _turned(series: Matrix, time: str, regions: int) -> Matrix:
    """(T, R), whichever way the file has it."""
    turned = series.T if time == "columns" else series
    if turned.shape[1] == regions:
        return turned
    hint = ""
    if turned.shape[0] == regions:
        other = "rows" if time == "columns" else "columns"
        hint = f'; if time goes along the {other}, data.time = "{other}"'
    raise ScanError(f"has {turned.shape[1]} regions; the study has {regions}{hint}")


def _notes(found: Signals, study: Connectome.Study) -> tuple[str, ...]:
    notes = []
    if found.silent.any():
        notes.append(
            f"no signal in {_places(found, study)}; correlations there are undefined, and set to 0"
        )
    dropped = _dropped(found)
    return (*notes, f"{len(found.series)} time points are used{dropped}") if dropped else (*notes,)


def _places(found: Signals, study: Connectome.Study) -> str:
    """Silent regions by number, counted from 1, and name."""
    places = np.flatnonzero(found.silent).tolist()
    told = [f"{place + 1}{f' ({study.names[place]})' if study.names else ''}" for place in places]
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f"region{'s' * (len(told) > 1)} {', '.join(told[:_NAMED])}{more}"


def _dropped(found: Signals) -> str:
    parts = []
    if found.padded:
        parts.append(f"{found.padded} of zeros at the end")
    if found.gaps:
        parts.append(f"{found.gaps} without a number")
    return f", besides {' and '.join(parts)}" if parts else ""
