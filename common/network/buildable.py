"""Whether a study's networks can be built, and are drawn from its seed, before anyone is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from common import catalogue
from common.comparisons import CLOSED_FORM
from common.errors import SettingError
from common.network.building import build, plan_of, views_of
from common.network.relevance import check_rules
from common.network.size import Limits, numbers_of, outline, outlined, step_bound, step_bytes
from common.network.tuning import build_for, task_of, tune
from common.objectives.multitask import Multitask
from common.privacy.site_level import check_statistics
from common.privacy.suitability import check_private
from common.privacy.way import samples_at_once
from common.sections import Steps
from common.secure_sums.suitability import check_arrays
from common.settings import line_of
from common.study import Study

_SMALL: Final = 10_000_000  # numbers, made in a tenth of a second


def check_buildable(study: Study, file: Path, limits: Limits | None = None) -> None:
    """Refuse a study with a network that cannot be built, or not tuned, or that is not drawn.

    What asks for more than `limits` is refused before any of it is made.

    Raises
    ------
    SettingError
        With the line of the file.
    """
    try:
        check_networks(study, limits)
    except SettingError as error:
        key = re.split(r"[^\w.-]", str(error), maxsplit=1)[0]
        raise SettingError(f"{error} ({file}{line_of(file, key)})") from None


def check_networks(study: Study, limits: Limits | None = None) -> None:
    """The same without a file to point at."""
    limits = limits or Limits.of_environment()
    network = outline(study, most=limits.network)
    _has_rounds(study, network)
    _can_make_views(study, network)
    if study.privacy.is_private:
        check_private(study, network)
    if study.secure_sums.on:
        plan = plan_of(network, study.aggregation.normalisation)
        check_arrays(plan)
        if study.privacy.hides_sites:
            check_statistics(plan)
    for place, steps, kind in _trainings(study, type(network)):
        _can_train(place, steps, kind, type(network.backbone))
    _is_bearable(study, network, limits)
    small = numbers_of(network) < _SMALL
    for number, settings in enumerate(study.finetuning):
        task = task_of(study, settings)
        for way in settings.methods:
            method = way.rpartition("/")[2]
            if method not in CLOSED_FORM:
                place = f"finetuning.{number}.methods"
                _can_tune(study, task, method, place, limits, small=small)
    _is_drawn(build(study, seed=0), build(study, seed=1))
    for number, table in enumerate(study.augmentation):
        _can_augment(study, table, f"augmentation.{number}")


def augmentations(study: Study) -> tuple[Any, ...]:
    """What is done to a sample before it is trained on, in order."""
    return tuple(
        catalogue.load("augmentations", table.name)(table, study.shape)  # type: ignore[attr-defined]
        for table in study.augmentation
    )


def _is_drawn(one: Any, other: Any) -> None:
    """Refuse weights that are the same whatever the seed: they were read from somewhere.

    `scratch` must mean scratch, and what a network begins from must have a lineage.
    """
    theirs = other.state_dict()
    for name, mine in one.state_dict().items():
        varied = mine.numel() > 1 and bool((mine != mine.flatten()[0]).any())
        if varied and torch.equal(mine, theirs[name]):
            raise SettingError(
                f"backbone: {name} is the same whatever the seed. Weights from elsewhere come by "
                "[start], which says whose they are; what never changes is a buffer with "
                "persistent=False"
            )


def _can_tune(
    study: Study, task: Any, method: str, key: str, limits: Limits, *, small: bool
) -> None:
    def tuned() -> Any:
        network = build_for(study, task, seed=0)
        tune(network, method, task, seed=0)
        return network

    try:
        spare = 2 * math.prod(study.shape)  # adapters look at two samples
        network = outlined(tuned, limits.network, spare=spare, at_once=small)
        if "explain" in task.settings.then and task.settings.maps == "relevance":
            check_rules(network, study.shape)
    except SettingError as error:
        raise SettingError(f"{key}: {error}") from None


def _is_bearable(study: Study, network: Any, limits: Limits) -> None:
    """Refuse a step of training that takes more memory than is granted."""
    views = views_of(network)
    own = views if getattr(network, "finetunes", False) else 1  # others learn tasks by plain heads
    tasks = (task.batch_size * own for task in study.finetuning)
    batch = max(_samples_of_step(study) * views, *tasks, 0)
    of = (network, study.shape, batch)
    size_gb = (0.0 if step_bound(*of) <= 1e9 * limits.step_gb else step_bytes(*of)) / 1e9
    if size_gb > limits.step_gb:
        raise SettingError(
            f"pretraining.batch_size: a step of {batch} {'views' if views > 1 else 'samples'} of "
            f"{'x'.join(map(str, study.shape))} would take about {size_gb:,.0f} GB; at most "
            f"{limits.step_gb:g} GB are granted (policy.largest_step_gb at a site, "
            "CALLOSUM_LARGEST_STEP_GB elsewhere). Smaller batches, samples or layers take less"
        )


def _samples_of_step(study: Study) -> int:
    """Samples that a step of the rounds holds in memory at once."""
    if not study.privacy.is_private:
        return study.pretraining.batch_size
    scans = study.privacy.scans_per_person or study.pretraining.batch_size
    return max(scans, samples_at_once(study))  # a person's are never parted


def _has_rounds(study: Study, network: Any) -> None:
    """Refuse rounds in which nothing is learnt, and none where something should be."""
    rounds, by_sums = study.pretraining.rounds, getattr(network, "by_sums", False)
    if bool(rounds) == by_sums:
        raise SettingError(
            f"pretraining.rounds is {rounds}; "
            + ("ridge is settled by sums and takes 0" if by_sums else "1 or more are needed")
        )


def _can_make_views(study: Study, network: Any) -> None:
    """Refuse an objective that would compare a sample with itself."""
    views = views_of(network)
    if views < 1:
        raise SettingError(f"objective.name: {type(network).__name__}.views is {views}; 1 or more")
    if views > 1 and not study.augmentation:
        raise SettingError(
            f"objective.name: {type(network).__name__} compares {views} views of each sample, and "
            "without augmentation they are equal; list at least one [[augmentation]]"
        )


def _trainings(study: Study, kind: type) -> Iterator[tuple[str, Steps, type]]:
    """Place in the study, recipe and objective of everything that is learnt in steps."""
    yield "pretraining", study.pretraining, kind
    for number, task in enumerate(study.finetuning):
        if any(way.rpartition("/")[2] not in CLOSED_FORM for way in task.methods):
            own = getattr(kind, "finetunes", False)
            yield f"finetuning.{number}", task, kind if own else Multitask


def _can_train(place: str, steps: Steps, kind: type, backbone: type) -> None:
    """Refuse a recipe that the objective or the backbone does not bear."""
    if not steps.warmup and getattr(backbone, "needs_warmup", False):
        raise SettingError(
            f"{place}.warmup is 0; {backbone.__name__} needs a rate that rises over its first "
            "steps, since attention that is led astray there seldom comes back: 0.05 to 0.2"
        )
    for key in ("mixup", "cutmix"):
        if (value := getattr(steps, key)) and (reason := _unmixable(kind)):
            raise SettingError(f"{place}.{key} is {value:g}; {kind.__name__} {reason}")


def _unmixable(kind: type) -> str:
    """Why the losses of mixed samples cannot be told; empty if they can."""
    if hasattr(kind, "gradients"):
        return "makes gradients of its own, one participant at a time: nobody can be mixed in"
    if views_of(kind) > 1:
        return "compares views of a sample, and has no label that could be mixed"
    says = next((one for one in kind.__mro__ if "terms" in vars(one)), kind)
    if "terms_of" not in vars(says):  # an older one's would not be what `terms` has become
        return "has no terms_of(outputs, labels), by which a mixed sample has two people's labels"
    return ""


def _can_augment(study: Study, table: Any, key: str) -> None:
    try:
        catalogue.load("augmentations", table.name)(table, study.shape)
    except ValueError as error:
        raise SettingError(f"{key}.{error}") from None
