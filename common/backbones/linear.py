"""The identity: heads see the standardised columns themselves, so the whole model is linear.

Columns are standardised by the training sites' joint mean and deviation, which the coordinator sets
once (`Standardise`); a site's own statistics never enter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.seams import Layout
from common.settings import Table


class Standardise(nn.Module):
    """(B, F) raw columns to (B, F) z-scores by constants that travel with the model."""

    passes = 1
    passes_relevance = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("deviation", torch.ones(columns))

    def forward(self, x: Tensor) -> Tensor:
        # far-off entries of a new scanner or a typing error must not decide the prediction
        return ((x - self.mean) / self.deviation).clamp(-8.0, 8.0)

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Sum and sum of squares of each column, and how many rows they are of."""
        wide = x.double()
        n = torch.tensor([float(len(x))], dtype=torch.float64, device=x.device)
        return {"sum": wide.sum(0), "squares": wide.square().sum(0), "n": n}

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        """Mean and deviation of each column; one that does not vary keeps deviation 1."""
        if sums["n"] < 1 or (sums["squares"] < 0).any():
            raise ValueError("no rows have such sums")
        mean = sums["sum"] / sums["n"]
        deviation = (sums["squares"] / sums["n"] - mean.square()).clamp(min=0).sqrt()
        flat = deviation <= 1e-6 * mean.abs().clamp(min=1e-12)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(flat, 1.0, deviation))


class Linear(nn.Module):
    """Columns (B, F) to the same columns standardised (B, F)."""

    layouts: ClassVar[tuple[Layout, ...]] = ("table",)
    usual: ClassVar[tuple[int, ...]] = (100,)

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
