"""Updates as whole numbers modulo 2**32, and the few numbers beside them modulo 2**64.

A site's update is weighted by its share of the training data and written in steps, so small that
all sites' together stay below half the ring: their sum is exact, in whatever order it is made. As
many bytes travel as float32 takes. Rings are held as signed integers of the same bits.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal

HALF: Final = 2**31 - 1
_FRACTION: Final = 2**24  # steps of one, of sums of losses and metrics
_MOST: Final = 2**52  # of such a sum in steps: float64 holds it exactly, and 2,000 sites fit


def steps_of_one(sites: int) -> int:
    """Into how many steps the largest update is divided, where so many sites round their own.

    >>> steps_of_one(8)
    2147483639
    """
    return HALF - sites


def encoded(
    update: NDArray[np.float64], share: float, largest: float, sites: int
) -> NDArray[np.int32]:
    """A weighted update in steps; `share` of all data, `largest` is the study's limit.

    Raises
    ------
    Refusal
        UPDATE_TOO_LARGE if a number is beyond the limit, or is none: nothing is ever cut off.
    """
    furthest = float(np.max(np.abs(update), initial=0.0))
    if not furthest <= largest:
        raise Refusal(
            "UPDATE_TOO_LARGE",
            f"a number moved by {furthest:.4g}, secure_sums.largest_update is {largest:g}",
        )
    if not 0 <= share <= 1:
        raise Refusal("ORDER_MALFORMED", f"this site's share of the data would be {share:g}")
    return np.rint(update * (share * steps_of_one(sites) / largest)).astype(np.int32)


def decoded(
    total: NDArray[np.int32], shares: float, largest: float, sites: int
) -> NDArray[np.float64]:
    """The mean update, from the sum of all sites' steps and the sum of their shares."""
    return total.astype(np.float64) * (largest / (steps_of_one(sites) * shares))


def fits(total: NDArray[np.int32], shares: float, sites: int) -> bool:
    """Whether honest sites of so large a share together can have added up to this."""
    most = shares * steps_of_one(sites) * (1 + 1e-9) + sites
    return not total.size or (total.max() <= most and -int(total.min()) <= most)


def in_fractions(value: float) -> int | None:
    """A sum in steps; None where the ring might not hold it.

    >>> from_fractions(in_fractions(-12.5)), in_fractions(1e12)
    (-12.5, None)
    """
    found = value * _FRACTION
    return round(found) if abs(found) <= _MOST else None


def from_fractions(steps: int) -> float:
    """The same back."""
    return steps / _FRACTION


def add(total: NDArray[Any], other: NDArray[Any], *, minus: bool = False) -> None:
    """Add in place modulo the size of the ring; both are whole numbers of the same size.

    >>> total = np.array([2**31 - 1], dtype=np.int32)
    >>> add(total, np.array([1], dtype=np.int32))
    >>> total
    array([-2147483648], dtype=int32)
    """
    unsigned = np.dtype(f"u{total.dtype.itemsize}")
    (np.subtract if minus else np.add)(
        total.view(unsigned), other.view(unsigned), out=total.view(unsigned)
    )
