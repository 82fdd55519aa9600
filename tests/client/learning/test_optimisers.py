"""Rates by step and by stage are what a hand computes; kept moments make rounds one training."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.data.loading import split_evenly
from client.learning import training
from client.learning.optimisers import Stepper, rate_factor
from client.learning.training import Recipe, train
from common.network.building import arrays_of, build, plan_of
from common.protocol.orders import Order
from common.protocol.wire import open_arrays
from common.seams import SHARED, Terms
from common.sections import Steps
from common.seeding import seed_of
from server.federation.parcel import parcel_of

CPU = torch.device("cpu")
RATE = 0.25


def cohort_of(n: int) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    return Cohort(
        samples=np.ones((n, 1), np.float32),
        participants=names,
        scans=names,
        labels={},
        measures=None,
        layout="table",
        findings=(),
        contents=names,
        secrets=("",) * len(names),
    )


class Ramp(nn.Module):
    """A loss that is the sum of all weights: each gradient is 1, each step as long as its rate."""

    weights: ClassVar[dict[str, float]] = {"ramp": 1.0}
    target_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.path: list[dict[str, float]] = [self.now()]

    def now(self) -> dict[str, float]:
        return {name: parameter.item() for name, parameter in self.named_parameters()}

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        values = torch.stack(list(self.parameters())).sum().expand(len(x))
        return {"ramp": Terms(values=values, counted=torch.ones(len(x), dtype=torch.bool))}

    def after_step(self) -> None:
        self.path.append(self.now())

    def steps(self, name: str) -> list[float]:
        """How far one weight went down in each step."""
        return [a[name] - b[name] for a, b in zip(self.path, self.path[1:], strict=False)]


class Weight(nn.Module):
    """A stage of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))


class Three(nn.Module):
    """Three stages, one of them in a sequence, and a token that belongs to none."""

    features = 1

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.early = nn.Sequential(Weight(), nn.ReLU(), Weight())
        self.late = Weight()


def plain(**changes: Any) -> Steps:
    """SGD that only follows the gradient."""
    known = {"optimiser": "sgd", "momentum": 0.0, "gradient_clip": 0.0, "batch_size": 2}
    return Steps.model_validate({**known, **changes})


def ramped(network: Ramp, steps: Steps, n: int = 10, **more: Any) -> None:
    recipe = Recipe(
        steps=steps, rate=RATE, weight_decay=0.0, seed=1, **{"epochs": 1, "of": 1, **more}
    )
    train(network, cohort_of(n), np.arange(n), recipe, CPU)


# Rates by step.


def by_hand(share: float, warmup: float, schedule: str) -> float:
    """The documented rate after a share of the whole training."""
    if share < warmup:
        return RATE * share / warmup
    if schedule == "constant":
        return RATE
    lowest = RATE / 20
    return lowest + (RATE - lowest) * (1 + cos(pi * (share - warmup) / (1 - warmup))) / 2


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_each_step_is_as_long_as_a_hand_computes(warmup: float, schedule: str) -> None:
    """By step and not by round: a warm-up of a tenth of ten rounds would otherwise be no warm-up."""
    network = Ramp(Three())
    ramped(network, plain(warmup=warmup, schedule=schedule), epochs=4, of=4)
    wanted = [by_hand(step / 20, warmup, schedule) for step in range(1, 21)]
    assert network.steps("head") == pytest.approx(wanted, rel=1e-12)
    assert (network.steps("head")[-1] == pytest.approx(RATE / 20)) == (schedule == "cosine")


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_rounds_go_along_the_same_rates_as_one_training(schedule: str) -> None:
    """A federation of ten rounds warms up once, and not ten times."""
    steps = plain(warmup=0.3, schedule=schedule)
    whole, parts = Ramp(Three()), Ramp(Three())
    ramped(whole, steps, epochs=4, of=4)
    ramped(parts, steps, first=0, epochs=1, of=4)
    ramped(parts, steps, first=1, epochs=3, of=4)
    assert parts.steps("head") == whole.steps("head")


@given(st.floats(0, 1), st.floats(0, 0.99), st.sampled_from(["constant", "cosine"]))
def test_a_rate_never_exceeds_the_highest(share: float, warmup: float, schedule: Any) -> None:
    """The number in the study is a limit, wherever training stands."""
    steps = Steps(warmup=warmup, schedule=schedule)
    assert 0 <= rate_factor(steps, share) <= 1
    assert rate_factor(steps, warmup) == pytest.approx(1)
    assert rate_factor(steps, 1.0) == pytest.approx(1 if schedule == "constant" else 0.05)


# Rates by stage.


def test_layer_decay_gives_each_stage_the_rate_that_a_hand_computes() -> None:
    """Early layers of a pretrained network are to move little; what is new, the head, in full."""
    network = Ramp(Three())
    ramped(network, plain(layer_decay=0.5, schedule="constant"), n=2)
    went = {name: network.steps(name)[0] for name in network.now()}
    assert went == {
        "head": RATE,
        "backbone.late.weight": RATE / 2,
        "backbone.early.2.weight": RATE / 4,
        "backbone.early.0.weight": RATE / 8,
        "backbone.token": RATE / 8,  # as early as the earliest
    }


def test_a_backbone_may_name_its_stages_itself() -> None:
    """Children in the order of their making need not be the order in which a scan meets them."""
    backbone = Three()
    backbone.stages = lambda: [backbone.late, backbone.early]  # type: ignore[attr-defined]
    network = Ramp(backbone)
    ramped(network, plain(layer_decay=0.5, schedule="constant"), n=2)
    went = {name: network.steps(name)[0] for name in network.now()}
    assert went["backbone.early.2.weight"] == went["backbone.early.0.weight"] == RATE / 2
    assert went["backbone.late.weight"] == RATE / 4


def test_without_layer_decay_all_go_alike() -> None:
    """The limit in which the mechanism must vanish."""
    network = Ramp(Three())
    ramped(network, plain(schedule="constant"), n=2)
    assert {network.steps(name)[0] for name in network.now()} == {RATE}


def test_stages_keep_their_shares_along_the_schedule() -> None:
    """Decay by layer multiplies the rate of the step, whatever it is."""
    network = Ramp(Three())
    ramped(network, plain(layer_decay=0.5, warmup=0.3), epochs=4, of=4)
    late, early = network.steps("backbone.late.weight"), network.steps("backbone.early.0.weight")
    assert late == pytest.approx([step / 2 for step in network.steps("head")], rel=1e-12)
    assert early == pytest.approx([step / 8 for step in network.steps("head")], rel=1e-12)


def test_frozen_parameters_have_no_rate_at_all() -> None:
    """Weight decay alone would move them."""
    network = Ramp(Three())
    network.backbone.early.requires_grad_(requires_grad=False)
    ramped(network, plain(layer_decay=0.5), n=2)
    went = {name: network.steps(name)[0] for name in network.now()}
    assert {name for name, step in went.items() if not step} == {
        "backbone.early.0.weight", "backbone.early.2.weight"
    }  # fmt: skip


# Moments that outlive a round.

OPTIMISERS = [("sgd", "constant"), ("adam", "cosine"), ("adamw", "cosine"), ("adamw", "constant")]


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch shows the samples in one order: each round draws from its own seed otherwise."""

    def epoch(
        network: Any, cohort: Any, indices: Any, steps: Steps, generator: Any
    ) -> list[np.ndarray]:
        return split_evenly(indices, steps.batch_size)

    monkeypatch.setattr(training, "epoch_of", epoch)


def final_arrays(run: Any) -> dict[str, np.ndarray]:
    with open_arrays(run.federated.final) as file:
        return file.all()


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize(("optimiser", "schedule"), OPTIMISERS)
def test_rounds_with_kept_moments_are_one_longer_training_bit_for_bit(
    federation: Any, optimiser: str, schedule: str
) -> None:
    """Momentum that is thrown away every round is why many rounds learn less than one long one."""
    pretraining = {"batch_size": 8, "learning_rate": 0.01, "warmup": 0.2, "layer_decay": 0.8}
    pretraining |= {"optimiser": optimiser, "schedule": schedule}
    made = federation({"sites": {"train": ["alpha"]}, "backbone.dropout": 0.0})

    def trained(out: str, rounds: int, epochs: int, state: str) -> dict[str, np.ndarray]:
        made.changes["pretraining"] = {
            **pretraining, "rounds": rounds, "local_epochs": epochs, "optimiser_state": state
        }  # fmt: skip
        return final_arrays(made.simulate(out))

    kept = trained("kept", 4, 1, "kept")
    for other in (trained("long", 1, 4, "kept"), trained("forgets-nothing", 1, 4, "fresh")):
        assert kept.keys() == other.keys()
        assert all(kept[name].tobytes() == other[name].tobytes() for name in kept)
    weight = "model/backbone.layers.0.weight"
    fresh = trained("fresh", 4, 1, "fresh")
    assert np.abs(fresh[weight] - kept[weight]).max() > 1e-4  # the control: it matters here


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_moments_of_convolutions_go_on_bit_for_bit(brains: Any, optimiser: str) -> None:
    """Kernels lie channels-last: moments that lay otherwise would round otherwise, or fail."""
    made = brains({"sites": {"train": ["amber"]}, "backbone.dropout": 0.0})
    study = made.study
    cohort = made.agent("amber").cohort
    rows = cohort.indices("train", study.splits)
    steps = Steps(batch_size=4, optimiser=optimiser)

    def trained(*parts: tuple[int, int]) -> dict[str, np.ndarray]:
        network, moments = build(study, seed=1), {}
        for first, epochs in parts:
            recipe = Recipe(
                steps=steps, rate=0.01, weight_decay=1e-3, first=first, epochs=epochs, of=4,
                seed=first, moments=moments,
            )  # fmt: skip
            moments = train(network, cohort, rows, recipe, CPU).moments
            fresh = build(study, seed=2)  # as after a restart: other tensors, the same numbers
            fresh.load_state_dict(network.state_dict())
            network = fresh
        return arrays_of(network)

    whole, parts = trained((0, 4)), trained((0, 1), (1, 2), (3, 1))
    assert all(whole[name].tobytes() == parts[name].tobytes() for name in whole)


def test_moments_are_named_by_what_they_are_of(federation: Any) -> None:
    """They lie on disk between rounds: a file whose names mean something can be looked into."""
    network = build(federation().study, seed=1)
    stepper = Stepper(network, Steps(), rate=0.1, weight_decay=0.0)
    assert stepper.moments() == {}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    stepper.step(1.0)
    found = stepper.moments()
    names = {name for name, _ in network.named_parameters()}
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert found.keys() == {f"{key}/{name}" for key in keys for name in names}
    # (1 - beta) times the gradient, by Adam's own constants
    assert found["exp_avg/heads.age.bias"] == pytest.approx([0.1])
    assert found["exp_avg_sq/heads.age.bias"] == pytest.approx([0.001])
    assert found["step/heads.age.bias"] == 1


def ordered(agent: Any, arrays: Any, number: int) -> Order:
    policy = agent.study.aggregation.normalisation
    digests = parcel_of(arrays, plan_of(build(agent.study, seed=0), policy)).digests
    return Order(
        kind="train", study=agent.study.digest, run="cd" * 32, site=agent.site.name,
        round=number, **digests,
    )  # fmt: skip


def test_a_round_asked_again_starts_from_the_moments_before_it(federation: Any) -> None:
    """After a crash round 2 is repeated: its moments must not have moved in between."""
    agent = federation({"pretraining.optimiser_state": "kept"}).agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    report, one = agent.answer(ordered(agent, arrays, 1), arrays)
    assert report.refusal == ""
    _, first = agent.answer(ordered(agent, arrays, 2), arrays)
    for path in (agent.site.state / "runs").rglob("report-*.safetensors"):
        path.unlink()
    _, again = agent.answer(ordered(agent, arrays, 2), arrays)
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)
    kept = sorted(path.name for path in (agent.site.state / "runs").rglob("moments-*"))
    assert kept == ["moments-0001.safetensors", "moments-0002.safetensors"]
    # the control: moments reach the second round at all
    for path in (agent.site.state / "runs").rglob("*-000*.safetensors"):
        path.unlink()
    _, without = agent.answer(ordered(agent, arrays, 2), arrays)
    assert any(without[name].tobytes() != first[name].tobytes() for name in first)
    assert one.keys() == first.keys()


def test_fresh_moments_leave_nothing_at_the_site(federation: Any) -> None:
    """Half of what a network weighs, for nothing, in every hospital."""
    agent = federation().agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    agent.answer(ordered(agent, arrays, 1), arrays)
    assert not list((agent.site.state / "runs").rglob("moments-*"))
