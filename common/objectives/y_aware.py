"""y-aware InfoNCE (Dufumier et al. 2021): views should resemble those of people of a like age.

How much is a Gaussian of the difference in one regression target. A scan without that label is
like itself alone, as in SimCLR; with a width of nothing, every one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.objectives.simclr import ContrastSettings, Simclr
from common.seams import Terms
from common.sections import Target


class YAware(Simclr):
    """SimCLR whose samples resemble each other by a label; unlabelled ones count as well."""

    class Settings(ContrastSettings):
        """Keys of `[objective]`."""

        name: Literal["y-aware"] = Field(description="This objective.")
        targets: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)] = Field(
            description="The regression target that says who is alike.", examples=[("age",)]
        )
        sigma: Annotated[float, Field(gt=0)] = Field(
            5.0, description="Width of the Gaussian, in the target's unit.", examples=[5.0]
        )

    def __init__(self, settings: Settings, backbone: Any, targets: Mapping[str, Target]) -> None:
        super().__init__(settings, backbone, targets)
        (self.by, target), *more = targets.items()
        if more or target.kind != "regression":
            raise ValueError(f"y-aware goes by one regression target; {self.by} is {target.kind}")
        self.sigma = settings.sigma

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Every sample counts, labelled or not."""
        label_B = labels[self.by]
        apart_BB = label_B[:, None] - label_B[None]
        alike_BB = torch.exp(-apart_BB.square() / (2 * self.sigma**2)).nan_to_num(0.0)
        values = self.part(self.backbone, x, alike_BB)
        return {self.part.term: Terms(values=values, counted=torch.ones_like(values) > 0)}
