"""Objectives without labels: one part that learns something of samples, around any backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.seams import SHARED, Terms


class SelfSupervised(nn.Module):
    """A backbone and what is learnt through it; no site needs a label.

    `part(backbone, x)` gives (B,) losses, of the one term that `part.term` names. The part holds
    no backbone, so that another objective can have it beside its own (`common.objectives.joint`).
    """

    def __init__(self, part: Any, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.part = backbone, part
        self.weights = {str(part.term): 1.0}

    def owner(self, name: str) -> str:
        """Everything is averaged by what entered the loss."""
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Every sample counts."""
        values = self.part(self.backbone, x)
        return {self.part.term: Terms(values=values, counted=torch.ones_like(values) > 0)}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Nothing is predicted: held-out sites judge the backbone through heads of their own."""
        return {}
