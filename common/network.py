"""A study's network, built the same everywhere, and its arrays by name with the rules they obey."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common import catalogue
from common.arrays import Arrays
from common.errors import SettingError
from common.normalisation import batch_normalisation_arrays
from common.objectives.multitask import Multitask
from common.seams import FROZEN, SITE
from common.study import Study, Target


Role = Literal["parameter", "statistic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What both ends know about one array.

    group: what it is averaged by (`common.seams`), or that it stays at its site or is frozen.
    role: a server optimiser moves parameters; statistics are averaged plainly.
    kept: a training site goes on from its own copy and leaves the global one to unseen sites.
    """

    shape: tuple[int, ...]
    dtype: str
    group: str
    role: Role
    kept: bool

    @property
    def travels(self) -> bool:
        """Whether a training report holds this array."""
        return self.group not in (SITE, FROZEN)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata."""
        return {**asdict(self), "shape": list(self.shape)}


Plan = dict[str, Rule]


def build(study: Study, targets: Mapping[str, Target] | None = None, *, seed: int) -> Any:
    """The study's objective around its backbone, with weights drawn from `seed`.

    With `targets`, the backbone carries plain supervised heads for those instead: what fine-tuning
    and single tasks use, whatever the pretraining objective was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = type_of(study, "backbones")(
                study.backbone, study.shape, study.aggregation.normalisation
            )
        except ValueError as error:
            raise SettingError(f"backbone: {error}") from None
        if targets is not None:
            return Multitask(Multitask.Settings(name="multitask"), backbone, targets)
        objective = type_of(study, "objectives")
        return objective(study.objective, backbone, study.pretraining_targets)


def type_of(study: Study, shelf: Literal["backbones", "objectives"]) -> Any:
    """The class behind the study's backbone or objective."""
    settings = study.backbone if shelf == "backbones" else study.objective
    return catalogue.load(shelf, settings.name)  # type: ignore[attr-defined]


def plan_of(network: nn.Module, policy: str) -> Plan:
    """The rules for every array of `network` under a normalisation policy."""
    affine, statistics = batch_normalisation_arrays(network)
    buffers = {name for name, _ in network.named_buffers()}
    owner: Any = network.owner
    plan: Plan = {}
    for name, tensor in _state(network).items():
        group = owner(name)
        if policy == "silobn" and name in statistics:
            group = SITE
        plan[name] = Rule(
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            group=group,
            role="statistic" if name in buffers else "parameter",
            kept=(policy == "silobn" and name in statistics)
            or (policy == "fedbn" and name in affine | statistics),
        )
    return plan


def arrays_of(network: nn.Module) -> Arrays:
    """Copies of the network's arrays on the CPU, by name."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous().numpy()
        for name, tensor in _state(network).items()
    }


def load_arrays(network: nn.Module, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy `arrays` into the network; every name given must exist there with its shape."""
    state = _state(network)
    with torch.no_grad():
        for name, array in arrays.items():
            if state[name].shape != array.shape:
                raise ValueError(f"{name} has shape {array.shape}, not {tuple(state[name].shape)}")
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))


def seed_of(*parts: object) -> int:
    """A seed for one purpose: the same parts, the same seed, on every machine.

    >>> seed_of(7, "alpha", 3) == seed_of(7, "alpha", 3) != seed_of(7, "alpha", 4)
    True
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def shared(plan: Plan, prefix: str = "backbone.") -> list[str]:
    """Names of the backbone's arrays: what fine-tuning takes over."""
    return [name for name in plan if name.startswith(prefix)]


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """State without the batch counters: with a fixed momentum nothing reads them."""
    state = network.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
