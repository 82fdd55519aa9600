"""What cannot be private is refused before anyone is asked, with the reason and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common import catalogue
from common.backbones.mlp import Mlp
from common.errors import SettingError
from common.explain import explain
from common.network.buildable import check_networks
from common.network.building import build
from common.network.size import Limits
from common.objectives.multitask import Multitask
from common.privacy.by_layer import of_layers
from common.privacy.coverage import departures, uncovered
from common.privacy.person_gradients import of_many
from common.privacy.suitability import check_private
from common.privacy.way import way_of
from common.study import Study, parse_study
from tests.common.backbones.test_families import CPU_SIZES
from tests.conftest import BRAINS, FEATURES, overridden

PRIVATE: dict[str, Any] = {
    "privacy": {"unit": "participant"},
    "aggregation.normalisation": "groupnorm",
}


def study_of(base: Mapping[str, Any] = FEATURES, **changes: Any) -> Study:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_study(overridden(overridden(base, PRIVATE), named), Path("study.toml"))


def refused(study: Study) -> str:
    with pytest.raises(SettingError) as caught:
        check_networks(study)
    return str(caught.value)


def test_a_private_study_of_group_normalisation_is_fine() -> None:
    """What is refused below is refused for its own reason."""
    check_networks(study_of())
    check_networks(study_of(BRAINS))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("aggregation__normalisation", "average", "leaves backbone.layers.1 (BatchNorm1d)"),
        ("aggregation__normalisation", "silobn", "leaves backbone.layers.1 (BatchNorm1d)"),
        ("pretraining__mixup", 0.4, "0.4 mixes people"),
        ("pretraining__cutmix", 1.0, "1 mixes people"),
        ("pretraining__sharpness", 0.05, "0.05 takes a second gradient"),
        ("pretraining__sampling", "classes:sex", "draws people by their labels"),
    ],
)
def test_what_joins_people_is_refused_by_its_key(key: str, value: Any, words: str) -> None:
    """A coordinator must read which key to change, and why."""
    said = refused(study_of(**{key: value}))
    assert said.startswith(key.replace("__", ".") + ": ")
    assert words in said
    assert said.endswith('(privacy.unit is "participant")')
    plain = study_of(**{key: value, "privacy": {"unit": "none"}})
    check_networks(plain)


@pytest.mark.parametrize("name", ["scans", "participants"])
def test_other_samplings_leave_everyone_her_own_chance(name: str) -> None:
    """People are drawn in either case."""
    check_networks(study_of(pretraining__sampling=name))


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"name": "simclr"}, "Simclr makes a person's loss depend on the others"),
        ({"name": "y-aware", "targets": ["age"]}, "YAware makes a person's loss depend"),
        (
            {"name": "joint", "unlabelled": {"name": "simclr"}},
            "Joint makes a person's loss depend on the others",
        ),
    ],
)
def test_losses_between_people_are_refused(objective: Any, words: str) -> None:
    """Negatives are other people's scans: no gradient is one person's."""
    study = study_of(BRAINS, objective=objective, augmentation=[{"name": "noise"}])
    assert words in refused(study)


def test_sums_are_no_private_rounds() -> None:
    """Ridge is made of exact sums, on which nobody has put noise."""
    study = study_of(objective={"name": "ridge"}, backbone={"name": "linear"},
                     pretraining={"rounds": 0})  # fmt: skip
    assert "Ridge is settled by sums" in refused(study)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("after_step", "keeps something from step to step"),
        ("gradients", "makes gradients of its own"),
    ],
)
def test_hooks_past_the_noise_are_refused(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue of features, or gradients that an objective says are clipped, nobody can check."""
    monkeypatch.setattr(Multitask, name, lambda *given: {}, raising=False)
    assert words in refused(study_of())


def test_tuned_arrays_do_not_leave_a_private_study() -> None:
    """They are trained without noise, from the same people."""
    task = {"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"]}
    check_networks(study_of(finetuning=[{**task, "then": ["judge"]}]))
    said = refused(study_of(finetuning=[{**task, "then": ["judge", "send"]}]))
    assert said.startswith("finetuning.0.then: send lets out")


class Spectral(nn.Module):
    """A layer whose buffers move with each look at it."""

    features = 4

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("layer", "fine"),
    [
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), False),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.InstanceNorm1d(4, track_running_stats=True), False),
        (nn.InstanceNorm1d(4), True),
        (nn.LayerNorm(4), True),
    ],
    ids=["spectral", "batch", "tracking", "instance", "layer"],
)
def test_statistics_of_a_batch_are_found_wherever_they_are(layer: Any, fine: bool) -> None:
    """A package from outside may normalise in its own way."""
    study = study_of()
    settings = Multitask.Settings(name="multitask")
    network: Any = Multitask(settings, Spectral(layer), study.pretraining_targets)
    if fine:
        check_private(study, network)
    else:
        with pytest.raises(SettingError, match="statistics mix the people of a batch"):
            check_private(study, network)


def test_batch_normalisation_that_rests_mixes_nobody() -> None:
    """A frozen backbone under a private head is among the best of settings."""
    study = study_of(
        BRAINS, aggregation__normalisation="average",
        pretraining__trains="last-blocks", pretraining__blocks=1,
    )  # fmt: skip
    assert "leaves backbone.top.1" in refused(study)  # its last block is trained
    network = build(study, seed=0)
    for parameter in network.backbone.parameters():
        parameter.requires_grad_(requires_grad=False)
    check_private(study, network)


def test_every_backbone_of_the_catalogue_can_be_private() -> None:
    """Group normalisation is in all of them, or none is needed."""
    for name in catalogue.names("backbones"):
        if name in CPU_SIZES:
            study = study_of(BRAINS, data__shape=[32, 32, 32], pretraining__warmup=0.1,
                             backbone={"name": name, **CPU_SIZES[name]})  # fmt: skip
            check_private(study, build(study, seed=0))


# Which way.


def test_small_samples_go_at_once_and_volumes_one_person_at_a_time() -> None:
    """Told beforehand, and the same at both ends."""
    assert way_of(study_of()).make is of_layers
    assert way_of(study_of()).samples == 64
    assert way_of(study_of(backbone={"name": "linear"})).samples == 64
    assert way_of(study_of(BRAINS, data__shape=[32, 32, 32])).samples == 32
    volume = way_of(study_of(BRAINS, data__shape=[64, 64, 64]))
    assert volume.samples == 1
    assert "262,144" in volume.told


def test_where_layers_are_not_known_people_go_at_once_as_memory_allows() -> None:
    """A graphics card has other kernels; of made gradients there are 128 MB at most."""
    small = way_of(study_of(), "cuda")
    assert (small.make, small.samples) == (of_many, 64)
    some = way_of(study_of(backbone={"name": "mlp", "hidden": [1024, 1024]}), "cuda")
    assert 1 < some.samples < 64
    large = way_of(study_of(backbone={"name": "mlp", "hidden": [4096, 4096]}), "cuda")
    assert large.samples == 1


def test_what_bears_no_several_people_goes_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose rows are no samples, or that are used twice, and labels that are looked at."""

    def looking(self: Any, x: Tensor, labels: Mapping[str, Tensor]) -> Any:
        return {} if labels["age"].isnan().all() else self.terms_of(self(x), labels)

    def mixing(self: Any, x: Tensor, labels: Mapping[str, Tensor]) -> Any:
        return self.terms_of(self(x.roll(1, 0)), labels)

    plain = Multitask.terms
    monkeypatch.setattr(Multitask, "terms", looking)
    assert way_of(study_of(name="looks")).make is of_layers
    assert way_of(study_of(name="looks"), "cuda").samples == 1
    monkeypatch.setattr(Multitask, "terms", mixing)
    assert way_of(study_of(name="mixes")).make is not of_layers  # each sees another's scan
    monkeypatch.setattr(Multitask, "terms", plain)

    def twice(self: Any, x: Tensor) -> Tensor:
        return self.layers(self.standardise(x)) + self.layers(self.standardise(2 * x))

    monkeypatch.setattr(Mlp, "forward", twice)
    assert way_of(study_of(name="twice")).make is of_many


def test_rows_that_are_as_many_as_samples_are_not_taken_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four rows that stand for no people would be clipped as if they were four people."""

    def tokens(self: Any, x: Tensor) -> Tensor:
        first = self.layers[0]
        row = first(torch.ones(4, x.shape[1]))  # four, as two people have scans in the trial
        return self.layers[1:](row.mean(0) * x.mean(1, keepdim=True))

    monkeypatch.setattr(Mlp, "forward", tokens)
    assert way_of(study_of(name="rows")).make is of_many


def test_the_way_takes_no_chance_from_anyone() -> None:
    """Trying it out must not change what the study's seed draws."""
    torch.manual_seed(4)
    before = torch.get_rng_state()
    way_of(study_of(name="chance"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_is_as_large_as_its_people_and_their_scans() -> None:
    """Memory is granted for what is held at once: of volumes one person's scans."""
    limits = Limits(step_gb=0.02)
    keys = {"data__shape": [48, 48, 48], "pretraining__batch_size": 4096}
    with pytest.raises(SettingError, match="a step of 4096 samples"):
        check_networks(study_of(BRAINS, **keys, privacy={"unit": "none"}), limits)
    with pytest.raises(SettingError, match="a step of 8 samples"):
        check_networks(study_of(BRAINS, **keys), limits)
    one = {"unit": "participant", "scans_per_person": 1}
    check_networks(study_of(BRAINS, **keys, privacy=one), limits)


# What is told.


def test_a_private_study_says_what_is_hidden_and_what_is_not() -> None:
    """Nobody may take a number for protected that is not."""
    study = study_of(
        finetuning=[{"name": "dementia", "target": "diagnosis", "then": ["explain"],
                     "methods": ["linear", "pretrained/full"], "learning_rates": [0.1, 0.01, 0.001],
                     "weight_decays": [0.1, 0.01, 0.001]}],
        sites__heldout=["omega"], comparisons__pooled=True, evaluation__shortcuts=8,
        protocols=[{"name": "small", "task": "dementia", "scheme": "resampled", "sizes": [20], "repeats": 5}],
    )  # fmt: skip
    told = explain(study)
    assert "privacy: of each participant with at most 8 of her scans" in told
    assert "gradients by person: several people at once, up to 64 samples, by layer" in told
    assert [one.treatment for one in departures(study)].count("noised") == 1
    for one in uncovered(study):
        assert f"not covered: {one.what}: {one.why}" in told
    kinds = " ".join(one.what for one in uncovered(study))
    for kind in ("census", "overlap", "settle", "train", "linear", "finetune", "explain",
                 "protocol", "evaluate", "constant models", "told apart"):  # fmt: skip
        assert kind in kinds
    assert "privacy: none" in explain(study_of(privacy={"unit": "none"}))


def test_what_a_study_does_not_ask_for_is_not_listed() -> None:
    """A list of everything is read by nobody."""
    study = study_of(splits={"validation": 0.0}, evaluation__baselines=False)
    kinds = " ".join(one.what for one in uncovered(study))
    for kind in ("validation", "linear", "finetune", "evaluate", "constant models", "told apart"):
        assert kind not in kinds


def test_noise_that_does_nothing_or_drowns_a_step_is_told() -> None:
    """Of 200,000 numbers the noise of a step is far longer than any gradient."""
    wide = {"backbone": {"name": "mlp", "hidden": [400, 400]}}
    assert "gradient_clip is 5; noise of" in explain(study_of(**wide))
    assert "WARNING" not in explain(study_of(**wide, pretraining__gradient_clip=0.0))
    assert "WARNING" not in explain(study_of())
    bare = {"unit": "participant", "noise": 0.0, "epsilon": 0.0}
    assert "nobody is protected" in explain(study_of(privacy=bare))
