"""What vision transformers are made of: volumes in patches, attention, blocks, prompts.

Attention is torch's `scaled_dot_product_attention` throughout: one kernel that never writes the
matrix of who looks at whom, where the device has one.

Letters in shapes: B samples, N tokens, E features of a token, H heads, P prompts, V voxels of a
patch; X Y Z voxels along R, A, S.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

Edges = tuple[int, int, int]  # voxels of a patch along X, Y, Z


def grid_of(shape: tuple[int, ...], patch: Edges) -> Edges:
    """How many patches cover a volume along each axis; the last ones may reach beyond it.

    >>> grid_of((96, 100, 96), (16, 16, 16))
    (6, 7, 6)
    """
    x, y, z = (-(-length // edge) for length, edge in zip(shape, patch, strict=True))
    return x, y, z


def patches_of(x_BXYZ: Tensor, patch: Edges) -> Tensor:
    """(B, X, Y, Z) to (B, N, V), row by row; what reaches beyond the volume is 0, as background is.

    >>> patches_of(torch.arange(8.0).view(1, 2, 2, 2), (1, 2, 2))[0].tolist()
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    """
    more = [-length % edge for length, edge in zip(x_BXYZ.shape[1:], patch, strict=True)]
    if any(more):
        x_BXYZ = functional.pad(x_BXYZ, (0, more[2], 0, more[1], 0, more[0]))
    for axis in (3, 2, 1):
        x_BXYZ = x_BXYZ.unflatten(axis, (-1, patch[axis - 1]))
    return x_BXYZ.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)


def volumes_of(patches_BNV: Tensor, shape: tuple[int, ...], patch: Edges) -> Tensor:
    """(B, N, V) back to (B, *shape): what `patches_of` takes apart, without what lay beyond."""
    grid = grid_of(shape, patch)
    x: Tensor = patches_BNV.unflatten(2, patch).unflatten(1, grid).permute(0, 1, 4, 2, 5, 3, 6)
    x = x.flatten(5).flatten(3, 4).flatten(1, 2)
    return x[:, : shape[0], : shape[1], : shape[2]]


class Attention(nn.Module):
    """(B, N, E) to (B, N, E): every token looks at every other (Vaswani et al. 2017).

    `prompts` (P, E), where there are any, are looked at too and look at nothing: what visual
    prompts in every block (Jia et al. 2022) do, whose own outputs are dropped behind the block.
    """

    prompts: nn.Parameter | None

    def __init__(
        self, width: int, heads: int, dropout: float = 0.0, *, inner: int = 0, bias: bool = False
    ) -> None:
        super().__init__()
        inner = inner or width
        self.heads, self.dropout = heads, dropout
        self.look = nn.Linear(width, 3 * inner, bias=bias)  # queries, keys and values
        self.out = nn.Linear(inner, width)
        self.register_parameter("prompts", None)

    def forward(self, x_BNE: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias`, added before the softmax: anything that broadcasts to (B, H, N, N)."""
        tokens, count = x_BNE, x_BNE.shape[1]
        if self.prompts is not None:
            tokens = torch.cat([x_BNE, self.prompts.to(x_BNE.dtype).expand(len(x_BNE), -1, -1)], 1)
            bias = None if bias is None else functional.pad(bias, (0, len(self.prompts)))
        query, key, value = self.look(tokens).unflatten(2, (3, self.heads, -1)).unbind(2)
        seen_BHND = functional.scaled_dot_product_attention(
            query[:, :count].transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
            attn_mask=bias if bias is None else bias.to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.out(seen_BHND.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DropPath(nn.Module):
    """Leave out a whole residual branch of a sample by chance (Huang et al. 2016)."""

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.chance:
            return x
        kept = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device) >= self.chance
        return x * (kept / (1 - self.chance)).to(x.dtype)


class FeedForward(nn.Sequential):
    """(B, N, E) to (B, N, E), each token for itself, through a wider layer."""

    def __init__(self, width: int, wide: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(width, wide), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(wide, width), nn.Dropout(dropout),
        )  # fmt: skip


class Block(nn.Module):
    """Attention, then feed-forward, each on normalised tokens and added to what came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        wide: int,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.before_feed_forward = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, wide, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BNE: Tensor) -> Tensor:
        looked = self.dropout(self.attention(self.before_attention(x_BNE)))
        x_BNE = x_BNE + self.drop_path(looked)
        added = self.feed_forward(self.before_feed_forward(x_BNE))
        return x_BNE + self.drop_path(added)  # type: ignore[no-any-return]


def positions(*shape: int) -> nn.Parameter:
    """A learnt table, drawn as that of Dosovitskiy et al. 2021: a normal of sd 0.02, cut at two."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02, a=-0.04, b=0.04))


def falling_out(last: float, depth: int) -> list[float]:
    """Chances of dropping each of `depth` blocks, from none to `last`.

    >>> falling_out(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    return [last * place / max(1, depth - 1) for place in range(depth)]


def add_prompts(backbone: nn.Module, number: int) -> Iterable[str]:
    """Give every attention of `backbone` so many prompts; return their names."""
    for name, module in backbone.named_modules():
        if isinstance(module, Attention):
            module.prompts = positions(number, module.look.in_features)
            yield f"{name}.prompts"
