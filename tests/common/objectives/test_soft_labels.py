"""Soft labels are those of Peng et al.: masses, divergence, expectation, and numbers of weights."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import SettingError
from common.network.buildable import check_buildable
from common.network.building import build
from common.objectives.multitask import Multitask
from common.objectives.soft_labels import Bins
from common.sections import Target
from common.study import Study, parse_study
from tests.conftest import BRAINS, FEATURES, overridden

YEARS = {"low": 42.0, "high": 82.0}
BINS = Bins(**YEARS)
AGE = {"kind": "regression", "centre": 60.0, "scale": 10.0, **YEARS}


def study_of(base: dict[str, Any] = FEATURES, **changes: Any) -> Study:
    known = {"targets.age": AGE, "objective.soft_labels": {"age": YEARS}}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_study(overridden(base, {**known, **named}), Path("study.toml"))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_network_has_as_many_weights_as_published() -> None:
    """2,952,936 with 40 bins of age; 2,950,726 with six outputs (reference/models.md, 2.1)."""
    published = {"backbone": {"name": "sfcn"}, "data.shape": [32, 32, 32]}
    soft = study_of(BRAINS, objective__targets=["age"], **published)
    assert parameters(build(soft, seed=0)) == 2_952_936
    names = ("age", "sex", "handedness", "bmi", "intelligence", "neuroticism")
    six = {
        **{f"targets.{name}": {"kind": "regression"} for name in names},
        "targets.sex": {"kind": "binary", "classes": ["female", "male"]},
        "targets.handedness": {"kind": "binary", "classes": ["right", "left"]},
    }
    plain = parse_study(overridden(BRAINS, {**published, **six}), Path("study.toml"))
    assert parameters(build(plain, seed=0)) == 2_950_726


def test_a_label_spreads_as_a_normal_distribution_over_the_bins() -> None:
    """y_b = Phi((b + .5 - a) / s) - Phi((b - .5 - a) / s), b the centre of a bin."""
    ages = [42.0, 42.5, 60.0, 77.3, 82.0]
    for sigma in (1.0, 2.5):
        found = Bins(**YEARS, sigma=sigma).spread(torch.tensor(ages))
        assert found.shape == (5, 40)
        for row, age in zip(found, ages, strict=True):
            of = NormalDist(0, sigma)
            for place, mass in enumerate(row.tolist()):
                centre = 42.5 + place
                wanted = of.cdf(centre + 0.5 - age) - of.cdf(centre - 0.5 - age)
                assert mass == pytest.approx(wanted, abs=1e-6)
    middle = BINS.spread(torch.tensor([60.0]))
    assert middle.sum().item() == pytest.approx(1, abs=1e-6)
    assert BINS.spread(torch.tensor([42.0])).sum().item() == pytest.approx(0.5, abs=1e-6)


def test_the_loss_is_the_divergence_by_hand() -> None:
    """sum_b y_b (log y_b - log p_b); least, and 0, where the output is the spread label."""
    output = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([50.2, 61.0, 70.9])
    for row, age, value in zip(output, label, BINS.divergence(output, label), strict=True):
        told = torch.softmax(row.double(), 0).tolist()
        wanted = BINS.spread(age[None])[0].tolist()
        by_hand = sum(
            y * (math.log(y) - math.log(p)) for y, p in zip(wanted, told, strict=True) if y
        )
        assert value.item() == pytest.approx(by_hand, rel=1e-4)
    right = BINS.spread(label).clamp(min=1e-30).log()
    torch.testing.assert_close(BINS.divergence(right, label), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_prediction_is_the_expectation_of_the_centres() -> None:
    """A right distribution says the label back; an even one says the middle of the bins."""
    label = torch.tensor([50.2, 61.0, 70.9])
    told = BINS.expectation(BINS.spread(label).clamp(min=1e-30).log())
    torch.testing.assert_close(told, label, atol=0.01, rtol=0)
    assert BINS.expectation(torch.zeros(1, 40)).tolist() == [62.0]


class Level(nn.Module):
    """(B, 1) to (B, 4): a level and its powers."""

    features = 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x**2, x**3, x**4], 1)


def test_an_age_is_learnt_by_its_bins_beside_plain_targets() -> None:
    """In years, with missing labels left out, and the other heads as they were."""
    targets = {"age": Target(**AGE), "sex": Target(kind="binary", classes=("female", "male"))}
    settings = Multitask.Settings(name="multitask", soft_labels={"age": BINS})
    network = Multitask(settings, Level(), targets)
    x = torch.linspace(-1, 1, 40)[:, None]
    age = 62 + 15 * x[:, 0]
    age[::4] = float("nan")
    labels = {"age": age, "sex": torch.full((40,), float("nan"))}
    optimiser = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(400):
        terms = network.terms(x, labels)
        known = terms["age"].counted
        optimiser.zero_grad()
        terms["age"].values[known].mean().backward()
        optimiser.step()
    by_hand = BINS.divergence(network(x)["age"], labels["age"])[known]
    torch.testing.assert_close(network.terms(x, labels)["age"].values[known], by_hand)
    assert known.tolist() == [i % 4 > 0 for i in range(40)]
    assert not terms["sex"].counted.any()
    told = network.predict(x)
    assert told["age"].shape == told["sex"].shape == (40,)
    assert (told["age"][known] - age[known]).abs().mean() < 1.5
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets__age": {"kind": "regression"}}, "labels from -1e.09 to 1e.09 are allowed; set"),
        ({"targets__age": {**AGE, "high": 90}}, "bins from 42 to 82, and labels from 42 to 90"),
        ({"objective__soft_labels": {"sex": YEARS}}, "soft_labels.sex is no regression target"),
        ({"objective__soft_labels": {"height": YEARS}}, "soft_labels.height is no regression"),
        ({"objective__targets": ["sex"]}, "soft_labels.age is no regression target"),
    ],
)
def test_bins_that_do_not_hold_every_label_are_refused(changes: dict[str, Any], words: str) -> None:
    """A person beyond them would count, and be learnt as nobody of any age."""
    check_buildable(study_of(), Path("study.toml"))
    with pytest.raises(SettingError, match=f"objective: .*{words}"):
        check_buildable(study_of(**changes), Path("study.toml"))


@pytest.mark.parametrize("step", [0.3, 50.0, 1e-6])
def test_bins_are_whole_and_bearable(step: float) -> None:
    """An order names their number, and a head is as wide."""
    with pytest.raises(SettingError, match="objective.soft_labels.age.*a whole number from 2 to"):
        study_of(objective__soft_labels={"age": {**YEARS, "step": step}})


def test_fine_tuning_keeps_plain_heads() -> None:
    """A task of a site's own is a number or a class, whatever pretraining learnt ages by."""
    study = study_of(finetuning=[{"name": "older", "target": "age"}])
    network = build(study, {"age": study.targets["age"]}, seed=0)
    assert network.heads["age"].out_features == 1
