"""Small cohorts and networks for the tests of private training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from client.data.cohort import Cohort
from client.data.loading import Batch, batches
from client.learning.privacy import training
from client.learning.privacy.chance import Chance
from client.learning.training import Recipe
from common.network.building import arrays_of
from common.objectives.multitask import Multitask
from common.privacy.by_layer import of_layers
from common.privacy.person_gradients import of_many
from common.privacy.settings import Privacy
from common.privacy.way import Way
from common.sections import Pretraining, Target
from common.transformer import DropPath

CPU = torch.device("cpu")
WAYS = {
    "alone": Way(1, of_many, ""),
    "many": Way(6, of_many, ""),
    "layers": Way(6, of_layers, ""),
}
NAN = float("nan")
TARGETS = {
    "age": Target(kind="regression", unit="years", centre=50.0, scale=10.0),
    "sex": Target(kind="binary", classes=("female", "male"), weight=0.5, positive_weight=2.0),
    "stage": Target(kind="categorical", classes=("a", "b", "c")),
}
ALONE = Privacy(unit="participant", noise=0.0, epsilon=0.0, clip=1e6, people_per_step=1000)


def cohort_of(
    shape: tuple[int, ...], scans: Sequence[int], *, missing: bool = True, scale: float = 1.0
) -> Cohort:
    """People with so many scans each; with `missing`, some labels of some people are not known."""
    random = np.random.default_rng(5)
    people = tuple(f"p{person}" for person, n in enumerate(scans) for _ in range(n))
    count = len(people)
    labels = {
        "age": random.normal(50, 10, count).astype(np.float32),
        "sex": random.integers(0, 2, count).astype(np.float32),
        "stage": random.integers(0, 3, count).astype(np.float32),
    }
    if missing:
        labels["age"][::4] = NAN
        labels["sex"][1::3] = NAN
        labels["stage"][count // 2 :] = NAN
    samples = scale * random.normal(size=(count, *shape)).astype(np.float32)
    if len(shape) == 2:  # connectomes are symmetric
        samples = (samples + samples.swapaxes(1, 2)) / 2
    names = tuple(f"s{number}" for number in range(count))
    return Cohort(
        samples=samples, participants=people, scans=names, labels=labels, measures=None,
        layout="other", findings=(), contents=names, secrets=("",) * count,
    )  # fmt: skip


def around(backbone: Any, objective: Any = None) -> Any:
    """A network on `backbone` without chance, all of whose parameters matter."""
    settings = Multitask.Settings(name="multitask")
    network = objective or Multitask(settings, backbone, TARGETS)
    network.target_names = tuple(TARGETS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, DropPath):
            module.chance = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return network


def recipe_of(steps: Pretraining | None = None, **more: Any) -> Recipe:
    """Plain descent by the gradient itself."""
    plain = Pretraining(
        optimiser="sgd", momentum=0.0, schedule="constant", gradient_clip=0.0, batch_size=4096
    )
    known = {"rate": 1.0, "weight_decay": 0.0, "epochs": 1, "of": 1, "seed": 1}
    return Recipe(**{"steps": steps or plain, **known, **more})


def released(
    monkeypatch: Any,
    network: Any,
    cohort: Cohort,
    privacy: Privacy,
    way: str = "alone",
    **more: Any,
) -> list[dict[str, torch.Tensor]]:
    """The gradient of each step of one pass, as the optimiser would see it; nothing moves."""
    found: list[dict[str, torch.Tensor]] = []

    def note(network: Any, *_: object) -> None:
        found.append({n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad})

    def exact(*given: Any) -> Iterator[Batch]:
        for batch in batches(*given):
            yield replace(batch, x=batch.x.to(next(network.parameters()).dtype))

    monkeypatch.setattr(training, "advance", note)
    monkeypatch.setattr(training, "batches", exact)
    indices = np.arange(len(cohort))
    recipe = more.pop("recipe", recipe_of())
    training.train_privately(network, cohort, indices, recipe, CPU, privacy, WAYS[way], **more)
    return found


class Nobody(Chance):
    """Chance by which nobody is drawn; noise is as ever."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.noise, self.numbers = self.numbers, self  # type: ignore[assignment]

    def random(self, size: int) -> Any:
        return np.ones(size)

    def integers(self, high: int) -> int:
        return int(self.noise.integers(high))

    def standard_normal(self, *given: Any, **named: Any) -> Any:
        return self.noise.standard_normal(*given, **named)


def weights_of(network: Any) -> dict[str, Any]:
    return {name: array.copy() for name, array in arrays_of(network).items()}
