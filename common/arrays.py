"""Named arrays: the type, their difference, and a weighted mean that holds one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


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
