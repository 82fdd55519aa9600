"""The identity: heads see the standardised columns themselves, so the whole model is linear.

Of a connectome the columns are its edges, what stands above the diagonal. They are standardised by
the training sites' joint mean and deviation, which the coordinator sets once (`Standardise`); a
site's own statistics never enter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from common.backbones.combat import Covariates, Harmonisation, columns_of, harmonised_by
from common.backbones.tangent import Tangent
from common.seams import Layout
from common.settings import Table


def columns_in(shape: tuple[int, ...], asks: str) -> int:
    """How many columns a table's row or a connectome has, for the network that asks.

    >>> columns_in((100,), "mlp"), columns_in((200, 200), "mlp")
    (100, 19900)

    Raises
    ------
    ValueError
        If samples of that shape are neither.
    """
    if len(shape) == 1:
        return shape[0]
    if len(shape) == 2 and shape[0] == shape[1]:
        return shape[0] * (shape[0] - 1) // 2
    raise ValueError(
        f"{asks} takes tables of features, or connectomes; data.shape gives {list(shape)}"
    )


class Standardise(nn.Module):
    """Raw columns, (B, F) or (B, R, R), to z-scores (B, F) by constants of the model."""

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, columns: int, seen: nn.Module | None = None, *, matrix: bool = False
    ) -> None:
        """`seen` is how samples are looked at before, and is settled itself a pass earlier."""
        super().__init__()
        self.seen = seen if seen is not None else nn.Identity()
        self.passes = 1 if seen is None else 2
        self.passes_relevance = not matrix  # of a matrix the columns are only half
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("deviation", torch.ones(columns))
        self.incomplete = False

    def let_columns_be_missing(self) -> None:
        """Take NaN for the mean of all training people who have the column."""
        self.incomplete = True

    def forward(self, x: Tensor) -> Tensor:
        # far-off entries of a new scanner or a typing error must not decide the prediction
        z = ((columns_of(self.seen(x)) - self.mean) / self.deviation).clamp(-8.0, 8.0)
        return z.where(~z.isnan(), 0.0) if self.incomplete else z

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Sum and sum of squares of each column, and how many rows they are of."""
        if number < self.passes - 1:
            return {}
        wide = columns_of(self.seen(x)).double()
        known = ~wide.isnan()
        wide = wide.where(known, 0.0) if self.incomplete else wide
        n = torch.tensor([float(len(x))], dtype=torch.float64, device=x.device)
        found = {"sum": wide.sum(0), "squares": wide.square().sum(0), "n": n}
        return found | ({"n_known": known.double().sum(0)} if self.incomplete else {})

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        """Mean and deviation of each column; one that does not vary keeps deviation 1."""
        known = sums.get("n_known", sums["n"])
        if sums["n"] < 1 or (sums["squares"] < 0).any() or (known > sums["n"]).any():
            raise ValueError("no rows have such sums")
        known = known.clamp(min=1)  # of a column that nobody has, all sums are 0
        mean = sums["sum"] / known
        deviation = (sums["squares"] / known - mean.square()).clamp(min=0).sqrt()
        flat = deviation <= 1e-6 * mean.abs().clamp(min=1e-12)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(flat, 1.0, deviation))


class Linear(nn.Module):
    """Columns (B, F), or connectomes (B, R, R), to the columns standardised (B, F)."""

    layouts: ClassVar[tuple[Layout, ...]] = ("table", "matrix")
    usual: ClassVar[tuple[int, ...]] = (100,)
    standardised: ClassVar[bool] = True  # features have mean 0 and deviation 1

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["linear"] = Field(description="This backbone.")
        space: Literal["plain", "tangent"] = Field(
            "plain",
            description="tangent: connectomes (data.measure = ledoit-wolf) are seen from the mean "
            "of the training sites', which is frozen into the model.",
        )
        harmonisation: Harmonisation = "none"
        covariates: Covariates = ()

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        self.features = columns_in(shape, "linear")
        if settings.space == "tangent" and len(shape) != 2:
            raise ValueError("space is tangent, which connectomes alone have")
        seen: nn.Module | None = harmonised_by(
            settings.harmonisation, settings.covariates, self.features
        )
        if settings.space == "tangent":
            if seen is not None:
                raise ValueError("space is tangent, which harmonisation knows nothing of")
            seen = Tangent(shape[0])
        self.standardise = Standardise(self.features, seen, matrix=len(shape) == 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.standardise(x)  # type: ignore[no-any-return]
