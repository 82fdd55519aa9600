"""DenseNet over volumes (Huang et al. 2017), by MONAI; DenseNet121 as Dhinagar et al. 2023 use it.

With the published widths and one linear output it holds 11,243,649 parameters; the small one that
CPUs like (initial 16, growth 8, blocks 2-4-4-2) 105,109.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.normalisation import GlobalAverage, renormalised
from common.seams import Layout
from common.settings import Table

Width = Annotated[int, Field(ge=1, le=4096)]
_SMALLEST = 17  # voxels a side; of fewer, pooling leaves the deeper blocks a single place


class DenseNet(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, F); 1,024 of them with the published widths."""

    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (96, 96, 96)
    small: ClassVar[dict[str, Any]] = {"initial": 16, "growth": 8, "layers": (2, 4, 4, 2)}

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["densenet"] = Field(description="This backbone.")
        initial: Width = Field(64, description="Channels of the first layer.", examples=[64])
        growth: Width = Field(32, description="Channels that each dense layer adds.", examples=[32])
        layers: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = Field(
            (6, 12, 24, 16), description="Dense layers of each block.", examples=[(6, 12, 24, 16)]
        )
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0, description="Dropout in each dense layer.", examples=[0.0]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        smallest = _smallest(len(settings.layers))
        if len(shape) != 3 or min(shape) < smallest:
            raise ValueError(
                f"densenet with {len(settings.layers)} blocks needs volumes of at least {smallest} "
                f"voxels a side; data.shape gives {list(shape)}"
            )
        from monai.networks.nets.densenet import DenseNet as Published

        whole = Published(
            spatial_dims=3, in_channels=1, out_channels=1, init_features=settings.initial,
            growth_rate=settings.growth, block_config=settings.layers,
            dropout_prob=settings.dropout,
        )  # fmt: skip
        self.layers = renormalised(whole.features, normalisation)
        self.average = GlobalAverage()
        self.features = whole.class_layers[-1].in_features
        self.stride = 2 ** (1 + len(settings.layers))

    def stages(self) -> list[tuple[nn.Module, ...]]:
        """The first convolution, each block, each transition, with the norms behind them."""
        found: list[tuple[nn.Module, ...]] = []
        for name, part in self.layers.named_children():
            if name.startswith("norm"):
                found[-1] = (*found[-1], part)
            elif any(True for _ in part.parameters()):
                found.append((part,))
        return found

    def feature_map(self, x_BXYZ: Tensor) -> Tensor:
        """(B, F, x, y, z): one place for every `stride` voxels."""
        return torch.relu(self.layers(x_BXYZ.unsqueeze(1)))

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        return self.average(self.feature_map(x_BXYZ))  # type: ignore[no-any-return]


def _smallest(blocks: int) -> int:
    """Voxels a side that leave one place behind `blocks` blocks, halved before each of them.

    >>> _smallest(4)
    17
    """
    return max(_SMALLEST, 1 << blocks)
