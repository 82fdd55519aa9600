"""JSON tables of a run folder: written whole or not at all, some under a seal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from common.errors import DamagedError, FolderError
from common.protocol.bounded_json import parsed
from common.runtime.durable import write_atomically

_SEAL: Final = "sha256"  # in a table: the digest of all its other entries


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table of a run folder; `DamagedError` if the file holds none."""
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FolderError(f"{path.parent} is not a run: {path} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path} cannot be read: it holds no table")
    return found


def read_refused(path: Path) -> dict[str, str]:
    """Who declined the orders of a folder, and with which code."""
    found = read_json(path)
    if not all(isinstance(code, str) for code in found.values()):
        raise DamagedError(f"{path} cannot be read: it holds something else than codes")
    return found


def write_sealed(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON table with the digest of its content, for `read_sealed`."""
    plain = {name: value for name, value in table.items() if name != _SEAL}
    write_json(path, {**plain, _SEAL: _seal(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """A table that `write_sealed` wrote, as it was written.

    Raises
    ------
    DamagedError
        If it was changed since.
    """
    found = read_json(path)
    check_seal(found, path)
    return found


def check_seal(table: dict[str, Any], path: Path) -> None:
    """Take the seal off a table; `DamagedError` if it is another table's."""
    if table.pop(_SEAL, None) != _seal(table):
        raise DamagedError(
            f"{path} is no longer what was written; put it back from a backup, or give a new --out"
        )


def _seal(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
