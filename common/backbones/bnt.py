"""A transformer over regions, read through clusters: the Brain Network Transformer (Kan et al.).

A region is told by its row of the connectome, without a positional code. Each is given to clusters
by how far it points along their centres, which are orthonormal and stay as they were drawn; what a
cluster was given is its row (Kan et al. 2022, equations 3 to 5). The released code puts another
network before that choice, and squares it; here it is as the paper has it.

Letters in shapes: B samples, R regions, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.seams import FROZEN, SHARED, Layout
from common.settings import Table
from common.transformer import Attention

_NARROW: Final = 8  # features of a cluster
_READ: Final = (256, 32)  # widths behind them


class Layer(nn.Module):
    """(B, R, R) to the same: regions look at each other, then each thinks for itself; post-norm."""

    def __init__(self, width: int, heads: int, wide: int, dropout: float) -> None:
        super().__init__()
        inner = heads * -(-width // heads)  # regions need not be a multiple of heads
        self.among = Attention(width, heads, dropout, inner=inner, bias=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, width)
        )
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BRR: Tensor) -> Tensor:
        x_BRR = self.first(x_BRR + self.dropout(self.among(x_BRR)))
        return self.last(x_BRR + self.dropout(self.feed_forward(x_BRR)))  # type: ignore[no-any-return]


class Readout(nn.Module):
    """Regions (B, R, R) to clusters (B, K, R)."""

    centres: Tensor

    def __init__(self, regions: int, clusters: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.empty(clusters, regions))
        nn.init.orthogonal_(self.centres)

    def forward(self, x_BRR: Tensor) -> Tensor:
        belongs_BRK = torch.softmax(x_BRR @ self.centres.T, 2)
        return belongs_BRK.mT @ x_BRR


class Bnt(nn.Module):
    """Connectomes (B, R, R) to features (B, 32)."""

    layouts: ClassVar[tuple[Layout, ...]] = ("matrix",)
    usual: ClassVar[tuple[int, ...]] = (200, 200)
    small: ClassVar[Mapping[str, Any]] = {"clusters": 10, "feed_forward": 64}

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["bnt"] = Field(description="This backbone.")
        depth: Annotated[int, Field(ge=1, le=64)] = Field(2, description="Layers.")
        heads: Annotated[int, Field(ge=1, le=128)] = Field(4, description="Heads of attention.")
        feed_forward: Annotated[int, Field(ge=1, le=65536)] = Field(
            1024, description="Width inside the feed-forward layers.", examples=[64]
        )
        clusters: Annotated[int, Field(ge=1, le=1500)] = Field(
            100, description="Clusters that regions are read by; no more than regions.",
            examples=[10],
        )  # fmt: skip
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.1, description="Dropout of attention and of feed-forward layers."
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"bnt takes connectomes, (R, R); data.shape gives {list(shape)}")
        regions, clusters = shape[0], settings.clusters
        if clusters > regions:
            raise ValueError(
                f"clusters is {clusters}; of {regions} regions no more can be orthonormal"
            )
        self.layers = nn.ModuleList(
            Layer(regions, settings.heads, settings.feed_forward, settings.dropout)
            for _ in range(settings.depth)
        )
        self.readout = Readout(regions, clusters)
        self.narrow = nn.Sequential(nn.Linear(regions, _NARROW), nn.LeakyReLU())
        wide, self.features = _READ
        self.read = nn.Sequential(
            nn.Linear(_NARROW * clusters, wide), nn.LeakyReLU(), nn.Linear(wide, self.features),
            nn.LeakyReLU(),
        )  # fmt: skip

    def owner(self, name: str) -> str:
        """Centres are as they were drawn."""
        return FROZEN if name == "readout.centres" else SHARED

    def stages(self) -> list[Any]:
        """The layers, then how clusters are read."""
        return [*self.layers, (self.narrow, self.read)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.read(self.narrow(self.readout(x)).flatten(1))  # type: ignore[no-any-return]
