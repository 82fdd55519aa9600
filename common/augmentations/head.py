"""Intensities inside the head, changed while what lies outside stays 0.

A prepared scan is standardised inside the head and 0 outside, so 0 is also the head's mean. What
changes intensities would part the two; here they are standardised again as preparation would have
done, to the mean and the deviation that they had.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.seams import Sample

Floats = NDArray[np.float32]


def changed_inside(sample: Sample, change: Callable[[Floats, NDArray[np.bool_]], Floats]) -> Sample:
    """The sample with `change` applied to what is not 0, its mean and deviation kept.

    `change` is given (N,) intensities from 0, the darkest, to 1, the brightest, and where they lie
    in the sample. A sample without contrast stays what it is.
    """
    inside = sample != 0
    values = sample[inside]
    span = np.ptp(values) if values.size else 0
    if not span:
        return sample
    changed = change((values - values.min()) / span, inside)
    deviation = changed.std()
    if not deviation:
        return sample
    made = np.zeros_like(sample)
    made[inside] = (changed - changed.mean()) * (values.std() / deviation) + values.mean()
    return made
