"""The average of the weights along a training, recent steps more (Kingma and Ba 2015, 7.2).

average_n = sum over steps k of decay^(n - k) w_k, over the sum of these shares: what the weights
were before the first step has no part in it, so the average of a short round is one too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from client.learning.optimisers import trained


class WeightAverage:
    """The running average of all that trains; statistics of normalisation stay as trained."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._weights: list[Tensor] = [parameter for _, parameter in trained(network)]
        self._average = [torch.zeros_like(weight) for weight in self._weights]
        self._decay, self._steps = decay, 0

    def add(self) -> None:
        """Take in the weights after another step."""
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)  # 1 in the first step
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._weights, share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the average inside the block."""
        trained_weights = [weight.detach().clone() for weight in self._weights]
        self.settle()
        try:
            yield
        finally:
            self._put(trained_weights)

    def settle(self) -> None:
        """Let the network have the average, if there was a step."""
        if self._steps:
            self._put(self._average)

    def _put(self, found: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(self._weights, found, strict=True):
                weight.copy_(value)
