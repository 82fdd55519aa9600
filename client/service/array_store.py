"""Arrays that came to a site once and are named by their digest ever after.

What no site ever trains (the frozen base of adapters, say), and what several fine-tuning orders
start from, need not travel with every order. The store holds the newest few sets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from common.arrays import Arrays
from common.errors import DamagedError
from common.protocol.orders import digest_of
from common.protocol.wire import open_arrays, write_arrays

_MOST: Final = 8  # sets; each may be as large as a network


@dataclass(frozen=True, slots=True)
class ArrayStore:
    """The sets of one site, a file each, named by digest."""

    folder: Path

    def holds(self) -> tuple[str, ...]:
        """Digests of the sets that are here, sorted."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.safetensors")))

    def put(self, digest: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a set, and let go of the oldest beyond the newest few."""
        path = self._path(digest)
        if path.exists():
            os.utime(path)  # it is used again
        else:
            write_arrays(path, arrays, {})
        by_age = sorted(self.folder.glob("*.safetensors"), key=lambda each: each.stat().st_mtime_ns)
        for old in by_age[:-_MOST]:
            old.unlink(missing_ok=True)

    def get(self, digest: str) -> Arrays | None:
        """A set, or None if it is not here or no longer what it was."""
        path = self._path(digest)
        try:
            with open_arrays(path) as file:
                arrays = file.all()
        except DamagedError:
            arrays = None
        if arrays is None or digest_of(arrays) != digest:
            path.unlink(missing_ok=True)
            return None
        return arrays

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"
