"""A Swin transformer over volumes (Liu et al. 2021, 2022), Video Swin-T as it stands.

Attention within windows, every second block with windows moved by half of their size; between
stages neighbouring tokens become one of twice the width. As in video, the first axis is not merged:
the axis of time is left and right here. With the published widths and patches of 2 x 4 x 4 it holds
27,844,326 parameters, 6,144 fewer than over films in three colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from common.seams import Layout
from common.settings import Table
from common.transformer import (
    Attention,
    DropPath,
    FeedForward,
    add_prompts,
    falling_out,
    grid_of,
    patches_of,
    positions,
)

Edge = Annotated[int, Field(ge=1, le=64)]
Edges = tuple[int, int, int]
_LARGEST_WINDOW: Final = 2048  # tokens; the published ones have 392 and 343
_MOST_PAIRS: Final = 1 << 28  # of tokens that look at each other; 160 x 192 x 160 has 60 million


class Swin(nn.Module):
    """Volumes (B, X, Y, Z) to features (B, 8 * width), the mean over the last stage's tokens."""

    needs_warmup: ClassVar[bool] = True
    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (96, 96, 96)
    small: ClassVar[dict[str, Any]] = {
        "width": 24,
        "depths": (2, 2),
        "heads": (3, 6),
        "window": (4, 4, 4),
    }

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["swin"] = Field(description="This backbone.")
        patch: tuple[Edge, Edge, Edge] = Field(
            (4, 4, 4), description="Edges of a patch in voxels.", examples=[(4, 4, 4)]
        )
        width: Annotated[int, Field(ge=1, le=2048)] = Field(
            96, description="Features of a token of the first stage.", examples=[96]
        )
        depths: Annotated[
            tuple[Annotated[int, Field(ge=1, le=100)], ...], Field(min_length=1, max_length=6)
        ] = Field((2, 2, 6, 2), description="Blocks of each stage.", examples=[(2, 2, 6, 2)])
        heads: Annotated[
            tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=6)
        ] = Field(
            (3, 6, 12, 24),
            description="Heads of each stage's attention.",
            examples=[(3, 6, 12, 24)],
        )
        window: tuple[Edge, Edge, Edge] = Field(
            (8, 7, 7), description="Tokens of a window along each axis.", examples=[(8, 7, 7)]
        )
        feed_forward: Annotated[float, Field(gt=0, le=16)] = Field(
            4.0, description="Width inside a block's feed-forward part, over the tokens' width."
        )
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout.")
        drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.1,
            description="Chance that a sample skips the last block; earlier ones in proportion.",
        )

        @model_validator(mode="after")
        def _stages_match(self) -> Swin.Settings:
            if len(self.depths) != len(self.heads):
                raise ValueError(
                    f"depths has {len(self.depths)} stages, heads {len(self.heads)}; "
                    "both name every stage"
                )
            for place, heads in enumerate(self.heads):
                if self.width * 2**place % heads:
                    raise ValueError(
                        f"heads is {list(self.heads)}; {heads} must divide the width of stage "
                        f"{place + 1}, {self.width * 2**place}"
                    )
            return self

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 3 or any(n < e for n, e in zip(shape, settings.patch, strict=True)):
            raise ValueError(
                f"swin with patches of {list(settings.patch)} voxels needs volumes of at least as "
                f"many; data.shape gives {list(shape)}"
            )
        self.patch = settings.patch
        _bearable(shape, settings)
        voxels = self.patch[0] * self.patch[1] * self.patch[2]
        widths = [settings.width * 2**place for place in range(len(settings.depths))]
        self.embed = nn.Sequential(nn.Linear(voxels, widths[0]), nn.LayerNorm(widths[0]))
        self.dropout = nn.Dropout(settings.dropout)
        chances = falling_out(settings.drop_path, sum(settings.depths))
        self.layers = nn.ModuleList()
        for place, (width, depth, heads) in enumerate(
            zip(widths, settings.depths, settings.heads, strict=True)
        ):
            before = sum(settings.depths[:place])
            merging = Merging(widths[place - 1]) if place else nn.Identity()
            blocks = [
                WindowBlock(
                    width,
                    heads,
                    settings,
                    moved=bool(number % 2),
                    drop_path=chances[before + number],
                )
                for number in range(depth)
            ]
            self.layers.append(nn.Sequential(merging, *blocks))
        self.norm = nn.LayerNorm(widths[-1])
        self.features = widths[-1]
        merged = 2 ** (len(widths) - 1)
        self.stride = (self.patch[0], self.patch[1] * merged, self.patch[2] * merged)

    def stages(self) -> list[nn.Module]:
        """The embedding, each stage, and the norm behind them."""
        return [self.embed, *self.layers, self.norm]

    def tune(self, method: str, task: Any) -> Any:
        """Visual prompts in every block, beside the tokens of each window (Jia et al. 2022)."""
        return (
            [*add_prompts(self, task.settings.prompts)] if method == "prompts" else NotImplemented
        )

    def feature_map(self, x_BXYZ: Tensor) -> Tensor:
        """(B, F, x, y, z): one place for every `stride` voxels."""
        return self._tokens(x_BXYZ).movedim(-1, 1)

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        return self._tokens(x_BXYZ).flatten(1, 3).mean(1)

    def _tokens(self, x_BXYZ: Tensor) -> Tensor:
        """(B, x, y, z, E) after the last norm."""
        grid = grid_of(x_BXYZ.shape[1:], self.patch)
        tokens = self.embed(patches_of(x_BXYZ, self.patch)).unflatten(1, grid)
        tokens = self.dropout(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)  # type: ignore[no-any-return]


def _bearable(shape: tuple[int, ...], settings: Swin.Settings) -> None:
    """Refuse windows whose attention nobody could hold, before any table of them is made."""
    grid = grid_of(shape, settings.patch)
    window = [min(edge, n) for edge, n in zip(settings.window, grid, strict=True)]
    tokens, seen = math.prod(grid), math.prod(window)
    if seen > _LARGEST_WINDOW or tokens * seen > _MOST_PAIRS:
        raise ValueError(
            f"window is {list(settings.window)} over {list(grid)} tokens: each of {tokens:,} would "
            f"look at {seen:,}; smaller windows or larger patches are needed"
        )


class Merging(nn.Module):
    """(B, x, y, z, E) to (B, x, y / 2, z / 2, 2 E): each square of four tokens becomes one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        squares = [x[:, :, y::2, z::2] for z in (0, 1) for y in (0, 1)]
        return self.reduce(self.norm(torch.cat(squares, -1)))  # type: ignore[no-any-return]


class WindowBlock(nn.Module):
    """(B, x, y, z, E) to the same: attention within windows, then feed-forward, both added."""

    def __init__(
        self, width: int, heads: int, settings: Swin.Settings, *, moved: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window, self.moved = settings.window, moved
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, settings.dropout, bias=True)
        self.bias = PlaceBias(heads, self.window)
        self.before_feed_forward = nn.LayerNorm(width)
        wide = round(settings.feed_forward * width)
        self.feed_forward = FeedForward(width, wide, settings.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self._looked(self.before_attention(x)))
        return x + self.drop_path(self.feed_forward(self.before_feed_forward(x)))  # type: ignore[no-any-return]

    def _looked(self, x: Tensor) -> Tensor:
        grid = x.shape[1:4]
        # a window that is larger than the volume is cut, and has nowhere to move
        window = _edges(min(edge, n) for edge, n in zip(self.window, grid, strict=True))
        moved = _edges(
            edge // 2 if self.moved and n > edge else 0
            for edge, n in zip(self.window, grid, strict=True)
        )
        more = [-n % edge for n, edge in zip(grid, window, strict=True)]
        x = functional.pad(x, (0, 0, 0, more[2], 0, more[1], 0, more[0]))
        if any(moved):
            x = torch.roll(x, [-way for way in moved], (1, 2, 3))
        whole = _edges(x.shape[1:4])
        seen = self.attention(_windows(x, window), self.bias(whole, window, moved, len(x)))
        x = _joined(seen, whole, window)
        if any(moved):
            x = torch.roll(x, moved, (1, 2, 3))
        return x[:, : grid[0], : grid[1], : grid[2]]


class PlaceBias(nn.Module):
    """What is added before the softmax: (1 or B W, heads, N, N) for W windows of N tokens.

    A table of how far two tokens of a window lie apart; after a move, also who may not look at
    whom. A module of its own, so that its numbers count where a step's memory is told beforehand.
    """

    def __init__(self, heads: int, window: Edges) -> None:
        super().__init__()
        self.window = window
        far = [2 * edge - 1 for edge in window]
        self.relative = positions(far[0] * far[1] * far[2], heads)

    def forward(self, whole: Edges, window: Edges, moved: Edges, samples: int) -> Tensor:
        """`window` is the present one, cut to the volume; it is moved by `moved`, or not."""
        device = self.relative.device
        bias_HNN = self.relative[_relative_places(self.window, window, device)].movedim(2, 0)
        if not any(moved):
            return bias_HNN.unsqueeze(0)
        apart_WNN = _apart(whole, window, moved, device)
        bias_WHNN = bias_HNN.masked_fill(apart_WNN.unsqueeze(1), float("-inf"))
        return bias_WHNN.repeat(samples, 1, 1, 1)


def _edges(lengths: Iterable[int]) -> Edges:
    x, y, z = lengths
    return x, y, z


def _windows(x: Tensor, window: Edges) -> Tensor:
    """(B, x, y, z, E) to (B W, N, E)."""
    for axis in (3, 2, 1):
        x = x.unflatten(axis, (-1, window[axis - 1]))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def _joined(windows: Tensor, whole: Edges, window: Edges) -> Tensor:
    """(B W, N, E) back to (B, x, y, z, E)."""
    grid = grid_of(whole, window)
    x: Tensor = (
        windows.unflatten(1, window).unflatten(0, (-1, *grid)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    )
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)


# Tables are constants: made once for a device, no part of a compiled graph, and never as tensors of
# inference, which no later training could go through.


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.inference_mode(mode=False)
@lru_cache(maxsize=64)
def _relative_places(full: Edges, window: Edges, device: torch.device) -> Tensor:
    """(N, N): which row of the table of relative positions each pair of a window's tokens reads."""
    axes = torch.meshgrid(*(torch.arange(edge, device="cpu") for edge in window), indexing="ij")
    at_N3 = torch.stack(axes).flatten(1).T
    away = at_N3[:, None] - at_N3[None] + torch.tensor(full, device="cpu") - 1
    _, y, z = (2 * edge - 1 for edge in full)
    return ((away[..., 0] * y + away[..., 1]) * z + away[..., 2]).to(device)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.inference_mode(mode=False)
@lru_cache(maxsize=64)
def _apart(whole: Edges, window: Edges, moved: Edges, device: torch.device) -> Tensor:
    """(W, N, N): whether two tokens of a window come from opposite ends of the moved volume."""
    region = torch.zeros((1, *whole, 1), device="cpu")
    number = 0
    cuts = [
        sorted({0, n - edge, n - way}) for n, edge, way in zip(whole, window, moved, strict=True)
    ]
    parts = [
        [slice(*both) for both in pairwise([*cut, n])] for cut, n in zip(cuts, whole, strict=True)
    ]
    for x in parts[0]:
        for y in parts[1]:
            for z in parts[2]:
                region[:, x, y, z] = number
                number += 1
    of_WN = _windows(region, window)[..., 0]
    return (of_WN[:, :, None] != of_WN[:, None]).to(device)
