"""Reads functional runs of a BIDS folder: cleaned volumes, each with the state of its person."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.dictionary import read_dictionary
from client.data.finding import Finding, Findings
from client.data.functional.cleaning import Placed, cleaned, made_brain, read_brain
from client.data.functional.confounds import Confounds, taken_confounds, unknown_motion
from client.data.functional.events import Events, Labelled, label_volumes, read_events, renamed
from client.data.functional.repetition_time import agreed_repetition_time
from client.data.functional.side_files import Folders, SideFiles
from client.data.reader import Found, Prepared, Source
from client.data.readers import bids
from client.data.readers.nifti import Header, read_header, read_volumes
from client.data.readers.phenotypes import people_with_scans
from client.data.tables import nearest
from common.errors import DataError, ScanError
from common.kinds.bold import TRIAL_TYPE, Bold
from common.study import canonical

_VERSIONS: Final = (*bids.VERSIONS, "echo", "part")
_MOST_NUMBERS: Final = 2**31  # 8 GB; an hour of the HCP on its own grid takes half of it
_AS_ACQUIRED: Final = ("", "T1w", "func", "boldref", "individual")


class BoldReader:
    """NIfTI runs with their events, and what fMRIPrep wrote beside them."""

    version: ClassVar[int] = 1

    @staticmethod
    def find(study: Bold.Study, site: Bold.Site, root: Path, columns: frozenset[str]) -> Found:
        """Every run of the site's participants that has an events table.

        Raises
        ------
        DataError
            If the folder is absent, or the row filter names a column that is not there.
        """
        home = root / site.root
        links = tuple(root / place for place in site.links)
        runs = bids.find_scans(home, site.derivative, "bold", site.entities, links, "func")
        bids.one_version(runs, _in_mni if study.align == "world" else _as_acquired, _VERSIONS)
        own = frozenset({*study.states, TRIAL_TYPE})
        people, files, joins = people_with_scans(home, runs, site.rows, columns - own)
        findings = runs.findings
        findings.extend(_strange_words(study, site))
        folders = Folders(home, runs.homes, _mask_of_all(home, site))
        sources = [
            source
            for run in files
            if (source := _source(run, study, site, people.entries(run.participant, run.session),
                                  folders, home, findings)) is not None
        ]  # fmt: skip
        if study.most_motion_mm or study.most_jump_mm:
            findings.extend(unknown_motion([source.payload.confounds for source in sources]))
        if not sources:
            problem = "no usable *_bold.nii.gz or .nii with an events table"
            findings.append(
                Finding(what=str(home / site.derivative), problem=problem, left_out=True)
            )
        return Found(
            sources=tuple(sources),
            findings=findings.told(),
            joins=joins,
            columns=(*people.columns, *sorted(own)),
            dictionary=read_dictionary(home / "participants.json", home, findings),
        )

    @staticmethod
    def inspect(study: Bold.Study, source: Source) -> tuple[str, ...]:
        """Notes on a run from headers alone.

        Raises
        ------
        ScanError
            If these alone tell that the run cannot be used.
        """
        header, _, notes = _header(study, source.payload)
        mask = source.payload.mask
        if mask:
            read_brain(mask, header)
        return notes

    @staticmethod
    def prepare(study: Bold.Study, source: Source) -> Prepared:
        """Cleaned volumes on the study's grid: (n, X, Y, Z) float16, with the state of each.

        Raises
        ------
        ScanError
            With what was found and what was needed.
        """
        run: _Run = source.payload
        header, repetition_time_s, notes = _header(study, run)
        events = _events(study, run)
        labelled = label_volumes(
            events, header.volumes, repetition_time_s, shift_s=study.shift_s, wanted=_wanted(study)
        )
        confounds = taken_confounds(
            run.confounds, run.home, study.confounds, header.volumes, study.most_motion_mm
        )
        kept, jumps = _without_jumps(labelled, confounds, study)
        if not kept.volumes:
            raise ScanError("; ".join(["no volume shows a state", *labelled.notes, *jumps]))
        mask = read_brain(run.mask, header) if run.mask else made_brain(header)
        placed = Placed(study, header, mask)
        series_TV = np.empty((header.volumes, int(placed.mask.sum())), dtype=np.float32)
        for number, voxels in enumerate(read_volumes(header)):
            series_TV[number] = placed.volume(voxels)
        columns = confounds.columns if confounds is not None else None
        clean_TV = cleaned(series_TV, repetition_time_s, study.high_pass_s, columns)
        groups = _groups(kept, study)
        samples = np.stack([placed.whole(clean_TV[group].mean(0)) for group, _ in groups])
        states = [events.rows[event].state for _, event in groups]
        return Prepared(
            samples=samples.astype(np.float16),
            labels=_labels(states, study),
            notes=(
                *notes,
                *(() if run.mask else ("has no brain mask; it is made of its mean image",)),
                *events.notes,
                *labelled.notes,
                *(confounds.notes if confounds is not None else ()),
                *jumps,
            ),
            quality=_quality(series_TV, placed, header, confounds),
        )


class _Run(NamedTuple):
    """What reading a run needs, as text: it travels to worker processes."""

    path: str
    events: str
    confounds: str
    mask: str
    said_s: float | None
    home: str
    column: str
    words: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def _in_mni(space: str) -> bool:
    return space.startswith("MNI")


def _as_acquired(space: str) -> bool:
    return space in _AS_ACQUIRED


def _wanted(study: Bold.Study) -> frozenset[str]:
    return frozenset(word for words in study.states.values() for word in words)


def _strange_words(study: Bold.Study, site: Bold.Site) -> Iterable[Finding]:
    """Words of the site file that lead to no state of the study."""
    known = sorted(_wanted(study))
    for ours, word in site.states.items():
        if known and word not in known:
            problem = f'{ours} stands for "{word}", which is no state of the study; '
            yield Finding(what="data.states", problem=problem + nearest(word, known), error=True)


def _mask_of_all(home: Path, site: Bold.Site) -> Path | None:
    if not site.mask:
        return None
    mask = home / site.mask
    if not mask.exists():
        raise DataError(f"data.mask names {mask}, which is not there")
    return mask


def _source(
    run: bids.ScanFile,
    study: Bold.Study,
    site: Bold.Site,
    row: Mapping[str, str],
    folders: Folders,
    home: Path,
    findings: Findings,
) -> Source | None:
    """A run as a source; nothing, and a finding, where its side files tell that it is none."""
    beside: SideFiles = folders.beside(run)
    payload = _Run(
        path=os.fspath(run.path),
        events=beside.events,
        confounds=beside.confounds,
        mask=beside.mask,
        said_s=beside.said_s,
        home=os.fspath(home),
        column=site.event_column,
        words=tuple(sorted(site.states.items())),
        notes=tuple(beside.notes),
    )
    problem = beside.problem
    states: tuple[str, ...] = ()
    if not problem:
        try:
            states = _events(study, payload).states
        except ScanError as error:
            problem = str(error)
    if problem:
        findings.append(Finding(what=run.name, problem=problem, left_out=True))
        return None
    own = canonical([beside.stamp, payload.column, payload.words])
    return Source(
        participant=run.participant,
        scan=run.name,
        stamp=hashlib.sha256(own).hexdigest()[:32],
        row=row,
        payload=payload,
        states=_labels([word for word in states if not study.states or word in _wanted(study)],
                       study),
    )  # fmt: skip


def _events(study: Bold.Study, run: _Run) -> Events:
    return renamed(read_events(Path(run.events), Path(run.home), run.column), dict(run.words))


def _header(study: Bold.Study, run: _Run) -> tuple[Header, float, tuple[str, ...]]:
    """Header and repetition time of a run that is long enough."""
    header = read_header(Path(run.path), series=True)
    if header.volumes < study.least_volumes:
        raise ScanError(
            f"it has {header.volumes} volumes; at least {study.least_volumes} are needed"
        )
    held = header.volumes * math.prod(study.shape)
    if held > _MOST_NUMBERS:
        raise ScanError(
            f"it has {header.volumes:,} volumes, {held:,} voxels on the study's grid; at most "
            f"{_MOST_NUMBERS:,} are held: cut it into runs"
        )
    repetition_time_s, notes = agreed_repetition_time(header.repetition_time_s, run.said_s)
    if study.high_pass_s and study.high_pass_s <= 2 * repetition_time_s:
        raise ScanError(
            f"its volumes are {repetition_time_s:g} s apart; a high-pass of one in "
            f"{study.high_pass_s:g} s needs more"
        )
    return header, repetition_time_s, (*header.notes, *run.notes, *notes)


def _without_jumps(
    labelled: Labelled, confounds: Confounds | None, study: Bold.Study
) -> tuple[Labelled, tuple[str, ...]]:
    """Labelled volumes before which the person did not move too far, and how many did."""
    moved = None if confounds is None else confounds.displacement_mm
    if moved is None or not study.most_jump_mm:
        return labelled, ()
    pairs = zip(labelled.volumes, labelled.events, strict=True)
    still = [(volume, event) for volume, event in pairs if moved[volume] <= study.most_jump_mm]
    gone = len(labelled.volumes) - len(still)
    kept = Labelled(
        volumes=tuple(volume for volume, _ in still), events=tuple(event for _, event in still)
    )
    if not gone:
        return kept, ()
    return kept, (f"{gone} volumes are left out: over {study.most_jump_mm:g} mm from the last",)


def _groups(labelled: Labelled, study: Bold.Study) -> list[tuple[list[int], int]]:
    """The volumes of each sample, and its event."""
    if study.sample == "volume":
        pairs = zip(labelled.volumes, labelled.events, strict=True)
        return [([volume], event) for volume, event in pairs]
    found: dict[int, list[int]] = {}
    for volume, event in zip(labelled.volumes, labelled.events, strict=True):
        found.setdefault(event, []).append(volume)
    return [(volumes, event) for event, volumes in found.items()]


def _labels(states: list[str], study: Bold.Study) -> dict[str, list[str]]:
    """Each sample's state, by vocabulary and in a column of all."""
    found = {
        name: [state if state in words else "" for state in states]
        for name, words in study.states.items()
    }
    return {**found, TRIAL_TYPE: list(states)}


def _quality(
    series_TV: NDArray[np.float32], placed: Placed, header: Header, confounds: Confounds | None
) -> dict[str, float]:
    """Figures by which a person finds the odd runs."""
    spread = series_TV.std(0)
    steady = spread > 0
    figures = {
        "volumes": float(header.volumes),
        "brain_in_grid": placed.share,
        "signal_to_noise": float(np.median(series_TV.mean(0)[steady] / spread[steady]))
        if steady.any()
        else float("nan"),
    }
    moved = None if confounds is None else confounds.displacement_mm
    if moved is not None:
        figures["displacement_mm"] = float(moved.mean())
    return figures
