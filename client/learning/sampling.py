"""What an epoch shows, and in which batches: every scan, or people or classes equally often."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes, split_evenly
from common.errors import Refusal
from common.sections import Steps

Indices = NDArray[np.int64]


def epoch(
    network: Any,
    cohort: Cohort,
    indices: Indices,
    steps: Steps,
    generator: np.random.Generator,
) -> list[Indices]:
    """An epoch's batches over the samples `indices`, in an order drawn from `generator`.

    Batches are of nearly equal size; for a coupled loss they are whole, and each epoch leaves
    others out. A loss over pairs of a batch grows with the batch: batches of a site's own size
    would make its update another in scale.

    Raises
    ------
    Refusal
        NO_DATA if a coupled loss cannot have a single whole batch.
    """
    order = generator.permutation(shown(cohort, indices, steps.sampling, generator))
    if not getattr(network, "coupled", False):
        return split_evenly(order, steps.batch_size)
    whole = len(order) // steps.batch_size
    if not whole:
        raise Refusal("NO_DATA", f"{len(order)} training samples, a batch takes {steps.batch_size}")
    return np.split(order[: whole * steps.batch_size], whole)


def shown(
    cohort: Cohort, indices: Indices, sampling: str, generator: np.random.Generator
) -> Indices:
    """The samples of an epoch, as many as `indices`, some of them perhaps several times.

    participants: each has as many places as any other, give or take one.
    classes:TARGET: each class has as many of the labelled samples' places; samples without the
    label keep their own, since other targets, or no label at all, may be learnt from them.
    """
    kind, _, target = sampling.partition(":")
    if kind == "participants":
        return _evenly(indices, person_codes(cohort.participants)[indices], generator)
    if kind == "classes":
        label = cohort.labels[target][indices]
        known = ~np.isnan(label)
        balanced = _evenly(indices[known], label[known].astype(np.int64), generator)
        return np.concatenate([balanced, indices[~known]])
    return indices


def _evenly(indices: Indices, groups: NDArray[np.int64], generator: np.random.Generator) -> Indices:
    """`len(indices)` samples in which every group has an equal share, its samples in turn."""
    if not len(indices):
        return indices
    names = np.unique(groups)
    places = np.full(len(names), len(indices) // len(names))
    places[generator.permutation(len(names))[: len(indices) % len(names)]] += 1
    chosen = []
    for name, count in zip(names, places, strict=True):
        own = indices[groups == name]
        turns = -(-count // len(own))
        order = np.concatenate([generator.permutation(own) for _ in range(turns)] or [own[:0]])
        chosen.append(order[:count])
    return np.concatenate(chosen)
