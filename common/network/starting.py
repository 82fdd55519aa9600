"""Where a run begins: which arrays of an earlier checkpoint it takes, told by the study alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from common.arrays import Arrays
from common.network.merging import is_added
from common.sections import Start


def names_taken(start: Start, names: Iterable[str]) -> list[str]:
    """Which of a network's arrays come from the checkpoint, sorted.

    >>> start = Start(study="a", take="backbone", leave=("backbone.place",), arrays="0" * 64,
    ...               contributors=("b",))
    >>> names_taken(start, ["heads.age.bias", "backbone.top.weight", "backbone.place"])
    ['backbone.top.weight']
    """
    return sorted(
        name
        for name in names
        if (start.take == "all" or name.startswith("backbone."))
        and not is_added(name)
        and not name.startswith(start.leave or "\0")
    )


def taken(start: Start, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Those of `arrays` that come from the checkpoint; what its rounds added is put into them."""
    return {name: arrays[name] for name in names_taken(start, arrays)}
