"""Regression targets as a network sees them: centred and scaled, perhaps as logarithms; losses.

With t the identity or the logarithm, a network learns z = (t(y) - t(centre)) / scale, and
y = t^-1(z scale + t(centre)). Ages and volumes are skewed: their logarithms are not, and an error
of a fifth weighs alike at 20 years and at 70. `l1` and `quantile` (pinball, Koenker and Bassett
1978) ask for a median or a quantile, `huber` for something between mean and median.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from common.sections import Target


def wanted(target: Target, label: Tensor) -> Tensor:
    """What the network's output should be for labels in the target's unit; NaN stays NaN."""
    if target.transform == "log":
        return (label.log() - math.log(target.centre)) / target.scale
    return (label - target.centre) / target.scale


def value(target: Target, output: Tensor) -> Tensor:
    """Outputs in the target's unit; of a logarithm no further than the target's own bounds."""
    if target.transform == "log":
        z = output * target.scale + math.log(target.centre)
        return z.clamp(math.log(target.low), math.log(target.high)).exp()
    return output * target.scale + target.centre


def loss(target: Target, output: Tensor, wanted: Tensor, usual: str) -> Tensor:
    """(B,) losses of outputs by the target's own loss, else by the objective's `usual` one."""
    kind = target.loss or usual
    if kind == "huber":
        return functional.huber_loss(output, wanted, reduction="none")
    if kind == "squared":
        return functional.mse_loss(output, wanted, reduction="none") / 2  # as Huber near zero
    short = wanted - output
    level = target.quantile if kind == "quantile" else 0.5
    # twice the pinball loss, so that the median's is |error|
    return 2 * (level * short).maximum((level - 1) * short)
