"""Updates as whole numbers modulo 2**32, and the few numbers beside them modulo 2**64.

A site's update is weighted by its share of the training data and written in steps, so small that
all sites' together stay below half the ring: their sum is exact, in whatever order it is made. As
many bytes travel as float32 takes. Rings are held as signed integers of the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import Refusal

_HALF: Final = {np.dtype(np.int32): 2**31 - 1, np.dtype(np.int64): 2**62}
# of all data: below it a site's part would vanish in rounding, and leave larger ones alone
LEAST_SHARE: Final = 2.0**-11
_FRACTION: Final = 2**24  # steps of one, of sums of losses and metrics
_MOST: Final = 2**52  # of such a sum in steps: float64 holds it exactly, and 2,000 sites fit


@dataclass(frozen=True, slots=True)
class Scale:
    """How one array is written in steps.

    largest: most that a number may change by. sites: how many round their own. dtype: of the ring.
    """

    largest: float
    sites: int
    dtype: np.dtype[Any]

    @property
    def steps(self) -> int:
        """Into how many steps the largest change is divided.

        >>> Scale(8.0, 8, np.dtype(np.int32)).steps
        2147483639
        """
        return _HALF[self.dtype] - self.sites

    def encoded(self, update: NDArray[np.float64], share: float) -> NDArray[Any]:
        """An update in steps, weighted by its `share` of all data.

        Raises
        ------
        Refusal
            UPDATE_TOO_LARGE if a number is beyond the limit, or is none: nothing is ever cut off.
        """
        furthest = float(np.max(np.abs(update), initial=0.0))
        if not furthest <= self.largest:
            raise Refusal(
                "UPDATE_TOO_LARGE",
                f"a number moved by {furthest:.4g}, at most {self.largest:g} may be "
                "(secure_sums.largest_update; statistics of layers have a limit of their own)",
            )
        if not (share == 0 or LEAST_SHARE <= share <= 1):
            raise Refusal(
                "ORDER_MALFORMED",
                f"this site's share of the data would be {share:g}; {LEAST_SHARE:g} to 1 is summed",
            )
        return np.rint(update * (share * self.steps / self.largest)).astype(self.dtype)

    def decoded(self, total: NDArray[Any], shares: float) -> NDArray[np.float64]:
        """The mean update, from the sum of all sites' steps and the sum of their shares."""
        return total.astype(np.float64) * (self.largest / (self.steps * shares))

    def fits(self, total: NDArray[Any], shares: float) -> bool:
        """Whether honest sites of so large a share together can have added up to this."""
        most = shares * self.steps * (1 + 1e-9) + self.sites
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
