"""Whether a study's networks can be built, and are drawn from its seed, before anyone is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from common import catalogue
from common.errors import SettingError
from common.network.building import build
from common.network.tuning import CLOSED_FORM, build_for, task_of, tune
from common.settings import line_of
from common.study import Study


def check_buildable(study: Study, file: Path) -> None:
    """Refuse a study with a network that cannot be built, or not tuned, or that is not drawn.

    Raises
    ------
    SettingError
        With the line of the file.
    """
    try:
        check_networks(study)
    except SettingError as error:
        key = re.split(r"[^\w.-]", str(error), maxsplit=1)[0]
        raise SettingError(f"{error} ({file}{line_of(file, key)})") from None


def check_networks(study: Study) -> None:
    """The same without a file to point at."""
    _is_drawn(build(study, seed=0), build(study, seed=1))
    for number, settings in enumerate(study.finetuning):
        task = task_of(study, settings)
        for way in settings.methods:
            method = way.rpartition("/")[2]
            if method not in CLOSED_FORM:
                _can_tune(study, task, method, f"finetuning.{number}.methods")
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


def _can_tune(study: Study, task: Any, method: str, key: str) -> None:
    try:
        tune(build_for(study, task, seed=0), method, task, seed=0)
    except SettingError as error:
        raise SettingError(f"{key}: {error}") from None


def _can_augment(study: Study, table: Any, key: str) -> None:
    try:
        catalogue.load("augmentations", table.name)(table, study.shape)
    except ValueError as error:
        raise SettingError(f"{key}.{error}") from None
