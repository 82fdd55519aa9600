"""A multilayer perceptron over tables of regional volumes and the like, or connectomes' edges."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from common.backbones.combat import Covariates, Harmonisation, harmonised_by
from common.backbones.linear import Standardise, columns_in
from common.normalisation import normalisation as normalisation_layer
from common.seams import Layout
from common.settings import Table

Width = Annotated[int, Field(ge=1, le=65536)]


class Mlp(nn.Module):
    """Columns (B, F), or connectomes (B, R, R), to features (B, hidden[-1])."""

    layouts: ClassVar[tuple[Layout, ...]] = ("table", "matrix")
    usual: ClassVar[tuple[int, ...]] = (100,)

    class Settings(Table):
        """Keys of `[backbone]`."""

        name: Literal["mlp"] = Field(description="This backbone.")
        hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=8)] = Field(
            (64, 32), description="Width of each layer.", examples=[(64, 32)]
        )
        dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.1, description="Dropout after each layer.", examples=[0.1]
        )
        input_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
            0.0, description="Dropout of the standardised columns."
        )
        harmonisation: Harmonisation = "none"
        covariates: Covariates = ()

    def __init__(self, settings: Settings, shape: tuple[int, ...], normalisation: str) -> None:
        super().__init__()
        columns = columns_in(shape, "mlp")
        seen = harmonised_by(settings.harmonisation, settings.covariates, columns)
        self.standardise = Standardise(columns, seen, matrix=len(shape) == 2)
        self.spared = nn.Dropout(settings.input_dropout)
        widths = [columns, *settings.hidden]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [
                nn.Linear(narrow, wide),
                normalisation_layer(normalisation, wide, 1),
                nn.ReLU(),
                nn.Dropout(settings.dropout),
            ]
        self.layers = nn.Sequential(*layers)
        self.features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.spared(self.standardise(x)))  # type: ignore[no-any-return]
