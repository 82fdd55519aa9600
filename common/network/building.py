"""A study's network, built the same everywhere, and the rules that its arrays obey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common import catalogue
from common.arrays import Arrays
from common.errors import SettingError
from common.network.low_rank import add_low_rank
from common.network.merging import is_added, merged
from common.network.plan import Plan, Rule
from common.network.settling import settles
from common.normalisation import batch_normalisation_arrays
from common.objectives.multitask import Multitask
from common.seams import FROZEN, LABELS, SHARED, SITE, TERM
from common.sections import Pretraining, Target
from common.study import Study


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
    with seeded_draw(seed):
        try:
            backbone = type_of(study, "backbones")(
                study.backbone, study.shape, study.aggregation.normalisation
            )
        except ValueError as error:
            raise SettingError(f"backbone: {error}") from None
        if getattr(study.data, "missing_columns", 0):
            _let_columns_be_missing(backbone, study)
        backbone.shape = study.shape  # an objective that reconstructs samples sizes itself by it
        try:
            network = _objective(study, backbone, targets)
        except ValueError as error:
            raise SettingError(f"objective: {error}") from None
        if targets is None:
            _rest(network, study.pretraining)
    return _still(network)


def _let_columns_be_missing(backbone: Any, study: Study) -> None:
    """Have a network take NaN for what is missing, or refuse what would hand it on."""
    taking = [m for m in backbone.modules() if hasattr(m, "let_columns_be_missing")]
    asked = f"data.missing_columns is {study.data.missing_columns:g}"  # type: ignore[attr-defined]
    if not taking:
        raise SettingError(
            f"{asked}, and {study.backbone.name} takes no table with holes; linear and mlp do"  # type: ignore[attr-defined]
        )
    if not getattr(type_of(study, "objectives"), "supervised", False):
        raise SettingError(
            f"{asked}, and {study.objective.name} learns from the columns themselves; ridge and "  # type: ignore[attr-defined]
            "multitask do not"
        )
    if study.harmonises:
        raise SettingError(
            f"{asked}, and ComBat needs whole rows; take one of data.missing_columns and "
            "backbone.harmonisation"
        )
    if any("explain" in task.then for task in study.finetuning):
        raise SettingError(f"{asked}, and a map of a column that is missing is none; leave explain")
    for module in taking:
        module.let_columns_be_missing()


@contextmanager
def seeded_draw(seed: int) -> Iterator[None]:
    """Draw weights from `seed` inside the block, on the CPU; chance goes on as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def type_of(study: Study, shelf: Literal["backbones", "objectives"]) -> Any:
    """The class behind the study's backbone or objective."""
    settings = study.backbone if shelf == "backbones" else study.objective
    return catalogue.load(shelf, settings.name)  # type: ignore[attr-defined]


def views_of(network: Any) -> int:
    """How many views of a sample the objective compares: what the second axis of x counts."""
    return int(getattr(network, "views", 1))


def owner_of(network: Any, name: str) -> str:
    """The group of an array: the backbone speaks for its own, if it does, else the objective.

    Constants that are made of the training sites' sums are the coordinator's, whoever speaks; what
    of a backbone the rounds do not train is nobody's.

    Raises
    ------
    SettingError
        If the answer is no group, since no report could ever hold its support.
    """
    if name in getattr(network, "rests", ()) or _is_settled(network, name):
        return FROZEN
    part = name.removeprefix("backbone.")
    spoken = getattr(network.backbone, "owner", None) if part != name else None
    group: str = spoken(part) if spoken else network.owner(name)
    if group not in (SHARED, SITE, FROZEN) and not group.startswith((LABELS, TERM)):
        raise SettingError(
            f'the owner of {name} is "{group}"; it must be "{SHARED}", "{LABELS}TARGET", '
            f'"{TERM}TERM", "{SITE}" or "{FROZEN}"'
        )
    return group


_NORMALISATION: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # noqa: SLF001

# modules that follow each other
Stage = tuple[nn.Module, ...]


def stages(backbone: nn.Module) -> list[Stage]:
    """A backbone's stages from input to output: what it says itself, else its children.

    Lists are taken apart once, and sequences, in which normalisation, activation and dropout belong
    to the layer before them. What holds no parameter is no stage.
    """
    own = getattr(backbone, "stages", None)
    if own is not None:
        return [part if isinstance(part, tuple) else (part,) for part in own()]
    found: list[Stage] = []
    for child in backbone.children():
        if isinstance(child, nn.Sequential):
            found += _layers(child)
        elif isinstance(child, nn.ModuleList):
            found += [(part,) for part in child]
        else:
            found.append((child,))
    return [stage for stage in found if any(True for part in stage for _ in part.parameters())]


def _layers(sequence: nn.Sequential) -> list[Stage]:
    """Each layer with what is done to its outputs."""
    found: list[Stage] = []
    for part in sequence:
        follows = isinstance(part, _NORMALISATION) or not any(True for _ in part.parameters())
        if follows and found:
            found[-1] = (*found[-1], part)
        else:
            found.append((part,))
    return found


def _is_settled(network: nn.Module, name: str) -> bool:
    place, _, own = name.rpartition(".")
    module = network.get_submodule(place)
    return settles(module) and own in dict(module.named_buffers(recurse=False))


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
    """Let normalisation layers that nobody trains use the statistics they came with."""
    for place in resting(network):
        network.get_submodule(place).eval()


def resting(network: Any) -> set[str]:
    """Places of the normalisation layers that nobody trains."""
    _, statistics = batch_normalisation_arrays(network)
    found = set()
    for place in {name.rpartition(".")[0] for name in statistics}:
        scales = list(network.get_submodule(place).parameters(recurse=False))
        rests = bool(scales) and not any(parameter.requires_grad for parameter in scales)
        if rests or owner_of(network, f"{place}.running_mean") == FROZEN:
            found.add(place)
    return found


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

    All that has a place in it, but for the head of the target itself, which is learnt anew. What
    rounds have added to a frozen backbone is put into it.
    """
    whole = merged(arrays)
    return {
        name: whole[name]
        for name in _state(network)
        if name in whole and owner_of(network, name) != LABELS + target
    }


def _objective(study: Study, backbone: Any, targets: Mapping[str, Target] | None) -> Any:
    kind, settings, told = type_of(study, "objectives"), study.objective, study.pretraining_targets
    if targets is not None and getattr(kind, "finetunes", False):
        told = {**told, **targets}
    elif targets is not None:
        kind, settings, told = Multitask, Multitask.Settings(name="multitask"), dict(targets)
    network = kind(settings, backbone, told)
    network.target_names = tuple(told)  # of others it sees no label
    return network


def _still(network: Any) -> Any:
    """Take frozen parameters from the optimiser: what is not returned must not be trained."""
    for name, parameter in network.named_parameters():
        if owner_of(network, name) == FROZEN:
            parameter.requires_grad_(requires_grad=False)
    return network


def _rest(network: Any, rounds: Pretraining) -> None:
    """Freeze what of the backbone the rounds do not train (`pretraining.trains`)."""
    if rounds.trains == "full":
        return
    held = set(network.backbone.state_dict())
    if rounds.trains == "lora":
        added = tuple(add_low_rank(network.backbone, rounds.rank))
        if not added or not all(map(is_added, added)):
            raise SettingError(
                f"pretraining.trains: {type(network.backbone).__name__} has no matrices, or such "
                "as low-rank additions reach in fine-tuning alone (torch's own attention)"
            )
        trained = {name for name in network.backbone.state_dict() if name.startswith(added)}
    else:
        last = stages(network.backbone)[-rounds.blocks :]
        state = network.backbone.state_dict(keep_vars=True)
        kept = {
            id(t) for stage in last for part in stage for t in (*part.parameters(), *part.buffers())
        }
        trained = {name for name, tensor in state.items() if id(tensor) in kept}
    network.rests = frozenset(f"backbone.{name}" for name in held - trained)


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """State without the batch counters: with a fixed momentum nothing reads them."""
    state = network.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
