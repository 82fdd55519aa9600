"""A private step of the SFCN over a plain one of the same people, beside Opacus's ways to the same.

Processor seconds of one thread, the ways in turn. Bounds are those that a study can live with:
privacy that doubles a step is left off.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.learning.privacy.training import train_privately
from client.learning.training import Recipe, lay_out, train
from common.network.building import build
from common.privacy.way import way_of
from common.sections import Pretraining
from common.study import Study, parse_study
from tests.bench.families import STUDY

CASES: Final = {(32, 16): 1.60, (64, 4): 1.25, (96, 2): 1.10}  # edge and people to a bound
TURNS: Final = {32: 3, 64: 2, 96: 1}
STEPS: Final = 3  # of a turn; the first makes the optimiser's moments and is not counted
OPACUS: Final = ("hooks", "ghost", "ew")
_CPU: Final = torch.device("cpu")


def table() -> str:
    """Each shape, with a line for each."""
    torch.set_num_threads(1)
    lines = [
        "SFCN, group normalisation, AdamW, one scan a person; a plain step is 1.",
        "",
        "| volume | people | plain, s | private | bound | gradients | hooks | ghost | Expanded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (edge, people), bound in CASES.items():
        lines.append(_row(edge, people, bound))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def _row(edge: int, people: int, bound: float) -> str:
    study = _study(edge, people)
    ways: dict[str, Callable[[], list[float]]] = {
        "plain": lambda: _ours(study, people, private=False),
        "private": lambda: _ours(study, people, private=True),
        **{mode: lambda mode=mode: _opacus(study, people, mode) for mode in OPACUS},
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS[edge]):
        for name, way in ways.items():
            found[name] += way()
    seconds = {name: statistics.median(times) for name, times in found.items()}
    over = {name: f"{one / seconds['plain']:.2f}" for name, one in seconds.items()}
    return (
        f"| {edge}^3 | {people} | {seconds['plain']:.2f} | {over['private']} | {bound:.2f} "
        f"| {way_of(study).told.partition(',')[0]} | {' | '.join(over[mode] for mode in OPACUS)} |"
    )


def _study(edge: int, people: int) -> Study:
    changed = {
        **STUDY,
        "data": {**STUDY["data"], "shape": [edge] * 3},
        "backbone": {"name": "sfcn"},
        "aggregation": {"normalisation": "groupnorm"},
        "privacy": {"unit": "participant", "people_per_step": people},
    }
    return parse_study(changed, Path("private.toml"))


def _ours(study: Study, people: int, *, private: bool) -> list[float]:
    """Seconds of steps of the site's own loop, in which everyone is in each step."""
    network, cohort = build(study, seed=0), _cohort(study, people)
    times: list[float] = []
    network.after_step = lambda: times.append(time.process_time())
    steps = Pretraining(batch_size=people, optimiser="adamw", schedule="constant")
    recipe = Recipe(steps=steps, rate=1e-4, weight_decay=1e-2, epochs=STEPS, of=STEPS, seed=0)
    everyone = np.arange(people)
    if private:
        train_privately(network, cohort, everyone, recipe, _CPU, study.privacy, way_of(study))
    else:
        train(network, cohort, everyone, recipe, _CPU)
    return np.diff(times).tolist()


def _cohort(study: Study, people: int) -> Cohort:
    random = np.random.default_rng(0)
    samples = random.standard_normal((people, *study.shape), dtype=np.float32)
    names = tuple(f"sub-{number}" for number in range(people))
    return Cohort(
        samples=samples.astype(np.float16), participants=names, scans=names,
        labels={"age": np.full(people, 40.0, dtype=np.float32)}, measures=None, layout="volume",
        findings=(), contents=names, secrets=("",) * people,
    )  # fmt: skip


class _Age(nn.Module):
    """What Opacus can wrap: one output of `forward`."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        network = build(study, seed=0)
        lay_out(network, _CPU)
        self.backbone, self.head = network.backbone, network.heads["age"]
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # its hooks forbid it

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))[:, 0]  # type: ignore[no-any-return]


def _opacus(study: Study, people: int, mode: str) -> list[float]:
    """Seconds of steps as Opacus makes them."""
    cohort, network = _cohort(study, people), _Age(study)
    x = torch.from_numpy(np.asarray(cohort.samples[np.arange(people)], dtype=np.float32))
    wanted = torch.full((people,), (40.0 - 50.0) / 18.0)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, wanted), people)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, foreach=True)
    made = PrivacyEngine().make_private(
        module=network.train(), optimizer=optimiser, data_loader=data, noise_multiplier=1.0,
        max_grad_norm=1.0, poisson_sampling=False, criterion=nn.HuberLoss(), grad_sample_mode=mode,
    )  # fmt: skip
    wrapped, stepper = made[0], made[1]
    criterion: Any = made[2] if mode == "ghost" else nn.HuberLoss()
    times = []
    for _ in range(STEPS):
        stepper.zero_grad()
        criterion(wrapped(x), wanted).backward()
        stepper.step()
        times.append(time.process_time())
    return np.diff(times).tolist()
