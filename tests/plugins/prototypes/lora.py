"""A frozen network of which only corrections of low rank, and a prompt, are trained and sent."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.seams import FROZEN, SHARED
from common.settings import Table


class LowRankLinear(nn.Module):
    """A frozen layer plus a correction of low rank (Hu et al. 2021)."""

    def __init__(self, narrow: int, wide: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(narrow, wide)
        self.down = nn.Parameter(torch.randn(narrow, rank) / narrow**0.5)
        self.up = nn.Parameter(torch.zeros(rank, wide))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down @ self.up  # type: ignore[no-any-return]


class LowRank(nn.Module):
    """Columns (B, F) to (B, width), through layers of which only corrections are trained."""

    class Settings(Table):
        name: Literal["proto-lora"] = Field(description="This backbone.")
        width: int = Field(64, description="Width of both layers.")
        rank: int = Field(2, description="Rank of the corrections.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.first = LowRankLinear(shape[0], settings.width, settings.rank)
        self.second = LowRankLinear(settings.width, settings.width, settings.rank)
        self.features = settings.width

    def owner(self, name: str) -> str:
        return FROZEN if ".base." in name else SHARED

    def tune(self, method: str, task: Any) -> Any:
        """A prompt of this network's own: a learnt shift of its input."""
        if method != "prompts":
            return NotImplemented
        self.prompt = nn.Parameter(torch.zeros(task.settings.prompts, self.first.base.in_features))
        return ["prompt"]

    def forward(self, x: Tensor) -> Tensor:
        prompt = getattr(self, "prompt", None)
        x = x if prompt is None else x + prompt.mean(0)
        return self.second(torch.relu(self.first(x)))  # type: ignore[no-any-return]
