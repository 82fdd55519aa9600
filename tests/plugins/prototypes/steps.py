"""Ways of taking a step: gradients of each person bound in length, and mixed samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.objectives.multitask import Multitask
from common.seams import Terms


class ByPerson(Multitask):
    """Multitask learning in which each person's gradient, over all of her scans, is clipped."""

    class Settings(Multitask.Settings):
        name: Literal["proto-by-person"] = Field(description="This objective.")  # type: ignore[assignment]
        bound: float = Field(1.0, description="Longest gradient of a person.", gt=0)

    def gradients(
        self, x: Tensor, labels: Mapping[str, Tensor], participants: Tensor
    ) -> dict[str, Terms]:
        trained = [p for p in self.parameters() if p.requires_grad]
        total = [torch.zeros_like(p) for p in trained]
        people = participants.unique()
        for person in people:
            hers = participants == person
            terms = self.terms(x[hers], {name: label[hers] for name, label in labels.items()})
            loss = sum(
                self.weights[name]
                * torch.where(term.counted, term.values, 0.0).sum()
                / term.counted.sum().clamp(min=1)
                for name, term in terms.items()
            )
            own = torch.autograd.grad(loss, trained)
            length = torch.sqrt(sum(part.square().sum() for part in own))
            share = (self.settings.bound / length).clamp(max=1) / len(people)
            for part, gradient in zip(total, own, strict=True):
                part.add_(share * gradient)
        for parameter, gradient in zip(trained, total, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            return self.terms(x, labels)


class MixUp(Multitask):
    """Mixed samples with mixed losses (Zhang et al. 2018); a sample's partner is in its batch."""

    coupled = True

    class Settings(Multitask.Settings):
        name: Literal["proto-mixup"] = Field(description="This objective.")  # type: ignore[assignment]
        strength: float = Field(0.4, description="Of the beta distribution.", gt=0)

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        if not self.training:
            return super().terms(x, labels)
        gammas = torch._standard_gamma(torch.full((2,), self.settings.strength))
        share = (gammas[0] / gammas.sum().clamp(min=1e-12)).to(x.device)
        partner = torch.randperm(len(x)).to(x.device)
        mixed = share * x + (1 - share) * x[partner]
        found = {}
        outputs: dict[str, Any] = self(mixed)
        for name, output in outputs.items():
            one = self._terms(name, output.float(), labels[name])
            other = self._terms(name, output.float(), labels[name][partner])
            values = share * one.values + (1 - share) * other.values
            found[name] = Terms(values=values, counted=one.counted & other.counted)
        return found
