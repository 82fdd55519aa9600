"""Local optimisers: rates by stage and by step, and moments that outlive a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import cos, pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.arrays import Arrays
from common.network.building import stages
from common.sections import Steps

_FALLS_TO = 0.05  # of the highest rate, along a cosine


def rate_factor(steps: Steps, share: float) -> float:
    """What the highest learning rate is multiplied by after `share` of the whole training.

    >>> [round(rate_factor(Steps(warmup=0.5), share), 3) for share in (0.25, 0.5, 1.0)]
    [0.5, 1.0, 0.05]
    """
    if share < steps.warmup:
        return share / steps.warmup
    if steps.schedule == "constant":
        return 1.0
    behind = (share - steps.warmup) / (1 - steps.warmup)
    return _FALLS_TO + (1 - _FALLS_TO) * (1 + cos(pi * behind)) / 2


class Stepper:
    """The optimiser of one training, and the rate of each of its steps.

    Parameters
    ----------
    rate : the highest learning rate, of the stage behind all others
    moments : from an earlier training of the same arrays, as `moments()` gave them
    """

    def __init__(
        self,
        network: Any,
        steps: Steps,
        *,
        rate: float,
        weight_decay: float,
        moments: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self._steps, self._named = steps, dict(trained(network))
        self._rates = {
            scale: rate * scale for scale in dict.fromkeys(_scales(network, steps).values())
        }
        self._optimiser = _made(network, steps, self._rates, weight_decay)
        if moments:
            self._restore(moments)

    def clear(self) -> None:
        """Forget gradients."""
        self._optimiser.zero_grad(set_to_none=True)

    def step(self, share: float) -> None:
        """Move along the gradients, at the rate due after `share` of the whole training."""
        factor = rate_factor(self._steps, share)
        rates = self._rates.values()
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        self._optimiser.step()

    def moments(self) -> Arrays:
        """The optimiser's state by ``"KEY/NAME"``, for a training that goes on from here."""
        found: Arrays = {}
        for name, parameter in self._named.items():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"{key}/{name}"] = value.detach().to("cpu", copy=True).numpy()
        return found

    def _restore(self, moments: Mapping[str, NDArray[Any]]) -> None:
        for place, array in moments.items():
            key, _, name = place.partition("/")
            parameter = self._named.get(name)
            if parameter is None:  # it is frozen since
                continue
            value = torch.from_numpy(np.array(array))
            if key != "step":  # counted on the CPU, whatever the device
                value = value.to(parameter.device).contiguous(memory_format=_layout(parameter))
            self._optimiser.state[parameter][key] = value


def trained(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that are trained."""
    return ((name, p) for name, p in network.named_parameters() if p.requires_grad)


def _layout(parameter: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(parameter.dim())
    if channels_last is not None and parameter.is_contiguous(memory_format=channels_last):
        return channels_last
    return torch.contiguous_format


def _scales(network: Any, steps: Steps) -> dict[str, float]:
    """What the rate of each trained parameter is multiplied by: less, the further in front it is.

    What is behind the backbone's stages has the whole rate; what belongs to none of them (tokens,
    positions) lies in front of all.
    """
    parts = stages(network.backbone)
    of = {
        id(p): place
        for place, stage in enumerate(parts)
        for part in stage
        for p in part.parameters()
    }
    decay = steps.layer_decay
    return {
        name: decay ** (len(parts) - of.get(id(parameter), 0))
        if name.startswith("backbone.")
        else 1.0
        for name, parameter in trained(network)
    }


def _made(
    network: Any, steps: Steps, rates: Mapping[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    scales = _scales(network, steps)
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained(network) if scales[name] == scale], "lr": rate}
        for scale, rate in rates.items()
    ]
    if steps.optimiser == "sgd":
        return torch.optim.SGD(
            groups, momentum=steps.momentum, weight_decay=weight_decay, foreach=True
        )
    kind = torch.optim.Adam if steps.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, weight_decay=weight_decay, foreach=True)
