"""Where links among a site's files may lead: inside their folder, or where the site file says."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from client.data.finding import Finding, Findings
from common.errors import DataError, reason

NOWHERE: Final = "is a link to nothing (an unfetched git-annex file?); fetch the content"


def homes_of(root: Path, links: Sequence[Path], findings: Findings) -> tuple[Path, ...]:
    """Folders that links may lead to; whoever looks at the site is told of those in `links`.

    Raises
    ------
    DataError
        If one of them is no folder.
    """
    return (root.resolve(), *(_linked(place, findings) for place in links))


def stamp_of(path: Path, homes: tuple[Path, ...]) -> tuple[str, str]:
    """What changes when a file's content may have; or else why it is not followed or read."""
    try:
        real, state = path.resolve(strict=True), path.stat()
    except (FileNotFoundError, RuntimeError):  # the second for links that lead to each other
        return "", NOWHERE if path.is_symlink() else "is gone since the folder was listed"
    except OSError as error:
        return "", f"cannot be read: {reason(error)}"
    if astray := outside(real, homes):
        return "", astray
    if not stat.S_ISREG(state.st_mode):
        return "", "is not a file"
    return f"{state.st_size}-{state.st_mtime_ns}", ""


def outside(real: Path, homes: tuple[Path, ...]) -> str:
    """Why a link to `real` is not followed; nothing if it may be."""
    if any(real.is_relative_to(home) for home in homes):
        return ""
    return (
        f"is a link out of the data folder, to {real}; it is not followed; to allow it, list "
        "a folder around that place under data.links in the site file"
    )


def _linked(folder: Path, findings: Findings) -> Path:
    """Where a folder that links may lead to really lies."""
    try:
        real = folder.resolve(strict=True)
        if not stat.S_ISDIR(real.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except (OSError, RuntimeError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"data.links names {folder}, which is not followed: {why}") from None
    problem = f"links in the data folder may lead to {real}"
    findings.append(Finding(what="data.links", problem=problem, left_out=False))
    return real
