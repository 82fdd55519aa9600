"""Sharpness-aware steps go along the gradient from the nearby place of the highest loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.learning.training import Recipe, train
from common.network.building import arrays_of
from common.seams import SHARED, Terms
from common.sections import Steps

CPU = torch.device("cpu")


def cohort_of(n: int = 8) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    return Cohort(
        samples=np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32),
        participants=names,
        scans=names,
        labels={},
        measures=None,
        layout="table",
        findings=(),
        contents=names,
        secrets=("",) * n,
    )


class Valley(nn.Module):
    """w' A w / 2, steep along one axis and flat along the other; and what it saw of chance."""

    weights: ClassVar[dict[str, float]] = {"valley": 1.0}
    target_names: ClassVar[tuple[str, ...]] = ()
    steepness: ClassVar[tuple[float, ...]] = (4.0, 0.25)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.place = nn.Parameter(torch.tensor([0.5, -2.0]))
        self.chance: list[float] = []
        self.places: list[list[float]] = []

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        self.chance.append(torch.rand(()).item())
        self.places.append(self.place.tolist())
        level = (torch.tensor(self.steepness) * self.place.square()).sum() / 2
        values = level + 0 * self.backbone(x).sum(1)
        return {"valley": Terms(values=values, counted=torch.ones(len(x), dtype=torch.bool))}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}


def trained(network: Any, epochs: int = 1, **more: Any) -> Any:
    known = {"optimiser": "sgd", "momentum": 0.0, "schedule": "constant", "gradient_clip": 0.0}
    steps = Steps(**{"batch_size": 8, **known, **more})
    recipe = Recipe(steps=steps, rate=0.1, weight_decay=0.0, epochs=epochs, of=epochs, seed=1)
    return train(network, cohort_of(), np.arange(8), recipe, CPU)


def test_a_step_is_what_the_paper_computes() -> None:
    """w - lr A (w + rho g / |g|) with g = A w, Foret et al. 2021, equations 2 and 3."""
    network, rho = Valley(), 0.3
    trained(network, sharpness=rho)
    steep, place = np.array(Valley.steepness), np.array([0.5, -2.0])
    gradient = steep * place
    highest = place + rho * gradient / np.linalg.norm(gradient)
    np.testing.assert_allclose(network.places, [place, highest], rtol=1e-6)
    wanted = place - 0.1 * steep * highest
    np.testing.assert_allclose(network.place.tolist(), wanted, rtol=1e-6)


def test_a_very_small_sharpness_is_plain_training() -> None:
    """The limit where it must vanish."""
    plain, nearly = Valley(), Valley()
    nearly.load_state_dict(plain.state_dict())
    trained(plain, epochs=5)
    trained(nearly, epochs=5, sharpness=1e-6)
    torch.testing.assert_close(plain.place, nearly.place, rtol=1e-5, atol=1e-6)


def test_the_reported_loss_is_that_at_the_weights() -> None:
    """The highest loss nearby is no loss that anybody compares with."""
    tallies = [trained(Valley(), sharpness=rho).tally.mean() for rho in (0.0, 0.5)]
    assert tallies[0] == tallies[1]


def test_statistics_of_normalisation_move_once_a_step() -> None:
    """A second look at the same batch, through weights that nobody keeps, is none."""
    plain, sharp = Valley(), Valley()
    sharp.load_state_dict(plain.state_dict())
    before = arrays_of(plain)["backbone.1.running_mean"]
    trained(plain)
    trained(sharp, sharpness=0.5)
    for name in ("backbone.1.running_mean", "backbone.1.running_var"):
        assert arrays_of(plain)[name].tobytes() == arrays_of(sharp)[name].tobytes()
    assert arrays_of(plain)["backbone.1.running_mean"].tobytes() != before.tobytes()


def test_both_looks_of_a_step_see_the_same_chance() -> None:
    """Another mask or dropout would be another loss, and its gradient not the sharper one's."""
    plain, sharp = Valley(), Valley()
    trained(plain, epochs=3)
    trained(sharp, epochs=3, sharpness=0.5)
    assert sharp.chance == [chance for chance in plain.chance for _ in range(2)]
    assert len(set(plain.chance)) == 3


def test_a_batch_without_gradient_moves_nothing() -> None:
    """0 / 0 would make the whole network NaN."""
    network = Valley()
    with torch.no_grad():
        network.place.zero_()
    trained(network, sharpness=0.5)
    assert network.place.tolist() == [0.0, 0.0]


def test_a_gradient_is_clipped_where_the_optimiser_takes_it() -> None:
    """The way to the highest place is rho long, whatever is cut off of steps."""
    network = Valley()
    trained(network, sharpness=0.3, gradient_clip=0.01)
    place, highest = np.array(network.places)
    assert np.linalg.norm(highest - place) == pytest.approx(0.3, rel=1e-5)
    assert np.linalg.norm(network.place.detach().numpy() - place) == pytest.approx(0.001, rel=1e-4)
