"""What a network says of samples that it does not learn from: predictions, losses, features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.cohort import Cohort
from client.data.loading import PLAIN, Loader, batches, split_evenly
from client.learning.training import Tally, labels_for, lay_out, seeded
from common.network.building import views_of
from common.network.loss import autocast
from common.normalisation import start_statistics_afresh

Indices = NDArray[np.int64]
Features = NDArray[np.float64]

_AT_ONCE = 64  # samples


def predict(
    network: Any, cohort: Cohort, indices: Indices, device: torch.device
) -> dict[str, NDArray[np.floating[Any]]]:
    """Predictions of every head for the samples `indices`, in that order; float32, or float64."""
    if not len(indices):
        return {}
    lay_out(network, device)
    network.eval()
    found: dict[str, list[NDArray[np.float32]]] = {}
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
            with autocast(device):
                output = network.predict(batch.x)
            for name, values in output.items():
                exact = values if values.dtype == torch.float64 else values.float()
                found.setdefault(name, []).append(exact.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def losses(
    network: Any,
    cohort: Cohort,
    indices: Indices,
    device: torch.device,
    *,
    seed: int,
    batch_size: int,
    loader: Loader = PLAIN,
) -> Tally:
    """The terms of the loss where nothing is learnt; masks and views are drawn from `seed`.

    A coupled loss gets whole batches of `batch_size`, the rest is left out. Views are made as
    `loader` augments, the same ones each time; samples that are looked at alone are left as they
    are.
    """
    tally = Tally(cohort)
    views = views_of(network)
    reading = replace(loader, seed=seed, views=views) if views > 1 else PLAIN
    parts = split_evenly(indices, max(1, _AT_ONCE // views)) if len(indices) else []
    if getattr(network, "coupled", False):
        whole = len(indices) // batch_size
        parts = np.split(indices[: whole * batch_size], whole) if whole else []
    lay_out(network, device)
    network.eval()
    with torch.inference_mode(), seeded(seed, device):
        for batch in batches(cohort, parts, device, reading):
            with autocast(device):
                terms = network.terms(batch.x, labels_for(network, batch.labels))
            tally.add(terms, batch.indices)
    return tally


def features_of(network: Any, cohort: Cohort, device: torch.device) -> Features:
    """What the frozen network says of every sample: (N, F)."""
    lay_out(network, device)
    network.eval()
    found = []
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(np.arange(len(cohort)), _AT_ONCE), device):
            with autocast(device):
                found.append(own_features(network, batch.x).float().cpu().numpy())
    return np.concatenate(found).astype(np.float64)


def reestimate_statistics(
    network: Any, cohort: Cohort, indices: Indices, device: torch.device
) -> None:
    """Set normalisation statistics from a site's own scans; labels play no part."""
    lay_out(network, device)
    network.eval()
    layers = start_statistics_afresh(network.backbone)  # heads are not run below
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
            network.backbone(batch.x)
    for layer in layers:
        layer.momentum = 0.1
        layer.eval()


def own_features(network: Any, x: Tensor) -> Tensor:
    """The objective's own features, or its backbone's."""
    own = getattr(network, "features", None)
    return own(x) if callable(own) else network.backbone(x)  # type: ignore[no-any-return]
