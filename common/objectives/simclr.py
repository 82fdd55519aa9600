"""SimCLR (Chen et al. 2020): two views of a scan should resemble each other, and no other's.

Views come from the study's `[[augmentation]]` tables. Negatives are those of the same batch at the
same site and never cross it; the loss grows with the batch, so every site takes batches of the same
size. `y-aware` (Dufumier et al. 2021) lets people of nearly the same age resemble each other, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from common.objectives.self_supervision import SelfSupervised
from common.seams import SHARED, SITE
from common.settings import Table


class ContrastSettings(Table):
    """Keys that both contrastive objectives have."""

    temperature: Annotated[float, Field(gt=0, le=10)] = Field(
        0.5, description="What similarities are divided by.", examples=[0.5]
    )
    width: Annotated[int, Field(ge=2, le=4096)] = Field(
        64, description="Numbers that are compared, behind the projector.", examples=[64]
    )
    projector: Literal["shared", "local"] = Field(
        "shared", description="Whether the projector is averaged, or each site keeps its own."
    )


class Simclr(SelfSupervised):
    """A backbone and a projector that is thrown away behind it."""

    coupled: ClassVar[bool] = True
    views: ClassVar[int] = 2

    class Settings(ContrastSettings):
        """Keys of `[objective]`."""

        name: Literal["simclr"] = Field(description="This objective.")

    def __init__(self, settings: Any, backbone: Any, targets: Mapping[str, Any]) -> None:
        super().__init__(Contrast(settings, backbone), backbone)
        self.local = settings.projector == "local"

    def similarity(self, x: Tensor) -> Tensor:
        """(2 B, 2 B) cosines over the temperature: first views, then second ones."""
        return self.part.similarity(self.backbone, x)  # type: ignore[no-any-return]

    def owner(self, name: str) -> str:
        """The projector is everyone's or each site's own."""
        return SITE if self.local and name.startswith("part.") else SHARED


class Contrast(nn.Module):
    """(B, 2, *shape) to (B,) losses: NT-Xent, or InfoNCE between people who are alike."""

    term: ClassVar[str] = "contrast"
    views: ClassVar[int] = 2

    def __init__(self, settings: ContrastSettings, backbone: Any) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.project = nn.Sequential(
            nn.Linear(backbone.features, backbone.features), nn.ReLU(),
            nn.Linear(backbone.features, settings.width),
        )  # fmt: skip

    def forward(self, backbone: Any, x: Tensor, alike_BB: Tensor | None = None) -> Tensor:
        """`alike_BB`, at least 0, says how much two samples should resemble each other; or none."""
        similar = self.similarity(backbone, x)
        itself = torch.eye(len(similar), dtype=torch.bool, device=x.device)
        others = similar.masked_fill(itself, float("-inf")).log_softmax(1).masked_fill(itself, 0.0)
        one = torch.eye(len(x), device=x.device)
        wanted = (one if alike_BB is None else torch.maximum(one, alike_BB)).repeat(2, 2)
        wanted = wanted.masked_fill(itself, 0.0)
        values = -(wanted * others).sum(1) / wanted.sum(1)
        return values.view(2, -1).mean(0)

    def similarity(self, backbone: Any, x: Tensor) -> Tensor:
        """(2 B, 2 B) cosines over the temperature: first views, then second ones."""
        projected = self.project(backbone(x.transpose(0, 1).flatten(0, 1)))
        # bfloat16 has three figures; a temperature of 0.1 makes errors of a tenth of them
        with torch.autocast(x.device.type, enabled=False):
            unit = functional.normalize(projected.float(), dim=1)
            return unit @ unit.T / self.temperature
