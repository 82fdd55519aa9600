"""What an order's work comes to, before the egress gate has looked at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes
from common.arrays import Arrays
from common.network.plan import Plan
from common.protocol.orders import Measurement
from common.seams import LABELS

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Numbers and arrays of a report, with how many people stand behind each of them.

    support: samples by group; participants: people by group and by name of a count.
    expected: name, shape and type of every array that may leave with it.
    """

    support: dict[str, int] = field(default_factory=dict)
    participants: dict[str, int] = field(default_factory=dict)
    counts: dict[str, tuple[float, ...]] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()
    arrays: Arrays = field(default_factory=dict)
    expected: Plan = field(default_factory=dict)


def support_of(
    cohort: Cohort, indices: Indices, whole: str, targets: Iterable[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Samples, and people, among `indices`: all of them as group `whole`, and by label held."""
    labelled = {
        f"{LABELS}{name}": indices[~np.isnan(cohort.labels[name][indices])] for name in targets
    }
    people = person_codes(cohort.participants)
    groups = {whole: indices, **labelled}
    return (
        {group: len(chosen) for group, chosen in groups.items()},
        {group: len(np.unique(people[chosen])) for group, chosen in groups.items()},
    )
