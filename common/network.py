"""A study's network, built the same everywhere, and the rules that its arrays obey."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
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
from common.plan import Plan, Rule
from common.seams import FROZEN, LABELS, SCANS, SITE
from common.settings import line_of
from common.study import Study, Target


def build(study: Study, targets: Mapping[str, Target] | None = None, *, seed: int) -> Any:
    """The study's objective around its backbone, with weights drawn from `seed`.

    With `targets`, the backbone carries plain supervised heads for those instead: what fine-tuning
    and single tasks use, whatever the pretraining objective was. An objective that `finetunes`
    stays, and learns them beside its own.

    Raises
    ------
    SettingError
        If backbone or objective cannot be built for this study.
    """
    taken = [name for name in study.targets if hasattr(nn.ModuleDict, name) or name == "training"]
    if taken:  # heads are kept by their target's name
        raise SettingError(
            f"targets.{taken[0]} has a name that PyTorch keeps for itself; rename it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            backbone = type_of(study, "backbones")(
                study.backbone, study.shape, study.aggregation.normalisation
            )
        except ValueError as error:
            raise SettingError(f"backbone: {error}") from None
        backbone.shape = study.shape  # an objective that reconstructs samples sizes itself by it
        try:
            return _still(_objective(study, backbone, targets))
        except ValueError as error:
            raise SettingError(f"objective: {error}") from None


def check_buildable(study: Study, file: Path) -> None:
    """Refuse a study whose network cannot be built, with the line of its file."""
    try:
        build(study, seed=0)
    except SettingError as error:
        key = re.split(r"[^\w.-]", str(error), maxsplit=1)[0]
        raise SettingError(f"{error} ({file}{line_of(file, key)})") from None


def type_of(study: Study, shelf: Literal["backbones", "objectives"]) -> Any:
    """The class behind the study's backbone or objective."""
    settings = study.backbone if shelf == "backbones" else study.objective
    return catalogue.load(shelf, settings.name)  # type: ignore[attr-defined]


def owner_of(network: Any, name: str) -> str:
    """The group of an array: the backbone speaks for its own, if it does, else the objective.

    The constants by which columns are standardised are the coordinator's, whoever speaks.

    Raises
    ------
    SettingError
        If the answer is no group, since no report could ever hold its support.
    """
    if ".standardise." in name:
        return FROZEN
    part = name.removeprefix("backbone.")
    spoken = getattr(network.backbone, "owner", None) if part != name else None
    group: str = spoken(part) if spoken else network.owner(name)
    if group not in (SCANS, SITE, FROZEN) and not group.startswith(LABELS):
        raise SettingError(
            f'the owner of {name} is "{group}"; it must be "{SCANS}", "{LABELS}TARGET", "{SITE}" '
            f'or "{FROZEN}"'
        )
    return group


def plan_of(network: nn.Module, policy: str) -> Plan:
    """The rules for every array of `network` under a normalisation policy."""
    affine, statistics = batch_normalisation_arrays(network)
    buffers = {name for name, _ in network.named_buffers()}
    plan: Plan = {}
    for name, tensor in _state(network).items():
        group = owner_of(network, name)
        if policy == "silobn" and name in statistics and group != FROZEN:
            group = SITE
        own = policy == "fedbn" and name in affine | statistics and group != FROZEN
        plan[name] = Rule(
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            group=group,
            role="statistic" if name in buffers else "parameter",
            kept=own or group == SITE,  # what never leaves has nowhere else to go on from
        )
    return plan


def rest_frozen_layers(network: Any) -> None:
    """Let frozen normalisation layers use the statistics they came with, in training as after."""
    _, statistics = batch_normalisation_arrays(network)
    for layer in {name.rpartition(".")[0] for name in statistics}:
        if owner_of(network, f"{layer}.running_mean") == FROZEN:
            network.get_submodule(layer).eval()


def forget_own_heads(network: Any) -> None:
    """Make what an unseen site cannot know tell nothing: heads that never left their sites.

    The coordinator has them as they were drawn, and a prediction through them would look like the
    model's. NaN spoils whatever depends on them; the backbone's own arrays stay, for an adapter
    that does nothing as drawn is a valid start.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("backbone.") and owner_of(network, name) == SITE:
                parameter.fill_(float("nan"))


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
            state[name].copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])))


def carried_over(network: Any, arrays: Mapping[str, NDArray[Any]], target: str) -> Arrays:
    """The pretrained `arrays` that fine-tuning `network` for `target` starts from.

    All that has a place in it, but for the head of the target itself, which is learnt anew.
    """
    return {
        name: arrays[name]
        for name in _state(network)
        if name in arrays and owner_of(network, name) != LABELS + target
    }


def _objective(study: Study, backbone: Any, targets: Mapping[str, Target] | None) -> Any:
    objective = type_of(study, "objectives")
    if targets is None:
        return objective(study.objective, backbone, study.pretraining_targets)
    if getattr(objective, "finetunes", False):
        return objective(study.objective, backbone, {**study.pretraining_targets, **targets})
    return Multitask(Multitask.Settings(name="multitask"), backbone, targets)


def _still(network: Any) -> Any:
    """Take frozen parameters from the optimiser: what is not returned must not be trained."""
    for name, parameter in network.named_parameters():
        if owner_of(network, name) == FROZEN:
            parameter.requires_grad_(requires_grad=False)
    return network


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """State without the batch counters: with a fixed momentum nothing reads them."""
    state = network.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
