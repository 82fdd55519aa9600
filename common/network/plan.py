"""A network's arrays by name, with the rules they obey: what both ends know without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.seams import FROZEN, SHARED, SITE

Role = Literal["parameter", "statistic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What both ends know about one array.

    group: what it is averaged by (`common.seams`), or that it stays at its site or is frozen.
    role: a server optimiser moves parameters; statistics are averaged plainly.
    kept: a training site goes on from its own copy and leaves the global one to unseen sites.
    """

    shape: tuple[int, ...]
    dtype: str
    group: str
    role: Role
    kept: bool

    @property
    def travels(self) -> bool:
        """Whether a training report holds this array."""
        return self.group not in (SITE, FROZEN)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def as_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata."""
        return {**asdict(self), "shape": list(self.shape)}


Plan = dict[str, Rule]


def rules_of(arrays: Mapping[str, NDArray[Any]]) -> Plan:
    """Rules that allow just these arrays."""
    return {
        name: Rule(
            shape=array.shape, dtype=str(array.dtype), group=SHARED, role="statistic", kept=False
        )
        for name, array in arrays.items()
    }
