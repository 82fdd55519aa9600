"""What a held-out site can take from some of its people without their labels, to judge the others.

Where the study harmonises, its own location and scale of each column. Else the mean of its scores:
of a target with two classes the log-odds of these people have mean 0 afterwards, so that a scanner
that moves everybody's does not make everybody ill. Ranks inside a site stay; what is said at a
probability of one half, and how far it is believed, does not. Numbers are left alone: nobody can
tell a scanner from people of another age.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from client.data.cohort import Cohort
from client.learning.harmonisation import Constants, calibrated_on
from client.learning.prediction import predict
from client.learning.support import people_among
from client.learning.training import choose_device
from client.site import Site
from common.network.building import arrays_of
from common.seeding import seed_of
from common.study import Study

_log = getLogger("callosum.site")
_SUREST = 1e-12  # a probability of 0 has no log-odds

Indices = NDArray[np.int64]
Said = Mapping[str, NDArray[Any]]  # by target, of each sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One number of people: the samples of all others, and what the model says of these."""

    people: int
    others: Indices
    said: Said


def calibrations(
    study: Study, site: Site, cohort: Cohort, network: Any, before: Said
) -> Iterator[Calibration]:
    """One for each of the study's numbers that leaves enough people to judge.

    `before` is what the network said of everyone without.
    """
    minimum, numbers = site.policy.minimum_support, study.evaluation.calibration
    for number in numbers:
        if number not in far_apart(numbers, minimum):
            _log.warning(
                "%s: not calibrated on %d people: figures would be told of others who differ by "
                "fewer than %d", site.name, number, minimum,
            )  # fmt: skip
            continue
        chosen, others = drawn(study, site, cohort, number)
        left = people_among(cohort, others)
        if left < max(2, minimum):
            _log.warning(
                "%s: not calibrated on %d people: %d others are left to judge",
                site.name, number, left,
            )  # fmt: skip
            continue
        said = _said(study, site, cohort, network, before, chosen, others)
        yield Calibration(people=number, others=others, said=said)


def far_apart(numbers: Iterable[int], minimum: int) -> list[int]:
    """Those of some numbers of people that lie `minimum` from each other, and from nobody.

    Draws are nested: figures about all but 12 people and all but 13 would tell of one.

    >>> far_apart([13, 12, 5, 22], 10)
    [12, 22]
    """
    found = [0]
    for number in sorted(numbers):
        if number - found[-1] >= minimum:
            found.append(number)
    return found[1:]


def drawn(study: Study, site: Site, cohort: Cohort, people: int) -> tuple[Indices, Indices]:
    """Samples of so many people, drawn by the study's seed, one each; and those of all others."""
    names = sorted(set(cohort.participants))
    generator = np.random.default_rng(seed_of(study.seed, "calibration", site.name))
    taken = {names[place] for place in generator.permutation(len(names))[:people]}
    inside = np.array([name in taken for name in cohort.participants])
    chosen = np.flatnonzero(inside)
    _, first = np.unique(np.asarray(cohort.participants)[chosen], return_index=True)
    return np.sort(chosen[first]), np.flatnonzero(~inside)


def centred(probability: NDArray[Any], chosen: Indices) -> NDArray[np.float64]:
    """(N,) probabilities of the second class whose log-odds have mean 0 over `chosen`.

    >>> centred(np.array([0.6, 0.9, 0.8]), np.array([0, 1])).round(3)
    array([0.29 , 0.71 , 0.521])
    """
    odds = logit(np.clip(probability.astype(np.float64), _SUREST, 1 - _SUREST))
    found: NDArray[np.float64] = expit(odds - odds[chosen].mean())
    return found


def _said(
    study: Study,
    site: Site,
    cohort: Cohort,
    network: Any,
    before: Said,
    chosen: Indices,
    others: Indices,
) -> Said:
    constants = Constants.among(network, arrays_of(network))
    if constants is not None:
        device = choose_device(site.device.kind)
        return predict(network, calibrated_on(cohort, constants, chosen), others, device)
    scores = [name for name in before if study.targets[name].kind == "binary"]
    return {name: centred(before[name], chosen)[others] for name in scores}
