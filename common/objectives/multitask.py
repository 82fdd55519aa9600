"""Several targets from one backbone, each counted only where labelled (Leonardsen et al. 2025).

L = sum over targets t of w_t * [sum_i m_it l_t(i)] / max(1, sum_i m_it), with l squared or Huber
loss on (y - centre) / scale for regression or what the target says (`regression.py`), or soft
labels over bins, binary or softmax cross-entropy or squared hinge loss for classes. The published
weights are not known; each target's `weight` is the study's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.objectives import regression
from common.objectives.soft_labels import Bins
from common.seams import LABELS, SHARED, Terms
from common.sections import Target
from common.settings import Table


class Multitask(nn.Module):
    """A backbone with one linear head for each target."""

    supervised: ClassVar[bool] = True

    class Settings(Table):
        """Keys of `[objective]`."""

        name: Literal["multitask"] = Field(description="This objective.")
        targets: tuple[str, ...] = Field(
            (), description="Targets to learn; empty: all that no fine-tuning task is about."
        )
        regression_loss: Literal["huber", "squared"] = Field(
            "huber",
            description="Loss of regression targets that name none, on (value - centre) / scale.",
        )
        binary_loss: Literal["logistic", "squared-hinge"] = Field(
            "logistic",
            description="Loss of binary targets; squared-hinge makes a linear network a support "
            "vector machine, whose outputs rank and are no probabilities.",
        )
        soft_labels: dict[str, Bins] = Field(
            {},
            description="Regression targets that are learnt as a distribution over bins in place "
            "of that: {age = {low = 42, high = 82, step = 1, sigma = 1}}.",
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Target]) -> None:
        super().__init__()
        self.settings = settings
        self.targets = dict(targets)
        for name, bins in settings.soft_labels.items():
            bins.check(name, self.targets.get(name))
        self.weights = {name: target.weight for name, target in targets.items()}
        self.backbone = backbone
        self.heads = nn.ModuleDict(
            {name: _head(backbone.features, self._outputs(name)) for name in targets}
        )

    def owner(self, name: str) -> str:
        """Heads go by who holds their labels, the rest by what entered a loss."""
        return LABELS + name.split(".")[1] if name.startswith("heads.") else SHARED

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs (B, outputs) of each head."""
        features_BF = self.backbone(x)
        return {name: head(features_BF) for name, head in self.heads.items()}

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Loss of every sample for every target; labels are (B,), NaN where missing."""
        return self.terms_of(self(x), labels)

    def terms_of(
        self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[str, Terms]:
        """The same of what `forward` gave: mixed samples have two people's labels."""
        return {
            name: self._terms(name, output.float(), labels[name])
            for name, output in outputs.items()
        }

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Values in the target's unit (B,), probability of the positive class (B,), or (B, K)."""
        return {name: self._prediction(name, output.float()) for name, output in self(x).items()}

    def _outputs(self, name: str) -> int:
        bins = self.settings.soft_labels.get(name)
        return bins.number if bins is not None else self.targets[name].outputs

    def _prediction(self, name: str, output: Tensor) -> Tensor:
        bins, target = self.settings.soft_labels.get(name), self.targets[name]
        if bins is not None:
            return bins.expectation(output)
        if target.kind == "regression":
            return regression.value(target, output[:, 0])
        if target.kind == "binary":  # in float32 everybody beyond a logit of 17 would tie
            return torch.sigmoid(output[:, 0].double())
        return torch.softmax(output, 1)

    def _terms(self, name: str, output: Tensor, label_B: Tensor) -> Terms:
        bins, target = self.settings.soft_labels.get(name), self.targets[name]
        counted = ~torch.isnan(label_B)
        # a missing label is replaced before the loss: NaN * 0 would still be NaN in its gradient
        known = torch.where(counted, label_B, torch.zeros_like(label_B))
        if bins is not None:
            values = bins.divergence(output, known)
        elif target.kind == "regression":
            known = torch.where(counted, label_B, torch.full_like(label_B, target.centre))
            wanted = regression.wanted(target, known)
            values = regression.loss(target, output[:, 0], wanted, self.settings.regression_loss)
        elif target.kind == "binary" and self.settings.binary_loss == "squared-hinge":
            short = (1 - (2 * known - 1) * output[:, 0]).clamp(min=0)  # of a margin of 1
            values = short.square() * (1 + (target.positive_weight - 1) * known)
        elif target.kind == "binary":
            weight = torch.tensor(target.positive_weight, device=output.device)
            values = functional.binary_cross_entropy_with_logits(
                output[:, 0], known, reduction="none", pos_weight=weight
            )
        else:
            values = functional.cross_entropy(output, known.long(), reduction="none")
        return Terms(values=values, counted=counted)


def _head(features: int, outputs: int) -> nn.Linear:
    """A head that starts at the target's centre, or even over its bins.

    Random weights would have to be unlearnt first.
    """
    head = nn.Linear(features, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
