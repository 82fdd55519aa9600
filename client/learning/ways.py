"""One way to learn a task at a site: what it begins from, what of it trains, how it is chosen.

Every way gets a small grid of settings, which validation participants choose among: networks rates
and weight decays, linear models penalties.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import Loader
from client.learning.linear import Features, LinearModel, choose, fit, regional_features
from client.learning.prediction import features_of, losses, predict
from client.learning.pretraining import loader_of
from client.learning.training import Recipe, Tally, choose_device, tell, train
from client.learning.tuned_models import Cell, Passage, TunedModel
from client.site import Site
from common import metrics
from common.arrays import Arrays
from common.comparisons import CLOSED_FORM, brings_arrays
from common.errors import Refusal
from common.network.building import arrays_of, build, carried_over, load_arrays
from common.network.tuning import Task, build_for, tune, tuned_arrays
from common.protocol.orders import Order
from common.runtime.progress import track
from common.seeding import seed_of
from common.study import Study

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled samples of a task: indices of training, validation and test."""

    train: Indices
    validation: Indices
    test: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Learning one task by the start and method of an order.

    arrays: of the shared network, with the site's own; empty where the way starts from scratch.
    again: number that the chance of a training comes from; ways of one number share it.
    features: of every sample, (N, F), where they were made before; made when needed if not.
    told: whether each setting of the grid is shown to people; not where there are hundreds.
    """

    study: Study
    site: Site
    cohort: Cohort
    order: Order
    task: Task
    arrays: Arrays
    again: int = 0
    features: Features | None = None
    told: bool = True

    def learn(self, split: Split) -> TunedModel:
        """The model that validation chooses of those that the grid's settings give."""
        return self._fitted(split) if self.is_closed else self._trained(split)

    @property
    def is_closed(self) -> bool:
        """Whether a linear model is fitted, and no network is trained."""
        return self.order.method in CLOSED_FORM

    def predicted(self, model: TunedModel, indices: Indices) -> Floats:
        """What a model of this way says of the samples `indices`."""
        name, target = self.task.target_name, self.task.target
        if self.is_closed:
            fitted = LinearModel.from_arrays(name, target, model.arrays)
            return fitted.predict(self.made_features(), indices)
        device = choose_device(self.site.device.kind)
        return predict(self.network(model), self.cohort, indices, device)[name]

    def network(self, model: TunedModel) -> Any:
        """The tuned network of a model; `Refusal` if it is one in closed form."""
        if self.is_closed or model.cell is None:
            raise Refusal("ORDER_MALFORMED", f"{self.order.method} tunes no network")
        network = self._fresh()
        load_arrays(network, model.arrays)
        tell(network, model.cell.epochs, self.task.settings.epochs)
        return network

    def made_features(self) -> Features:
        """What linear models are fitted on: regional measures, or what a network says of a scan."""
        if self.features is not None:
            return self.features
        if self.order.method == "linear":
            return regional_features(self.cohort)
        study, pretraining = self.study, self.study.pretraining
        of = pretraining.rounds * pretraining.local_epochs
        network = build(study, seed=self._seed("finetune"))
        begun = brings_arrays(self.order.init)
        if begun:
            load_arrays(network, {n: a for n, a in self.arrays.items() if n in _names(network)})
        tell(network, of if begun else 0, of)
        return features_of(network, self.cohort, choose_device(self.site.device.kind))

    def _fitted(self, split: Split) -> TunedModel:
        """A penalised linear model."""
        name, target = self.task.target_name, self.task.target
        features, label = self.made_features(), self.cohort.labels[name]
        strength = choose(target, features, label, [(split.train, split.validation)])
        model = fit(target, features, label, split.train, strength)
        return TunedModel(
            order=self.order.id, metric=metrics.primary(target), arrays=model.arrays(name)
        )

    def _trained(self, split: Split) -> TunedModel:
        """Train the network for each cell of the grid; keep the one that validates best."""
        task, target = self.task, self.task.target
        label = self.cohort.labels[task.target_name]
        device = choose_device(self.site.device.kind)
        grid: list[Cell] = []
        chosen, best, arrays = 0, float("nan"), Arrays()
        title = f"{self.site.name}: {task.name} {self.order.init}/{self.order.method}, settings"
        cells = list(_cells(task))
        with track(title, len(cells)) if self.told else nullcontext(_nothing) as advance:
            for cell in cells:
                network = self._fresh()
                done = self._run(network, cell, split, device)
                told = predict(network, self.cohort, split.validation, device)[task.target_name]
                score = _score(metrics.exact(target, label[split.validation], told), target)
                grid.append(replace(done, score=score if math.isfinite(score) else None))
                if not arrays or metrics.better(target, score, best):
                    chosen, best = len(grid) - 1, score
                    found = arrays_of(network)
                    arrays = {name: found[name] for name in tuned_arrays(network)}
                advance()
        return TunedModel(
            order=self.order.id,
            metric=metrics.primary(target),
            arrays=arrays,
            grid=tuple(grid),
            chosen=chosen,
        )

    def _fresh(self) -> Any:
        """The network as every cell begins with it: drawn, loaded, and given what is added."""
        seed = self._seed("finetune")
        network = build_for(self.study, self.task, seed=seed)
        if brings_arrays(self.order.init):
            load_arrays(network, carried_over(network, self.arrays, self.task.target_name))
        tune(network, self.order.method, self.task, seed=seed)
        return network

    def _run(self, network: Any, cell: Cell, split: Split, device: torch.device) -> Cell:
        """Train one cell in place, back to its best epoch if validation stops it; its history."""
        settings = self.task.settings
        seed = self._seed("finetune-order")
        loader = loader_of(self.study, self.site, self.cohort, seed)
        watch = _Patience(
            self.cohort, network, split.validation, device,
            patience=settings.patience, seed=self._seed("validation"),
            batch_size=settings.batch_size, loader=loader,
        )  # fmt: skip
        recipe = Recipe(
            steps=settings,
            rate=cell.learning_rate,
            weight_decay=cell.weight_decay,
            epochs=settings.epochs,
            of=settings.epochs,
            seed=seed,
            loader=loader,
        )
        train(network, self.cohort, split.train, recipe, device, go_on=watch.go_on)
        epochs = watch.restore(settings.epochs)
        tell(network, epochs, settings.epochs)
        return replace(cell, epochs=epochs, history=tuple(watch.history))

    def _seed(self, purpose: str) -> int:
        return seed_of(self.study.seed, purpose, self.site.name, self.order.task, self.again)


class _Patience:
    """Notes each epoch's losses, and ends a training whose validation loss falls no more."""

    def __init__(
        self,
        cohort: Cohort,
        network: Any,
        validation: Indices,
        device: torch.device,
        *,
        patience: int,
        seed: int,
        batch_size: int,
        loader: Loader,
    ) -> None:
        self.history: list[Passage] = []
        self._cohort, self._network, self._validation = cohort, network, validation
        self._device, self._patience = device, patience
        self._seed, self._batch_size, self._loader = seed, batch_size, loader
        self._best, self._epochs = math.inf, 0
        self._arrays: Arrays = {}

    def go_on(self, epoch: int, tally: Tally) -> bool:
        """Whether another epoch may help."""
        found = None
        if self._patience:
            found = losses(
                self._network, self._cohort, self._validation, self._device,
                seed=self._seed, batch_size=self._batch_size, loader=self._loader,
            ).mean()  # fmt: skip
            if found < self._best:
                self._best, self._epochs = found, epoch + 1
                everything = arrays_of(self._network)
                self._arrays = {name: everything[name] for name in tuned_arrays(self._network)}
        self.history.append(
            Passage(epoch=epoch + 1, loss=_finite(tally.mean()), validation_loss=_finite(found))
        )
        # nothing is given up where no loss could be told, as with too few samples to couple
        return not self._epochs or epoch + 1 - self._epochs < self._patience

    def restore(self, epochs: int) -> int:
        """Go back to the best epoch, if one was sought; how many epochs the arrays then have."""
        if not self._arrays:
            return len(self.history) or epochs
        load_arrays(self._network, self._arrays)
        return self._epochs


def _nothing() -> None:
    """Nobody is told."""


def _cells(task: Task) -> Iterator[Cell]:
    for rate in task.settings.learning_rates:
        for decay in task.settings.weight_decays:
            yield Cell(learning_rate=rate, weight_decay=decay)


def _score(found: Mapping[str, float], target: Any) -> float:
    return found.get(metrics.primary(target), float("nan"))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _names(network: Any) -> set[str]:
    return set(network.state_dict())
