"""Whether maps tell what a network reads: what it says once the loudest places are gone.

A sample's places are set to 0, loudest first by its own map, and as many drawn at random; a map
that tells what the network reads makes it lose its opinion sooner than chance does (Samek et al.
2017). And how far maps agree with integrated gradients, which come about in another way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import metrics

PerSample = dict[str, NDArray[np.float64]]


def without_the_loudest(
    network: Any, x: Tensor, maps: Tensor, target: str, random: np.random.Generator
) -> PerSample:
    """Probabilities (B,) of what each sample of `x` was said to be, by name (`metrics.of_maps`).

    Places that are 0 anyway, outside the brain, are neither counted nor deleted.
    """
    with torch.no_grad():
        told = network.predict(x)[target]
        chosen = told.argmax(1) if told.dim() == 2 else (told >= 0.5).long()
        if told.dim() == 1:  # its map speaks for the second class, whichever was said
            maps = torch.where((chosen == 1).view(-1, *[1] * (x.dim() - 1)), maps, -maps)
        drawn = torch.from_numpy(random.random(x.shape, np.float32)).to(x.device)
        ranks = {"": _ranks(maps, x), metrics.AT_RANDOM: _ranks(drawn, x)}
        found = {metrics.SAID: _chance(told, chosen)}
        inside = (x != 0).flatten(1).sum(1, keepdim=True)
        for share in metrics.DELETED:
            number = (inside * share / 100).round().clamp(min=1)
            for way, ranks_BN in ranks.items():
                rest = torch.where((ranks_BN < number).view_as(x), 0.0, x)
                name = metrics.without(share) + way
                found[name] = _chance(network.predict(rest)[target], chosen)
    return {name: values.double().cpu().numpy() for name, values in found.items()}


def agreement(maps: Tensor, others: Tensor, x: Tensor) -> NDArray[np.float64]:
    """Spearman's correlation (B,) of two maps of each sample over the places that are not 0."""
    from scipy import stats

    found = []
    for one, other, sample in zip(maps, others, x, strict=True):
        inside = sample != 0
        pair = [part[inside].cpu().numpy() for part in (one, other)]
        constant = any(len(part) < 2 or (part == part[0]).all() for part in pair)
        found.append(0.0 if constant else float(stats.spearmanr(*pair).statistic))
    return np.array(found)


def _chance(told: Tensor, chosen: Tensor) -> Tensor:
    """(B,) probability of the chosen class, of softmax (B, K) or of the second of two (B,)."""
    if told.dim() == 2:
        return told.gather(1, chosen[:, None])[:, 0]
    return torch.where(chosen == 1, told, 1 - told)


def _ranks(maps: Tensor, x: Tensor) -> Tensor:
    """(B, N) place of each number from the loudest, 0; those that are 0 in `x` come last."""
    loudness = torch.where(x == 0, -torch.inf, maps).flatten(1)
    order = loudness.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=x.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
