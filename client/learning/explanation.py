"""Where a tuned network looks: means over participants of maps of their samples.

By integrated gradients (Sundararajan et al. 2017): x times the mean gradient of the output along
the straight way from 0 to x; the parts of x then sum to what the output gained on that way. Or by
layer-wise relevance propagation, of the logit that is predicted, for the samples of each class
apart. A map of one person is a picture of her, so only means over people are made, each person
counting once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort
from client.data.loading import batches, person_codes, split_evenly
from client.learning.faithfulness import PerSample, agreement, without_the_loudest
from client.learning.training import lay_out
from common import metrics
from common.errors import Refusal
from common.network.relevance import relevance
from common.network.tuning import Task

_STEPS: Final = 16
_AT_ONCE: Final = 8  # samples

Indices = NDArray[np.int64]
Way = Callable[[Any, Tensor], Tensor]  # a network and samples (B, *shape): their maps


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A group's map (*shape), or its maps (classes, *shape), and how faithful they are.

    people: how many the least of the maps has. samples: of which maps were made. told: for each of
    these, by name of a metric (`metrics.of_maps`).
    """

    maps: NDArray[np.float32]
    people: int
    samples: Indices
    told: PerSample


def explained(
    network: Any, cohort: Cohort, indices: Indices, task: Task, device: torch.device, seed: int
) -> Explained:
    """Maps of the samples `indices` of whom the label is known; `seed` draws what is deleted.

    Raises
    ------
    Refusal
        NO_DATA if nobody of a class is among them.
    """
    label = cohort.labels[task.target_name]
    labelled = indices[~np.isnan(label[indices])]
    _ready(network, device)
    by_class = task.settings.maps == "relevance"
    parts = list(_by_class(task, label, labelled)) if by_class else [labelled]
    random = np.random.default_rng(seed)
    found = [_mean(network, cohort, part, task, device, random) for part in parts]
    maps = np.stack([one.maps for one in found]) if by_class else found[0].maps
    return Explained(
        maps=maps,
        people=min(one.people for one in found),
        samples=np.concatenate(parts),
        told=_joined([one.told for one in found]),
    )


def explained_person(
    network: Any, cohort: Cohort, participant: str, task: Task, device: torch.device
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Her own maps, (*shape): by class where the task has one for each, else one, named "".

    A picture of a person, for the people who look after her: nothing of it may leave.
    """
    label = cohort.labels[task.target_name]
    own = np.flatnonzero((np.asarray(cohort.participants) == participant) & ~np.isnan(label))
    _ready(network, device)
    if task.settings.maps == "gradients" or task.target.outputs == 1:
        if len(own):
            yield "", _mean(network, cohort, own, task, device).maps
        return
    for number, name in enumerate(task.target.classes):
        these = own[label[own] == number]
        if len(these):
            yield name, _mean(network, cohort, these, task, device).maps


def _ready(network: Any, device: torch.device) -> None:
    lay_out(network, device)
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(requires_grad=False)


def integrated_gradients(network: Any, x: Tensor, target: str) -> Tensor:
    """(B, *shape) what each number of x adds to the prediction of `target`.

    For several classes, to the probability of the one that is predicted.
    """
    from captum.attr import IntegratedGradients  # a second of importing

    def told(part: Tensor) -> Tensor:
        return network.predict(part)[target]  # type: ignore[no-any-return]

    with torch.no_grad():
        output = told(x)
    # cuDNN's LSTM has no gradient in evaluation
    with torch.backends.cudnn.flags(enabled=not _remembers(network)):
        found: Tensor = IntegratedGradients(told).attribute(
            x,
            target=output.argmax(1) if output.dim() == 2 else None,
            n_steps=_STEPS,
            method="riemann_middle",
            internal_batch_size=len(x),
        )
    return found.detach().to(x.dtype)


def _remembers(network: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.RNNBase) for module in network.modules())


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
    network: Any,
    cohort: Cohort,
    indices: Indices,
    task: Task,
    device: torch.device,
    random: np.random.Generator | None = None,
) -> Explained:
    """(*shape) the mean of people's mean maps; how faithful they are, if `random` may delete."""
    name, by_relevance = task.target_name, task.settings.maps == "relevance"
    way: Way = partial(_relevance if by_relevance else integrated_gradients, target=name)
    codes = person_codes(cohort.participants)
    people, places = np.unique(codes[indices], return_inverse=True)
    share = 1 / (np.bincount(places)[places] * len(people))  # each person's samples sum to 1 / P
    total = np.zeros(cohort.samples.shape[1:])
    told: list[PerSample] = []
    place = 0
    for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
        maps = way(network, batch.x)
        weights = share[place : place + len(maps)]
        total += np.tensordot(weights, maps.cpu().numpy().astype(np.float64), 1)
        place += len(maps)
        if random is None:
            continue
        found: PerSample = {}
        if task.target.kind != "regression":
            found |= without_the_loudest(network, batch.x, maps, name, random)
        if by_relevance:
            others = integrated_gradients(network, batch.x, name)
            found[metrics.AGREEMENT] = agreement(maps, others, batch.x)
        told.append(found)
    return Explained(
        maps=total.astype(np.float32), people=len(people), samples=indices, told=_joined(told)
    )


def _joined(parts: Sequence[PerSample]) -> PerSample:
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
