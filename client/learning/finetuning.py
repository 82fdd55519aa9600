"""A site learns a task of its own: from the shared backbone or from scratch, by several methods.

Participants are disjoint between training, validation and test. Every method gets a small grid;
validation chooses, the test split is looked at once. What was tuned is kept at the site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.answer import Measured
from client.data.cohort import Cohort
from client.data.loading import Loader, person_codes
from client.learning.linear import Features, LinearModel, choose, fit, regional_features
from client.learning.measurement import (
    Floats,
    at_chosen_threshold,
    difference,
    mean_over_draws,
    measure,
)
from client.learning.median_rival import beside_median
from client.learning.prediction import features_of, losses, predict
from client.learning.pretraining import loader_of
from client.learning.support import people_among
from client.learning.training import Recipe, Tally, choose_device, tell, train
from client.learning.tuned_models import Cell, Passage, TunedModel, TunedModels
from client.site import Site
from common import metrics
from common.arrays import Arrays
from common.errors import DamagedError, Refusal
from common.network.building import arrays_of, build, carried_over, load_arrays
from common.network.tuning import CLOSED_FORM, Task, build_for, task_of, tune, tuned_arrays
from common.protocol.orders import Order
from common.runtime.progress import track
from common.seeding import seed_of
from common.study import Study

_log = getLogger("callosum.site")

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled samples of a task: indices of training, validation and test."""

    train: Indices
    validation: Indices
    test: Indices


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What one model said of the test samples, and from which probability it would say yes."""

    test: Indices
    predicted: Floats
    threshold: float | None


@dataclass(frozen=True, slots=True)
class Tuning:
    """One order to fine-tune at one site.

    arrays: of the shared network, with the site's own; empty where the order starts from scratch.
    models: where tuned models are kept.
    """

    study: Study
    site: Site
    cohort: Cohort
    order: Order
    arrays: Arrays
    models: TunedModels

    def finetune(self) -> list[Measured]:
        """Learn the order's task by its method, and measure it on the test participants.

        Raises
        ------
        Refusal
            ORDER_MALFORMED if the study asks for no such thing, NO_DATA if the site lacks labels.
        """
        told = self._told(self._model)
        if not told:
            name = self.task.target_name
            raise Refusal("NO_DATA", f"training participants hold one class of {name}")
        return self._measured(told)

    def judge(self) -> list[Measured]:
        """Measure the kept models anew, on the test participants that there are now."""
        told = self._told(lambda _, repeat: self.models.find(self.order, repeat))
        if not told:
            raise Refusal("NO_DATA", "no tuned model of this kind is kept here")
        return self._measured(told)

    def learnt_from(self, repeat: int) -> int:
        """How many people a model was trained on."""
        split = self._split(repeat)
        return people_among(self.cohort, split.train) if split is not None else 0

    @property
    def task(self) -> Task:
        """The study's task that the order is about, if the study asks for it in this way."""
        order = self.order
        way = f"{order.init}/{order.method}" if order.init else order.method
        for settings in self.study.finetuning:
            counts = settings.participants or (0,)
            if settings.name == order.task and way in settings.methods and order.k in counts:
                return task_of(self.study, settings)
        raise Refusal(
            "ORDER_MALFORMED", f"the study has no task {order.task!r} by {way} of {order.k}"
        )

    def network(self, model: TunedModel, repeat: int) -> Any:
        """The tuned network of a kept model; `Refusal` if it is one in closed form."""
        if self.order.method in CLOSED_FORM or model.cell is None:
            raise Refusal("ORDER_MALFORMED", f"{self.order.method} tunes no network")
        network = self._fresh(self._seed("finetune", repeat))
        load_arrays(network, model.arrays)
        tell(network, model.cell.epochs, self.task.settings.epochs)
        return network

    def predicted(self, model: TunedModel, indices: Indices, repeat: int) -> Floats:
        """What a kept model says of the samples `indices`."""
        name, target = self.task.target_name, self.task.target
        if self.order.method in CLOSED_FORM:
            fitted = LinearModel.from_arrays(name, target, model.arrays)
            return fitted.predict(self._features(repeat), indices)
        device = choose_device(self.site.device.kind)
        return predict(self.network(model, repeat), self.cohort, indices, device)[name]

    @property
    def _repeats(self) -> int:
        settings = self.task.settings
        return settings.draws * settings.repeats if self.order.k else settings.repeats

    def _told(self, model_of: Callable[[Split, int], TunedModel | None]) -> dict[int, _Told]:
        """What each model says of the test participants: the same, whoever is drawn to learn."""
        found = {}
        for repeat in range(self._repeats):
            split = self._split(repeat)
            model = model_of(split, repeat) if split is not None else None
            if split is not None and model is not None:
                said = self.predicted(model, split.test, repeat)
                chosen = self._threshold(model, split, repeat)
                found[repeat] = _Told(test=split.test, predicted=said, threshold=chosen)
        return found

    def _threshold(self, model: TunedModel, split: Split, repeat: int) -> float | None:
        """From which probability on validation participants would best have been called ill."""
        if self.task.target.kind != "binary":
            return None
        label = self.cohort.labels[self.task.target_name][split.validation]
        return metrics.threshold(label, self.predicted(model, split.validation, repeat))

    def _measured(self, of: Mapping[int, _Told]) -> list[Measured]:
        """Each model's metrics, their mean over draws, and what is between it and each rival's."""
        test = next(iter(of.values())).test
        told = {repeat: one.predicted for repeat, one in of.items()}
        task, order = self.task, self.order
        self.models.keep_predictions(order, test, told)
        found = (self.study, self.site, self.cohort, order, task.target_name, test)
        rows = [
            Measured(one.row.model_copy(update={"repeat": repeat}), one.people)
            for repeat, predicted in told.items()
            for one in measure(*found, predicted, task.name)
        ]
        for repeat, one in of.items():
            if one.threshold is not None:
                said = (one.predicted >= one.threshold).astype(np.float64)
                rows += [
                    Measured(each.row.model_copy(update={"repeat": repeat}), each.people)
                    for each in at_chosen_threshold(*found, said, task.name)
                ]
        if self._repeats > 1:
            rows += mean_over_draws(*found, list(told.values()), task.name)
        for rival in order.against:
            theirs = self._predictions_of(rival, test)
            both = [repeat for repeat in told if repeat in theirs]
            if both:
                ours = [told[repeat] for repeat in both]
                rows += difference(*found, ours, [theirs[r] for r in both], rival, task.name)
        rows += beside_median(*found, list(told.values()), task.name)
        own = {"init": order.init, "method": order.method, "k": order.k}
        return [Measured(one.row.model_copy(update=own), one.people) for one in rows]

    def _predictions_of(self, rival: str, test: Indices) -> dict[int, Floats]:
        """What the models of an earlier order of this task and k said, by draw."""
        ways = {way.replace("/", "-"): way for way in self.task.settings.methods}
        if rival not in ways:
            raise Refusal(
                "ORDER_MALFORMED", f"the study has no task {self.order.task!r} by {rival}"
            )
        init, _, method = ways[rival].rpartition("/")
        order = self.order.model_copy(update={"init": init, "method": method})
        try:
            return self.models.predictions(order, test)
        except DamagedError as error:
            _log.error("%s; nothing is compared with %s", error, rival)
            return {}

    def _split(self, repeat: int) -> Split | None:
        """The labelled samples of each part; None if the people drawn show nothing to learn.

        With `order.k`, as many training participants are drawn, and at most as many that choose.
        """
        task, cohort = self.task, self.cohort
        name, target = task.target_name, task.target
        known = ~np.isnan(cohort.labels[name])
        parts: dict[str, Indices] = {}
        for part in ("train", "validation", "test"):
            indices = cohort.indices(part, self.study.splits)
            parts[part] = indices[known[indices]]
        for part, indices in parts.items():
            if len(indices) < 2:
                raise Refusal("NO_DATA", f"{len(indices)} labelled {part} scans for {name}")
        if self.order.k:
            draw = repeat // task.settings.repeats
            parts["train"] = self._drawn(parts["train"], "train", draw, exactly=True)
            parts["validation"] = self._drawn(parts["validation"], "validation", draw)
        if target.kind != "regression" and len(set(cohort.labels[name][parts["train"]])) < 2:
            return None
        return Split(**parts)

    def _drawn(self, indices: Indices, part: str, draw: int, *, exactly: bool = False) -> Indices:
        people = person_codes(self.cohort.participants)[indices]
        everyone = np.unique(people)
        if exactly and len(everyone) < self.order.k:
            raise Refusal(
                "NO_DATA", f"{len(everyone)} labelled {part} participants, {self.order.k} asked"
            )
        seed = seed_of(self.study.seed, "draw", self.site.name, self.order.task, part, draw)
        chosen = np.random.default_rng(seed).permutation(everyone)[: self.order.k]
        return indices[np.isin(people, chosen)]

    def _model(self, split: Split, repeat: int) -> TunedModel:
        """The model of this order, as it is kept, or trained and kept now."""
        try:
            kept = self.models.find(self.order, repeat)
        except DamagedError as error:
            _log.error("%s; it is trained again, to the same bits", error)
            kept = None
        if kept is not None and kept.order == self.order.id:
            return kept
        closed = self.order.method in CLOSED_FORM
        model = self._fitted(split, repeat) if closed else self._trained(split, repeat)
        self.models.keep(self.order, repeat, model)
        return model

    def _fitted(self, split: Split, repeat: int) -> TunedModel:
        """A penalised linear model on regional measures, or on what the network says of a scan."""
        name, target = self.task.target_name, self.task.target
        features, label = self._features(repeat), self.cohort.labels[name]
        strength = choose(target, features, label, [(split.train, split.validation)])
        model = fit(target, features, label, split.train, strength)
        return TunedModel(
            order=self.order.id, metric=metrics.primary(target), arrays=model.arrays(name)
        )

    def _features(self, repeat: int) -> Features:
        if self.order.method == "linear":
            return regional_features(self.cohort)
        study, pretraining = self.study, self.study.pretraining
        of = pretraining.rounds * pretraining.local_epochs
        network = build(study, seed=self._seed("finetune", repeat))
        if self.order.init == "pretrained":
            load_arrays(network, {n: a for n, a in self.arrays.items() if n in _names(network)})
        tell(network, of if self.order.init == "pretrained" else 0, of)
        return features_of(network, self.cohort, choose_device(self.site.device.kind))

    def _trained(self, split: Split, repeat: int) -> TunedModel:
        """Train the network for each cell of the grid; keep the one that validates best."""
        task, target = self.task, self.task.target
        label = self.cohort.labels[task.target_name]
        device = choose_device(self.site.device.kind)
        grid: list[Cell] = []
        chosen, best, arrays = 0, float("nan"), Arrays()
        title = f"{self.site.name}: {task.name} {self.order.init}/{self.order.method}, settings"
        cells = list(_cells(task))
        with track(title, len(cells)) as advance:
            for cell in cells:
                network = self._fresh(self._seed("finetune", repeat))
                done = self._run(network, cell, split, repeat, device)
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

    def _fresh(self, seed: int) -> Any:
        """The network as every cell begins with it: drawn, loaded, and given what is added."""
        network = build_for(self.study, self.task, seed=seed)
        if self.order.init == "pretrained":
            load_arrays(network, carried_over(network, self.arrays, self.task.target_name))
        tune(network, self.order.method, self.task, seed=seed)
        return network

    def _run(
        self, network: Any, cell: Cell, split: Split, repeat: int, device: torch.device
    ) -> Cell:
        """Train one cell in place, back to its best epoch if validation stops it; its history."""
        settings = self.task.settings
        seed = self._seed("finetune-order", repeat)
        loader = loader_of(self.study, self.site, self.cohort, seed)
        watch = _Patience(
            self.cohort, network, split.validation, device,
            patience=settings.patience, seed=self._seed("validation", repeat),
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

    def _seed(self, purpose: str, repeat: int) -> int:
        """Repeats of one draw differ in chance alone; draws of other people share it."""
        again = repeat % self.task.settings.repeats
        return seed_of(self.study.seed, purpose, self.site.name, self.order.task, again)


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
