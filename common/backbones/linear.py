"""The identity: heads see the standardised columns themselves, so the whole model is linear.

Columns are standardised by the training sites' joint mean and deviation, which the coordinator sets
once (`Standardise`); a site's own statistics never enter.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.settings import Table


class Standardise(nn.Module):
    """(B, F) raw columns to (B, F) z-scores by constants that travel with the model."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("deviation", torch.ones(columns))

    def forward(self, x: Tensor) -> Tensor:
        # far-off entries of a new scanner or a typing error must not decide the prediction
        return ((x - self.mean) / self.deviation).clamp(-8.0, 8.0)


class Linear(nn.Module):
    """Columns (B, F) to the same columns standardised (B, F)."""

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["linear"] = Field(description="This backbone.")

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"linear takes tables of features; data.shape gives {list(shape)}")
        self.standardise = Standardise(shape[0])
        self.features = shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.standardise(x)  # type: ignore[no-any-return]
