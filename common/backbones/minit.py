"""MINiT (singlaayush/MINIT): a volume is a bag of blocks, one transformer reads them all.

A volume of 64^3 is cut into 4^3 blocks of 16^3, each of these into 64 patches of 4^3. One small ViT
is shared by all blocks; an embedding of each block (blocks, 1 + patches, width) tells it where it
is. What it says of each block, `logits` numbers, stands side by side: (B, blocks * logits), from
which a linear head makes the answer. With logits = 2 and a head of two classes that is the
published network: 3.63 million parameters at width 256, 10.4 million at 512.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from common.backbones.vit import TransformerSettings
from common.seams import Layout
from common.transformer import Block, add_prompts, falling_out, grid_of, patches_of, positions

Share = Annotated[float, Field(ge=0, lt=1)]


class Minit(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, blocks * logits)."""

    needs_warmup: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (64, 64, 64)
    small: ClassVar[dict[str, Any]] = {"width": 64, "depth": 2, "heads": 4, "feed_forward": 64}

    class Settings(TransformerSettings):
        """Keys of `[backbone]`."""

        name: Literal["minit"] = Field(description="This backbone.")
        block: Annotated[int, Field(ge=1, le=128)] = Field(
            16, description="Edge of a block in voxels.", examples=[16]
        )
        patch: Annotated[int, Field(ge=1, le=64)] = Field(
            4, description="Edge of a patch in voxels; it divides the block's.", examples=[4]
        )
        width: Annotated[int, Field(ge=1, le=8192)] = Field(
            256, description="Features of a token.", examples=[256]
        )
        depth: Annotated[int, Field(ge=1, le=100)] = Field(
            6, description="Layers of the transformer.", examples=[6]
        )
        heads: Annotated[int, Field(ge=1, le=256)] = Field(
            8, description="Heads of each attention; they divide the width.", examples=[8]
        )
        feed_forward: Annotated[int, Field(ge=1, le=65536)] = Field(
            309, description="Width inside a layer's feed-forward part.", examples=[309]
        )
        dropout: Share = Field(0.07, description="Dropout in every layer.")
        embedding_dropout: Share = Field(0.016, description="Dropout of embedded patches.")
        logits: Annotated[int, Field(ge=1, le=4096)] = Field(
            2, description="Numbers that each block says of itself.", examples=[2]
        )

        @model_validator(mode="after")
        def _cuts(self) -> Minit.Settings:
            if self.block % self.patch:
                raise ValueError(f"patch is {self.patch}; it must divide block, {self.block}")
            return self

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < settings.block:
            raise ValueError(
                f"minit with blocks of {settings.block} voxels needs volumes of at least as many "
                f"a side; data.shape gives {list(shape)}"
            )
        width = settings.width
        self.block = (settings.block,) * 3
        self.patch = (settings.patch,) * 3
        grid = grid_of(shape, self.block)
        blocks, patches = grid[0] * grid[1] * grid[2], (settings.block // settings.patch) ** 3
        self.embed = nn.Linear(settings.patch**3, width)
        self.place = positions(1 + patches, width)
        self.token = positions(1, width)
        self.which = positions(blocks, 1 + patches, width)
        self.dropout = nn.Dropout(settings.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(
                width, settings.heads, settings.feed_forward, dropout=settings.dropout,
                drop_path=chance,
            )
            for chance in falling_out(settings.drop_path, settings.depth)
        )  # fmt: skip
        self.says = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, settings.logits))
        self.features = blocks * settings.logits

    def stages(self) -> list[nn.Module]:
        """The embedding, each layer, and what a block says."""
        return [self.embed, *self.blocks, self.says]

    def tune(self, method: str, task: Any) -> Any:
        """Visual prompts in every layer (Jia et al. 2022), the same for all blocks."""
        return (
            [*add_prompts(self, task.settings.prompts)] if method == "prompts" else NotImplemented
        )

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        blocks_BKV = patches_of(x_BXYZ, self.block)
        count = blocks_BKV.shape[1]
        cubes = blocks_BKV.flatten(0, 1).unflatten(1, self.block)
        tokens = self.embed(patches_of(cubes, self.patch))  # (B K, N, E)
        first = self.token.expand(len(tokens), -1, -1).to(tokens.dtype)
        tokens = torch.cat([first, tokens], 1) + self.place
        tokens = (tokens.unflatten(0, (-1, count)) + self.which).flatten(0, 1)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.says(tokens[:, 0]).unflatten(0, (-1, count)).flatten(1)  # type: ignore[no-any-return]
