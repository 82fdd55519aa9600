"""Reads clips of moving pictures, with what a table or their folders say of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np

from client.data.finding import Finding, Join
from client.data.identity import ambiguous, name_in_table
from client.data.reader import Found, Prepared, Source
from client.data.readers.clips import ClipFile, Clips, find_clips, stamp_of_clip
from client.data.readers.frames import (
    check_frames,
    chosen,
    length_of,
    read_file,
    read_frames,
    scaled,
)
from client.data.tables import Filtered, Line, TextTable, nearest, open_table
from common.errors import DataError, ScanError
from common.kinds.video import Video

_FOLDER: Final = "folder"  # what a clip's folder is called among the columns
_MOST_HINTS: Final = 20
_NOBODY: Final = ("", "n/a", "na", "nan", "-9999")


class VideoReader:
    """Folders of PNG or JPEG frames, and GIF, APNG, WebP and TIFF films."""

    version: ClassVar[int] = 1

    @staticmethod
    def find(study: Video.Study, site: Video.Site, root: Path, columns: frozenset[str]) -> Found:
        """Every clip below the site's folder that a table does not give to others.

        Raises
        ------
        DataError
            If the folder is absent, or the table is and says whose the clips are.
        """
        table = root / site.table if site.table else None
        links = tuple(root / place for place in site.links)
        clips = find_clips(root / site.root, links, table)
        known = _read_table(site, root, columns, clips)
        sources = [
            source
            for clip in clips.files
            if known.takes(clip.name) and (source := _source(clip, study, known, clips)) is not None
        ]
        if not sources:
            problem = "no usable clip; a clip is a folder of PNG or JPEG frames, or one GIF or TIFF"
            clips.findings.append(
                Finding(what=str(root / site.root), problem=problem, left_out=True)
            )
        return Found(
            sources=tuple(sources),
            findings=clips.findings.told(),
            joins=known.joins,
            columns=(*known.columns, *(() if _FOLDER in known.columns else (_FOLDER,))),
        )

    @staticmethod
    def inspect(study: Video.Study, source: Source) -> tuple[str, ...]:
        """Notes on a clip from its headers alone.

        Raises
        ------
        ScanError
            If headers alone tell that the clip cannot be used.
        """
        payload: _Payload = source.payload
        if payload.frames:
            check_frames(payload.paths)
            return _notes(payload.total, study)
        total = length_of(Path(payload.path))
        chosen(total, study.shape[0], study.stride)
        return _notes(total, study)

    @staticmethod
    def prepare(study: Video.Study, source: Source) -> Prepared:
        """The clip: (1, T, Y, X) float16.

        Raises
        ------
        ScanError
            With what was found and what was needed.
        """
        payload: _Payload = source.payload
        if payload.frames:
            clip, total = read_frames(payload.paths, *study.shape[1:]), payload.total
        else:
            clip, total = read_file(Path(payload.path), study.shape, study.stride)
        sample = scaled(clip, study.intensity).astype(np.float16)
        return Prepared(samples=sample[None], notes=_notes(total, study))


class _Payload(NamedTuple):
    """A folder and the frames that are taken of `total`; or a film, without any."""

    path: str
    frames: tuple[str, ...]
    total: int

    @property
    def paths(self) -> list[Path]:
        """The frames, where they lie."""
        return [Path(self.path, name) for name in self.frames]


@dataclass(slots=True)
class _Known:
    """What is known of clips by name, from a table; without one, all are taken.

    needs_row: whether a clip that no row names is another's, or nobody's. elsewhere: clips that are
    another site's by the row filter. refused: clips that nobody can tell whose they are.
    """

    rows: dict[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    needs_row: bool = False
    elsewhere: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    joins: tuple[Join, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether a clip is the site's to use."""
        return name not in self.refused and (name in self.rows or not self.needs_row)


def _source(clip: ClipFile, study: Video.Study, known: _Known, clips: Clips) -> Source | None:
    """A clip as a source; nothing, and a finding, if its files tell that it is none."""
    frames: tuple[str, ...] = ()
    problem = ""
    try:
        if clip.frames:
            taken = chosen(len(clip.frames), study.shape[0], study.stride)
            frames = tuple(clip.frames[place] for place in taken)
    except ScanError as error:
        problem = str(error)
    stamp, astray = stamp_of_clip(clip, frames, clips.homes)
    if problem or astray:
        clips.leave_out(clip.name, problem or astray)
        return None
    participant, row = known.rows.get(clip.name, (clip.name, {}))
    if clip.frames:
        text = f"{len(clip.frames)}\n{stamp}"
        stamp = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Source(
        participant=participant,
        scan=clip.name,
        stamp=stamp,
        row={_FOLDER: clip.folder, **row},
        payload=_Payload(os.fspath(clip.path), frames, len(clip.frames)),
    )


def _notes(total: int, study: Video.Study) -> tuple[str, ...]:
    if study.stride or total >= study.shape[0]:
        return ()
    return (f"has {total} frames for the study's {study.shape[0]}; some stand twice",)


def _read_table(site: Video.Site, root: Path, columns: frozenset[str], clips: Clips) -> _Known:
    """What the site's table says of the clips, and how the two fit."""
    if not site.table:
        return _Known()
    decides = bool(site.participant or site.rows)
    try:
        table = open_table(root / site.table, root)
        known = _rows_of(table, site, columns, clips)
    except DataError as error:
        if decides:  # then nobody can tell whose the clips are
            raise
        problem = f"{error}; nothing is known of the clips but their folders"
        clips.findings.append(Finding(what=site.table, problem=problem, error=True))
        return _Known()
    known.needs_row = decides
    _tell_of_join(table.path.name, known, clips)
    return known


def _rows_of(table: TextTable, site: Video.Site, columns: frozenset[str], clips: Clips) -> _Known:
    which = table.column(site.clip)
    who = table.column(site.participant) if site.participant else None
    wanted = {table.column(name): value for name, value in site.rows.items()}
    filtered, kept = Filtered(wanted, table.columns), table.picker(columns)
    known, first = _Known(columns=table.columns), dict[str, int]()
    for line in table:
        if not line.fault and not filtered.passes(line):
            known.elsewhere.add(line[which].strip("/"))
            continue
        name, problem = line[which].strip("/"), line.fault
        person = _person(line, who, name)
        if not problem and not name:
            problem = "names no clip"
        elif not problem and not person:
            problem = f"names nobody in {site.participant}"
        elif not problem and name in known.rows:
            problem = f"names {name}, as line {first[name]} does; neither is used"
            known.refused.add(name)
        if problem:
            what = f"{table.path.name}, line {line.number}"
            clips.findings.append(Finding(what=what, problem=problem, left_out=True))
            continue
        known.rows[name], first[name] = (person, kept(line)), line.number
    _refuse_doubtful(known, table, clips)
    clips.findings.extend(filtered.findings(table.path.name))
    return known


def _person(line: Line, who: int | None, clip: str) -> str:
    """Whose clip a row is about; "" where it does not say."""
    if who is None:
        return clip
    name = None if line[who].casefold() in _NOBODY else name_in_table(line[who])
    return name.participant if name else ""


def _refuse_doubtful(known: _Known, table: TextTable, clips: Clips) -> None:
    """Leave out people whose names could be two spellings of one."""
    people = dict.fromkeys(person for clip, (person, _) in known.rows.items() if person != clip)
    doubtful = ambiguous(people)
    for name, other in doubtful.items():
        problem = f'"{name}" and "{other}" may be one person; give each one spelling'
        clips.findings.append(Finding(what=table.path.name, problem=problem, left_out=True))
    known.refused |= {clip for clip, (person, _) in known.rows.items() if person in doubtful}


def _tell_of_join(table: str, known: _Known, clips: Clips) -> None:
    """Rows without a clip, clips without a row; an error where hardly any meet."""
    there = {clip.name for clip in clips.files} - (known.elsewhere - known.rows.keys())
    both = len(there & known.rows.keys())
    join = Join(
        what=table,
        rows=len(known.rows),
        matched_rows=both,
        others=len(there),
        matched_others=both,
        other="clips",
    )
    known.joins = (join,)
    for name in known.rows:
        if name in there or name in clips.refused:
            continue
        clips.findings.append(Finding(what=name, problem="has a row but no clip", left_out=True))
    lacking = [clip.name for clip in clips.files if clip.name in there - known.rows.keys()]
    for number, name in enumerate(lacking):
        hint = f"; {nearest(name, list(known.rows))}" if number < _MOST_HINTS and known.rows else ""
        problem = f"has no row in {table}{hint}"
        clips.findings.append(Finding(what=name, problem=problem, left_out=known.needs_row))
    if join.hardly:
        problem = (
            f"hardly any of its {join.rows} rows names one of {join.others} clips; the column of "
            f"data.clip has each clip's path below the root, such as {next(iter(lacking), '')}"
        )
        clips.findings.append(Finding(what=table, problem=problem, error=True))
