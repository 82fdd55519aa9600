"""Private training: plain where it protects nobody, and bounded by its clip where it does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from client.data.loading import Loader
from client.learning.privacy.chance import Chance
from client.learning.privacy.drawing import drawn, people_of, portions
from client.learning.privacy.training import train_privately
from client.learning.training import Recipe, train
from common.backbones.mlp import Mlp
from common.privacy.person_gradients import Made, NotByPersonError, trained
from common.privacy.settings import Privacy
from common.sections import Pretraining
from tests.client.learning.privacy.people import (
    ALONE,
    CPU,
    WAYS,
    Nobody,
    around,
    cohort_of,
    recipe_of,
    released,
    weights_of,
)


def network_of(*hidden: int, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    settings = Mlp.Settings(name="mlp", hidden=hidden or (16, 8), dropout=dropout)
    network = around(Mlp(settings, (5,), "groupnorm"))
    network.backbone.layers[3].p = dropout
    return network


def private(**keys: Any) -> Privacy:
    return Privacy(**{**ALONE.model_dump(), **keys})


def length(gradients: dict[str, torch.Tensor]) -> float:
    return float(sum(g.double().square().sum() for g in gradients.values())) ** 0.5


# Where it protects nobody.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimiser": "adamw", "schedule": "cosine", "warmup": 0.1},
        {"gradient_clip": 0.05, "weight_averaging": 0.5, "momentum": 0.9},
    ],
    ids=["descent", "adamw", "averaged"],
)
def test_without_noise_and_clip_it_is_plain_training(way: str, more: dict[str, Any]) -> None:
    """The limit where the mechanism must vanish: everyone in each step, nobody cut down.

    Sums over people are added up in another order, which float32 shows in its last figures; Adam
    divides by what may be as small as they are.
    """
    cohort = cohort_of((5,), [1] * 12, missing=False)
    steps = recipe_of().steps.model_copy(update=more)
    recipe = recipe_of(steps, rate=0.01, epochs=4, of=4, proximal_mu=0.1, weight_decay=0.01)
    plain, hidden = network_of(), network_of()
    before = weights_of(plain)
    train(plain, cohort, np.arange(12), recipe, CPU)
    train_privately(hidden, cohort, np.arange(12), recipe, CPU, ALONE, WAYS[way])
    moved = weights_of(plain)
    for name, array in weights_of(hidden).items():
        far = np.abs(moved[name] - before[name]).max()
        assert np.abs(array - moved[name]).max() <= 1e-4 * far, name
    assert any((moved[name] != before[name]).any() for name in moved)


def test_moments_go_on_from_round_to_round() -> None:
    """A kept optimiser is behind the noise: two rounds with it are one training."""
    cohort = cohort_of((5,), [1] * 6, missing=False)
    steps = recipe_of().steps.model_copy(update={"momentum": 0.9})
    whole, parted = network_of(), network_of()
    both = recipe_of(steps, rate=0.1, epochs=2, of=2)
    train_privately(whole, cohort, np.arange(6), both, CPU, ALONE, WAYS["alone"])
    first = recipe_of(steps, rate=0.1, of=2)
    moments = train_privately(parted, cohort, np.arange(6), first, CPU, ALONE, WAYS["alone"])
    assert moments
    again = recipe_of(steps, rate=0.1, first=1, of=2, moments=moments)
    train_privately(parted, cohort, np.arange(6), again, CPU, ALONE, WAYS["alone"])
    for name, array in weights_of(whole).items():
        np.testing.assert_allclose(weights_of(parted)[name], array, rtol=1e-4, atol=1e-6)


# Where it protects.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clipping", ["flat", "layers", "automatic"])
def test_a_person_with_ten_scans_moves_the_sum_by_at_most_the_clip(
    clipping: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit is a person: neighbours differ by all of her, whatever the number of her scans."""
    cohort = cohort_of((5,), [1, 2, 10, 1, 2], scale=30.0)
    network = network_of()
    scans = np.asarray(cohort.participants)
    everyone = private(clip=0.2, clipping=clipping, scans_per_person=0)
    (with_her,) = released(monkeypatch, network, cohort, everyone, way=way)
    rest = cohort.subset(np.flatnonzero(scans != "p2"))
    (without,) = released(monkeypatch, network, rest, everyone, way=way)
    moved = {name: 5 * g - 4 * without[name] for name, g in with_her.items()}
    assert 0.15 < length(moved) <= 0.2 * (1 + 1e-5)
    (free,) = released(monkeypatch, network, cohort, private(scans_per_person=0))
    assert length(free) > 0.5


def test_each_layer_has_its_share_of_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers together are no longer than the clip, and none takes the others' share."""
    cohort = cohort_of((5,), [1], missing=False, scale=30.0)
    network = network_of()
    (found,) = released(monkeypatch, network, cohort, private(clip=0.5, clipping="layers"))
    layers = {name.rpartition(".")[0] for name in found}
    assert len(layers) == 7  # two dense, two of normalisation, three heads
    for layer in layers:
        part = {name: g for name, g in found.items() if name.rpartition(".")[0] == layer}
        assert length(part) <= 0.5 / 7**0.5 * (1 + 1e-5), layer
    assert length(found) > 0.4


def test_automatic_clipping_gives_everyone_nearly_the_same_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A short gradient is lengthened, so that nobody chooses a clip; it never reaches it."""
    network = network_of()
    for scale in (0.1, 30.0):
        cohort = cohort_of((5,), [1], missing=False, scale=scale)
        (found,) = released(monkeypatch, network, cohort, private(clip=2.0, clipping="automatic"))
        assert 1.9 < length(found) < 2.0


@pytest.mark.parametrize("way", WAYS)
def test_somebody_whose_gradient_is_not_finite_adds_nothing(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that overflows must not decide the round, nor show in it."""
    cohort = cohort_of((5,), [1] * 4, missing=False)
    network = network_of()
    network.backbone.standardise.forward = lambda x: x  # which would cut it off
    cohort.samples[2] = 1e30
    (found,) = released(monkeypatch, network, cohort, private(clip=1.0), way=way)
    rest = cohort.subset([0, 1, 3])
    (without,) = released(monkeypatch, network, rest, private(clip=1.0), way=way)
    for name, gradient in found.items():
        torch.testing.assert_close(4 * gradient, 3 * without[name], rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_of_nobody_alone_is_refused() -> None:
    """Hooks that fail in silence would let it leave as if it had been cut down."""
    named = dict(trained(network_of()))
    good = {name: torch.ones(2, *p.shape) for name, p in named.items()}
    assert (Made(good, named, 2).lengths(list(named)) > 0).all()
    name = "backbone.layers.0.weight"
    for bad in (None, good[name][0], good[name].sum(0, keepdim=True), good[name].flatten(1)):
        with pytest.raises(NotByPersonError, match=f"the gradient of {name} is"):
            Made({**good, name: bad}, named, 2)
    with pytest.raises(NotByPersonError, match="is None"):
        Made({}, named, 1)


# Noise.


def test_noise_has_the_deviation_that_accountants_reckon_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """noise times clip on the sum, whoever was drawn: of 65,000 numbers, to two per cent.

    Each of them stands once for itself, so that the mean's and the deviation's own deviations are
    s / sqrt(n) and s / sqrt(2 n).
    """
    cohort = cohort_of((5,), [1] * 40)
    privacy = private(noise=1.5, clip=0.2, people_per_step=8)
    network = network_of(1024, 64)
    found = released(monkeypatch, network, cohort, privacy, chance=Nobody(), way="layers")
    assert len(found) == 5  # steps of a pass, all of them empty
    for step in found:
        for name, gradient in step.items():
            assert gradient.abs().max() > 0, name  # also of what nobody trains
        numbers = torch.cat([g.flatten() for g in step.values()]).double() * 8 / (1.5 * 0.2)
        n = len(numbers)
        assert n > 65_000
        assert abs(float(numbers.mean())) < 5 / n**0.5
        assert abs(float(numbers.std()) - 1) < 5 / (2 * n) ** 0.5
        assert abs(float(numbers.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5  # normal, not only wide
    one, other = (torch.cat([g.flatten() for g in step.values()]) for step in found[:2])
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / len(one) ** 0.5


def test_noise_stands_on_the_sum_of_those_who_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise in place of the sum, or on the mean, would be another mechanism."""
    cohort = cohort_of((5,), [1] * 30, missing=False)
    network = network_of(512, 64)
    (bare,) = released(monkeypatch, network, cohort, private(clip=0.1), way="layers")
    (noisy,) = released(monkeypatch, network, cohort, private(clip=0.1, noise=2.0), way="layers")
    noise = torch.cat([(noisy[n] - bare[n]).flatten() for n in bare]) * 30 / 0.2
    assert abs(float(noise.std()) - 1) < 5 / (2 * len(noise)) ** 0.5


def test_a_head_whose_labels_nobody_has_gets_noise_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An array that stood still would tell that no person with that label was drawn."""
    cohort = cohort_of((5,), [1] * 6, missing=False)
    cohort.labels["stage"][:] = float("nan")
    for way in WAYS:
        found = released(monkeypatch, network_of(), cohort, private(noise=1.0), way=way)
        assert all(step["heads.stage.weight"].abs().min() > 0 for step in found)


def test_no_seed_repeats_a_private_training() -> None:
    """A study's seed is known to all: whoever repeats the noise may take it off."""
    cohort = cohort_of((5,), [1] * 20, missing=False)
    privacy = private(noise=1.0, clip=1.0, people_per_step=5)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  the old way to seed everything
        network = network_of()
        train_privately(
            network, cohort, np.arange(20), recipe_of(seed=7), CPU, privacy, WAYS["alone"]
        )
        found.append(weights_of(network))
    for name, array in found[0].items():
        if not name.startswith("backbone.standardise"):
            assert (array != found[1][name]).all(), name


def test_masks_and_dropout_are_as_secret_as_the_noise() -> None:
    """With known ones, one person less would shift everybody else's, by more than a clip."""
    cohort = cohort_of((5,), [1] * 20, missing=False)
    found = []
    for _ in range(2):
        network = network_of(dropout=0.5)
        train_privately(
            network, cohort, np.arange(20), recipe_of(rate=0.1), CPU, ALONE, WAYS["alone"]
        )
        found.append(weights_of(network)["backbone.layers.0.weight"])
    assert (found[0] != found[1]).any()


def test_augmentation_is_as_secret_as_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chance goes by a sample's place in a step, which somebody less would shift."""

    def shaken(sample: Any, generator: np.random.Generator) -> Any:
        return sample + generator.normal(size=sample.shape).astype(np.float32)

    cohort = cohort_of((5,), [1] * 5, missing=False)
    recipe = recipe_of(loader=Loader((shaken,), seed=7))
    one, other = (
        released(monkeypatch, network_of(), cohort, ALONE, recipe=recipe)[0] for _ in (0, 1)
    )
    name = "backbone.layers.0.weight"
    assert (one[name] != other[name]).any()


def test_chance_is_seeded_by_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 bits: torch's own generator on the CPU takes 32, which a laptop tries in an hour."""
    asked: list[int] = []

    def bits(count: int) -> int:
        asked.append(count)
        return 4

    monkeypatch.setattr("client.learning.privacy.chance.secrets.randbits", bits)
    same = Chance(CPU).seed() == Chance(CPU).seed()
    assert (asked, same) == ([256, 256], True)
    # why: the upper half of a seed changes nothing
    low, high = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(torch.rand(4, generator=low), torch.rand(4, generator=high))


# Who is drawn.


def test_people_are_drawn_each_by_chance_of_her_own() -> None:
    """Poisson sampling: sizes vary as a binomial's, pairs meet as often as independent ones do."""
    random = np.random.default_rng(0)
    people = [np.array([person]) for person in range(40)]
    steps = [drawn(people, 0.25, 0, random) for _ in range(4000)]
    sizes = np.array([len(step) for step in steps])
    assert abs(sizes.mean() - 10) < 5 * (7.5 / 4000) ** 0.5
    assert abs(sizes.var() - 7.5) < 5 * 7.5 * (2 / 4000) ** 0.5
    seen = np.zeros((4000, 40))
    for row, step in zip(seen, steps, strict=True):
        row[[int(samples[0]) for samples in step]] = 1
    rates = seen.mean(0)
    assert np.abs(rates - 0.25).max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    together = (seen.T @ seen / 4000)[~np.eye(40, dtype=bool)]
    assert np.abs(together - 0.0625).max() < 5.5 * (0.0625 * 0.9375 / 4000) ** 0.5


def test_a_person_is_drawn_with_all_her_scans_or_some_of_them_anew() -> None:
    """A bounded number of scans bounds the work, never who she is."""
    cohort = cohort_of((5,), [2, 30, 1])
    people = people_of(cohort, np.arange(33))
    assert [samples.tolist() for samples in people] == [[0, 1], [*range(2, 32)], [32]]
    random = np.random.default_rng(0)
    whole = drawn(people, 1.0, 0, random)
    assert [len(samples) for samples in whole] == [2, 30, 1]
    counted: Counter[int] = Counter()
    for _ in range(300):
        two, eight, one = drawn(people, 1.0, 8, random)
        assert (len(two), len(eight), len(one)) == (2, 8, 1)
        assert len(set(eight.tolist())) == 8
        counted.update(eight.tolist())
    assert set(counted) == set(range(2, 32))
    assert max(counted.values()) < 2 * min(counted.values())
    assert people_of(cohort, np.arange(0)) == []


def test_portions_hold_everyone_once_by_the_number_of_her_scans() -> None:
    """Nobody may fall between two ways of making a gradient."""
    random = np.random.default_rng(1)
    step = [np.arange(n) + 100 * n for n in random.integers(1, 5, 23)]
    for most in (1, 4, 64):
        parts = portions(step, most)
        assert all(len(part) == 1 or part.size <= most for part in parts)
        rows = sorted(tuple(row) for part in parts for row in part.tolist())
        assert rows == sorted(tuple(samples.tolist()) for samples in step)


@pytest.mark.parametrize("way", WAYS)
def test_rate_and_steps_are_those_that_are_paid_for(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer steps than paid cost the site, more the participant; people count, not scans."""
    cohort = cohort_of((5,), [1, 3] * 8, missing=False)
    privacy = private(noise=1.0, people_per_step=5)
    assert (privacy.rate(16), privacy.steps(16), privacy.expected(16)) == (5 / 16, 4, 5)
    assert (privacy.rate(3), privacy.steps(3), privacy.expected(3)) == (1.0, 1, 3)
    assert (privacy.rate(0), privacy.steps(0)) == (1.0, 1)
    found = released(
        monkeypatch, network_of(), cohort, privacy,
        recipe=recipe_of(epochs=3, of=3), way=way,
    )  # fmt: skip
    assert len(found) == 3 * 4


def test_steps_never_outnumber_one_over_the_rate() -> None:
    """What accountants are told is ceil(1 / rate): no rounding may add a step to it."""
    for people in range(1, 400):
        for size in (1, 2, 3, 7, 10, 32, 49, 100):
            privacy = private(people_per_step=size)
            assert privacy.steps(people) <= -(-1 // privacy.rate(people))
            assert privacy.steps(people) * privacy.rate(people) >= 1 - 1e-12


def test_a_recipe_goes_by_the_whole_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates fall along all rounds, as those of plain training do."""
    told: list[float] = []

    def note(network: Any, stepper: Any, recipe: Recipe, anchors: Any, share: float) -> None:
        told.append(share)

    monkeypatch.setattr("client.learning.privacy.training.advance", note)
    cohort = cohort_of((5,), [1] * 8)
    recipe = recipe_of(Pretraining(), epochs=2, first=2, of=4)
    few = private(people_per_step=4)
    train_privately(network_of(), cohort, np.arange(8), recipe, CPU, few, WAYS["alone"])
    assert told == [0.625, 0.75, 0.875, 1.0]
