"""Named arrays: the type, their difference, and a weighted mean that holds one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import EllipsisType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

_BLOCK: Final = 1 << 22  # numbers; 32 MiB in float64

Arrays = dict[str, NDArray[Any]]


class Rows(Protocol):
    """An array, or one that is read from disk by parts of its first axis."""

    def __getitem__(self, part: slice | EllipsisType, /) -> NDArray[Any]: ...


def weighted_mean(terms: Iterable[tuple[float, NDArray[Any]]]) -> NDArray[np.float64] | None:
    """Mean of arrays by weight, summed in float64 in the order given; None without weight.

    One term gives back its array exactly: w x / w is exact in float64 for a float32 x and a whole
    number w below 2**29.

    >>> weighted_mean([(1, np.array([1.0])), (3, np.array([5.0]))])
    array([4.])
    """
    total: NDArray[np.float64] | None = None
    weight = 0.0
    for share, array in terms:
        if share == 0:
            continue
        term = np.multiply(array, share, dtype=np.float64)
        if total is None:
            total = term
        else:
            total += term
        weight += share
    if total is None:
        return None
    total /= weight
    return total


def blocks(shape: tuple[int, ...]) -> Iterator[slice | EllipsisType]:
    """Parts of an array along its first axis, each of few enough numbers to be held many times.

    >>> list(blocks((3, 4))), list(blocks(()))
    ([slice(0, 3, None)], [Ellipsis])
    """
    if not shape or math.prod(shape) <= _BLOCK:
        yield slice(0, shape[0]) if shape else ...
        return
    rows = max(1, _BLOCK * shape[0] // math.prod(shape))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def norm_of_difference(
    left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]
) -> float:
    """Euclidean norm of left - right over the names of `left`.

    >>> norm_of_difference({"a": np.array([3.0, 4.0])}, {"a": np.zeros(2)})
    5.0
    """
    squares = (
        float(np.sum(np.square(np.subtract(array, right[name], dtype=np.float64))))
        for name, array in left.items()
    )
    return float(np.sqrt(sum(squares)))
