"""SimMIM (Xie et al. 2022): cubes of the volume are hidden, and filled in by the simplest decoder.

For networks that look at places together: convolutions, windows. A learnt cube stands in for what
is hidden; the loss is the absolute error over hidden voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.objectives.self_supervision import SelfSupervised
from common.settings import Table
from common.transformer import Edges, grid_of, volumes_of


class Simmim(SelfSupervised):
    """A backbone with a map of features, and two narrow layers that make voxels of it."""

    class Settings(Table):
        """Keys of `[objective]`."""

        name: Literal["simmim"] = Field(description="This objective.")
        hidden: Annotated[float, Field(gt=0, lt=1)] = Field(
            0.6, description="Share of cubes that are hidden.", examples=[0.6]
        )
        cube: Annotated[int, Field(ge=1, le=128)] = Field(
            8, description="Edge of a cube in voxels.", examples=[8]
        )
        width: Annotated[int, Field(ge=1, le=4096)] = Field(
            128, description="Width of the decoder's narrow layer.", examples=[128]
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__(VoxelFilling(settings, backbone), backbone)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, the rest NaN, and the whole as it is made from that; (B, X, Y, Z)."""
        return self.part.reconstruct(self.backbone, x)  # type: ignore[no-any-return]


class VoxelFilling(nn.Module):
    """Hide cubes of a volume from a network, and make them from its map of features."""

    term: ClassVar[str] = "reconstruction"

    def __init__(self, settings: Simmim.Settings, backbone: Any) -> None:
        super().__init__()
        if not hasattr(backbone, "feature_map"):
            raise ValueError(
                f"simmim needs a backbone with a map of features (sfcn, densenet, resnet, swin); "
                f"{type(backbone).__name__} has none: mae hides patches of a transformer"
            )
        stride = backbone.stride
        self.stride: Edges = (stride,) * 3 if isinstance(stride, int) else stride
        self.cube = (settings.cube,) * 3
        cubes = math.prod(grid_of(backbone.shape, self.cube))
        self.hides = round(cubes * settings.hidden)
        if not 0 < self.hides < cubes:
            raise ValueError(
                f"hidden is {settings.hidden:g} and cube is {settings.cube}; of the {cubes} "
                f"cubes of {list(backbone.shape)} voxels that hides {self.hides}; one at least "
                "must be hidden and one seen"
            )
        self.stand_in = nn.Parameter(torch.zeros(self.cube))
        self.make = nn.Sequential(
            nn.Linear(backbone.features, settings.width), nn.GELU(),
            nn.Linear(settings.width, math.prod(self.stride)),
        )  # fmt: skip

    def forward(self, backbone: Any, x_BXYZ: Tensor) -> Tensor:
        hidden = self._hidden(x_BXYZ)
        wrong: Tensor = (self._made(backbone, x_BXYZ, hidden).float() - x_BXYZ).abs() * hidden
        return wrong.flatten(1).sum(1) / hidden.flatten(1).sum(1)

    def reconstruct(self, backbone: Any, x_BXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, the rest NaN, and the whole as it is made from that; (B, X, Y, Z)."""
        hidden = self._hidden(x_BXYZ)
        made = self._made(backbone, x_BXYZ, hidden).float()
        return x_BXYZ.masked_fill(hidden, float("nan")), torch.where(hidden, made, x_BXYZ)

    def _hidden(self, x_BXYZ: Tensor) -> Tensor:
        """(B, X, Y, Z) bool: as many cubes of each sample, drawn anew."""
        coarse = grid_of(x_BXYZ.shape[1:], self.cube)
        drawn = torch.rand((len(x_BXYZ), math.prod(coarse)), device=x_BXYZ.device)
        hidden: Tensor = (drawn.argsort(1).argsort(1) < self.hides).unflatten(1, coarse)
        for axis, length in enumerate(x_BXYZ.shape[1:], start=1):
            hidden = hidden.repeat_interleave(self.cube[0], axis).narrow(axis, 0, length)
        return hidden

    def _made(self, backbone: Any, x_BXYZ: Tensor, hidden: Tensor) -> Tensor:
        shape = x_BXYZ.shape[1:]
        times = grid_of(shape, self.cube)
        tiled = self.stand_in.repeat(times)[: shape[0], : shape[1], : shape[2]]
        # the network halves volumes: whole ones of its stride, so that its map covers every voxel
        more = [-length % step for length, step in zip(shape, self.stride, strict=True)]
        shown = functional.pad(
            torch.where(hidden, tiled, x_BXYZ), (0, more[2], 0, more[1], 0, more[0])
        )
        map_BNF = backbone.feature_map(shown).flatten(2).transpose(1, 2)
        return volumes_of(self.make(map_BNF), shape, self.stride)
