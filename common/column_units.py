"""Whether a column of two sites can be of one unit: cm3 beside mm3, months beside years.

Hospitals differ in age, scanner and disease; none of that makes a column eight times as large, or
moves all of it beyond what it varies by. A wrong unit, a code for missing values or another
column of the same name does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_SCALED: Final = 8.0  # a factor of 10 between hospitals whose people differ by a fifth
_SHIFTED: Final = 6.0  # deviations, of whichever of the two varies more
_PROPORTIONAL: Final = 2.1  # inches are 2.54 cm; then the deviation differs by the same factor
_NARROW: Final = 1 / 3  # deviation over mean, of volumes, thicknesses, heights
_MOST_DATA: Final = 0.45  # that count otherwise: of two sites of a size both are told
_HINTS: Final = {
    2.54: "inches against cm",
    10.0: "mm against cm",
    12.0: "months against years",
    25.4: "inches against mm",
    100.0: "mm2 against cm2, or cm against m",
    365.25: "days against years",
    1000.0: "mm3 against cm3, or g against kg",
    1e6: "mm3 against litres",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Mean and deviation of each column, (F,) float64 both."""

    mean: Floats
    deviation: Floats

    @classmethod
    def of_sums(
        cls, sums: Mapping[str, NDArray[Any]], place: str, most: int | None = None
    ) -> Columns | None:
        """From the sums ``PLACE/sum``, ``/squares`` and ``/n``; None if they are others, or empty.

        At most the first `most` columns; NaN of one that nobody there has.
        """
        names = [f"{place}/{key}" for key in ("sum", "squares", "n")]
        if any(name not in sums for name in names):
            return None
        total, squares, n = (np.asarray(sums[name], dtype=np.float64) for name in names)
        if total.ndim != 1 or squares.shape != total.shape or n.size != 1 or not n.min() >= 1:
            return None
        known = np.asarray(sums.get(f"{place}/n_known", np.broadcast_to(n.item(), total.shape)))
        known = np.where(known > 0, known, np.nan).astype(np.float64)[:most]
        mean, squares = total[:most] / known, squares[:most] / known
        return cls(mean, np.sqrt(np.maximum(squares - np.square(mean), 0.0)))

    @property
    def size(self) -> Floats:
        """Root mean square, which a unit multiplies and which is 0 for zeros alone."""
        return np.hypot(self.mean, self.deviation)


def factors(one: Columns, other: Columns) -> Floats:
    """(F,) how many times as large as the other's; 1 where both are zero."""
    a, b = one.size, other.size
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 1.0, a / b)


def apart(one: Columns, other: Columns) -> Flags:
    """(F,) whether the two cannot well be of one unit.

    >>> mm3 = Columns(np.array([3500.0]), np.array([400.0]))
    >>> cm3 = Columns(np.array([3.4]), np.array([0.5]))
    >>> old = Columns(np.array([2900.0]), np.array([500.0]))
    >>> apart(mm3, cm3).tolist(), apart(mm3, old).tolist()
    ([True], [False])
    """
    times = factors(one, other)
    widest = np.maximum(one.deviation, other.deviation)
    between = np.abs(one.mean - other.mean)
    varies = widest > 1e-6 * np.maximum(np.abs(one.mean), np.abs(other.mean))
    scaled = np.maximum(times, _inverse(times)) >= _SCALED
    shifted = varies & (between > _SHIFTED * widest)
    return scaled | shifted | _proportional(one, other)


def among_all(own: Columns, joint: Columns) -> tuple[Flags, Floats, Floats]:
    """Which columns of a site count otherwise than most data do, given those of all sites together.

    If the rest is the site's own column times f, and its own are a share w of all data, then mean
    and mean square of all are a = w + (1 - w) f and b = w + (1 - w) f^2 times the site's; so
    w = (b - a^2) / (1 + b - 2 a). Around zero there is no such f, and `apart` alone can tell.

    Returns
    -------
    (F,) whether a column is to be named; the share of data that count otherwise; their mean

    >>> cm3 = Columns(np.array([3.5]), np.array([0.4]))
    >>> joint = Columns(np.array([2334.5]), np.array([1680.4]))  # with two sites of three in mm3
    >>> told, share, mean = among_all(cm3, joint)
    >>> bool(told[0]), f"{share[0]:.2f}", f"{mean[0]:.0f}"
    (True, '0.67', '3500')
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = joint.mean / own.mean, np.square(joint.size / own.size)
        others = 1 - (b - a * a) / (1 + b - 2 * a)
        factor = 1 + (a - 1) / others
        times = np.abs(np.log(np.maximum(factor, 1e-9)))
    narrow = (own.deviation < 0.5 * np.abs(own.mean)) & np.isfinite(times)
    far = (times >= math.log(_SCALED)) | (narrow & (times >= math.log(_PROPORTIONAL)))
    told = np.where(narrow, far & (others >= _MOST_DATA), apart(own, joint))
    means = np.where(narrow, factor * own.mean, joint.mean)
    return told, np.where(narrow, others, 1.0), means


def in_words(factor: float) -> str:
    """A factor for readers, with a guess at the units.

    >>> in_words(0.001)
    '1/1,000 of it: mm3 against cm3, or g against kg?'
    >>> in_words(11.8), in_words(5.0)
    ('11.8 times it: months against years?', '5 times it')
    """
    if not 0 < factor < math.inf:
        return "one of the two is zero throughout"
    large = max(factor, 1 / factor)
    told = f"{figures(factor)} times it" if factor >= 1 else f"1/{figures(1 / factor)} of it"
    known = min(_HINTS, key=lambda hint: abs(math.log(large / hint)))
    # people differ, and where all sites are taken together the odd one is among them
    return f"{told}: {_HINTS[known]}?" if abs(math.log(large / known)) < 0.5 else told


def figures(value: float) -> str:
    """A mean in three figures, written out.

    >>> figures(3512.3), figures(-0.0351)
    ('3,510', '-0.0351')
    """
    return f"{float(f'{value:.3g}'):,.10g}"


def named(columns: Sequence[str], number: int, count: int) -> str:
    """What to call a column: its name, if there are as many names as columns."""
    return columns[number] if len(columns) == count else f"number {number + 1}"


def _proportional(one: Columns, other: Columns) -> Flags:
    """Whether mean and deviation of two narrow columns differ by the same factor."""
    means, spreads = np.abs([one.mean, other.mean]), np.array([one.deviation, other.deviation])
    narrow = ((spreads > 1e-6 * means) & (spreads < _NARROW * means)).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_means, of_spreads = means[0] / means[1], spreads[0] / spreads[1]
        alike = np.abs(np.log(of_means / of_spreads)) < math.log(2)
        far = np.abs(np.log(of_means)) >= math.log(_PROPORTIONAL)
    found: Flags = narrow & alike & far
    return found


def _inverse(times: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return 1 / times
