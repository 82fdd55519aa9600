"""One federated round at a site: judge the arrays as they came, then train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.answer import Answer, Measured
from client.data.cohort import Cohort
from client.data.loading import Loader
from client.learning.measurement import measure
from client.learning.prediction import losses, predict
from client.learning.privacy.training import train_privately
from client.learning.support import learnt_from, people_among, support_of
from client.learning.training import Recipe, Tally, choose_device, tell, train
from client.site import Site
from common.arrays import Arrays
from common.errors import Refusal
from common.network.buildable import augmentations
from common.network.building import arrays_of, load_arrays
from common.network.plan import Plan
from common.privacy.way import way_of
from common.protocol.orders import Order
from common.seams import SHARED, TERM
from common.seeding import seed_of
from common.study import Study

_UNLABELLED: Final = "the labels that are learnt are lacking, or too few people hold them"


@dataclass(frozen=True, slots=True)
class Round:
    """The answer to a training order, and what the site keeps for the next one."""

    answer: Answer
    own: Arrays
    moments: Arrays


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What stands behind a training: samples that entered, losses to tell, samples by term."""

    entered: NDArray[np.int64]
    told: Tally
    terms: Tally
    moments: Arrays


def train_round(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    *,
    network: Any,
    plan: Plan,
    arrays: Mapping[str, NDArray[Any]],
    moments: Mapping[str, NDArray[Any]],
) -> Round:
    """Train `arrays` over training participants whose samples can enter a loss; others judge them.

    Raises
    ------
    Refusal
        NO_DATA if no sample entered a loss: such a site has no update to send.
    """
    settings = study.pretraining
    cohort, training = learnt_from(study, cohort, site.policy.minimum_support)
    if len(training) < 2:  # batch normalisation learns from no single sample
        raise Refusal("NO_DATA", f"{len(training)} training samples enter a loss; {_UNLABELLED}")
    first, of = (order.round - 1) * settings.local_epochs, settings.rounds * settings.local_epochs
    load_arrays(network, arrays)
    device = choose_device(site.device.kind)
    validation = cohort.indices("validation", study.splits)
    tell(network, first, of)
    measured = _validated(study, site, cohort, order, network, validation, device)
    judged = losses(
        network, cohort, validation, device,
        seed=seed_of(study.seed, "validation", site.name), batch_size=settings.batch_size,
        loader=loader_of(study, site, cohort),
    )  # fmt: skip
    seed = seed_of(study.seed, "train", site.name, order.round)
    recipe = Recipe(
        steps=settings,
        rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        first=first,
        epochs=settings.local_epochs,
        of=of,
        seed=seed,
        proximal_mu=settings.proximal_mu,
        loader=loader_of(study, site, cohort, seed),
        moments=moments if settings.optimiser_state == "kept" else None,
    )
    groups = {rule.group for rule in plan.values() if rule.travels} | {SHARED}
    done = _learn(study, network, cohort, training, recipe, groups, device)
    if not len(done.entered):
        raise Refusal("NO_DATA", f"no training sample entered a loss; {_UNLABELLED}")
    trained = arrays_of(network)
    support, behind = support_of(cohort, done.entered, SHARED, study.pretraining_targets)
    for group in (group for group in groups if group.startswith(TERM)):
        learnt = done.terms.entered(group.removeprefix(TERM))
        support[group], behind[group] = len(learnt), people_among(cohort, learnt)
    counts: dict[str, tuple[float, ...]] = {}
    people: dict[str, int] = {}
    for name, tally in {"loss": done.told, "validation-loss": judged}.items():
        counts |= tally.counts(name)
        people |= tally.participants(name)
    answer = Answer(
        support={group: n for group, n in support.items() if group in groups},
        participants={group: n for group, n in behind.items() if group in groups} | people,
        counts=counts,
        measured=tuple(measured),
        arrays={name: trained[name] for name, rule in plan.items() if rule.travels},
        expected={name: rule for name, rule in plan.items() if rule.travels},
    )
    own = {name: trained[name] for name, rule in plan.items() if rule.kept}
    return Round(answer, own, done.moments if settings.optimiser_state == "kept" else {})


def _learn(
    study: Study,
    network: Any,
    cohort: Cohort,
    training: NDArray[np.int64],
    recipe: Recipe,
    groups: set[str],
    device: torch.device,
) -> _Learnt:
    """Train as the study says; of a private training no loss is told, and not who was drawn.

    Who may be drawn stands behind it. Only where arrays are averaged by a term, `groups` says, is
    the network asked which samples enter that.
    """
    if not study.privacy.is_private:
        done = train(network, cohort, training, recipe, device)
        return _Learnt(done.tally.entered(), done.tally, done.tally, done.moments)
    way = way_of(study, device.type)
    moments = train_privately(network, cohort, training, recipe, device, study.privacy, way)
    by_term = training if any(group.startswith(TERM) for group in groups) else training[:0]
    terms = losses(network, cohort, by_term, device, seed=0, batch_size=1)
    return _Learnt(training, Tally(cohort), terms, moments)


def _validated(
    study: Study,
    site: Site,
    cohort: Cohort,
    order: Order,
    network: Any,
    indices: NDArray[np.int64],
    device: torch.device,
) -> list[Measured]:
    """Every metric of the arrays as they came, on validation participants; without intervals."""
    rows: list[Measured] = []
    for name, values in predict(network, cohort, indices, device).items():
        known = ~np.isnan(cohort.labels[name][indices])
        if known.any():
            rows += measure(
                study, site, cohort, order, name, indices[known], values[known], intervals=False
            )
    return rows


def loader_of(study: Study, site: Site, cohort: Cohort, seed: int = 0) -> Loader:
    """How training samples are read and augmented; several threads where samples must be made."""
    augment = augmentations(study)
    busy = bool(augment) or not isinstance(cohort.samples, np.ndarray)
    return Loader(augment, seed, site.device.loader_threads if busy else 1)
