"""The masked autoencoder (He et al. 2022): most patches are hidden, then filled in.

Three quarters of them; the encoder sees the last quarter alone, at a quarter of the cost, a light
decoder sees them all.
The loss is the squared error over hidden patches, each patch normalised by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.objectives.self_supervision import SelfSupervised
from common.settings import Table
from common.transformer import Block, positions, volumes_of

_FLAT = 1e-6  # variance of a patch that is background alone


class Mae(SelfSupervised):
    """A transformer that encodes patches apart from each other, and a decoder."""

    class Settings(Table):
        """Keys of `[objective]`."""

        name: Literal["mae"] = Field(description="This objective.")
        hidden: Annotated[float, Field(gt=0, lt=1)] = Field(
            0.75, description="Share of patches that are hidden.", examples=[0.75]
        )
        width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = Field(
            256, description="Features of a token of the decoder.", examples=[256]
        )
        depth: Annotated[int, Field(ge=1, le=48)] = Field(
            4, description="Blocks of the decoder.", examples=[4]
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__(PatchFilling(settings, backbone), backbone)

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, the rest NaN, and the whole as it is made from that; (B, X, Y, Z)."""
        return self.part.reconstruct(self.backbone, x)  # type: ignore[no-any-return]


class PatchFilling(nn.Module):
    """Hide patches of a volume, encode the others, and make the hidden ones."""

    term: ClassVar[str] = "reconstruction"

    def __init__(self, settings: Mae.Settings, backbone: Any) -> None:
        super().__init__()
        if not hasattr(backbone, "encode"):
            raise ValueError(
                f"mae needs a backbone that encodes patches apart from each other (vit, nit); "
                f"{type(backbone).__name__} mixes them: simmim hides voxels from any"
            )
        width, voxels = settings.width, backbone.embed.in_features
        self.seen = max(1, round(backbone.count * (1 - settings.hidden)))
        if self.seen == backbone.count:
            raise ValueError(
                f"hidden is {settings.hidden:g}; of {backbone.count} patches that hides none"
            )
        self.enter = nn.Linear(backbone.features, width)
        self.unseen = positions(1, width)
        self.place = positions(backbone.count, width)
        self.blocks = nn.ModuleList(
            Block(width, 8, 4 * width, bias=True) for _ in range(settings.depth)
        )
        self.make = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, voxels))

    def forward(self, backbone: Any, x_BXYZ: Tensor) -> Tensor:
        patches_BNV = backbone.patches(x_BXYZ)
        order_BN = _shuffled(patches_BNV)
        made_BNV = self._made(backbone, patches_BNV, order_BN).float()
        mean, deviation = _normal(patches_BNV)
        wrong_BN: Tensor = (made_BNV - (patches_BNV - mean) / deviation).square().mean(2)
        return wrong_BN.gather(1, order_BN[:, self.seen :]).mean(1)

    def reconstruct(self, backbone: Any, x_BXYZ: Tensor) -> tuple[Tensor, Tensor]:
        """What was seen, the rest NaN, and the whole as it is made from that; (B, X, Y, Z)."""
        patches_BNV = backbone.patches(x_BXYZ)
        order_BN = _shuffled(patches_BNV)
        mean, deviation = _normal(patches_BNV)
        made_BNV = self._made(backbone, patches_BNV, order_BN).float() * deviation + mean
        at = order_BN[:, self.seen :, None].expand(-1, -1, patches_BNV.shape[2])
        shown = patches_BNV.scatter(1, at, float("nan"))
        made = patches_BNV.scatter(1, at, made_BNV.gather(1, at))
        shape = x_BXYZ.shape[1:]
        return (
            volumes_of(shown, shape, backbone.patch),
            volumes_of(made, shape, backbone.patch),
        )

    def _made(self, backbone: Any, patches_BNV: Tensor, order_BN: Tensor) -> Tensor:
        seen_BM = order_BN[:, : self.seen]
        encoded_BMW = self.enter(backbone.encode(patches_BNV, seen_BM)[:, -self.seen :])
        table_BNW = self.unseen.to(encoded_BMW.dtype).expand(*patches_BNV.shape[:2], -1)
        at = seen_BM[..., None].expand_as(encoded_BMW)
        tokens = table_BNW.scatter(1, at, encoded_BMW) + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.make(tokens)  # type: ignore[no-any-return]


def _shuffled(patches_BNV: Tensor) -> Tensor:
    """(B, N) the patches of each sample in an order of its own; the first ones are seen."""
    return torch.rand(patches_BNV.shape[:2], device=patches_BNV.device).argsort(1)


def _normal(patches_BNV: Tensor) -> tuple[Tensor, Tensor]:
    mean = patches_BNV.mean(2, keepdim=True)
    return mean, (patches_BNV.var(2, unbiased=False, keepdim=True) + _FLAT).sqrt()
