"""A site learns a task of its own: from the shared backbone, frozen or not, from scratch, linearly.

Participants are disjoint between training, validation and test. Every way of learning gets a small
grid; validation chooses, the test split is looked at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from logging import getLogger

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.learning.linear import (
    Features,
    LinearModel,
    backbone_features,
    choose,
    fit,
    regional_features,
)
from client.learning.measurement import Floats, measure
from client.learning.training import choose_device, predict, train
from client.site import Site
from common import metrics
from common.arrays import Arrays
from common.errors import Refusal
from common.network import build, carried_over, load_arrays
from common.protocol.orders import Measurement, Order
from common.runtime.progress import track
from common.seeding import seed_of
from common.study import FineTuning, Study, Target

_log = getLogger("callosum.site")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of a fine-tuning grid, as the training loop reads it."""

    rate: float
    weight_decay: float
    optimiser: str = "adamw"
    momentum: float = 0.9
    gradient_clip: float = 5.0
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled samples of a task: indices of training, validation and test."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def finetune(
    study: Study, site: Site, cohort: Cohort, order: Order, arrays: Arrays
) -> list[Measurement]:
    """Learn `order.task` in the way `order.init` says; measure on the test participants."""
    task = next((task for task in study.finetuning if task.name == order.task), None)
    if task is None or order.init not in task.inits:
        raise Refusal("ORDER_MALFORMED", f"the study has no task {order.task!r} by {order.init}")
    target = study.targets[task.target]
    split = _split(study, cohort, task.target, target)
    if order.init in ("frozen", "linear"):
        predicted: Floats = _linear(study, site, cohort, order, split, arrays, target)
    else:
        predicted = _deep(study, site, cohort, order, split, arrays, task)
    return measure(
        study, site, cohort, order, task.target, split.test, predicted, task.name, order.init
    )


def _split(study: Study, cohort: Cohort, name: str, target: Target) -> Split:
    known = ~np.isnan(cohort.labels[name])
    parts = []
    for part in ("train", "validation", "test"):
        indices = cohort.indices(part, study.splits)
        parts.append(indices[known[indices]])
    split = Split(*parts)
    for part, indices in zip(("training", "validation", "test"), parts, strict=True):
        if len(indices) < 2:
            raise Refusal("NO_DATA", f"{len(indices)} labelled {part} scans for {name}")
    if target.kind != "regression" and len(set(cohort.labels[name][split.train].tolist())) < 2:
        raise Refusal("NO_DATA", f"training participants hold one class of {name} only")
    return split


def _linear(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    split: Split,
    arrays: Arrays,
    target: Target,
) -> NDArray[np.float64]:
    """A penalised linear model on regional volumes, or on the frozen backbone's features."""
    name = next(task.target for task in study.finetuning if task.name == order.task)
    if order.init == "linear":
        features = regional_features(cohort)
    else:
        features = _frozen(study, site, cohort, arrays)
    label = cohort.labels[name]
    strength = choose(target, features, label, [(split.train, split.validation)])
    model: LinearModel = fit(target, features, label, split.train, strength)
    return model.predict(features, split.test)


def _frozen(study: Study, site: Site, cohort: Cohort, arrays: Arrays) -> Features:
    network = build(study, seed=0)
    load_arrays(network, arrays)
    return backbone_features(network, cohort, choose_device(site.device.kind))


def _deep(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    split: Split,
    arrays: Arrays,
    task: FineTuning,
) -> NDArray[np.float32]:
    """Train the whole network for each cell of the grid; keep the one that validates best."""
    target, device = study.targets[task.target], choose_device(site.device.kind)
    label = cohort.labels[task.target]
    best, predicted = float("nan"), np.zeros(0, dtype=np.float32)
    cells = list(_grid(task))
    with track(f"{site.name}: {task.name} {order.init}, settings", len(cells)) as advance:
        for cell in cells:
            network = build(
                study,
                {task.target: target},
                seed=seed_of(study.seed, "finetune", site.name, task.name),
            )
            if order.init == "transfer":
                load_arrays(network, carried_over(network, arrays, task.target))
            train(
                network,
                cohort,
                split.train,
                cell,
                epochs=task.epochs,
                batch_size=task.batch_size,
                rate=cell.rate,
                seed=seed_of(study.seed, "finetune-order", site.name, task.name),
                device=device,
            )
            on_validation = predict(network, cohort, split.validation, device)[task.target]
            score = _score(target, label[split.validation], on_validation)
            if not len(predicted) or metrics.better(target, score, best):
                best = score
                predicted = predict(network, cohort, split.test, device)[task.target]
            advance()
    return predicted


def _grid(task: FineTuning) -> Iterator[Cell]:
    for rate in task.learning_rates:
        for decay in task.weight_decays:
            yield Cell(rate=rate, weight_decay=decay)


def _score(target: Target, label: NDArray[np.float32], predicted: NDArray[np.float32]) -> float:
    return metrics.exact(target, label, predicted).get(metrics.primary(target), float("nan"))
