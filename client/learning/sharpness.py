"""Gradients from where the loss nearby is highest (SAM, Foret et al. 2021).

w' = w + rho g / |g|; the optimiser then moves w along the gradient at w'. Minima that are flat are
preferred, for twice the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm

from client.learning.optimisers import trained

T = TypeVar("T")

# torch's own layers whose statistics a forward pass moves; they rest in `eval`
MOVING: Final = (_NormBase, _SpectralNorm)


def sharpened(network: Any, rho: float, device: torch.device, gradients: Callable[[], T]) -> T:
    """Call `gradients` at the weights and at the sharper place; it sets `.grad` of all that trains.

    Both calls see the same chance (dropout, masks); statistics of normalisation move in the first
    alone, whose answer is returned. The weights are then what they were, to the bit.
    """
    chance = _chance(device)
    found = gradients()
    moved: list[Tensor] = [p for _, p in trained(network) if p.grad is not None]
    if not moved:
        return found
    with torch.no_grad(), _unmoved(moved), _unmoved(_statistics(network)):
        grads = [p.grad for p in moved if p.grad is not None]
        step = rho / (nn.utils.get_total_norm(grads) + 1e-12)
        torch._foreach_add_(moved, [step * grad for grad in grads])
        for parameter in moved:
            parameter.grad = None
        _repeat(chance, device)
        with torch.enable_grad():
            gradients()
    return found


def _statistics(network: nn.Module) -> list[Tensor]:
    return [
        buffer
        for module in network.modules()
        if isinstance(module, MOVING)
        for buffer in module.buffers(recurse=False)
    ]


@contextmanager
def _unmoved(tensors: list[Tensor]) -> Iterator[None]:
    """Put `tensors` back to what they are, whatever is done with them inside the block."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(old)


def _chance(device: torch.device) -> tuple[Tensor, ...]:
    states = (torch.get_rng_state(),)
    return (*states, torch.cuda.get_rng_state(device)) if device.type == "cuda" else states


def _repeat(states: tuple[Tensor, ...], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
