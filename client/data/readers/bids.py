"""Which scans a BIDS folder holds, of whom, and what its participants.tsv says about them.

Names are listed and taken apart here: `BIDSLayout(validate=False)` needs 2.7 s for 200 scans in a
data set of 8,200 files (2 cores, pybids 0.22), because it indexes every file; this needs 0.01 s.
What the operating system refuses is a finding about that folder or scan: `Path.glob`, `is_file` and
`exists` pass over some refusals in silence and raise others.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.reader import Finding, Findings
from client.data.tables import TextTable, nearest, open_table, passes
from common.errors import DataError, reason
from common.printable import name_as_text

_PARTICIPANT: Final = re.compile(r"sub-[0-9A-Za-z+_-]{1,64}")
_MOST_HINTS: Final = 20
_NOWHERE: Final = "is a link to nothing (an unfetched git-annex file?); fetch the content"
_OTHER_FORMATS: Final = (".hdr", ".img", ".mgz", ".mgh", ".mnc", ".nrrd", ".dcm")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFile:
    """One image file: whose, its name below the root (stable, for people), and where it is.

    `stamp` changes when its content may have.
    """

    participant: str
    session: str
    name: str
    path: Path
    entities: Mapping[str, str]
    stamp: str = ""


@dataclass(slots=True)
class Scans:
    """Image files by participant and name; what was wrong, and of whom something was left out."""

    files: list[ScanFile] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    findings: Findings = field(default_factory=Findings)

    def refuse(self, parts: tuple[str, ...], problem: str) -> None:
        """Leave out the file or folder with these names below the root."""
        self.refused.update(name_as_text(part) for part in parts[:1])
        what = name_as_text("/".join(parts))
        self.findings.append(Finding(what=what, problem=problem, left_out=True))


@dataclass(slots=True)
class People:
    """Rows of participants.tsv by participant, after the row filter; what was wrong there."""

    rows: dict[str, Mapping[str, str]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # rows that contradict each other or are broken
    elsewhere: set[str] = field(default_factory=set)  # another site's, by the row filter
    readable: bool = False
    findings: Findings = field(default_factory=Findings)


def entities(name: str) -> dict[str, str]:
    """The key-value pairs of a BIDS file name.

    >>> entities("sub-01_ses-2_run-1_T1w.nii.gz")
    {'sub': '01', 'ses': '2', 'run': '1'}
    """
    parts = name.partition(".")[0].split("_")[:-1]
    return dict(part.split("-", 1) for part in parts if "-" in part)


def find_scans(
    root: Path,
    folder: str,
    suffix: str,
    wanted: Mapping[str, str],
    links: tuple[Path, ...] = (),
) -> Scans:
    """Every `*_suffix.nii[.gz]` in the anat folders below root/folder, by participant and name.

    `links` are folders that a link may lead to, beside `root`.

    Raises
    ------
    DataError
        If the folder does not exist or cannot be listed.
    """
    base, scans = root / folder, Scans()
    images = sorted(_images(base, scans))
    homes = (root.resolve(), *(_linked(place, scans) for place in links))
    for parts in images:
        stem, dot, ending = parts[-1].partition(".")
        if not stem.endswith(f"_{suffix}") or dot + ending == ".json":
            continue
        found = entities(name_as_text(parts[-1]))
        if any(found.get(key, "") != value for key, value in wanted.items()):
            continue
        path = base.joinpath(*parts)
        problem = _misnamed(parts, dot + ending, found)
        stamp, problem = ("", problem) if problem else _stamp(path, homes)
        if problem:
            scans.refuse(parts, problem)
            continue
        scans.files.append(
            ScanFile(
                participant=name_as_text(parts[0]),
                session=f"ses-{found['ses']}" if "ses" in found else "",
                name=name_as_text("/".join(parts)),
                path=path,
                entities=found,
                stamp=stamp,
            )
        )
    return scans


def _linked(folder: Path, scans: Scans) -> Path:
    """Where a folder that links may lead to really lies; whoever looks at the site is told."""
    try:
        real = folder.resolve(strict=True)
        if not stat.S_ISDIR(real.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except (OSError, RuntimeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"data.links names {folder}, which is not followed: {why}") from None
    problem = f"links in the data folder may lead to {real}"
    scans.findings.append(Finding(what="data.links", problem=problem, left_out=False))
    return real


def _images(base: Path, scans: Scans) -> Iterator[tuple[str, ...]]:
    """Names below `base` of whatever lies in an anat folder."""
    try:
        people = [entry.name for entry in base.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        message = f"{base} does not exist or is not a folder; a BIDS data set is needed"
        raise DataError(message) from None
    except OSError as error:
        raise DataError(f"{base} cannot be listed: {reason(error)}") from None
    for who in people:
        inside = _names(base, (who,), scans) if who.startswith("sub-") else []
        for name in inside:
            anat = (who, name) if name == "anat" else (who, name, "anat")
            if name == "anat" or name.startswith("ses-"):
                for image in _names(base, anat, scans):
                    yield (*anat, image)


def _names(base: Path, parts: tuple[str, ...], scans: Scans) -> list[str]:
    """What a folder holds; nothing, and a finding, if it cannot be listed."""
    path = base.joinpath(*parts)
    try:
        return [entry.name for entry in path.iterdir()]
    except NotADirectoryError:
        return []
    except FileNotFoundError:
        if path.is_symlink():
            scans.refuse(parts, _NOWHERE)
        return []
    except OSError as error:
        scans.refuse(parts, f"cannot be listed: {reason(error)}")
        return []


def read_people(path: Path, wanted: Mapping[str, str]) -> People:
    """The rows of participants.tsv that belong to the site; whatever is wrong becomes a finding.

    Raises
    ------
    DataError
        If the row filter names a column that the table lacks: then no row can be told apart.
    """
    people = People()
    try:
        table = open_table(path, path.parent)
        who = table.column("participant_id")
    except DataError as error:
        problem = f"{error}; scans have no labels"
        people.findings.append(Finding(what=path.name, problem=problem, left_out=False))
        return people
    for name in wanted:
        table.column(name)
    people.readable = True
    try:
        _read_rows(table, who, wanted, people)
    except DataError as error:  # damaged further down: what was read before is kept
        people.findings.append(Finding(what=path.name, problem=str(error), left_out=True))
    return people


def session_rows(path: Path, home: Path) -> dict[str, dict[str, str]]:
    """Rows of a sub-*_sessions.tsv by session: what differs between a participant's visits."""
    try:
        path.lstat()
    except FileNotFoundError:
        return {}
    table = open_table(path, home)
    place = table.column("session_id")
    return {
        line.cells[place]: {
            name: cell for name, cell in table.row(line).items() if name != "session_id"
        }
        for line in table
        if not line.fault
    }


def participant_of(text: str) -> str | None:
    """`sub-01` for "sub-01" or "01"; None for what can be no participant.

    >>> participant_of("01"), participant_of("sub-01"), participant_of("../../etc")
    ('sub-01', 'sub-01', None)
    """
    name = text if text.startswith("sub-") else f"sub-{text}"
    return name if _PARTICIPANT.fullmatch(name) else None


def _read_rows(table: TextTable, who: int, wanted: Mapping[str, str], people: People) -> None:
    first: dict[str, int] = {}
    for line in table:
        what = f"{table.path.name}, line {line.number}"
        participant = participant_of(line.cells[who])
        row = table.row(line)
        problem = line.fault
        if not problem and participant is None:
            problem = f'participant_id is "{line.cells[who][:40]}"; sub-LABEL is needed'
        if problem or participant is None:
            people.findings.append(Finding(what=what, problem=problem, left_out=True))
            if participant:
                people.refused.add(participant)
            continue
        if not passes(row, wanted):
            people.elsewhere.add(participant)
            continue
        if participant in people.rows:
            same = people.rows[participant] == row
            problem = f"{participant} stands in line {first[participant]} already, " + (
                "with the same entries" if same else "with other entries; left out"
            )
            people.findings.append(Finding(what=what, problem=problem, left_out=not same))
            if not same:
                people.refused.add(participant)
            continue
        people.rows[participant] = row
        first[participant] = line.number
    for participant in people.refused:
        people.rows.pop(participant, None)


def absent(people: People, scans: Scans, filtered: bool) -> Findings:
    """Participants without a scan, and scans without a row; a refused scan is told already."""
    findings, hinted = Findings(), 0
    scanned = dict.fromkeys(scan.participant for scan in scans.files)
    for participant in people.rows:
        if participant not in scanned and participant not in scans.refused:
            findings.append(
                Finding(what=participant, problem="has a row but no scan", left_out=True)
            )
    rows = list(people.rows)
    known = people.rows.keys() | people.refused | people.elsewhere
    for participant in scanned:
        if people.readable and participant not in known:
            hinted += 1  # each hint compares one name with all others
            hint = nearest(participant, rows) if rows and hinted <= _MOST_HINTS else ""
            problem = "has scans but no row in participants.tsv" + (f"; {hint}" if hint else "")
            findings.append(Finding(what=participant, problem=problem, left_out=filtered))
    return findings


def _misnamed(parts: tuple[str, ...], ending: str, found: Mapping[str, str]) -> str:
    if ending not in (".nii", ".nii.gz"):
        known = ending.lower().removesuffix(".gz") in _OTHER_FORMATS
        return f"is {ending or 'no image'}; " + (
            "convert it to NIfTI (.nii.gz)" if known else "a NIfTI file (.nii.gz) is needed"
        )
    folders = [name_as_text(part) for part in parts[:-1] if part != "anat"]
    own = [f"sub-{found.get('sub')}", *([f"ses-{found['ses']}"] if "ses" in found else [])]
    if folders != own:
        return f"is named {'_'.join(own)} but lies in {'/'.join(folders)}"
    return ""


def _stamp(path: Path, homes: tuple[Path, ...]) -> tuple[str, str]:
    """What changes when the content of an image may have; or why it is not followed or read."""
    try:
        real, state = path.resolve(strict=True), path.stat()
    except (FileNotFoundError, RuntimeError):  # the second for links that lead to each other
        return "", _NOWHERE if path.is_symlink() else "is gone since the folder was listed"
    except OSError as error:
        return "", f"cannot be read: {reason(error)}"
    if not any(real.is_relative_to(home) for home in homes):
        return "", (
            f"is a link out of the data folder, to {real}; it is not followed; to allow it, list "
            "a folder around that place under data.links in the site file"
        )
    if not stat.S_ISREG(state.st_mode):
        return "", "is not a file"
    return f"{state.st_size}-{state.st_mtime_ns}", ""
