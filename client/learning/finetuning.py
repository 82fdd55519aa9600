"""A site learns a task of its own: from the shared backbone or from scratch, by several methods.

Participants are disjoint between training, validation and test. Every method gets a small grid;
validation chooses, the test split is looked at once. What was tuned is kept at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np

from client.answer import Measured
from client.data.cohort import Cohort
from client.data.loading import person_codes
from client.learning.linear import Features
from client.learning.measurement import (
    Floats,
    at_chosen_threshold,
    difference,
    mean_over_draws,
    measure,
)
from client.learning.median_rival import beside_median
from client.learning.support import people_among
from client.learning.tuned_models import TunedModel, TunedModels
from client.learning.ways import Indices, Split, Way
from client.site import Site
from common import metrics
from common.arrays import Arrays
from common.errors import DamagedError, Refusal
from common.network.tuning import Task, task_of
from common.protocol.orders import Order
from common.seeding import seed_of
from common.study import Study

_log = getLogger("callosum.site")


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
        return self._way(repeat).network(model)

    def predicted(self, model: TunedModel, indices: Indices, repeat: int) -> Floats:
        """What a kept model says of the samples `indices`."""
        return self._way(repeat).predicted(model, indices)

    def features(self) -> Features:
        """(N, F) what a head of this way stands on."""
        return self._way(0).made_features()

    @property
    def tested(self) -> Indices:
        """Labelled samples of the study's test participants."""
        test = self.cohort.indices("test", self.study.splits)
        return test[~np.isnan(self.cohort.labels[self.task.target_name][test])]

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
        model = self._way(repeat).learn(split)
        self.models.keep(self.order, repeat, model)
        return model

    def _way(self, repeat: int) -> Way:
        """Repeats of one draw differ in chance alone; draws of other people share it."""
        return Way(
            study=self.study, site=self.site, cohort=self.cohort, order=self.order,
            task=self.task, arrays=self.arrays, again=repeat % self.task.settings.repeats,
        )  # fmt: skip
