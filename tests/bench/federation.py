"""Wall time of a federated run over a plain PyTorch loop that does the same steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.data.cohort import Cohort
from client.learning.optimisers import rate_factor
from client.service.agent import Agent
from client.site import Policy, Site
from common.network.building import build
from common.seeding import seed_of
from common.study import Study, parse_study
from deploy.local import run_phases
from server.run import open_run, read_run

SITES, ROUNDS, SCANS, SHAPE, REPEATS = 8, 5, 32, (32, 32, 32), 3


def table() -> str:
    """Seconds of the run and of two loops in turn, and the ratios, triple by triple.

    The first loop is PyTorch as usually written; the second also keeps its volumes channels-last,
    as Callosum does, so that its ratio shows what federation alone costs.
    """
    with tempfile.TemporaryDirectory() as folder:
        triples = [
            (plain(torch.contiguous_format), plain(), federated(Path(folder) / str(repeat)))
            for repeat in range(REPEATS)
        ]
    usual, same, runs = (list(column) for column in zip(*triples, strict=True))
    lines = [
        f"{SITES} sites, {ROUNDS} rounds, SFCN of 2.95 M, {SCANS} scans of 32^3 a site, batch 4",
        "",
        "| | median | min | max |",
        "|---|---|---|---|",
        _row("plain loop as usually written, s", usual),
        _row("plain loop, channels-last, s", same),
        _row("federated, s", runs),
        _row("federated / plain loop", [run / loop for loop, _, run in triples]),
        _row("federated / channels-last loop", [run / loop for _, loop, run in triples]),
    ]
    return "\n".join(lines)


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"


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
        measures=None,
        layout="volume",
        findings=(),
        contents=people,
        secrets=("",) * len(people),
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
            keeps_training=False,
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


def plain(layout: torch.memory_format = torch.channels_last_3d) -> float:
    """Seconds of the same steps as a bare loop: no agents, no files, no checks."""
    agreed = study()
    cohorts = [cohort(name) for name in agreed.sites.train]
    networks: Any = build(agreed, seed=0).to(memory_format=layout)
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
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-3, foreach=True)
    network.train()
    order = torch.randperm(SCANS).split(settings.batch_size)
    for step, chosen in enumerate(order, start=1):
        share = (number - 1 + step / len(order)) / ROUNDS
        optimiser.param_groups[0]["lr"] = settings.learning_rate * rate_factor(settings, share)
        x = torch.from_numpy(one.samples[chosen.numpy()]).float()
        age = (torch.from_numpy(one.labels["age"][chosen.numpy()]) - 50) / 18
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.huber_loss(network(x)["age"][:, 0], age)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
        optimiser.step()
