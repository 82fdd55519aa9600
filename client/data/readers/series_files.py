"""Which files of time series a site holds, and of whom: one entry a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from client.data.finding import Finding
from client.data.identity import ambiguous, bids_participant, bids_session, name_in_table
from client.data.readers.bids import ScanFile, Scans, entities
from client.data.readers.links import homes_of, stamp_of
from client.data.readers.series import ARCHIVE, ENDINGS, ending_of, members_of
from client.data.tables import nearest
from common.errors import DataError, ScanError, reason
from common.printable import name_as_text

_WHO, _WHEN = "participant", "session"
MEMBER: Final = "member"  # among a run's entities: which array of an archive it is


def find_series(root: Path, pattern: str, links: tuple[Path, ...] = ()) -> Scans:
    """Every run below `root` in files named by `pattern`, by participant and name.

    Raises
    ------
    DataError
        If the folder does not exist or cannot be listed.
    """
    scans = Scans()
    scans.homes = homes_of(_folder(root), links, scans.findings)
    seen: list[str] = []
    for parts, named in _matching(root, (), _parts(pattern), {}, scans, seen):
        path = root.joinpath(*parts)
        stamp, problem = stamp_of(path, scans.homes)
        if not problem and not ending_of(parts[-1]):
            problem = f"is no file of time series; read are {', '.join(ENDINGS)}"
        try:
            runs = [] if problem else _runs(path, parts, named, stamp, scans)
        except ScanError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot be read: {reason(error)}"
        if problem:
            scans.refuse(parts, problem)
            continue
        scans.files += runs
    if not scans.files:
        hint = f"; {nearest(pattern, seen)}" if seen else ""
        problem = f'no usable file is named "{pattern}" (data.files){hint}'
        scans.findings.append(Finding(what=str(root), problem=problem, left_out=True))
    _refuse_doubtful(scans)
    scans.files.sort(key=lambda scan: (scan.participant, scan.name))
    return scans


def _folder(root: Path) -> Path:
    try:
        next(root.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        message = f"{root} does not exist or is not a folder; a folder of time series is needed"
        raise DataError(message) from None
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {reason(error)}") from None
    return root


def _parts(pattern: str) -> list[re.Pattern[str]]:
    """An expression for each folder and for the file."""
    words = {"*": ".*", "{participant}": f"(?P<{_WHO}>.+?)", "{session}": f"(?P<{_WHEN}>.+?)"}
    found = []
    for part in pattern.split("/"):
        pieces = re.split(r"(\*|\{participant\}|\{session\})", part)
        found.append(re.compile("".join(words.get(piece, re.escape(piece)) for piece in pieces)))
    return found


def _matching(
    root: Path,
    above: tuple[str, ...],
    parts: Sequence[re.Pattern[str]],
    named: dict[str, str],
    scans: Scans,
    seen: list[str],
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Names below `root` that fit, each with what stood for participant and session."""
    try:
        names = sorted(entry.name for entry in root.joinpath(*above).iterdir())
    except NotADirectoryError:
        return
    except OSError as error:
        scans.refuse(above, f"cannot be listed: {reason(error)}")
        return
    for name in names:
        if name.startswith("."):
            continue
        found = parts[0].fullmatch(name)
        if found is None:
            seen.append(name_as_text("/".join((*above, name))))
            continue
        told = {**named, **found.groupdict()}
        if len(parts) == 1:
            yield (*above, name), told
        else:
            yield from _matching(root, (*above, name), parts[1:], told, scans, seen)


def _runs(
    path: Path, parts: tuple[str, ...], named: dict[str, str], stamp: str, scans: Scans
) -> list[ScanFile]:
    """A file's run, or an archive's runs."""
    name = name_as_text("/".join(parts))
    if not path.name.endswith(ARCHIVE):
        stem = name_as_text(parts[-1])[: -len(ending_of(parts[-1]))]
        who = _whose(named, entities(stem + "_"))
        if who is None:
            raise ScanError("names nobody; sub-LABEL is needed, or {participant} in data.files")
        return [ScanFile(participant=who[0], session=who[1], name=name, path=path,
                         entities=entities(stem + "_"), stamp=stamp)]  # fmt: skip
    found = []
    for member, content in sorted(members_of(path).items()):
        own = name_in_table(member)
        by_member = {"sub": own.participant, "ses": own.session} if own else {}
        who = _whose(named, by_member)
        if who is None:
            problem = "is an array's name, and names nobody; sub-LABEL is needed"
            scans.refuse((*parts, member), problem)
            continue
        found.append(
            ScanFile(
                participant=who[0], session=who[1], name=f"{name}/{name_as_text(member)}",
                path=path, entities={**entities(member + "_"), MEMBER: member},
                stamp=f"{stamp}-{content}",
            )
        )  # fmt: skip
    if not found:
        raise ScanError("is an archive without an array that names somebody")
    return found


def _whose(named: dict[str, str], entries: dict[str, str]) -> tuple[str, str] | None:
    """Participant and session ("" without one); None where nobody is named."""
    who = bids_participant(name_as_text(named.get(_WHO) or entries.get("sub", "")))
    when = bids_session(name_as_text(named.get(_WHEN) or entries.get("ses", "")))
    return None if who is None else (who, when)


def _refuse_doubtful(scans: Scans) -> None:
    """Leave out people whose names could be two spellings of one."""
    doubtful = ambiguous(dict.fromkeys(scan.participant for scan in scans.files))
    for name, other in doubtful.items():
        scans.refuse((name,), f"may be {other} in another spelling; give each person one")
    scans.files = [scan for scan in scans.files if scan.participant not in doubtful]
