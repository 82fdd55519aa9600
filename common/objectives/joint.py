"""Sites with labels and sites without in one study: each learns what it can, one backbone grows.

Labelled samples enter the multitask losses; unlabelled ones, or all, a loss that needs no label.
What decodes or projects for that loss is averaged over those who trained it (`TERM`), and weighs
by what entered it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.objectives.mae import Mae, PatchFilling
from common.objectives.multitask import Multitask
from common.objectives.simclr import Contrast, Simclr
from common.objectives.simmim import Simmim, VoxelFilling
from common.seams import SITE, TERM, Terms
from common.sections import Target

_PARTS = {"mae": PatchFilling, "simmim": VoxelFilling, "simclr": Contrast}


class Joint(Multitask):
    """Multitask heads, and a part that learns without labels, on one backbone."""

    supervised: ClassVar[bool] = False
    apart: ClassVar[bool] = True

    class Settings(Multitask.Settings):
        """Keys of `[objective]`."""

        name: Literal["joint"] = Field(description="This objective.")  # type: ignore[assignment]
        unlabelled: Annotated[
            Mae.Settings | Simmim.Settings | Simclr.Settings, Field(discriminator="name")
        ] = Field(
            description="What is learnt without labels: a table as of the objectives mae, simmim "
            "or simclr.",
            examples=[{"name": "simmim"}, {"name": "mae"}, {"name": "simclr"}],
        )
        of: Literal["unlabelled", "all"] = Field(
            "unlabelled", description="Which samples enter it: those without labels, or all."
        )
        weight: Annotated[float, Field(gt=0)] = Field(
            1.0, description="Weight of its loss beside those of the targets."
        )

    def __init__(self, settings: Any, backbone: Any, targets: Mapping[str, Target]) -> None:
        super().__init__(settings, backbone, targets)
        own = settings.unlabelled
        self.part = _PARTS[own.name](own, backbone)
        self.views = getattr(self.part, "views", 1)
        self.coupled = self.views > 1
        self.everywhere = settings.of == "all"
        self.local = getattr(own, "projector", "shared") == "local"
        self.weights = {**self.weights, self.part.term: settings.weight}

    def owner(self, name: str) -> str:
        """Heads go by labels, the part by what entered its loss, the rest by both."""
        if not name.startswith("part."):
            return super().owner(name)
        return SITE if self.local else TERM + self.part.term

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """Losses of the targets, and of what is learnt without them."""
        known_B = ~torch.stack([torch.isnan(label) for label in labels.values()]).all(0)
        free_B = torch.ones_like(known_B) if self.everywhere else ~known_B
        seen = x[:, 0] if self.views > 1 else x
        found = {name: _none(known_B) for name in self.targets}
        if known_B.any():
            chosen = _chosen(known_B)
            told = {name: label[chosen] for name, label in labels.items()}
            for name, term in super().terms(seen[chosen], told).items():
                found[name] = _placed(term, chosen, known_B)
        values_term = _none(known_B)
        if free_B.any():
            # a contrast is between the batch's samples: with fewer it would be another
            chosen = _chosen(torch.ones_like(free_B) if self.views > 1 else free_B)
            values = self.part(self.backbone, x[chosen])
            term = Terms(values=values, counted=free_B[chosen])
            values_term = _placed(term, chosen, known_B)
        return {**found, self.part.term: values_term}


def _chosen(wanted_B: Tensor) -> Tensor:
    """Places of the wanted samples; of all where it is one, of which no batch norm can learn."""
    places = wanted_B.nonzero()[:, 0]
    return places if len(places) > 1 else torch.arange(len(wanted_B), device=wanted_B.device)


def _none(known_B: Tensor) -> Terms:
    return Terms(values=torch.zeros(len(known_B), device=known_B.device), counted=known_B & False)


def _placed(term: Terms, chosen: Tensor, known_B: Tensor) -> Terms:
    """A term of some samples among those of the whole batch; the others do not count."""
    whole = _none(known_B)
    return Terms(
        values=whole.values.index_put((chosen,), term.values.float()),
        counted=whole.counted.index_put((chosen,), term.counted),
    )
