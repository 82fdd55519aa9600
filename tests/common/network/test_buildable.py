"""A study asks for no training that its objective or its backbone does not bear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from common.backbones.mlp import Mlp
from common.errors import SettingError
from common.network.buildable import check_networks
from common.objectives.multitask import Multitask
from common.seams import Terms
from common.study import Study, parse_study
from tests.conftest import FEATURES, overridden

TASK = {"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full", "linear"]}


def study_of(**changes: Any) -> Study:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_study(overridden(FEATURES, named), Path("study.toml"))


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_samples_are_mixed_where_the_loss_can_be_told_of_two_labels(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective of another kind would silently learn from one of the labels."""
    asked = study_of(**{f"pretraining__{key}": 0.4})
    check_networks(asked)
    monkeypatch.delattr(Multitask, "terms_of")
    reason = f"^pretraining.{key} is 0.4; Multitask has no terms_of"
    with pytest.raises(SettingError, match=reason):
        check_networks(asked)
    check_networks(study_of())


def test_an_objective_that_changed_its_terms_must_say_how_they_mix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it inherits is the loss of its parent, and would be learnt in place of its own."""

    class Own(Multitask):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            return {}

    class Both(Own):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            return {}

        def terms_of(self, outputs: Any, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            return {}

    asked = study_of(pretraining__mixup=0.4)
    monkeypatch.setattr("common.objectives.multitask.Multitask", Own)
    with pytest.raises(SettingError, match="Own has no terms_of"):
        check_networks(asked)
    monkeypatch.setattr("common.objectives.multitask.Multitask", Both)
    check_networks(asked)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gradients", lambda self, x, labels, participants: {}, "makes gradients of its own"),
        ("views", 2, "compares views of a sample"),
    ],
)
def test_what_sees_one_participant_or_two_views_is_not_mixed(
    name: str, value: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop would not ask it for mixed terms at all."""
    monkeypatch.setattr(Multitask, name, value, raising=False)
    asked = study_of(pretraining__cutmix=1.0, augmentation=[{"name": "noise"}])
    with pytest.raises(SettingError, match=f"^pretraining.cutmix is 1; Multitask {words}"):
        check_networks(asked)


def test_a_task_is_mixed_by_the_heads_that_it_is_learnt_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fine-tuning has plain supervised heads, whatever pretraining was."""

    class Other(Multitask):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            return {}

    monkeypatch.setattr("common.objectives.multitask.Multitask", Other)
    check_networks(study_of(finetuning=[{**TASK, "mixup": 0.4}]))
    monkeypatch.setattr(Other, "finetunes", True, raising=False)
    with pytest.raises(SettingError, match="^finetuning.0.mixup is 0.4; Other has no terms_of"):
        check_networks(study_of(finetuning=[{**TASK, "mixup": 0.4}]))


def test_a_backbone_that_needs_a_warm_up_is_not_trained_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Transformers: a night of training would tell what a check tells at once."""
    check_networks(study_of(finetuning=[TASK]))
    monkeypatch.setattr(Mlp, "needs_warmup", True, raising=False)
    with pytest.raises(SettingError, match="^pretraining.warmup is 0; Mlp needs a rate that rises"):
        check_networks(study_of())
    with pytest.raises(SettingError, match="^finetuning.0.warmup is 0; Mlp"):
        check_networks(study_of(pretraining__warmup=0.1, finetuning=[TASK]))
    check_networks(study_of(pretraining__warmup=0.1, finetuning=[{**TASK, "warmup": 0.1}]))
    closed = {**TASK, "methods": ["pretrained/frozen", "linear"]}  # nothing takes a step there
    check_networks(study_of(pretraining__warmup=0.1, finetuning=[closed]))
