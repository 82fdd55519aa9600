"""A folder that is one user's alone: no link in it is followed, nothing in it is another's.

Whoever could put a link into a site's state would have the agent write, or read, elsewhere; whoever
owns a file there may change what was spent. What this process writes into such a folder is the
user's alone from the first byte on, whatever the umask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from common.errors import FolderError

_OTHERS = 0o077
_private: set[Path] = set()  # folders that this process has looked through


def own_folder(folder: Path) -> None:
    """Make `folder` with mode 0700, or take what is there after `check_own`."""
    if not os.path.lexists(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    check_own(folder)


def check_own(folder: Path) -> None:
    """Look through `folder`, if it is there, and take from others what they may do in it.

    Raises
    ------
    FolderError
        If it is or holds a link, a device or a pipe, or belongs to another user, in any part.
    """
    _private.add(folder.absolute())
    for path in _below(folder):
        found = path.lstat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise FolderError(
                f"{path} is a link or no file; in {folder} nothing of that kind is followed. Look "
                "who made it, and put the file or folder itself there"
            )
        if found.st_uid != os.geteuid():
            raise FolderError(
                f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}; {folder} is "
                "one user's alone. Give the command as the agent's user (sudo -u USER ...), or all "
                "of the folder to that user (chown -R)"
            )
        if found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def as_folder(path: str, flags: int) -> int:
    """Open a file as closed as the folder that it lies in: for `open(..., opener=as_folder)`."""
    return os.open(path, flags, mode_in(Path(path).parent))


def mode_in(folder: Path, mode: int = 0o666) -> int:
    """What of `mode` is given in `folder`: nothing to others, if it is or lies in a private one."""
    private = not _private.isdisjoint({folder.absolute(), *folder.absolute().parents})
    return mode & ~_OTHERS if private else mode


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it that are missing, private ones for their user alone."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=mode_in(place, 0o777), exist_ok=True)


def _below(folder: Path) -> Iterator[Path]:
    """`folder` and all that is in it; links are told and not followed."""
    if not os.path.lexists(folder):
        return
    yield folder
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
