"""Normalisation layers by policy, and which arrays belong to them.

`average` sends everything; `silobn` keeps running statistics at their site; `fedbn` lets each site
keep its own batch normalisation whole; `groupnorm` has no statistics to disagree about.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Policy = Literal["average", "silobn", "fedbn", "groupnorm"]

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def normalisation(policy: str, channels: int, dimensions: int) -> nn.Module:
    """A normalisation layer over `channels` for (B, C) or (B, C, ...) input."""
    if policy == "groupnorm":
        groups = math.gcd(channels, 8)
        if dimensions == 1 and groups == channels:
            groups = 1  # a group of one number is always 0: the layer would tell nothing
        return nn.GroupNorm(groups, channels)
    return _BATCH[dimensions](channels)


def renormalised(module: nn.Module, policy: str) -> Any:
    """`module`, built by a library with batch normalisation, with the policy's layers instead."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if policy == "groupnorm":
                setattr(module, name, normalisation(policy, child.num_features, 3))
        else:
            renormalised(child, policy)
    return module


def batch_normalisation_arrays(network: nn.Module) -> tuple[set[str], set[str]]:
    """Names in `network.state_dict()` of batch normalisation's (affine arrays, statistics)."""
    affine: set[str] = set()
    statistics: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            affine |= {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
            statistics |= {f"{name}.{key}" for key, _ in module.named_buffers(recurse=False)}
    return affine, statistics


def start_statistics_afresh(network: nn.Module) -> list[_BatchNorm]:
    """Reset running statistics; they become the plain mean over the batches that follow."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average: every batch counts alike
        layer.train()
    return layers


class GlobalAverage(nn.Module):
    """Mean over all places: (B, C, ...) to (B, C)."""

    def forward(self, x_BCXYZ: Tensor) -> Tensor:
        return x_BCXYZ.flatten(2).mean(2)
