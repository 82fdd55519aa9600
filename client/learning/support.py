"""Support: how many samples, and how many people, stand behind each group of arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from client.data.cohort import Cohort
from client.data.loading import person_codes
from common.network.building import type_of
from common.seams import LABELS
from common.study import Study

Indices = NDArray[np.int64]


def people_among(cohort: Cohort, indices: Indices) -> int:
    """How many people the samples `indices` are of."""
    return len(np.unique(person_codes(cohort.participants)[indices]))


def support_of(
    cohort: Cohort, indices: Indices, whole: str, targets: Iterable[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Samples, and people, among `indices`: all of them as group `whole`, and by label held."""
    labelled = {f"{LABELS}{name}": labelled_among(cohort, indices, name) for name in targets}
    groups = {whole: indices, **labelled}
    return (
        {group: len(chosen) for group, chosen in groups.items()},
        {group: people_among(cohort, chosen) for group, chosen in groups.items()},
    )


def learnt_from(study: Study, cohort: Cohort, minimum: int) -> tuple[Cohort, Indices]:
    """The cohort without rare labels, and its training samples that can enter a loss.

    A supervised objective (`common.seams`) learns nothing of a sample without any label; one that
    keeps those apart learns nothing of them where they are of too few people to speak of.
    """
    training = cohort.indices("train", study.splits)
    cohort = without_rare_labels(cohort, training, minimum)
    objective = type_of(study, "objectives")
    supervised = getattr(objective, "supervised", False)
    if not supervised and not getattr(objective, "apart", False):
        return cohort, training
    known = [~np.isnan(cohort.labels[name][training]) for name in study.pretraining_targets]
    labelled = np.any(known, axis=0)
    if supervised or 0 < people_among(cohort, training[~labelled]) < minimum:
        return cohort, training[labelled]
    return cohort, training


def with_labels_for(study: Study, cohort: Cohort, model: str) -> Cohort:
    """The cohort without labels that a model of the run does not learn.

    Of a model of some targets they are the other pretraining targets', as if the site had none.
    """
    unlearnt = study.pretraining_targets.keys() - study.learnt_by(model).keys()
    return _without(cohort, unlearnt) if unlearnt else cohort


def without_rare_labels(cohort: Cohort, indices: Indices, minimum: int) -> Cohort:
    """The cohort, without the labels that fewer than `minimum` people among `indices` hold.

    The gradient of a head that one person labels is her features.
    """
    rare = {
        name
        for name in cohort.labels
        if 0 < people_among(cohort, labelled_among(cohort, indices, name)) < minimum
    }
    return _without(cohort, rare) if rare else cohort


def _without(cohort: Cohort, names: Collection[str]) -> Cohort:
    labels = {
        name: np.full_like(values, np.nan) if name in names else values
        for name, values in cohort.labels.items()
    }
    return replace(cohort, labels=labels)


def alike_or_far_apart(
    cohort: Cohort,
    groups: dict[str, Indices],
    needed: int,
    joint: Iterable[tuple[str, ...]] = (),
) -> dict[str, Indices]:
    """The same groups of samples, where any two differ by nobody or by at least `needed` people.

    Sums over all people less sums over those with a label are about those without; if that is one
    person, they are hers. Two groups that differ by fewer are both cut to what they share. Sums may
    also be of what several groups share, the `joint` ones.
    """
    found = dict(groups)
    summed = [*((name,) for name in sorted(found)), *sorted(one for one in joint if len(one) > 1)]
    changed = True
    while changed:
        changed = False
        for one, other in combinations(summed, 2):
            ours, theirs = (_shared([found[name] for name in names]) for names in (one, other))
            apart = np.setxor1d(ours, theirs)
            # a target that nobody has here takes part in no difference
            if not len(ours) or not len(theirs) or not len(apart):
                continue
            if people_among(cohort, apart) < needed:
                both = np.intersect1d(ours, theirs)
                found |= {name: np.intersect1d(found[name], both) for name in (*one, *other)}
                changed = True
    return found


def _shared(groups: Sequence[Indices]) -> Indices:
    """What is in all of the groups."""
    return reduce(np.intersect1d, groups)


def labelled_with(cohort: Cohort, indices: Indices, names: Iterable[str]) -> Indices:
    """Those of the samples `indices` that have a label of every target in `names`."""
    for name in names:
        indices = labelled_among(cohort, indices, name)
    return indices


def without_rare_classes(study: Study, cohort: Cohort, indices: Indices, minimum: int) -> Cohort:
    """The cohort, without targets of which some class is held by fewer than `minimum` people.

    Sums over the class of one person are her features.
    """
    labels = dict(cohort.labels)
    for name, target in study.targets.items():
        known = (
            labelled_among(cohort, indices, name) if target.kind != "regression" else indices[:0]
        )
        classes = cohort.labels[name][known]
        fewest = (people_among(cohort, known[classes == one]) for one in np.unique(classes))
        if any(people < minimum for people in fewest):
            labels[name] = np.full_like(labels[name], np.nan)
    return replace(cohort, labels=labels)


def without_rare_columns(
    study: Study, cohort: Cohort, training: Indices, needed: int, minimum: int
) -> Cohort:
    """The cohort, without columns that too few people have of those in some sum.

    Nor of those by whom two sums differ, since a column's sum over all less its sum over who has a
    label is about those without, and of them one may have the column. `needed` people must, or
    `minimum` of a class. Such a column is missing for the whole site.
    """
    if not getattr(study.data, "missing_columns", 0):
        return cohort
    samples = np.array(cohort.samples[np.arange(len(cohort))])
    summed, classes = [training], []
    for name, target in study.targets.items():
        known = labelled_among(cohort, training, name)
        summed.append(known)
        if target.kind != "regression":
            held = cohort.labels[name][known]
            classes += [known[(held == one) == own] for one in np.unique(held) for own in (0, 1)]
    summed += [np.setdiff1d(one, other) for one, other in permutations(summed, 2)]
    parts = [*((part, needed) for part in summed), *((part, minimum) for part in classes)]
    people = person_codes(cohort.participants)
    for column in np.flatnonzero(np.isnan(samples[training]).any(axis=0)):
        has = ~np.isnan(samples[:, column])
        if any(0 < len(np.unique(people[part[has[part]]])) < few for part, few in parts):
            samples[:, column] = np.nan
    return replace(cohort, samples=samples)


def labelled_among(cohort: Cohort, indices: Indices, name: str) -> Indices:
    """Those of the samples `indices` that have a label of the target `name`."""
    return indices[~np.isnan(cohort.labels[name][indices])]
