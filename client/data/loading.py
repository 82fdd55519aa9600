"""Batches on the device, ready before they are asked for.

One thread reads the next batch while the network works on this one; on a GPU it also pins and
copies, so that neither waits for the other. Order and content depend on the indices alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples (B, *shape) float32 and labels (B,) float32 by target, NaN where missing."""

    x: Tensor
    labels: dict[str, Tensor]


def batches(
    cohort: Cohort, indices: Sequence[NDArray[np.int64]], device: torch.device
) -> Iterator[Batch]:
    """The batches that `indices` names, in that order."""
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as reader:
        ahead = None
        for chosen in indices:
            following = reader.submit(_read, cohort, chosen, device)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()


def shuffled(
    indices: NDArray[np.int64], batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """A random order cut into batches of nearly equal size, none of a single sample.

    Batch normalisation cannot learn from one sample, and a small last batch would count for more.
    """
    order = generator.permutation(indices)
    return split_evenly(order, batch_size)


def split_evenly(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut `indices` into the fewest batches of at most `batch_size`, if possible none of one.

    >>> [len(part) for part in split_evenly(np.arange(9), 4)]
    [3, 3, 3]
    """
    number = max(1, -(-len(indices) // batch_size))
    if number > 1 and len(indices) // number < 2:
        number = max(1, len(indices) // 2)
    return np.array_split(indices, number)


def _read(cohort: Cohort, chosen: NDArray[np.int64], device: torch.device) -> Batch:
    # widened by NumPy: a torch kernel here would start a second pool of OpenMP threads, which
    # spins on the cores that the network needs (a fifth of a step on two cores)
    wide = np.float32 if device.type == "cpu" else cohort.samples.dtype
    x = torch.from_numpy(np.ascontiguousarray(cohort.samples[chosen], dtype=wide))
    if device.type == "cuda":  # half the bytes cross to the GPU; it widens them itself
        x = x.pin_memory().to(device, non_blocking=True).float()
    labels = {
        name: torch.from_numpy(values[chosen]).to(device) for name, values in cohort.labels.items()
    }
    return Batch(x, labels)
