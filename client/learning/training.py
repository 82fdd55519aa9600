"""Training at a site: steps over its own scans, and counts instead of averages.

The loop knows no network and no objective; both come through `common.seams`. A loss arrives as
values by sample, so the reduction is this file's choice: here the mean over counted samples, one
day the clipped sum of per-participant gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import cos, pi
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.data.loading import Batch, batches, shuffled, split_evenly
from common import metrics
from common.errors import Refusal
from common.network import rest_frozen_layers
from common.normalisation import start_statistics_afresh
from common.seams import Terms
from common.study import Pretraining, Target


class Settings(Protocol):
    """What the loop needs to know; a study's `[pretraining]` or one cell of a fine-tuning grid."""

    @property
    def optimiser(self) -> str: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def gradient_clip(self) -> float: ...
    @property
    def proximal_mu(self) -> float: ...


class Losses:
    """Sums and counts of each term over what was trained on, kept on the device until read."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._totals: Tensor | None = None  # (terms, 2): sum of the loss, samples counted

    def add(self, terms: Mapping[str, Terms]) -> None:
        """Count a batch in, without waiting for the device."""
        self._names = list(terms)
        both = torch.stack(
            [torch.stack([_counted(term).sum(), term.counted.sum()]) for term in terms.values()]
        )
        both = both.detach().double()
        self._totals = both if self._totals is None else self._totals + both

    def counts(self) -> dict[str, tuple[float, ...]]:
        """(sum, count) by ``"loss/TERM"``."""
        if self._totals is None:
            return {}
        rows = self._totals.tolist()
        return {f"loss/{name}": tuple(row) for name, row in zip(self._names, rows, strict=True)}


def choose_device(kind: str) -> torch.device:
    """The site's device; `auto` takes a GPU if there is one."""
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind)


def learning_rate(settings: Pretraining, round_number: int) -> float:
    """Learning rate of a round (from 1); cosine falls to a twentieth in the last.

    >>> learning_rate(Pretraining(rounds=3, learning_rate=1.0), 1)
    1.0
    >>> round(learning_rate(Pretraining(rounds=3, learning_rate=1.0), 3), 3)
    0.05
    """
    if settings.schedule == "constant" or settings.rounds == 1:
        return settings.learning_rate
    share = (round_number - 1) / (settings.rounds - 1)
    return settings.learning_rate * (0.05 + 0.95 * (1 + cos(pi * share)) / 2)


def train(  # noqa: PLR0913  the loop's whole setting, each by name
    network: Any,
    cohort: Cohort,
    indices: NDArray[np.int64],
    settings: Settings,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
    device: torch.device,
) -> Losses:
    """Train `network` in place on the samples `indices`, and return losses as sums.

    All chance, order and dropout alike, comes from `seed`.
    """
    network.to(device, memory_format=_format(cohort)).train()
    rest_frozen_layers(network)
    anchors = _anchors(network) if settings.proximal_mu else []
    optimiser = _optimiser(network, settings, rate)
    generator = np.random.default_rng(seed)
    losses = Losses()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(epochs):
            order = _order(network, indices, batch_size, generator)
            for batch in batches(cohort, order, device):
                losses.add(_step(network, batch, optimiser, settings, anchors))
    return losses


def predict(
    network: Any, cohort: Cohort, indices: NDArray[np.int64], device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Predictions of every head for the samples `indices`, in that order."""
    if not len(indices):
        return {}
    network.to(device, memory_format=_format(cohort)).eval()
    found: dict[str, list[NDArray[np.float32]]] = {}
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(indices, 64), device):
            with autocast(device):
                output = network.predict(batch.x)
            for name, values in output.items():
                found.setdefault(name, []).append(values.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def validation_counts(
    network: Any,
    cohort: Cohort,
    indices: NDArray[np.int64],
    targets: Mapping[str, Target],
    device: torch.device,
) -> dict[str, tuple[float, ...]]:
    """Mergeable counts of the network's predictions on a site's validation samples."""
    return {
        f"validation/{name}": tuple(
            metrics.counts(targets[name], cohort.labels[name][indices], values).tolist()
        )
        for name, values in predict(network, cohort, indices, device).items()
    }


def reestimate_statistics(
    network: Any, cohort: Cohort, indices: NDArray[np.int64], device: torch.device
) -> None:
    """Set normalisation statistics from a site's own scans; labels play no part."""
    network.to(device, memory_format=_format(cohort)).eval()
    layers = start_statistics_afresh(network.backbone)  # heads are not run below
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(indices, 64), device):
            network.backbone(batch.x)
    for layer in layers:
        layer.momentum = 0.1
        layer.eval()


def total_loss(terms: Mapping[str, Terms], weights: Mapping[str, float]) -> Tensor:
    """sum_t w_t [sum_i m_it l_t(i)] / max(1, sum_i m_it), see `common.objectives.multitask`."""
    parts = []
    for name, term in terms.items():
        parts.append(weights[name] * _counted(term).sum() / term.counted.sum().clamp(min=1))
    return torch.stack(parts).sum()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it is fast (CUDA); plain float32 on the CPU, where results must repeat."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def _order(
    network: Any, indices: NDArray[np.int64], batch_size: int, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """An epoch's batches; for a coupled loss whole ones, each epoch leaving others out.

    A loss over pairs of a batch grows with the batch: batches of a site's own size would make its
    update another in scale.
    """
    if not getattr(network, "coupled", False):
        return shuffled(indices, batch_size, generator)
    whole = len(indices) // batch_size
    if not whole:
        raise Refusal("NO_DATA", f"{len(indices)} training samples, a batch takes {batch_size}")
    return np.split(generator.permutation(indices)[: whole * batch_size], whole)


def _counted(term: Terms) -> Tensor:
    return torch.where(term.counted, term.values, torch.zeros_like(term.values))


def _step(
    network: Any,
    batch: Batch,
    optimiser: torch.optim.Optimizer,
    settings: Settings,
    anchors: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, Terms]:
    optimiser.zero_grad(set_to_none=True)
    with autocast(batch.x.device):
        terms: dict[str, Terms] = network.terms(batch.x, batch.labels)
    total_loss(terms, network.weights).backward()  # type: ignore[no-untyped-call]
    for parameter, start in anchors:  # FedProx: mu / 2 |w - w0|^2, added as its gradient
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=settings.proximal_mu)
    if settings.gradient_clip:
        nn.utils.clip_grad_norm_(list(_trainable(network)), settings.gradient_clip)
    optimiser.step()
    return terms


def _optimiser(network: nn.Module, settings: Settings, rate: float) -> torch.optim.Optimizer:
    parameters = list(_trainable(network))
    decay = settings.weight_decay
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=settings.momentum, weight_decay=decay, foreach=True
        )
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, foreach=True)


def _trainable(network: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in network.parameters() if parameter.requires_grad)


def _anchors(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(parameter, parameter.detach().clone()) for parameter in _trainable(network)]


def _format(cohort: Cohort) -> torch.memory_format:
    """Volumes lie channels-last: 3D convolutions run a sixth to a third faster, also on the CPU."""
    volumes = len(cohort.samples.shape) == 4
    return torch.channels_last_3d if volumes else torch.contiguous_format
