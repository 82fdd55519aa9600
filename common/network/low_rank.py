"""Low-rank additions to a network's matrices and kernels (LoRA, Hu et al. 2022).

A layer keeps its weight under its own name; beside it come `low_rank.down` and `low_rank.up`, and
what they make of the layer's input is added to its output (`common.network.merging` merges them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from common.network.merging import PLACE

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """What is added to the output of one layer; `up` (out, rank) starts as 0.

    `down` is (rank, in, ...), a narrow layer of the same sort as the one that it stands beside.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        wide = weight[0].numel()
        drawn = torch.randn((rank, *weight.shape[1:]), device=weight.device) / wide**0.5
        self.down = nn.Parameter(drawn)
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))

    def added(self, layer: Any, x: Tensor) -> Tensor:
        """What `layer` would give more, were it merged."""
        if isinstance(layer, nn.Linear):
            return functional.linear(functional.linear(x, self.down), self.up)
        narrow = layer._conv_forward(x, self.down, None)  # noqa: SLF001  strides, padding, its mode
        return torch.einsum("or,br...->bo...", self.up, narrow)

    def forward(self, weight: Tensor) -> Tensor:
        """The merged weight, where a layer is never called itself: attention of torch's own."""
        return weight + torch.einsum("or,r...->o...", self.up, self.down)


def add_low_rank(backbone: nn.Module, rank: int) -> Iterator[str]:
    """Stand a pair of narrow matrices beside every matrix and kernel; give their names' beginnings.

    Convolutions of each channel by itself have nothing to narrow and are left alone.
    """
    for name, module in list(backbone.named_modules()):
        place = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            yield from _inside_attention(module, place, rank)
        elif _is_matrix(module) and not _in_attention(backbone, name):
            module.add_module(PLACE, LowRank(module.weight, rank))
            module.register_forward_hook(_beside)
            yield f"{place}{PLACE}."


def _beside(layer: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.low_rank.added(layer, given[0])
    return output + added


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == 1
    return isinstance(module, nn.Linear)


def _in_attention(backbone: nn.Module, name: str) -> bool:
    parent = backbone.get_submodule(name.rpartition(".")[0])
    return isinstance(parent, nn.MultiheadAttention)


def _inside_attention(module: nn.MultiheadAttention, place: str, rank: int) -> Iterator[str]:
    """Torch's attention reads its matrices and calls none of its layers."""
    pairs = [(module, "in_proj_weight", place), (module.out_proj, "weight", f"{place}out_proj.")]
    for owner, weight, where in pairs:
        if getattr(owner, weight) is not None:
            parametrize.register_parametrization(
                owner, weight, LowRank(getattr(owner, weight), rank)
            )
            yield f"{where}parametrizations.{weight}.0."
