"""What a protocol file says: networks by where they begin, by tasks, by shares of people, by seeds.

A file holds the whole protocol and, under `[small]`, what of it is replaced for a machine without a
GPU. Of it comes a list of cells, each of which is one study.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from common.errors import SettingError
from common.sections import Name, Rate
from common.settings import Table, checked, read_toml

Source = Literal["scratch", "video", "synthetic", "supervised", "simclr", "masked"]
TaskName = Literal["ad", "pd", "age"]
SCRATCH: Final = "scratch"
Count = Annotated[int, Field(ge=1, le=100_000)]


class Grid(Table):
    """The grid that every network sees: films, rendered heads and scans."""

    shape: tuple[Count, Count, Count] = Field(description="Voxels of every sample.")
    spacing_mm: Annotated[float, Field(ge=2, le=16)] = Field(
        description="Edge of a voxel in mm, of heads and scans."
    )


class Architecture(Table):
    """A network, and how it is trained in every cell."""

    backbone: dict[str, Any] = Field(description="As a study's [backbone].")
    masked: dict[str, Any] = Field(
        {"name": "simmim"}, description="[objective] of `masked`: mae or simmim."
    )
    learning_rate: Rate = Field(description="Highest local rate, in every cell.")
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of a training in which the rate rises; transformers need some."
    )


class Stage(Table):
    """How much is learnt, and from how many."""

    people: Count = Field(description="At each hospital; of films: clips.")
    rounds: Count = Field(description="Federated rounds.")
    local_epochs: Count = Field(
        1,
        description="Passes in a round; downstream at a share of 1, and 1/share times as many at a "
        "smaller one, so that fewer people are no shorter training.",
    )
    most_local_epochs: Count = Field(20, description="Downstream: most passes at a small share.")
    batch_size: Count = Field(8, description="Samples in a step.")


class Overrides(Table):
    """What the small protocol has in place of the whole one's: each key replaces all of its own."""

    seeds: tuple[int, ...] | None = Field(None, description="Small: seeds.")
    shares: tuple[float, ...] | None = Field(None, description="Small: shares.")
    initialisations: tuple[Source, ...] | None = Field(None, description="Small: beginnings.")
    tasks: tuple[TaskName, ...] | None = Field(None, description="Small: tasks.")
    grid: Grid | None = Field(None, description="Small: grid.")
    architectures: dict[Name, Architecture] | None = Field(None, description="Small: networks.")
    pretraining: Stage | None = Field(None, description="Small: pretraining.")
    downstream: Stage | None = Field(None, description="Small: tasks' training.")
    threads: Annotated[int, Field(ge=0)] | None = Field(None, description="Small: threads.")


class Protocol(Table):
    """The whole protocol."""

    name: Name = Field(description="Name of the protocol.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        description="Each a repetition: other weights, other orders, other people trained on."
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        description="Shares of the training people that a task is learnt from (`splits.share`)."
    )
    initialisations: tuple[Source, ...] = Field(description="Where a network begins.")
    tasks: tuple[TaskName, ...] = Field(description="ad, pd (AUC) and age (MAE).")
    grid: Grid = Field(description="The grid of every sample.")
    architectures: dict[Name, Architecture] = Field(description="Networks by name.")
    pretraining: Stage = Field(description="What each beginning is learnt in.")
    downstream: Stage = Field(description="What each task is learnt in.")
    threads: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Threads of each training, as a site's device.threads; small networks take "
        "one.",
    )
    small: Overrides = Field(Overrides(), description="What the small protocol replaces.")

    @model_validator(mode="after")
    def _cells_are_apart(self) -> Self:
        for key in ("seeds", "shares", "initialisations", "tasks", "architectures"):
            values = [_word(value) for value in getattr(self, key)]
            twice = [value for value, times in Counter(values).items() if times > 1]
            if not values or twice:
                found = f"lists {twice[0]} twice" if twice else "is empty"
                raise ValueError(f"{key} {found}; each is named once, and one at least")
        return self

    def made_small(self) -> Protocol:
        """The protocol with what `small` holds in place of its own."""
        changes = {key: value for key, value in self.small if value is not None}
        return Protocol.model_validate({**dict(self), **changes, "small": Overrides()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One study of the protocol; a pretraining cell has no task, no share and no seed of its own.

    seed: of a task's training, 0 of a pretraining cell. rivals: whether what needs no
    network is fitted and judged beside it, which one cell of a task, share and seed does.
    """

    architecture: str
    source: str
    task: str = ""
    share: float = 1.0
    seed: int = 0
    rivals: bool = False

    @property
    def name(self) -> str:
        """The cell's folder, and its study's name."""
        if not self.task:
            return f"pretraining-{self.architecture}-{self.source}"
        return f"{self.task}-{self.architecture}-{self.source}-{_word(self.share)}-{self.seed}"


def load_protocol(path: Path, *, small: bool) -> Protocol:
    """Read and check a protocol file; with `small`, the small one that it holds.

    Raises
    ------
    SettingError
        Naming every fault with its key, line and remedy.
    """
    whole = checked(Protocol, read_toml(path), file=path)
    try:
        less = whole.made_small()
    except ValueError as error:
        raise SettingError(f"small: {_first(error)} ({path})") from None
    for protocol in (whole, less):
        for cell in cells(protocol):
            checked(_CellName, {"name": cell.name}, file=path, at="architectures")
    return less if small else whole


class _CellName(Table):
    """A cell's name is a study's name."""

    name: Name = Field(description="Name of a cell.")


def cells(protocol: Protocol) -> list[Cell]:
    """Every cell, what others begin from first; then by seeds, so that an early end has pairs."""
    sources = [source for source in protocol.initialisations if source != SCRATCH]
    first = next(iter(protocol.architectures))
    return [
        *(
            Cell(architecture=name, source=source)
            for name in protocol.architectures
            for source in sources
        ),
        *(
            Cell(
                architecture=name, source=source, task=task, share=share, seed=seed,
                rivals=name == first and source == protocol.initialisations[0],
            )
            for seed in protocol.seeds
            for share in sorted(protocol.shares)
            for task in protocol.tasks
            for name in protocol.architectures
            for source in protocol.initialisations
        ),
    ]  # fmt: skip


def chosen(every: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells that one of `patterns` names, and the pretraining cells that these begin from.

    Raises
    ------
    SettingError
        If a pattern names none.
    """
    if not patterns:
        return list(every)
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in every):
            raise SettingError(
                f"--only is {pattern}; no cell is called so. There are {every[0].name} to "
                f"{every[-1].name}; * stands for any letters"
            )
    asked = {cell for cell in every for pattern in patterns if fnmatchcase(cell.name, pattern)}
    needed = {begins_from(cell) for cell in asked}
    return [cell for cell in every if cell in asked or cell in needed]


def begins_from(cell: Cell) -> Cell | None:
    """The pretraining cell whose backbone a task's cell begins from."""
    if not cell.task or cell.source == SCRATCH:
        return None
    return Cell(architecture=cell.architecture, source=cell.source)


def _word(value: object) -> str:
    """A share in percent, anything else as it is: what cells are told apart by."""
    return f"{100 * value:g}pc".replace(".", "-") if isinstance(value, float) else str(value)


def _first(error: ValueError) -> str:
    """The sentence of a fault without pydantic's frame around it."""
    errors = getattr(error, "errors", None)
    found = errors(include_url=False)[0]["msg"] if errors else str(error)
    return str(found).removeprefix("Value error, ")
