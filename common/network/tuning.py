"""Fine-tuning methods: what of a network is trained for a site's own task, and what is added to it.

Who trains is another question than who averages: here everything stays at the site. A network may
offer methods of its own by `tune`; full, last-blocks, lora and adapters are made for any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from common.errors import SettingError
from common.network.building import Stage, build, owner_of, resting, seeded_draw, stages
from common.network.low_rank import add_low_rank
from common.network.settling import settling
from common.seams import FROZEN
from common.sections import FineTuning, Target
from common.study import Study

_CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNELS_FIRST: Final = (*_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)  # noqa: SLF001


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network is told of the task that it is tuned for."""

    name: str
    target_name: str
    target: Target
    settings: FineTuning


def task_of(study: Study, settings: FineTuning) -> Task:
    """One of the study's fine-tuning tasks."""
    return Task(
        name=settings.name,
        target_name=settings.target,
        target=study.targets[settings.target],
        settings=settings,
    )


def build_for(study: Study, task: Task, *, seed: int) -> Any:
    """The network that a task is learnt by, drawn from `seed` and not tuned yet."""
    return build(study, {task.target_name: task.target}, seed=seed)


def tune(network: Any, method: str, task: Task, *, seed: int) -> None:
    """Add what `method` adds to a network whose arrays are in place, and say what trains.

    Raises
    ------
    SettingError
        If neither the network nor this file has that method, or it does not fit the network.
    """
    before = {name for name, _ in network.named_parameters()}
    with seeded_draw(seed):
        own = _own(network, method, task)
        if own is None:
            if method not in _GENERIC:
                raise SettingError(
                    f'"{method}" is offered neither by {type(network).__name__} nor by '
                    f"{type(network.backbone).__name__}; every network has frozen, "
                    f"{', '.join(_GENERIC)}"
                )
            own = tuple(_GENERIC[method](network, task))
    for name, parameter in network.named_parameters():
        frozen = name in before and owner_of(network, name) == FROZEN
        trains = name.startswith(own) and not frozen
        parameter.requires_grad_(requires_grad=trains)


def tuned_arrays(network: nn.Module) -> list[str]:
    """Names of the arrays that tuning may have changed: what trains, and buffers that may move."""
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    still = {*resting(network), *settling(network)}
    moved = {
        name
        for name in dict(network.named_buffers()).keys() & network.state_dict().keys()
        if name.rpartition(".")[0] not in still
        and not name.endswith("num_batches_tracked")
        and owner_of(network, name) != FROZEN
    }
    return sorted(trained | moved)


def _own(network: Any, method: str, task: Task) -> tuple[str, ...] | None:
    """What the network itself, or its backbone, trains by this method; None if neither offers it.

    Beside what a backbone names, whatever the objective adds to it trains: the head.
    """
    for owner, prefix in ((network, ""), (network.backbone, "backbone.")):
        offered: Callable[[str, Task], Any] | None = getattr(owner, "tune", None)
        names = offered(method, task) if offered is not None else NotImplemented
        if names is NotImplemented:
            continue
        named = tuple(f"{prefix}{name}" for name in names)
        return named if not prefix else (*named, *_head(network))
    return None


def _head(network: nn.Module) -> Iterator[str]:
    return (name for name, _ in network.named_parameters() if not name.startswith("backbone."))


def _full(network: Any, task: Task) -> Iterable[str]:
    return ("",)


def _last_blocks(network: Any, task: Task) -> Iterable[str]:
    last = stages(network.backbone)[-task.settings.blocks :]
    chosen = {id(p) for stage in last for part in stage for p in part.parameters()}
    yield from (name for name, p in network.named_parameters() if id(p) in chosen)
    yield from _head(network)


def _lora(network: Any, task: Task) -> Iterable[str]:
    """Add to every matrix and kernel of the backbone a product of two narrow ones (Hu et al.)."""
    added = [f"backbone.{name}" for name in add_low_rank(network.backbone, task.settings.rank)]
    if not added:
        raise SettingError(f"lora finds no matrix in {type(network.backbone).__name__}")
    yield from added
    yield from _head(network)


def _adapters(network: Any, task: Task) -> Iterable[str]:
    """Put a narrow residual layer behind every stage of the backbone (Houlsby et al. 2019)."""
    parts = stages(network.backbone)
    shapes = _shapes(network.backbone, parts)
    network.adapters = nn.ModuleList(
        Adapter(shape, task.settings.width, channels_first=_channels_first(stage, shape))
        for stage, shape in zip(parts, shapes, strict=True)
    )
    for stage, adapter in zip(parts, network.adapters, strict=True):
        stage[-1].register_forward_hook(_behind(adapter))
    yield from _head(network)


def _behind(adapter: nn.Module) -> Callable[..., Tensor]:
    def hook(part: nn.Module, given: Any, output: Tensor) -> Tensor:
        adapted: Tensor = adapter(output)
        return adapted

    return hook


def _shapes(backbone: Any, parts: list[Stage]) -> list[tuple[int, ...]]:
    """What each stage gives for two samples."""
    ends = [stage[-1] for stage in parts]
    seen: dict[int, tuple[int, ...]] = {}

    def note(part: nn.Module, given: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise SettingError("adapters need stages that give one tensor each")
        seen[id(part)] = tuple(output.shape)

    handles = [part.register_forward_hook(note) for part in ends]
    device = next(backbone.parameters()).device
    backbone.eval()
    with torch.no_grad():
        backbone(torch.zeros((2, *backbone.shape), device=device))
    for handle in handles:
        handle.remove()
    missing = [part for part in ends if id(part) not in seen]
    if missing:
        raise SettingError(
            f"adapters found no output of {type(missing[0]).__name__}: the backbone does not call "
            "it; it can name its stages by `stages`"
        )
    return [seen[id(part)] for part in ends]


def _channels_first(stage: Stage, shape: tuple[int, ...]) -> bool:
    """Whether axis 1 holds the channels: in maps of convolutions; else the last one does."""
    if len(shape) <= 3:
        return False
    if any(isinstance(module, _CHANNELS_FIRST) for part in stage for module in part.modules()):
        return True
    raise SettingError(
        f"adapters cannot tell which axis of {list(shape)} holds the channels; the backbone can "
        "say so by a `tune` of its own"
    )


class Adapter(nn.Module):
    """x + up(relu(down(x))) over the channels of (B, F), (B, N, E) or (B, C, ...); up starts at 0.

    Raises
    ------
    SettingError
        If there is nothing to narrow.
    """

    def __init__(self, shape: tuple[int, ...], width: int, *, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        channels = shape[1] if channels_first else shape[-1]
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.movedim(1, -1) if self.channels_first else x
        added: Tensor = self.up(torch.relu(self.down(wide)))
        return x + (added.movedim(-1, 1) if self.channels_first else added)


_GENERIC: Final[dict[str, Callable[[Any, Task], Iterable[str]]]] = {
    "full": _full,
    "last-blocks": _last_blocks,
    "lora": _lora,
    "adapters": _adapters,
}
