"""Columns of a table that cannot well be what they are called, as far as one site can see it.

All the same, copies of each other, codes for missing values among numbers. What only shows beside
other sites, a unit above all, is told at the census (`common.column_units`).

Letters: N rows, F columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding

_ENOUGH: Final = 10  # rows; of fewer, whole numbers are easily alike
_MOST_TOLD: Final = 5
_CODES: Final = (-9999.0, -999.0, -99.0, 999.0, 9999.0, 99999.0, 999999.0)
_FAR: Final = 5.0  # ranges of all other rows between a code and them

Columns = NDArray[np.float32]


def column_findings(names: Sequence[str], wide: Columns) -> Iterator[Finding]:
    """What is odd about the columns (N, F) of a site's usable rows; NaN where one is missing."""
    if len(wide) < _ENOUGH:
        return
    yield from _unvaried(names, wide)
    yield from _copies(names, wide)
    yield from _codes(names, wide)


def _unvaried(names: Sequence[str], wide: Columns) -> Iterator[Finding]:
    """Columns that hold the same for everyone: zeros of a pipeline that did not measure, say."""
    still = np.flatnonzero((wide == wide[0]).all(axis=0)).tolist()
    if len(still):
        told = _listed([f"{names[place]} ({wide[0, place]:g})" for place in still])
        problem = (
            f"{told} {'are' if len(still) > 1 else 'is'} the same in all {len(wide)} rows: was it "
            "measured here?"
        )
        yield Finding(what="columns", problem=problem)


def _copies(names: Sequence[str], wide: Columns) -> Iterator[Finding]:
    """Columns that hold what another one holds: pasted twice under two names."""
    first: dict[bytes, int] = {}
    pairs = []
    varies = (wide != wide[0]).any(axis=0) & ~np.isnan(wide).all(axis=0)
    for place in np.flatnonzero(varies).tolist():
        other = first.setdefault(wide[:, place].tobytes(), place)
        if other != place:
            pairs.append(f"{names[other]} and {names[place]}")
    if pairs:
        problem = (
            f"{_listed(pairs)} hold the same in all {len(wide)} rows: one of the two is a copy; "
            "give each its own numbers, or map it by data.rename"
        )
        yield Finding(what="columns", problem=problem, error=True)


def _codes(names: Sequence[str], wide: Columns) -> Iterator[Finding]:
    """Numbers that stand for nothing, far from what everyone else has."""
    told = []
    for code in _CODES:
        coded = wide == np.float32(code)
        for place in np.flatnonzero(coded.any(axis=0)).tolist():
            known = ~coded[:, place] & ~np.isnan(wide[:, place])
            others: NDArray[Any] = wide[known, place].astype(np.float64)
            if 2 * len(others) <= len(wide):
                continue
            low, high = others.min(), others.max()
            if not low - _FAR * (high - low) <= code <= high + _FAR * (high - low):
                told.append(f"{code:g} in {coded[:, place].sum()} rows of {names[place]}")
    if told:
        problem = (
            f"{_listed(told)}, far from all others: a code for what is missing? Leave such cells "
            "empty"
        )
        yield Finding(what="columns", problem=problem, error=True)


def _listed(told: Sequence[str]) -> str:
    more = f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return ", ".join(told[:_MOST_TOLD]) + more
