"""Labels of a regression target as models learn them, and back: as they are, or as logarithms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.sections import Target


def transformed(target: Target, label: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """t(y) of labels in the target's unit.

    >>> age = Target(kind="regression", transform="log", low=1.0, high=120.0, centre=30.0)
    >>> transformed(age, np.array([1.0, np.e])).tolist()
    [0.0, 1.0]
    """
    plain = np.asarray(label, dtype=np.float64)
    return np.log(plain) if target.transform == "log" else plain


def restored(target: Target, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """t^-1 of what a model says; of a logarithm within the target's bounds."""
    if target.transform != "log":
        return values
    bounded = np.clip(values, math.log(target.low), math.log(target.high))
    found: NDArray[np.float64] = np.exp(bounded)
    return found
