"""Arrays of a network with low-rank additions, and those of the same network without; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.arrays import Arrays

PLACE: Final = "low_rank"  # of an addition, inside the layer that it stands beside


def is_added(name: str) -> bool:
    """Whether an array belongs to an addition.

    >>> is_added("backbone.blocks.0.attention.look.low_rank.up"), is_added("backbone.top.weight")
    (True, False)
    """
    return f".{PLACE}." in name


def merged(arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The arrays of the same network without additions: each weight with its own put in.

    In float64, so that the result does not depend on how a machine adds.
    """
    if not any(map(is_added, arrays)):
        return arrays
    plain: Arrays = {}
    for name in arrays:
        if is_added(name):
            continue
        place = name.removesuffix("weight") + f"{PLACE}."
        plain[name] = arrays[name]
        if name.endswith(".weight") and f"{place}up" in arrays:
            up, down = (arrays[f"{place}{one}"].astype(np.float64) for one in ("up", "down"))
            more = np.einsum("or,r...->o...", up, down)
            plain[name] = (arrays[name] + more).astype(arrays[name].dtype)
    return plain
