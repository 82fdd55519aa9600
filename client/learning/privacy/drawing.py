"""Who is in which step: each participant by chance of her own, with all or some of her samples.

Steps differ in size and may be empty (Poisson sampling): that is what accountants reckon with. A
shuffled order in batches of a size is another mechanism, and costs more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes

Indices = NDArray[np.int64]


def people_of(cohort: Cohort, indices: Indices) -> list[Indices]:
    """The samples among `indices` of each participant, one participant after another."""
    codes = person_codes(cohort.participants)[indices]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return np.split(indices[order], starts) if len(indices) else []


def drawn(
    people: Sequence[Indices], rate: float, most: int, generator: np.random.Generator
) -> list[Indices]:
    """A step's people, each with chance `rate`, and at most `most` samples of each (0: all)."""
    chosen = generator.random(len(people)) < rate
    return [_some(hers, most, generator) for hers in compress(people, chosen)]


def portions(step: Sequence[Indices], most: int) -> list[Indices]:
    """Each (P, S): a step's people by how many samples S they have; P S at most `most`, or P 1."""
    by_count: defaultdict[int, list[Indices]] = defaultdict(list)
    for samples in step:
        by_count[len(samples)].append(samples)
    return [
        np.stack(alike[first : first + max(1, most // count)])
        for count, alike in by_count.items()
        for first in range(0, len(alike), max(1, most // count))
    ]


def _some(samples: Indices, most: int, generator: np.random.Generator) -> Indices:
    if not most or len(samples) <= most:
        return samples
    return generator.choice(samples, most, replace=False)
