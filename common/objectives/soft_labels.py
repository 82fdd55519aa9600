"""A number learnt as a distribution over bins (soft labels, Peng et al. 2021).

A label a gives bin b the mass y_b = Phi((upper_b - a) / sigma) - Phi((lower_b - a) / sigma). The
loss is KL(y || softmax(outputs)), summed over bins; the prediction is sum_b softmax_b * centre_b.
Near an edge some of a label's mass lies outside the bins and is left out, as published.
"""

from __future__ import annotations

from typing import Final, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from common.sections import Positive, Target
from common.settings import Table

_MOST: Final = 10_000


class Bins(Table):
    """The bins of one target, in its unit; published for age are 40 years from 42 to 82."""

    low: float = Field(
        description="The target is learnt as a distribution over bins: lower edge of the first, in "
        "the target's unit. The target's own low and high must lie within the bins."
    )
    high: float = Field(description="Upper edge of the last bin.")
    step: Positive = Field(1.0, description="Width of a bin.")
    sigma: Positive = Field(1.0, description="Spread of a label over the bins around it.")

    @model_validator(mode="after")
    def _whole_bins(self) -> Self:
        number = (self.high - self.low) / self.step
        if not 2 <= number <= _MOST or abs(number - round(number)) > 1e-6:
            raise ValueError(
                f"low {self.low:g}, high {self.high:g} and step {self.step:g} make {number:g} bins;"
                f" a whole number from 2 to {_MOST:,} is needed"
            )
        return self

    @property
    def number(self) -> int:
        """How many bins."""
        return round((self.high - self.low) / self.step)

    def check(self, name: str, target: Target | None) -> None:
        """Refuse bins that are not those of `target`, or do not hold every label it allows.

        Raises
        ------
        ValueError
            A label beyond the bins would be learnt as none, without a word.
        """
        if target is None or target.kind != "regression":
            raise ValueError(f"soft_labels.{name} is no regression target that pretraining learns")
        if target.transform != "none" or target.loss:
            raise ValueError(
                f"soft_labels.{name} learns a distribution; targets.{name} has a transform or a "
                "loss, which is then without effect"
            )
        if target.low < self.low or target.high > self.high:
            raise ValueError(
                f"soft_labels.{name} has bins from {self.low:g} to {self.high:g}, and labels from "
                f"{target.low:g} to {target.high:g} are allowed; set targets.{name}.low and "
                f"targets.{name}.high (sites then name what they leave out), or widen the bins"
            )

    def spread(self, label_B: Tensor) -> Tensor:
        """(B, bins) the mass of each label in each bin."""
        numbers = torch.arange(self.number + 1, device=label_B.device, dtype=torch.float64)
        edges = self.low + self.step * numbers
        below: Tensor = torch.special.ndtr((edges - label_B.double()[:, None]) / self.sigma)
        return below.diff(dim=1).float()

    def divergence(self, output_BN: Tensor, label_B: Tensor) -> Tensor:
        """(B,) the Kullback-Leibler divergence of what is put out from the spread labels."""
        told = functional.log_softmax(output_BN, 1)
        return functional.kl_div(told, self.spread(label_B), reduction="none").sum(1)

    def expectation(self, output_BN: Tensor) -> Tensor:
        """(B,) the mean of the centres under what is put out."""
        numbers = torch.arange(self.number, device=output_BN.device, dtype=output_BN.dtype)
        return torch.softmax(output_BN, 1) @ (self.low + self.step * (numbers + 0.5))
