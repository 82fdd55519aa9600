"""A decoder in which tokens look at a brain's regions: the Large Connectome Model (Wei et al.).

What each token stands for is the objective's business (`common.objectives.lcm`). Memory is a row of
the connectome for each region, without a positional code: the row says which region it is of.

Letters in shapes: B samples, R regions, P tokens, E features of a token, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from common.normalisation import normalisation as normalisation_layer
from common.seams import Layout
from common.settings import Table


class Looking(nn.Module):
    """Attention of (B, P, E) on (B, N, E), whose keys need not be its values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asks, answers, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(query), self.key(key), self.value(value))
        )
        seen_BHPD = functional.scaled_dot_product_attention(
            asks, answers, values, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out(seen_BHPD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Tokens look at each other, then at the regions, then each thinks for itself.

    Post-norm, as in DETR (Carion et al. 2020): what a token is (its row of the table) is added to
    queries, and to keys among tokens, at every layer; values are what it has gathered so far.
    """

    def __init__(self, width: int, heads: int, wide: int, dropout: float) -> None:
        super().__init__()
        self.among = Looking(width, heads, dropout)
        self.across = Looking(width, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, wide), nn.ReLU(), nn.Dropout(dropout), nn.Linear(wide, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, gathered_BPE: Tensor, tokens_PE: Tensor, memory_BRE: Tensor) -> Tensor:
        among, across, last = self.norms
        asked = gathered_BPE + tokens_PE
        found = self.among(asked, asked, gathered_BPE)
        gathered_BPE = among(gathered_BPE + self.dropout(found))
        found = self.across(gathered_BPE + tokens_PE, memory_BRE, memory_BRE)
        gathered_BPE = across(gathered_BPE + self.dropout(found))
        found = self.feed_forward(gathered_BPE)
        return last(gathered_BPE + self.dropout(found))  # type: ignore[no-any-return]


class Lcm(nn.Module):
    """Connectomes (B, R, R) to features (B, E); tokens (P, E) to (L, B, P, E) by `decode`."""

    layouts: ClassVar[tuple[Layout, ...]] = ("matrix",)
    usual: ClassVar[tuple[int, ...]] = (116, 116)
    small: ClassVar[Mapping[str, Any]] = {"width": 128, "depth": 4, "feed_forward": 256}

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["lcm"] = Field(description="This backbone.")
        width: Annotated[int, Field(ge=1, le=16384)] = Field(
            2048, description="Features of a region and of a token.", examples=[128]
        )
        depth: Annotated[int, Field(ge=1, le=128)] = Field(
            4,
            description="Layers; 4, 8, 20 and 32 were published, of 147 to 1,176 million numbers.",
            examples=[4],
        )
        heads: Annotated[int, Field(ge=1, le=128)] = Field(8, description="Heads of attention.")
        feed_forward: Annotated[int, Field(ge=1, le=65536)] = Field(
            768, description="Width inside the feed-forward layers.", examples=[256]
        )
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.1, description="Dropout of attention and of feed-forward layers."
        )

        @model_validator(mode="after")
        def _heads_share_the_width(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"width is {self.width}; heads, {self.heads}, must divide it")
            return self

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"lcm takes connectomes, (R, R); data.shape gives {list(shape)}")
        self.features = settings.width
        self.rows = nn.Linear(shape[1], settings.width)
        self.normalise = normalisation_layer(normalisation, settings.width, 1)
        self.layers = nn.ModuleList(
            Layer(settings.width, settings.heads, settings.feed_forward, settings.dropout)
            for _ in range(settings.depth)
        )
        self.last = nn.LayerNorm(settings.width)

    def stages(self) -> list[Any]:
        """Rows, then the layers; what is done behind the last is part of it."""
        *before, end = self.layers
        return [(self.rows, self.normalise), *before, (end, self.last)]

    def memory(self, x_BRR: Tensor) -> Tensor:
        """(B, R, E): what tokens look at, a row for each region."""
        rows_BER = self.rows(x_BRR).transpose(1, 2)
        return functional.leaky_relu(self.normalise(rows_BER)).transpose(1, 2)

    def decode(self, memory_BRE: Tensor, tokens_PE: Tensor) -> Tensor:
        """(L, B, P, E) what each token has gathered behind each layer."""
        gathered = torch.zeros_like(tokens_PE).expand(len(memory_BRE), -1, -1)
        found = []
        for layer in self.layers:
            gathered = layer(gathered, tokens_PE, memory_BRE)
            found.append(self.last(gathered))
        return torch.stack(found)

    def forward(self, x: Tensor) -> Tensor:
        """What a token without a name gathers: it starts as 0, and biases ask in its place."""
        return self.decode(self.memory(x), x.new_zeros(1, self.features))[-1, :, 0]
