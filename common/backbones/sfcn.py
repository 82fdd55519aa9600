"""The simple fully convolutional network of Peng et al. 2021, as Leonardsen et al. 2025 use it.

Blocks of convolution, normalisation, ReLU and pooling (ReLU and max-pooling commute, so both
published orders are this one), a 1x1x1 top block, a global average, dropout. With the published
widths it holds 2,950,336 parameters and takes volumes from 32 voxels a side.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from common.normalisation import GlobalAverage, normalisation
from common.seams import Layout
from common.settings import Table

Width = Annotated[int, Field(ge=1, le=4096)]


class Sfcn(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, top)."""

    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (96, 96, 96)
    small: ClassVar[dict[str, Any]] = {"channels": (8, 32, 64), "top": 32}

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["sfcn"] = Field(description="This backbone.")
        channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = Field(
            (32, 64, 128, 256, 256),
            description="Width of each block; each block halves the volume.",
            examples=[(32, 64, 128, 256, 256)],
        )
        top: Width = Field(
            64, description="Width of the top block: the number of features.", examples=[64]
        )
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0, description="Dropout before the heads.", examples=[0.2]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        smallest = 2 ** len(settings.channels)
        if len(shape) != 3 or min(shape) < smallest:
            raise ValueError(
                f"sfcn with {len(settings.channels)} blocks needs volumes of at least "
                f"{smallest} voxels a side; data.shape gives {list(shape)}"
            )
        widths = [1, *settings.channels]
        self.blocks = nn.Sequential(*(_block(a, b, normalisation) for a, b in pairwise(widths)))
        self.top = _top(widths[-1], settings.top, normalisation)
        self.average = GlobalAverage()
        self.dropout = nn.Dropout(settings.dropout)
        self.features = settings.top
        self.stride = smallest

    def stages(self) -> list[nn.Module]:
        """Each block, and the top one."""
        return [*self.blocks, self.top]

    def feature_map(self, x_BXYZ: Tensor) -> Tensor:
        """(B, top, x, y, z): one place for every `stride` voxels."""
        return self.top(self.blocks(x_BXYZ.unsqueeze(1)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.average(self.feature_map(x)))  # type: ignore[no-any-return]


def _block(narrow: int, wide: int, policy: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(narrow, wide, 3, padding=1),
        normalisation(policy, wide, 3),
        nn.MaxPool3d(2),  # before ReLU: the same result on an eighth of the voxels
        nn.ReLU(inplace=True),
    )


def _top(narrow: int, wide: int, policy: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(narrow, wide, 1), normalisation(policy, wide, 3), nn.ReLU(inplace=True)
    )
