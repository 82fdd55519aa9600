"""The vision transformer of Dosovitskiy et al. 2021 over cubes of a volume; ViT-B/16 as it stands.

With the published widths and a volume of 96^3 it holds 88.4 million parameters. NiT of
singlaayush/MINIT is the same network, small, read through a class token (`common.backbones.nit`).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from common.seams import Layout
from common.settings import Table
from common.transformer import (
    Block,
    add_prompts,
    falling_out,
    grid_of,
    patches_of,
    positions,
)

Share = Annotated[float, Field(ge=0, lt=1)]


class TransformerSettings(Table):
    """Keys of `[backbone]` that plain vision transformers share."""

    patch: Annotated[int, Field(ge=1, le=64)] = Field(
        16, description="Edge of a patch in voxels.", examples=[16]
    )
    width: Annotated[int, Field(ge=1, le=8192)] = Field(
        768, description="Features of a token.", examples=[768]
    )
    depth: Annotated[int, Field(ge=1, le=100)] = Field(12, description="Blocks.", examples=[12])
    heads: Annotated[int, Field(ge=1, le=256)] = Field(
        12, description="Heads of each attention; they divide the width.", examples=[12]
    )
    feed_forward: Annotated[int, Field(ge=1, le=65536)] = Field(
        3072, description="Width inside a block's feed-forward part.", examples=[3072]
    )
    dropout: Share = Field(0.0, description="Dropout in every block.")
    embedding_dropout: Share = Field(0.0, description="Dropout of embedded patches.")
    drop_path: Share = Field(
        0.0, description="Chance that a sample skips the last block; earlier ones in proportion."
    )

    @model_validator(mode="after")
    def _divides(self) -> TransformerSettings:
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}; it must divide width, {self.width}")
        return self


class Vit(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, width).

    count: N, patches of a volume. patch: edges of one, in voxels.
    """

    needs_warmup: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (96, 96, 96)
    small: ClassVar[dict[str, Any]] = {
        "patch": 8,
        "width": 96,
        "depth": 4,
        "heads": 4,
        "feed_forward": 192,
    }

    class Settings(TransformerSettings):
        """Keys of `[backbone]`."""

        name: Literal["vit"] = Field(description="This backbone.")
        readout: Literal["mean", "class"] = Field(
            "mean", description="Features: the mean over patches, or a class token."
        )
        attention_bias: bool = Field(
            True,
            description="Biases of queries, keys and values.",
        )

    def __init__(self, settings: Any, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < settings.patch:
            raise ValueError(
                f"{settings.name} with patches of {settings.patch} voxels needs volumes of at "
                f"least as many a side; data.shape gives {list(shape)}"
            )
        edge, width = settings.patch, settings.width
        self.patch = (edge, edge, edge)
        grid = grid_of(shape, self.patch)
        self.count = grid[0] * grid[1] * grid[2]
        self.by_class = settings.readout == "class"
        self.embed = nn.Linear(edge**3, width)
        self.place = positions(self.count + self.by_class, width)
        self.token = positions(1, width) if self.by_class else None
        self.dropout = nn.Dropout(settings.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(
                width, settings.heads, settings.feed_forward, dropout=settings.dropout,
                drop_path=chance, bias=settings.attention_bias,
            )
            for chance in falling_out(settings.drop_path, settings.depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        self.features = width

    def stages(self) -> list[nn.Module]:
        """The embedding, each block, and the norm behind them."""
        return [self.embed, *self.blocks, self.norm]

    def tune(self, method: str, task: Any) -> Any:
        """Visual prompts in every block (Jia et al. 2022)."""
        return (
            [*add_prompts(self, task.settings.prompts)] if method == "prompts" else NotImplemented
        )

    def patches(self, x_BXYZ: Tensor) -> Tensor:
        """(B, N, V): the voxels of each patch."""
        return patches_of(x_BXYZ, self.patch)

    def encode(self, patches_BNV: Tensor, seen_BM: Tensor | None = None) -> Tensor:
        """Tokens of all patches, or of those seen alone: (B, N or M, width), after the last norm.

        With a class token that is the first one: (B, 1 + N or M, width).
        """
        behind = self.place[self.by_class :]
        if seen_BM is None:
            tokens = self.embed(patches_BNV) + behind
        else:  # what is not seen costs nothing, not even its embedding
            at = seen_BM[..., None]
            seen_BMV = patches_BNV.gather(1, at.expand(-1, -1, patches_BNV.shape[2]))
            tokens = self.embed(seen_BMV) + behind[seen_BM]
        if self.token is not None:
            first = (self.token + self.place[:1]).expand(len(tokens), -1, -1)
            tokens = torch.cat([first.to(tokens.dtype), tokens], 1)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        tokens = self.encode(self.patches(x_BXYZ))
        return tokens[:, 0] if self.by_class else tokens.mean(1)
