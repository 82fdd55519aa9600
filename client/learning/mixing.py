"""Samples mixed with others of their batch, and their losses with them.

MixUp (Zhang et al. 2018): x = share * x_i + (1 - share) * x_j. CutMix (Yun et al. 2019): a box of
x_i is filled from x_j; the share is what is left of x_i. In both the share comes from a beta
distribution, one a batch, and the loss is share * l(x, y_i) + (1 - share) * l(x, y_j).

Partners are of the same batch, and so of the same site. A sample's loss then depends on somebody
else: no participant has a gradient of her own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.seams import Terms
from common.sections import Steps


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixed batch.

    x: (B, *shape) float32, mixed.
    partners: (B,) place in the batch of the sample that each is mixed with; each once.
    share: what each sample has left of its own.
    """

    x: Tensor
    partners: Tensor
    share: float

    def both(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of a batch's `indices`: whose samples they are, and whose are mixed into them."""
        return indices, indices[self.partners]

    def terms(self, network: Any, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        """The mixed terms; a sample counts where both labels are known."""
        outputs = network(self.x)
        own = network.terms_of(outputs, labels)
        others = {name: label[self.partners] for name, label in labels.items()}
        return {
            name: Terms(
                values=self.share * own[name].values + (1 - self.share) * term.values,
                counted=own[name].counted & term.counted,
            )
            for name, term in network.terms_of(outputs, others).items()
        }


def mixed(x: Tensor, steps: Steps, generator: np.random.Generator) -> Mixture | None:
    """The batch x (B, *shape) mixed as `steps` ask; None if they do not."""
    strengths = {"mixup": steps.mixup, "cutmix": steps.cutmix}
    ways = [way for way, strength in strengths.items() if strength]
    if not ways:
        return None
    way = ways[generator.integers(len(ways))]
    share = float(generator.beta(strengths[way], strengths[way]))
    partners = torch.from_numpy(generator.permutation(len(x))).to(x.device)
    if way == "mixup":
        return Mixture(torch.lerp(x[partners], x, share), partners, share)
    box = (slice(None), *_box(tuple(x.shape[1:]), 1 - share, generator))
    made = x.clone()
    made[box] = x[partners][box]
    return Mixture(made, partners, 1 - made[box].numel() / made.numel())


def _box(shape: tuple[int, ...], share: float, generator: np.random.Generator) -> list[slice]:
    """A box of `share` of the volume about a place drawn evenly; what sticks out is cut off."""
    found = []
    for length in shape:
        half = int(length * share ** (1 / len(shape))) // 2
        middle = int(generator.integers(length))
        found.append(slice(max(0, middle - half), min(length, middle + half)))
    return found
