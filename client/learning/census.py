"""What a site holds for a study, in counts; and the sums that a network's constants are made of.

A site compares its own columns with those constants, since nobody else can see both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.answer import Answer
from client.data.cohort import Cohort
from client.data.identifiers import identifiers
from client.data.loading import batches, person_codes, split_evenly
from client.learning.support import (
    alike_or_far_apart,
    labelled_among,
    labelled_with,
    learnt_from,
    people_among,
    support_of,
    without_rare_classes,
    without_rare_columns,
    without_rare_labels,
)
from client.learning.training import lay_out
from client.site import Policy, Site
from common import label_sums
from common.arrays import Arrays
from common.column_units import Columns, among_all, figures, in_words, named
from common.errors import Refusal
from common.network.plan import rules_of
from common.network.settling import added, settling, sums_of, sums_plan
from common.protocol.tokens import FEWEST_NUMBERS, salt_of, tokens_of
from common.study import Study

HELD = "scans"  # group of a census: everything that is usable
INCOMPLETE = "incomplete"  # those of them that lack a column, as the study lets them
_AT_ONCE = 256  # samples
_GUESSED = 1 << 12  # numbers in a sample; nobody guesses an image of more
_MANY_VALUES = 10


def census(study: Study, site: Site, cohort: Cohort) -> Answer:
    """Counts of scans, people and labels; nothing of what the labels are.

    Raises
    ------
    Refusal
        NO_DATA if a training site has nothing to train on.
    """
    if site.role == "train":
        training = cohort.indices("train", study.splits)
        if len(training) < 2:
            raise Refusal("NO_DATA", f"{len(training)} training samples")
    everyone = np.arange(len(cohort))
    support, participants = support_of(cohort, everyone, HELD, study.targets)
    if getattr(study.data, "missing_columns", 0):
        holes = everyone[np.isnan(cohort.samples[everyone]).any(axis=1)]
        support[INCOMPLETE], participants[INCOMPLETE] = len(holes), people_among(cohort, holes)
    return Answer(support=support, participants=participants)


def overlap(study: Study, site: Site, cohort: Cohort, *, leaves: bool) -> Answer:
    """Tokens of all scans, by which those that other sites hold too are counted.

    Raises
    ------
    Refusal
        GUESSABLE if they leave the machine, and could be guessed without the sites' own key.
    """
    if leaves and not site.overlap_key and (numbers := telling(study, cohort)) < FEWEST_NUMBERS:
        raise Refusal(
            "GUESSABLE",
            f"{numbers} numbers of a sample differ much from person to person, {FEWEST_NUMBERS} "
            "are needed; overlap_key hides them",
        )
    arrays = tokens_of(
        cohort.contents, cohort.participants, salt_of(study), site.overlap_key,
        identifiers(study, site, cohort.participants),
    )  # fmt: skip
    people = len(set(cohort.participants))
    return Answer(arrays=arrays, expected=rules_of(arrays), behind=dict.fromkeys(arrays, people))


def telling(study: Study, cohort: Cohort) -> int:
    """How many numbers of a sample take many values here: sixteen flags are easily guessed."""
    numbers = math.prod(study.shape)
    if numbers > _GUESSED:
        return numbers
    some = np.sort(np.asarray(cohort.samples[np.arange(min(len(cohort), _AT_ONCE))]), axis=0)
    values = 1 + np.count_nonzero(np.diff(some, axis=0) > 0, axis=0)  # NaN is no value
    return int(np.count_nonzero(values >= _MANY_VALUES))


def settle(
    study: Study,
    site: Site,
    cohort: Cohort,
    network: Any,
    number: int,
    device: torch.device,
) -> Answer:
    """Sums over the training samples for the network's modules that settle, in float64.

    Labels that too few people have, or a class of too few, are in no sum; and no two sums are of
    people who differ by a few.
    """
    modules, policy = settling(network), site.policy
    plan = sums_plan(study, modules, number)
    known, training = summed(study, cohort, modules, policy)
    total = _sums(known, training, network, modules, number, device)
    reveals = sum(math.prod(r.shape) for r in plan.values()) // math.prod(study.shape)
    return Answer(
        arrays=total,
        expected=plan,
        behind={name: people_among(known, _behind(name, modules, known, training))
                for name in total},
        reveals=1 if policy.sums_of_few else max(1, reveals),
    )  # fmt: skip


def summed(
    study: Study, cohort: Cohort, modules: Mapping[str, Any], policy: Policy
) -> tuple[Cohort, NDArray[np.int64]]:
    """The training samples that sums are of, and the cohort without labels that are in none."""
    training, minimum = cohort.indices("train", study.splits), policy.minimum_support
    known = without_rare_labels(cohort, training, minimum)
    known = without_rare_classes(study, known, training, minimum)
    if not policy.sums_of_few:
        needed = people_needed(study, modules, policy)
        known, training = _without_differences(study, known, training, modules, needed)
        known = without_rare_columns(study, known, training, needed, minimum)
    return known, training


def _without_differences(
    study: Study,
    cohort: Cohort,
    training: NDArray[np.int64],
    modules: Mapping[str, Any],
    needed: int,
) -> tuple[Cohort, NDArray[np.int64]]:
    """Samples and labels such that the difference of no two sums, of any passes, is of a few.

    It must come to the same in every pass: it depends on labels and study alone.
    """
    if not any(hasattr(module, "labelled") for module in modules.values()):
        return cohort, training
    joint = {_labelled(name, modules) for name in _sizes(study, modules)}
    names = sorted({*study.pretraining_targets, *(name for one in joint for name in one)})
    groups = {name: labelled_among(cohort, training, name) for name in names}
    kept = alike_or_far_apart(cohort, {**groups, "": training}, needed, joint)  # "": no target
    labels = dict(cohort.labels)
    for name in names:
        labels[name] = np.full_like(cohort.labels[name], np.nan)
        labels[name][kept[name]] = cohort.labels[name][kept[name]]
    return replace(cohort, labels=labels), kept[""]


def people_needed(study: Study, modules: Mapping[str, Any], policy: Policy) -> int:
    """People by whom two sums must differ, for all the numbers that the largest of them holds."""
    largest = max(_sizes(study, modules).values(), default=0)
    return policy.minimum_support * max(1, largest // math.prod(study.shape))


def _sizes(study: Study, modules: Mapping[str, Any]) -> dict[str, int]:
    """Numbers in each sum of all passes."""
    last = max((getattr(module, "passes", 1) for module in modules.values()), default=0)
    return {
        name: math.prod(rule.shape)
        for number in range(last)
        for name, rule in sums_plan(study, modules, number).items()
    }


def sum_labels(study: Study, site: Site, cohort: Cohort) -> Answer:
    """What the training samples' labels add up to, for the constants that every model must beat."""
    training, people = cohort.indices("train", study.splits), person_codes(cohort.participants)
    arrays: Arrays = {}
    behind: dict[str, int] = {}
    for name, target in label_sums.numbers(study).items():
        known = labelled_among(cohort, training, name)
        minimum = site.policy.minimum_support
        own = label_sums.sums_of(name, target, cohort.labels[name][known], people[known], minimum)
        arrays |= own
        behind |= dict.fromkeys(own, people_among(cohort, known) if own[f"n_{name}"] else 0)
    return Answer(arrays=arrays, expected=label_sums.plan_of_sums(study), behind=behind)


def _behind(
    name: str, modules: Mapping[str, Any], cohort: Cohort, training: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The samples that are in a sum."""
    return labelled_with(cohort, training, _labelled(name, modules))


def _labelled(name: str, modules: Mapping[str, Any]) -> tuple[str, ...]:
    """The targets of which a sample needs all labels to be in a sum."""
    place, _, key = name.rpartition("/")
    labelled = getattr(modules[place], "labelled", None)
    found: tuple[str, ...] = () if labelled is None else labelled(key)
    return found


def lacking_labels(study: Study, site: Site, cohort: Cohort) -> str:
    """What to tell a training site whose samples have no label that is learnt; or nothing."""
    everyone = cohort.indices("train", study.splits)
    _, learnt = learnt_from(study, cohort, site.policy.minimum_support)
    if site.role != "train" or len(learnt) == len(everyone):
        return ""
    names = " or ".join(study.pretraining_targets)
    found = (
        f"{len(everyone) - len(learnt)} of {len(everyone)} training samples have no label of "
        f"{names} that is learnt; nothing is learnt from them, and they weigh nothing"
    )
    return found if len(learnt) else f"{found}. This site cannot train; see callosum-site check"


def unlike_columns(
    study: Study,
    cohort: Cohort,
    indices: NDArray[np.int64],
    network: Any,
    constants: Mapping[str, NDArray[Any]],
) -> Iterator[str]:
    """Columns of the samples `indices` that cannot well be in the unit of all training sites.

    constants: the arrays of an order, and the settled mean and deviation among them.
    """
    modules = {
        place: module
        for place, module in settling(network).items()
        if {f"{place}.mean", f"{place}.deviation"} <= constants.keys()
    }
    if not modules or not len(indices):
        return
    sums = _sums(cohort, indices, network, modules, 0, torch.device("cpu"))
    for place in modules:
        own = Columns.of_sums(sums, place)
        settled = (constants[f"{place}.mean"], constants[f"{place}.deviation"])
        joint = Columns(*(np.asarray(array, dtype=np.float64) for array in settled))
        if own is None or own.mean.shape != joint.mean.shape:
            continue
        names, (odd, shares, means) = getattr(study.data, "columns", ()), among_all(own, joint)
        for number in np.flatnonzero(odd).tolist():
            here, there = float(own.mean[number]), float(means[number])
            times = f" ({in_words(here / there)})" if here * there > 0 else ""
            yield (
                f"column {named(names, number, len(own.mean))}: its mean is {figures(here)} here, "
                f"about {figures(there)} in {shares[number]:.0%} of all training data{times}; does "
                "this site count in the others' unit?"
            )


def _sums(
    cohort: Cohort,
    indices: NDArray[np.int64],
    network: Any,
    modules: Mapping[str, Any],
    number: int,
    device: torch.device,
) -> Arrays:
    lay_out(network, device)
    network.eval()
    total: Arrays = {}
    with torch.inference_mode():
        for batch in batches(cohort, split_evenly(indices, _AT_ONCE), device):
            sums = sums_of(modules, batch.x, batch.labels, number)
            total = added([total, {name: value.cpu().numpy() for name, value in sums.items()}])
    network.to("cpu")
    return total
