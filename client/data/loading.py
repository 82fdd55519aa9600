"""Batches on the device, ready before they are asked for.

Threads read the next batches, and augment them, while the network works on this one; on a GPU they
also pin and copy, so that neither waits for the other. Order and content depend on the indices and
the seed alone, whatever the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort
from common.seams import Sample


class Augment(Protocol):
    """What is done to one sample, with the generator that its chance comes from."""

    def __call__(self, sample: Sample, generator: np.random.Generator, /) -> Sample: ...


@dataclass(frozen=True, slots=True)
class Loader:
    """How batches are read.

    augment: what is done to each sample, in order; nothing where predictions are made.
    seed: of augmentation; each view of each sample of each batch has a generator of its own.
    threads: that read ahead; one where samples only have to be copied.
    views: how often each sample is augmented, for objectives that compare its views.
    """

    augment: tuple[Augment, ...] = ()
    seed: int = 0
    threads: int = 1
    views: int = 1


PLAIN = Loader()


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of a cohort's samples.

    x: (B, *shape) float32; (B, V, *shape) where the loader makes V > 1 views of each sample.
    labels: (B,) float32 by target, NaN where missing.
    indices: (B,) which samples of the cohort.
    participants: (B,) int64, whose: equal numbers are one person.
    """

    x: Tensor
    labels: dict[str, Tensor]
    indices: Tensor
    participants: Tensor


def batches(
    cohort: Cohort,
    indices: Sequence[NDArray[np.int64]],
    device: torch.device,
    loader: Loader = PLAIN,
) -> Iterator[Batch]:
    """The batches that `indices` names, in that order."""
    with ThreadPoolExecutor(loader.threads, thread_name_prefix="loader") as readers:
        ahead: deque[Future[Batch]] = deque()
        for number, chosen in enumerate(indices):
            ahead.append(readers.submit(_read, cohort, chosen, device, loader, number))
            if len(ahead) > loader.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def split_evenly(indices: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Cut `indices` into the fewest batches of at most `batch_size`, if possible none of one.

    Batch normalisation cannot learn from one sample, and a small last batch would count for more.

    >>> [len(part) for part in split_evenly(np.arange(9), 4)]
    [3, 3, 3]
    """
    number = max(1, -(-len(indices) // batch_size))
    if number > 1 and len(indices) // number < 2:
        number = max(1, len(indices) // 2)
    return np.array_split(indices, number)


@lru_cache(maxsize=8)
def person_codes(participants: tuple[str, ...]) -> NDArray[np.int64]:
    """(N,) a number for each sample's participant, equal for one person's samples.

    >>> person_codes(("b", "a", "b")).tolist()
    [1, 0, 1]
    """
    if not participants:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.asarray(participants), return_inverse=True)[1].astype(np.int64)


def _read(
    cohort: Cohort,
    chosen: NDArray[np.int64],
    device: torch.device,
    loader: Loader,
    number: int,
) -> Batch:
    # widened by NumPy: a torch kernel here would start a second pool of OpenMP threads, which
    # spins on the cores that the network needs (a fifth of a step on two cores)
    made = bool(loader.augment) or loader.views > 1
    wide = np.float32 if device.type == "cpu" or made else cohort.samples.dtype
    samples = np.ascontiguousarray(cohort.samples[chosen], dtype=wide)
    if made:
        samples = _augmented(samples, loader, number)
    x = torch.from_numpy(samples)
    if device.type == "cuda":  # half the bytes cross to the GPU; it widens them itself
        x = x.pin_memory().to(device, non_blocking=True).float()
    labels = {
        name: torch.from_numpy(values[chosen]).to(device) for name, values in cohort.labels.items()
    }
    people = person_codes(cohort.participants)[chosen]
    return Batch(
        x, labels, torch.from_numpy(chosen).to(device), torch.from_numpy(people).to(device)
    )


def _augmented(samples: NDArray[Any], loader: Loader, number: int) -> NDArray[np.float32]:
    if loader.views == 1:
        found = np.empty(samples.shape, dtype=np.float32)
        for place, sample in enumerate(samples):
            found[place] = _one(sample, loader, (number, place))
        return found
    found = np.empty((len(samples), loader.views, *samples.shape[1:]), dtype=np.float32)
    for place, view in np.ndindex(found.shape[:2]):
        found[place, view] = _one(samples[place], loader, (number, place, view))
    return found


def _one(sample: Sample, loader: Loader, key: tuple[int, ...]) -> Sample:
    generator = np.random.default_rng((loader.seed, *key))
    for augment in loader.augment:
        sample = augment(sample, generator)
    return sample
