"""Wall time of a federated run over a plain PyTorch loop that does the same steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.agent import Agent
from client.data.cohort import Cohort
from client.site import Policy, Site
from client.training import learning_rate
from common.network import build, seed_of
from common.study import Study, parse_study
from deploy.local import run_phases
from server.run import open_run, read_run

SITES, ROUNDS, SCANS, SHAPE, REPEATS = 8, 5, 32, (32, 32, 32), 3


def table() -> str:
    """Median seconds of both, in turn, and their ratio; the weights must be the same to the bit."""
    torch.set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        pairs = [
            (plain(), federated(Path(folder) / str(repeat))) for repeat in range(REPEATS)
        ]
    loops, runs = zip(*pairs, strict=True)
    ratios = sorted(run / loop for loop, run in pairs)
    return "\n".join(
        [
            f"{SITES} sites, {ROUNDS} rounds, SFCN of 2.95 M, {SCANS} scans of 32^3 a site, batch 4",
            "",
            "| | seconds, median | min | max |",
            "|---|---|---|---|",
            f"| plain loop | {statistics.median(loops):.2f} | {min(loops):.2f} | {max(loops):.2f} |",
            f"| federated | {statistics.median(runs):.2f} | {min(runs):.2f} | {max(runs):.2f} |",
            f"| ratio, pair by pair | {statistics.median(ratios):.3f} "
            f"| {ratios[0]:.3f} | {ratios[-1]:.3f} |",
        ]
    )


def study() -> Study:
    """The benchmark's study: training rounds and nothing beside."""
    names = [f"site-{number}" for number in range(SITES)]
    return parse_study(
        {
            "name": "bench",
            "data": {"kind": "t1w", "shape": list(SHAPE), "spacing_mm": 5.0},
            "targets": {"age": {"kind": "regression", "unit": "years", "centre": 50, "scale": 18}},
            "backbone": {"name": "sfcn"},
            "objective": {"name": "multitask"},
            "pretraining": {"rounds": ROUNDS, "batch_size": 4},
            "sites": {"train": names},
            "splits": {"validation": 0.0, "test": 0.0},
            "comparisons": {"single_site": False, "pooled": False},
        },
        Path("bench.toml"),
    )


def cohort(site: str) -> Cohort:
    """Noise with an age in it, held in memory."""
    generator = np.random.default_rng(seed_of("bench", site))
    age = generator.uniform(20, 80, SCANS).astype(np.float32)
    noise = generator.normal(size=(SCANS, *SHAPE)).astype(np.float32)
    people = tuple(f"sub-{number:03d}" for number in range(SCANS))
    return Cohort(
        samples=(noise + age[:, None, None, None] / 50).astype(np.float16),
        participants=people,
        scans=people,
        labels={"age": age},
        regions=None,
        findings=(),
        contents=people,
    )


def federated(folder: Path) -> float:
    """Seconds of the whole run through Flower's ServerApp, from census to the final checkpoint."""
    agreed = study()
    data = agreed.kind.Site(kind="t1w", root="none")
    agents = [
        Agent(
            Site(
                name=name,
                role="train",
                data=data,
                folder=str(folder / name),
                policy=Policy(minimum_cohort=1),
            ),
            agreed,
            cohort(name),
        )
        for name in agreed.sites.train
    ]
    began = time.perf_counter()
    with open_run(folder / "run", agreed):
        pass
    run_phases(agents, folder / "run")
    seconds = time.perf_counter() - began
    assert read_run(folder / "run").federated.final.exists()
    return seconds


def plain() -> float:
    """Seconds of the same steps written as anyone would: no agents, no files, no checks."""
    agreed = study()
    cohorts = [cohort(name) for name in agreed.sites.train]
    networks: Any = build(agreed, seed=0)
    began = time.perf_counter()
    state = {name: value.clone() for name, value in networks.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        trained = []
        for one in cohorts:
            networks.load_state_dict(state)
            _epoch(networks, one, agreed, number)
            trained.append({name: value.clone() for name, value in networks.state_dict().items()})
        state = {
            name: torch.stack([each[name].float() for each in trained]).mean(0) for name in state
        }
    return time.perf_counter() - began


def _epoch(network: Any, one: Cohort, agreed: Study, number: int) -> None:
    settings = agreed.pretraining
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=learning_rate(settings, number), weight_decay=1e-3, foreach=True
    )
    network.train()
    order = torch.randperm(SCANS).split(settings.batch_size)
    for chosen in order:
        x = torch.from_numpy(one.samples[chosen.numpy()]).float()
        age = (torch.from_numpy(one.labels["age"][chosen.numpy()]) - 50) / 18
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.huber_loss(network(x)["age"][:, 0], age)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimiser.step()
