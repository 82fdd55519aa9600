"""Training whose steps hide whether any one participant was there (DP-SGD, Abadi et al. 2016).

Each step draws participants, adds up one cut-down gradient of each, adds noise, divides by the
people that were to be expected, and moves. An empty draw adds noise and is a step like any other.
What comes after the noise (momentum, decay, the pull of FedProx, `gradient_clip`, averages of
weights) costs nothing more.

No bit of it can be repeated: chance is `Chance`, not the recipe's seed. Masks and dropout are
secret as well: with known ones, whose turn it is would change everybody's behind her.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from client.data.cohort import Cohort
from client.data.loading import Batch, batches
from client.learning.optimisers import Stepper, trained
from client.learning.privacy.chance import Chance
from client.learning.privacy.clipping import ClippedSum
from client.learning.privacy.drawing import Indices, drawn, people_of, portions
from client.learning.training import (
    Recipe,
    advance,
    anchors_of,
    labels_for,
    lay_out,
    seeded,
    tell,
    unchanged,
)
from client.learning.weight_averaging import WeightAverage
from common.arrays import Arrays
from common.network.building import rest_frozen_layers, views_of
from common.privacy.person_gradients import NotByPersonError, PersonGradients, of_one
from common.privacy.settings import Privacy
from common.privacy.way import Way


def train_privately(
    network: Any,
    cohort: Cohort,
    indices: Indices,
    recipe: Recipe,
    device: torch.device,
    privacy: Privacy,
    way: Way,
    *,
    chance: Chance | None = None,
) -> Arrays:
    """Train `network` in place on participants of the samples `indices`; return moments.

    Parameters
    ----------
    way : how gradients by person are made (`way_of`)
    chance : new where none is given, as everywhere but in tests
    """
    lay_out(network, device)
    chance = chance or Chance(device)
    people = people_of(cohort, indices)
    rate, steps = privacy.rate(len(people)), privacy.steps(len(people))
    anchors = anchors_of(network) if recipe.proximal_mu else []
    stepper = Stepper(
        network, recipe.steps, rate=recipe.rate, weight_decay=recipe.weight_decay,
        moments=recipe.moments,
    )  # fmt: skip
    decay = recipe.steps.weight_averaging
    average = WeightAverage(network, decay) if decay else None
    named = dict(trained(network))
    with seeded(chance.seed(), device):
        for number in range(recipe.first, recipe.first + recipe.epochs):
            tell(network, number, recipe.of)
            network.train()
            rest_frozen_layers(network)
            draws = [
                portions(drawn(people, rate, privacy.scans_per_person, chance.numbers), way.samples)
                for _ in range(steps)
            ]
            order = [portion.ravel() for draw in draws for portion in draw]
            loader = replace(recipe.loader, seed=chance.seed(), views=views_of(network))
            reading = batches(cohort, order, device, loader)
            for step, draw in enumerate(draws, start=1):
                total = ClippedSum(named, privacy)
                for portion in draw:
                    for gradients in _gradients(network, next(reading), portion.shape, way):
                        total.add(gradients)
                total.release(chance, privacy.expected(len(people)))
                advance(network, stepper, recipe, anchors, (number + step / steps) / recipe.of)
                if average is not None:
                    average.add()
    if average is not None:
        average.settle()
    return stepper.moments()


def _gradients(
    network: Any, batch: Batch, by_person: tuple[int, ...], way: Way
) -> Iterator[PersonGradients]:
    """The gradients of a batch's people, P of them with S samples each."""
    labels_PS = {
        name: label.unflatten(0, by_person)
        for name, label in labels_for(network, batch.labels).items()
    }
    if by_person[0] > 1:
        with suppress(NotByPersonError):  # raised where a network goes another way for these
            yield way.make(network, batch.x.unflatten(0, by_person), labels_PS)
            return
    for person, x_S in enumerate(batch.x.split(by_person[1])):
        with unchanged(network):
            hers = of_one(network, x_S, {name: label[person] for name, label in labels_PS.items()})
        yield hers
