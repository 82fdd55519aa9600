"""Support: how many samples, and how many people, stand behind each group of arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes
from common.seams import LABELS

Indices = NDArray[np.int64]


def people_among(cohort: Cohort, indices: Indices) -> int:
    """How many people the samples `indices` are of."""
    return len(np.unique(person_codes(cohort.participants)[indices]))


def support_of(
    cohort: Cohort, indices: Indices, whole: str, targets: Iterable[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Samples, and people, among `indices`: all of them as group `whole`, and by label held."""
    labelled = {f"{LABELS}{name}": _labelled(cohort, indices, name) for name in targets}
    groups = {whole: indices, **labelled}
    return (
        {group: len(chosen) for group, chosen in groups.items()},
        {group: people_among(cohort, chosen) for group, chosen in groups.items()},
    )


def without_rare_labels(cohort: Cohort, indices: Indices, minimum: int) -> Cohort:
    """The cohort, without the labels that fewer than `minimum` people among `indices` hold.

    The gradient of a head that one person labels is her features.
    """
    rare = {
        name
        for name in cohort.labels
        if 0 < people_among(cohort, _labelled(cohort, indices, name)) < minimum
    }
    if not rare:
        return cohort
    labels = {
        name: np.full_like(values, np.nan) if name in rare else values
        for name, values in cohort.labels.items()
    }
    return replace(cohort, labels=labels)


def _labelled(cohort: Cohort, indices: Indices, name: str) -> Indices:
    return indices[~np.isnan(cohort.labels[name][indices])]
