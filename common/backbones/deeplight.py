"""DeepLight (Thomas et al. 2019, 2021): axial slices read by an LSTM, or a 3D network.

`2d-12` and `3d` are the released networks of the transfer study, `2d-8` is the earlier one. As
there, convolutions are 3 wide and pad as TensorFlow's SAME does: to ceil(n / stride) places, an odd
one behind. Tensor letters: B samples, C channels, X Y Z voxels along R, A, S, H hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from common.normalisation import GlobalAverage, normalisation
from common.seams import Layout
from common.settings import Table

Variant = Literal["2d-12", "2d-8", "3d"]
_EDGE: Final = 3  # of every kernel
_CONVOLUTIONS: Final = {2: nn.Conv2d, 3: nn.Conv3d}
_PADDINGS: Final[dict[int, Any]] = {2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
_DROPOUTS: Final = {2: nn.Dropout2d, 3: nn.Dropout3d}


class Plan(NamedTuple):
    """A published network, convolution by convolution.

    channels, strides, dropped: of each. hidden: units of the LSTM in each direction; 0 for none.
    last: dropout of the features.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    dropped: tuple[float, ...]
    hidden: int
    last: float


PLANS: Final[dict[Variant, Plan]] = {
    "2d-12": Plan(
        channels=(8, 8, 16, 16, 32, 32, 32, 32, 64, 64, 64, 64),
        strides=(1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
        dropped=(0.0,) * 4 + (0.2,) * 4 + (0.4,) * 4,
        hidden=64,
        last=0.5,
    ),
    "2d-8": Plan(
        channels=(16, 16, 16, 16, 32, 32, 32, 32),
        strides=(2, 1, 2, 1, 2, 1, 2, 1),
        dropped=(0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5),
        hidden=40,
        last=0.0,
    ),
    "3d": Plan(
        channels=(8, 8, 8, 8, 16, 16, 32, 32, 64, 64, 128, 128),
        strides=(1, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1),
        dropped=(0.2,) * 12,
        hidden=0,
        last=0.2,
    ),
}


class DeepLight(nn.Module):
    """Volumes (B, X, Y, Z) to features: (B, 2 H) of both directions, or (B, 128) of the 3D network.

    The published 3D network scores every place before it averages over them; a linear head behind
    the average is the same but for that network's last ReLU.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("volume",)
    usual: ClassVar[tuple[int, ...]] = (91, 109, 91)
    small: ClassVar[dict[str, Any]] = {"variant": "2d-8"}

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["deeplight"] = Field(description="This backbone.")
        variant: Variant = Field(
            "2d-12",
            description="2d-12, 2d-8: so many convolutions of each axial slice, an LSTM over the "
            "slices. 3d: twelve convolutions of the volume.",
            examples=["2d-12"],
        )
        dropout: Annotated[float, Field(ge=0, le=1)] = Field(
            1.0, description="How much of the published dropout there is.", examples=[1.0]
        )

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"deeplight takes volumes; data.shape gives {list(shape)}")
        plan, share = PLANS[settings.variant], settings.dropout
        # a slice as its rows: Y first, as the published network's images are
        sizes = (shape[1], shape[0]) if plan.hidden else shape
        self.blocks = nn.Sequential(*_blocks(plan, sizes, share, normalisation))
        self.climb = None
        self.features = plan.channels[-1]
        if plan.hidden:
            places = math.prod(_after(plan.strides, size) for size in sizes)
            self.climb = Climb(places * plan.channels[-1], plan.hidden)
            self.features = 2 * plan.hidden
        self.average = GlobalAverage()
        self.dropout = nn.Dropout(share * plan.last)

    def stages(self) -> list[nn.Module]:
        """Each convolution with what follows it, and the LSTM."""
        return [*self.blocks, *([self.climb] if self.climb is not None else [])]

    def forward(self, x_BXYZ: Tensor) -> Tensor:
        if self.climb is None:
            return self.dropout(self.average(self.blocks(x_BXYZ.unsqueeze(1))))  # type: ignore[no-any-return]
        slices = x_BXYZ.permute(0, 3, 2, 1).flatten(0, 1).unsqueeze(1)  # (B Z, 1, Y, X)
        seen = self.blocks(slices).flatten(1)
        return self.dropout(self.climb(seen.unflatten(0, (len(x_BXYZ), -1))))  # type: ignore[no-any-return]


class Climb(nn.Module):
    """Slices from the bottom to the top and back, (B, Z, F), to the last state of each way."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True, bidirectional=True)
        for name, array in self.lstm.named_parameters():
            if name.startswith("weight"):
                nn.init.xavier_normal_(array)
            elif name.startswith("bias_ih"):
                array.data[hidden : 2 * hidden] += 1  # the forget gate: remember to begin with

    def forward(self, seen_BZF: Tensor) -> Tensor:
        # an LSTM of bfloat16 said something else on CUDA: features lay 1.3 times their length apart
        # (torch 2.11, H100), and 5e-6 in float32
        kind = "cuda" if seen_BZF.is_cuda else "cpu"
        with torch.autocast(kind, enabled=False):
            # not the last output: there the way back has seen one slice only
            _, (last, _) = self.lstm(seen_BZF.to(next(self.lstm.parameters()).dtype))
        return last.transpose(0, 1).flatten(1)  # type: ignore[no-any-return]


def _after(strides: Sequence[int], size: int) -> int:
    """Places along an axis behind convolutions of these strides.

    >>> _after((2, 2, 2, 2, 2), 109), _after((2, 2, 2, 2, 2), 91)
    (4, 3)
    """
    for stride in strides:
        size = math.ceil(size / stride)
    return size


def _blocks(
    plan: Plan, sizes: tuple[int, ...], share: float, policy: str
) -> Iterator[nn.Sequential]:
    """Each convolution with its padding, ReLU and dropout; in 3D normalisation behind that."""
    dimensions, narrow = len(sizes), 1
    for number, wide in enumerate(plan.channels):
        before = tuple(_after(plan.strides[:number], size) for size in sizes)
        stride = plan.strides[number]
        around = _same(before, stride)
        even = around[::2] == around[1::2]  # then the convolution pads by itself, without a copy
        own: Any = around[::-2] if even else 0
        convolution = _CONVOLUTIONS[dimensions](narrow, wide, _EDGE, stride, padding=own)
        nn.init.xavier_normal_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        dropout = _DROPOUTS[dimensions](share * plan.dropped[number])
        padding = nn.Identity() if even else _PADDINGS[dimensions](around)
        layers = [padding, convolution, nn.ReLU(), dropout]
        if not plan.hidden:
            layers.append(normalisation(policy, wide, dimensions))
        yield nn.Sequential(*layers)
        narrow = wide


def _same(sizes: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Zeros before and behind each axis, the last axis first, as torch's padding wants them.

    >>> _same((109, 91), 2), _same((28, 24), 2), _same((28, 24), 1)
    ((1, 1, 1, 1), (0, 1, 0, 1), (1, 1, 1, 1))
    """
    found: list[int] = []
    for size in reversed(sizes):
        needed = max((math.ceil(size / stride) - 1) * stride + _EDGE - size, 0)
        found += [needed // 2, needed - needed // 2]
    return tuple(found)
