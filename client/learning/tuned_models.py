"""The tuned models that a site keeps: what was trained, by which settings, and how it went."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from common.arrays import Arrays
from common.errors import DamagedError
from common.protocol.orders import Order
from common.protocol.wire import open_arrays, write_arrays
from common.settings import Table

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

_CLOSED: Final = "closed"  # folder of models without a start


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One epoch of one cell of the grid: mean losses, the second where validation was asked."""

    epoch: int
    loss: float | None
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting of the grid, how it went, and how validation participants judged it."""

    learning_rate: float
    weight_decay: float
    score: float | None = None
    epochs: int = 0  # that the arrays have behind them: of the best, where training was stopped
    history: tuple[Passage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel:
    """Arrays that tuning changed or added, and how they came about.

    order: id of the order that they were trained for; the same order finds them again.
    chosen: the cell of `grid` that validation chose; none for models in closed form.
    """

    order: str
    metric: str
    arrays: Arrays = field(default_factory=dict)
    grid: tuple[Cell, ...] = ()
    chosen: int | None = None

    @property
    def cell(self) -> Cell | None:
        """The chosen cell."""
        return self.grid[self.chosen] if self.chosen is not None else None


class _Told(Table):
    """What stands beside the arrays."""

    order: str
    metric: str
    grid: tuple[Cell, ...]
    chosen: Annotated[int, Field(ge=0)] | None


@dataclass(frozen=True, slots=True)
class TunedModels:
    """One run's tuned models at one site, below `folder`."""

    folder: Path

    def keep(self, order: Order, repeat: int, model: TunedModel) -> None:
        """Keep one model; its history stands beside its arrays, for people to read."""
        about = asdict(model)
        del about["arrays"]
        text = json.dumps(about, sort_keys=True, indent=1)
        write_arrays(self._path(order, repeat), model.arrays, {"model": text})

    def find(self, order: Order, repeat: int) -> TunedModel | None:
        """The model of a task, start, method and number of people; None if there is none.

        `DamagedError` if it is no longer what was kept; the order that it is of trains it again.
        """
        path = self._path(order, repeat)
        if not path.exists():
            return None
        with open_arrays(path) as file:
            return _model(file.text("model"), file.all())

    def keep_predictions(self, order: Order, samples: Indices, told: Mapping[int, Floats]) -> None:
        """Keep what an order's models said of `samples`, by repeat: others are compared with it.

        A rival cannot always be asked again: what it stands on may not come with the next order.
        """
        arrays = {f"repeat{number}": np.asarray(values) for number, values in told.items()}
        write_arrays(self._told(order), {"samples": samples, **arrays}, {})

    def predictions(self, order: Order, samples: Indices) -> dict[int, Floats]:
        """What was kept of the very same samples, by repeat; `DamagedError` if it is damaged."""
        path = self._told(order)
        if not path.exists():
            return {}
        with open_arrays(path) as file:
            found = dict(file.all())
        if not np.array_equal(found.pop("samples", np.empty(0)), samples):
            return {}  # judged when there were other test participants
        return {int(name.removeprefix("repeat")): values for name, values in found.items()}

    def _path(self, order: Order, repeat: int) -> Path:
        name = f"k{order.k}-repeat{repeat}.safetensors"
        return self.folder / "tuned" / order.task / (order.init or _CLOSED) / order.method / name

    def _told(self, order: Order) -> Path:
        place = self.folder / "tuned-predictions" / order.kind / order.task
        return place / (order.init or _CLOSED) / order.method / f"k{order.k}.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModel:
    """One tuned model as a person at the site sees it; `model` without its arrays."""

    run: str
    task: str
    init: str
    method: str
    k: int
    repeat: int
    model: TunedModel

    def row(self) -> tuple[str, ...]:
        """Cells of a table."""
        cell = self.model.cell
        told = ("", "", "")
        if cell is not None:
            score = "" if cell.score is None else f"{cell.score:.3f}"
            told = (score, str(cell.epochs), f"{cell.learning_rate:g}")
        people = str(self.k) if self.k else "all"
        where = (self.run[:12], self.task, self.init, self.method, people, str(self.repeat))
        return (*where, self.model.metric, *told)


def kept_models(runs: Path) -> list[KeptModel]:
    """Every tuned model below the folder of a site's runs, by run, task and method."""
    found = []
    for path in sorted(runs.glob("*/tuned/*/*/*/*.safetensors")):
        run, _, task, start, method = path.parts[-6:-1]
        named = re.fullmatch(r"k(\d+)-repeat(\d+)", path.stem)
        try:
            with open_arrays(path) as file:
                model = _model(file.text("model"), {})
        except DamagedError:
            continue  # damaged: the next order that asks for it trains it again
        if named is not None:
            k, repeat = map(int, named.groups())
            init = "" if start == _CLOSED else start
            found.append(KeptModel(
                run=run, task=task, init=init, method=method, k=k, repeat=repeat, model=model
            ))  # fmt: skip
    return found


def _model(text: str, arrays: Arrays) -> TunedModel:
    try:
        told = _Told.model_validate_json(text)
    except ValidationError as error:
        raise DamagedError(f"a tuned model is not Callosum's: {error}") from None
    if told.chosen is not None and told.chosen >= len(told.grid):
        raise DamagedError("a tuned model is not Callosum's: it chose a cell that it lacks")
    return TunedModel(
        order=told.order, metric=told.metric, grid=told.grid, chosen=told.chosen, arrays=arrays
    )
