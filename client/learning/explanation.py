"""Where a tuned network looks: means over participants of maps of their samples.

By integrated gradients (Sundararajan et al. 2017): x times the mean gradient of the output along
the straight way from 0 to x; the parts of x then sum to what the output gained on that way. Or by
layer-wise relevance propagation, of the logit that is predicted, for the samples of each class
apart. A map of one person is a picture of her, so only means over people are made, each person
counting once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort
from client.data.loading import batches, person_codes, split_evenly
from client.learning.training import lay_out
from common.errors import Refusal
from common.network.relevance import relevance
from common.network.tuning import Task

_STEPS: Final = 16
_AT_ONCE: Final = 8  # samples

Indices = NDArray[np.int64]
Way = Callable[[Any, Tensor], Tensor]  # a network and samples (B, *shape): their maps


def maps_of(
    network: Any, cohort: Cohort, indices: Indices, task: Task, device: torch.device
) -> tuple[NDArray[np.float32], int]:
    """The group's map (*shape), or its maps (classes, *shape), and how many people the least has.

    Raises
    ------
    Refusal
        NO_DATA if nobody of a class is among the samples `indices`.
    """
    label = cohort.labels[task.target_name]
    labelled = indices[~np.isnan(label[indices])]
    lay_out(network, device)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
    if task.settings.maps == "gradients":
        way: Way = partial(integrated_gradients, target=task.target_name)
        return _mean(network, cohort, labelled, way, device)
    way = partial(_relevance, target=task.target_name)
    parts = [_mean(network, cohort, part, way, device) for part in _by_class(task, label, labelled)]
    return np.stack([found for found, _ in parts]), min(people for _, people in parts)


def integrated_gradients(network: Any, x: Tensor, target: str) -> Tensor:
    """(B, *shape) what each number of x adds to the prediction of `target`.

    For several classes, to the probability of the one that is predicted.
    """
    with torch.no_grad():
        told = network.predict(x)[target]
    chosen = told.argmax(1, keepdim=True) if told.dim() == 2 else None
    gradient = torch.zeros_like(x)
    for step in range(_STEPS):
        part = (x * ((step + 0.5) / _STEPS)).requires_grad_()
        output = network.predict(part)[target]
        wanted = output if chosen is None else output.gather(1, chosen)
        gradient += torch.autograd.grad(wanted.sum(), part)[0]
    return x * gradient / _STEPS


def _relevance(network: Any, x: Tensor, target: str) -> Tensor:
    """(B, *shape) relevance to the largest logit of `target`, or to its only output."""

    def predicted(outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs[target].max(1).values

    return relevance(network, x, predicted)


def _by_class(task: Task, label: NDArray[np.float32], labelled: Indices) -> Iterator[Indices]:
    """The samples of each class, or all of them where there is one output."""
    if task.target.outputs == 1:
        yield labelled
        return
    for number, name in enumerate(task.target.classes):
        these = labelled[label[labelled] == number]
        if not len(these):
            raise Refusal("NO_DATA", f"nobody among the test participants has {name}")
        yield these


def _mean(
    network: Any, cohort: Cohort, indices: Indices, way: Way, device: torch.device
) -> tuple[NDArray[np.float32], int]:
    """(*shape) the mean of people's mean maps, and how many people are in it."""
    codes = person_codes(cohort.participants)
    people, places = np.unique(codes[indices], return_inverse=True)
    share = 1 / (np.bincount(places)[places] * len(people))  # each person's samples sum to 1 / P
    total = np.zeros(cohort.samples.shape[1:])
    place = 0
    for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
        attributed = way(network, batch.x).cpu().numpy()
        weights = share[place : place + len(attributed)]
        total += np.tensordot(weights, attributed.astype(np.float64), 1)
        place += len(attributed)
    return total.astype(np.float32), len(people)
