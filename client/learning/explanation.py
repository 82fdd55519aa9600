"""Where a tuned network looks: the mean over participants of integrated gradients.

Sundararajan et al. 2017: x times the mean gradient of the output along the straight way from 0 to
x; the parts of x then sum to what the output gained on that way. A map of one person is a picture
of her, so only means over people are made, each person counting once.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort
from client.data.loading import batches, person_codes, split_evenly
from client.learning.training import lay_out

_STEPS: Final = 16
_AT_ONCE: Final = 8  # samples


def mean_map(
    network: Any, cohort: Cohort, indices: NDArray[np.int64], target: str, device: torch.device
) -> tuple[NDArray[np.float32], int]:
    """(*shape) the group's map for `target`, and how many people are in it."""
    lay_out(network, device)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)
    codes = person_codes(cohort.participants)
    people, places = np.unique(codes[indices], return_inverse=True)
    share = 1 / (np.bincount(places)[places] * len(people))  # each person's samples sum to 1 / P
    total = np.zeros(cohort.samples.shape[1:])
    place = 0
    for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
        attributed = integrated_gradients(network, batch.x, target).cpu().numpy()
        weights = share[place : place + len(attributed)]
        total += np.tensordot(weights, attributed.astype(np.float64), 1)
        place += len(attributed)
    return total.astype(np.float32), len(people)


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
