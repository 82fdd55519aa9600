"""The sum of people's gradients, each cut down before it is added, and the noise on the sum.

Whoever is added to a site, or taken from it, moves the sum by at most `clip`. `flat` multiplies a
gradient by min(1, clip / norm). `layers` does so layer by layer, each with clip / sqrt(layers), so
that all together are no longer. `automatic` multiplies by clip / (norm + 0.01): nobody's length is
told apart (Bu et al. 2023). A gradient that is not finite is nobody's: it adds nothing.

Letters in shapes: P people.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Final

import torch
from torch import Tensor, nn

from client.learning.privacy.chance import Chance
from common.privacy.person_gradients import PersonGradients
from common.privacy.settings import Privacy

_STEADY: Final = 0.01  # of automatic clipping: gamma of Bu et al. 2023


class ClippedSum:
    """One step's sum over all that is trained."""

    def __init__(self, named: Mapping[str, nn.Parameter], privacy: Privacy) -> None:
        self._named, self._privacy = named, privacy
        self._sums = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
        self._layers = _layers(named) if privacy.clipping == "layers" else [list(named)]

    def add(self, gradients: PersonGradients) -> None:
        """Add the gradients of some people, cut down."""
        for layer in self._layers:
            lengths_P = gradients.lengths(layer)
            gradients.add_to(self._sums, layer, self._factors(lengths_P))

    def release(self, chance: Chance, expected: int) -> None:
        """Set the gradient of each parameter: the sum with noise on it, over `expected` people."""
        deviation = self._privacy.noise * self._privacy.clip
        for name, parameter in self._named.items():
            total = self._sums[name]
            if deviation:
                total += chance.normal(total, deviation)
            parameter.grad = total.div_(expected)

    def _factors(self, lengths_P: Tensor) -> Tensor:
        """What each person's gradient is multiplied by."""
        clip = self._privacy.clip / sqrt(len(self._layers))
        if self._privacy.clipping == "automatic":
            found = clip / (lengths_P + _STEADY)
        else:
            found = (clip / lengths_P).clamp(max=1.0)
        return found.where(lengths_P.isfinite(), 0.0)


def _layers(named: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Names by the module that they are of."""
    found: dict[str, list[str]] = {}
    for name in named:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return list(found.values())
