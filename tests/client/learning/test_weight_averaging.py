"""What leaves a training is the average along it, if the study asks for that, and no other thing."""

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


def cohort_of(n: int = 12) -> Cohort:
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


class Path(nn.Module):
    """Half the squared distance of features from a centre; notes the centre after each step."""

    weights: ClassVar[dict[str, float]] = {"distance": 1.0}
    target_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.centre = nn.Parameter(torch.ones(4))
        self.path: list[Tensor] = []

    def owner(self, name: str) -> str:
        return SHARED

    def after_step(self) -> None:
        self.path.append(self.centre.detach().clone().double())

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        values = (self.backbone(x) - self.centre).square().sum(1) / 2
        return {"distance": Terms(values=values, counted=torch.ones(len(x), dtype=torch.bool))}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {}


def trained(network: Any, *, go_on: Any = None, epochs: int = 3, **steps: Any) -> Any:
    recipe = Recipe(
        steps=Steps(batch_size=4, **steps), rate=0.05, weight_decay=0.0, epochs=epochs, of=epochs,
        seed=1,
    )  # fmt: skip
    return train(network, cohort_of(), np.arange(12), recipe, CPU, go_on=go_on)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_the_paper(decay: float) -> None:
    """sum_k decay^(n - k) w_k / sum_k decay^(n - k): what was before the first step is no part."""
    network = Path()
    trained(network, weight_averaging=decay)
    shares = decay ** np.arange(len(network.path))[::-1]
    assert len(shares) == 9
    wanted = sum(share * place for share, place in zip(shares, network.path, strict=True))
    wanted = wanted / shares.sum()
    torch.testing.assert_close(network.centre.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(network.centre.detach().double(), network.path[-1])


def test_steps_are_those_of_a_training_without_it() -> None:
    """The average is looked on from outside; statistics of normalisation stay as trained."""
    plain, averaged = Path(), Path()
    trained(plain)
    trained(averaged, weight_averaging=0.9)
    for one, other in zip(plain.path, averaged.path, strict=True):
        assert torch.equal(one, other)
    before, after = arrays_of(plain), arrays_of(averaged)
    for name in ("backbone.1.running_mean", "backbone.1.running_var"):
        assert before[name].tobytes() == after[name].tobytes()
    for name in ("centre", "backbone.0.weight", "backbone.1.weight"):
        assert before[name].tobytes() != after[name].tobytes()


def test_between_epochs_the_average_is_judged_and_training_goes_on_from_the_weights() -> None:
    """Early stopping must choose among what may be kept, and must change no step."""
    seen: list[bytes] = []

    def judged(network: Path, stop: int) -> Any:
        def go_on(epoch: int, tally: Any) -> bool:
            seen.append(network.centre.detach().numpy().tobytes())
            return epoch < stop

        return go_on

    watched, alone, stopped = Path(), Path(), Path()
    trained(watched, weight_averaging=0.9, go_on=judged(watched, 9))
    trained(alone, weight_averaging=0.9)
    assert all(torch.equal(a, b) for a, b in zip(watched.path, alone.path, strict=True))
    final = watched.centre.detach().numpy().tobytes()
    assert seen[-1] == final == alone.centre.detach().numpy().tobytes()
    assert seen[0] != watched.path[2].float().numpy().tobytes()
    trained(stopped, weight_averaging=0.9, go_on=judged(stopped, 1))
    assert len(stopped.path) == 6
    assert stopped.centre.detach().numpy().tobytes() == seen[1] == seen[-1]


def test_what_is_frozen_is_not_averaged() -> None:
    """It never moves, and its average over many steps would, by rounding."""
    network = Path()
    network.centre.requires_grad_(requires_grad=False)
    network.centre.data.fill_(1 / 3)
    trained(network, weight_averaging=0.9)
    assert network.centre.tolist() == torch.full((4,), 1 / 3).tolist()
