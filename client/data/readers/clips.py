"""Which clips lie below a folder: folders of numbered frames, and films of one file.

As in `bids`, what the operating system refuses is a finding about that folder or clip.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.finding import Finding, Findings
from client.data.readers.frames import CLIPS, FRAMES, MOST_FRAMES
from client.data.readers.links import NOWHERE, homes_of, outside, stamp_of
from common.errors import DataError, reason
from common.printable import name_as_text

_DEEPEST: Final = 16  # folders below the root
_FILMS: Final = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_NUMBER: Final = re.compile(r"(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFile:
    """One clip: its name below the root as text, the folder that it lies in, and its files.

    `frames` are names in the folder `path`, in order; without any, `path` is a film of one file.
    """

    name: str
    folder: str
    path: Path
    frames: tuple[str, ...] = ()


@dataclass(slots=True)
class Clips:
    """Clips by name; what was wrong, and which clips were left out for it."""

    files: list[ClipFile] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    findings: Findings = field(default_factory=Findings)
    homes: tuple[Path, ...] = ()

    def refuse(self, parts: Iterable[str], problem: str) -> None:
        """Leave out the file or folder with these names below the root."""
        self.leave_out(name_as_text("/".join(parts)) or ".", problem)

    def leave_out(self, name: str, problem: str) -> None:
        """Leave out the clip of this name."""
        self.refused.add(name)
        self.findings.append(Finding(what=name, problem=problem, left_out=True))


@dataclass(slots=True)
class _Walk:
    """What is still to be listed, links last: a folder that is reached twice keeps its own name."""

    base: Path
    table: Path | None
    seen: set[tuple[int, int]] = field(default_factory=set)
    others: list[str] = field(default_factory=list)
    waiting: list[tuple[str, ...]] = field(default_factory=lambda: [()])
    links: list[tuple[str, ...]] = field(default_factory=list)


def find_clips(base: Path, links: tuple[Path, ...] = (), table: Path | None = None) -> Clips:
    """Every clip below `base`, by name in natural order; `table` is no stranger there.

    Raises
    ------
    DataError
        If the folder does not exist or cannot be listed.
    """
    clips, walk = Clips(), _Walk(base, table)
    try:
        next(base.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        message = f"{base} does not exist or is not a folder; a folder of clips is needed"
        raise DataError(message) from None
    except OSError as error:
        raise DataError(f"{base} cannot be listed: {reason(error)}") from None
    clips.homes = homes_of(base, links, clips.findings)
    while walk.waiting or walk.links:
        parts = walk.waiting.pop() if walk.waiting else walk.links.pop()
        if _is_new(parts, walk, clips):
            _look_into(parts, walk, clips)
    if walk.others:
        names = ", ".join(sorted(walk.others)[:3])
        problem = (
            f"{len(walk.others):,} files are neither frames nor clips and are not read: {names}"
        )
        clips.findings.append(Finding(what="other files", problem=problem))
    clips.files.sort(key=lambda clip: natural(clip.name))
    return clips


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts numbers inside names by their size.

    >>> sorted(["frame_10.png", "frame_9.png", "frame_09.png"], key=lambda n: (natural(n), n))
    ['frame_09.png', 'frame_9.png', 'frame_10.png']
    """
    parts = _NUMBER.split(name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts)


def stamp_of_clip(
    clip: ClipFile, frames: Iterable[str], homes: tuple[Path, ...]
) -> tuple[str, str]:
    """What changes when the frames that are taken may have; or why one of them is not read."""
    if not clip.frames:
        return stamp_of(clip.path, homes)
    stamps: dict[str, str] = {}
    for name in frames:
        if name not in stamps:
            stamp, problem = stamp_of(clip.path / name, homes)
            if problem:
                return "", f"{name_as_text(name)} {problem}"
            stamps[name] = f"{name_as_text(name)} {stamp}"
    return "\n".join(stamps.values()), ""


def _is_new(parts: tuple[str, ...], walk: _Walk, clips: Clips) -> bool:
    """Whether a folder may be looked into, and was not under another name."""
    path = walk.base.joinpath(*parts)
    try:
        real, state = path.resolve(strict=True), path.stat()
    except (OSError, RuntimeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        clips.refuse(parts, f"cannot be read: {why}")
        return False
    problem = outside(real, clips.homes)
    if not problem and (state.st_dev, state.st_ino) in walk.seen:
        problem = "is a link to a folder that is read already"
    if not problem and len(parts) > _DEEPEST:
        problem = f"lies more than {_DEEPEST} folders deep"
    walk.seen.add((state.st_dev, state.st_ino))
    if problem:
        clips.refuse(parts, problem)
    return not problem


def _look_into(parts: tuple[str, ...], walk: _Walk, clips: Clips) -> None:
    """Sort what one folder holds into frames, films, folders and the rest."""
    frames: list[str] = []
    path = walk.base.joinpath(*parts)
    try:
        entries = list(os.scandir(path))
    except OSError as error:
        clips.refuse(parts, f"cannot be listed: {reason(error)}")
        return
    for entry in entries:
        name = entry.name
        match _sort_of(entry):
            case "folder":
                (walk.links if entry.is_symlink() else walk.waiting).append((*parts, name))
            case "frame":
                frames.append(name)
            case "clip":
                clips.files.append(_clip((*parts, name), path / name))
            case "film":
                clips.refuse((*parts, name), "is a film; save its frames as PNG or JPEG")
            case "nowhere":
                clips.refuse((*parts, name), NOWHERE)
            case "other" if path / name != walk.table:
                walk.others.append(name_as_text("/".join((*parts, name))))
    if frames:
        _take(parts, path, frames, clips)


def _sort_of(entry: os.DirEntry[str]) -> str:
    """What an entry of a folder seems to be, by its name; "" if it is hidden."""
    ending = Path(entry.name).suffix.lower()
    if entry.name.startswith("."):
        return ""
    try:
        if entry.is_dir():
            return "folder"
    except OSError:  # told when it is read
        pass
    if ending in FRAMES:
        return "frame"
    if ending in CLIPS:
        return "clip"
    if entry.is_symlink() and not Path(entry.path).exists():
        return "nowhere"
    return "film" if ending in _FILMS else "other"


def _take(parts: tuple[str, ...], path: Path, frames: list[str], clips: Clips) -> None:
    """A folder of frames is a clip, unless it is the root or has too many."""
    if not parts:
        clips.refuse(parts, "holds frames; a folder for each clip is needed")
    elif len(frames) > MOST_FRAMES:
        clips.refuse(parts, f"has {len(frames):,} frames; at most {MOST_FRAMES:,} are read")
    else:
        frames.sort(key=lambda name: (natural(name), name))
        clips.files.append(_clip(parts, path, tuple(frames)))


def _clip(parts: tuple[str, ...], path: Path, frames: tuple[str, ...] = ()) -> ClipFile:
    folder = name_as_text(parts[-2]) if len(parts) > 1 else ""
    return ClipFile(name=name_as_text("/".join(parts)), folder=folder, path=path, frames=frames)
