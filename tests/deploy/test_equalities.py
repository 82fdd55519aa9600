"""A federation is what its parts say: one site is its own training, equal sites are pooled training."""

from __future__ import annotations

import csv
import hashlib
import hmac
from collections.abc import Sequence
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.learning.training import Recipe, train
from common.network.building import arrays_of, build, load_arrays
from common.protocol.wire import open_arrays
from common.seeding import seed_of
from common.study import Study
from deploy import local
from server.report.page import write_report

CPU = torch.device("cpu")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def final_arrays(run: Any) -> dict[str, np.ndarray]:
    with open_arrays(run.federated.final) as file:
        return {name.removeprefix("model/"): array for name, array in file.all().items()}


def split_of(participant: str, secret: str) -> str:
    """The documented split: a fraction of 2**64 from HMAC-SHA-256(secret, salt 0 participant)."""
    digest = hmac.digest(secret.encode(), f"callosum\0{participant}".encode(), "sha256")
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if fraction < 0.2 else "validation" if fraction < 0.35 else "train"


def naive_loss(network: Any, study: Study, x: torch.Tensor, labels: dict[str, Any]) -> Any:
    """The sum over targets of its weight times the mean loss of the samples that have it."""
    outputs, total = network(x), 0.0
    for name, target in study.pretraining_targets.items():
        have = [i for i in range(len(x)) if not np.isnan(labels[name][i])]
        if not have:
            continue
        truth = torch.tensor([float(labels[name][i]) for i in have])
        output = outputs[name][have, 0]
        if target.kind == "regression":
            each = nn.functional.huber_loss(
                output, (truth - target.centre) / target.scale, reduction="none"
            )
        else:
            each = nn.functional.binary_cross_entropy_with_logits(output, truth, reduction="none")
        total = total + target.weight * each.sum() / len(have)
    return total


def cosine(settings: Any, share: float) -> float:
    """The documented learning rate after a share of the whole training: to a twentieth."""
    return float(settings.learning_rate * (0.05 + 0.95 * (1 + cos(pi * share)) / 2))


def naive_training(
    study: Study, site: str, network: Any, x: np.ndarray, labels: dict[str, Any], rows: list[int]
) -> None:
    """What a hospital would write that trains alone: one optimiser a round, shuffled batches."""
    settings = study.pretraining
    for number in range(1, settings.rounds + 1):
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay)
        seed = seed_of(study.seed, "train", site, number)
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        network.train()
        for epoch in range(settings.local_epochs):
            order = random.permutation(np.array(rows))
            steps = -(-len(order) // settings.batch_size)
            sizes = [len(order) // steps + (i < len(order) % steps) for i in range(steps)]
            for step, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True), start=1):
                chosen = order[end - size : end]
                behind = (number - 1) * settings.local_epochs + epoch + step / steps  # in epochs
                rate = cosine(settings, behind / (settings.rounds * settings.local_epochs))
                optimiser.param_groups[0]["lr"] = rate
                optimiser.zero_grad()
                batch = {name: values[chosen] for name, values in labels.items()}
                naive_loss(network, study, torch.tensor(x[chosen]), batch).backward()
                nn.utils.clip_grad_norm_(network.parameters(), settings.gradient_clip)
                optimiser.step()


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype, name
        assert array.tobytes() == wanted[name].tobytes(), name


def test_one_site_of_tables_is_its_own_training_bit_for_bit(federation):
    """Nothing between the sites may change a number where there is nobody to agree with."""
    made = federation({
        "sites": {"train": ["alpha"]},
        "pretraining.rounds": 4,
        "pretraining.local_epochs": 2,
        "pretraining.batch_size": 8,
    })  # fmt: skip
    study = made.study
    found = final_arrays(made.simulate())

    with (made.sites / "alpha" / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    x = np.array([[float(row[c]) for c in study.data.columns] for row in rows], np.float32)
    labels = {
        "age": np.array([float(row["age"]) for row in rows], np.float32),
        "sex": np.array([float(row["sex"] == "male") for row in rows], np.float32),
    }
    training = [
        i for i, row in enumerate(rows) if split_of(row["participant_id"], "in the open") == "train"
    ]
    network = build(study, seed=seed_of(study.seed, "initial"))
    columns = x[training].astype(np.float64)
    mean = columns.sum(0) / len(columns)
    deviation = np.sqrt((columns**2).sum(0) / len(columns) - mean**2)
    network.backbone.standardise.mean.copy_(torch.tensor(mean.astype(np.float32)))
    network.backbone.standardise.deviation.copy_(torch.tensor(deviation.astype(np.float32)))
    naive_training(study, "alpha", network, x, labels, training)
    assert_same_bits(found, arrays_of(network))


def test_one_site_of_brains_is_its_own_training_bit_for_bit(brains):
    """The same for convolutions, batch statistics, dropout and missing labels."""
    made = brains({"sites": {"train": ["amber"]}})
    study = made.study
    found = final_arrays(made.simulate())

    cohort = made.agent("amber").cohort
    x = np.asarray(cohort.samples, dtype=np.float32)
    labels = {name: cohort.labels[name] for name in study.targets}
    training = [
        i for i, who in enumerate(cohort.participants) if split_of(who, "synthetic") == "train"
    ]
    network = build(study, seed=seed_of(study.seed, "initial"))
    network.to(memory_format=torch.channels_last_3d)  # other layouts round differently
    naive_training(study, "amber", network, x, labels, training)
    assert_same_bits(found, arrays_of(network))


@pytest.mark.parametrize(
    "sizes", [(20, 20, 20), (22, 20, 41)], ids=["equal sites", "sites weighted by scans"]
)
@pytest.mark.parametrize("backbone", ["linear", "mlp"])
def test_one_full_step_a_round_is_pooled_training(federation, backbone, sizes):
    """FedAvg's defining identity: averaged gradients are the gradient of all data together."""
    made = federation(
        {
            "backbone": {"name": "linear"}
            if backbone == "linear"
            else {"name": "mlp", "hidden": [6], "dropout": 0.0},
            "pretraining": {
                "rounds": 6,
                "batch_size": 4096,
                "optimiser": "sgd",
                "learning_rate": 0.05,
                "gradient_clip": 0.0,
            },
            "aggregation": {"normalisation": "groupnorm"},
            "splits": {"validation": 0.0, "test": 0.0},
            "sites": {"train": ["alpha", "beta", "gamma"]},
            "comparisons": {"single_site": False, "pooled": True},
        },
        participants=dict(zip(["alpha", "beta", "gamma"], sizes, strict=True)),
    )
    study = made.study
    run = made.simulate()
    found = final_arrays(run)

    agents = [made.agent(name) for name in study.sites.train]
    x = torch.tensor(np.concatenate([agent.cohort.samples for agent in agents]))
    assert len(x) == sum(sizes)
    labels = {
        name: np.concatenate([agent.cohort.labels[name] for agent in agents])
        for name in study.pretraining_targets
    }
    network = build(study, seed=seed_of(study.seed, "initial"))
    columns = x.double()
    network.backbone.standardise.mean.copy_(columns.mean(0))
    network.backbone.standardise.deviation.copy_(columns.std(0, correction=0))
    start = arrays_of(network)
    for number in range(1, 7):
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=cosine(study.pretraining, number / 6),  # after the one step of this round
            weight_decay=study.pretraining.weight_decay,
        )
        naive_loss(network, study, x, labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    wanted = arrays_of(network)
    with open_arrays(run.comparison("pooled").final) as file:
        pooled = {name.removeprefix("model/"): array for name, array in file.all().items()}
    moved = 0.0
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-6, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(pooled[name], array, rtol=2e-6, atol=2e-6, err_msg=name)
        if "standardise" not in name:
            moved = max(moved, float(np.abs(array - start[name]).max()))
    assert moved > 0.02  # else all of the above would hold of doing nothing


def shuffling(seed: int) -> type[local.LocalGrid]:
    """A grid whose agents answer in any order, several at a pull."""
    random = np.random.default_rng(seed)

    class Shuffling(local.LocalGrid):
        def pull_messages(self, message_ids):
            wanted = [i for i in self._waiting if i in set(message_ids)]
            chosen = random.permutation(len(wanted))[: random.integers(1, len(wanted) + 1)]
            return [self._answer(self._waiting.pop(wanted[i])) for i in chosen]

    return Shuffling


@pytest.mark.parametrize("server_optimiser", ["fedavg", "fedadam"])
def test_order_of_replies_changes_no_bit(federation, monkeypatch, server_optimiser):
    """Hospitals answer when they can; the checkpoint's SHA-256 must not tell who was first."""
    rate = 1.0 if server_optimiser == "fedavg" else 0.1
    made = federation({
        "sites.train": ["alpha", "beta", "gamma", "delta"],
        "aggregation": {"server_optimiser": server_optimiser, "learning_rate": rate},
        "pretraining.rounds": 3,
    })  # fmt: skip
    wanted = sha256(made.simulate("in-order").federated.final)
    for seed in range(3):
        monkeypatch.setattr(local, "LocalGrid", shuffling(seed))
        assert sha256(made.simulate(f"shuffled-{seed}").federated.final) == wanted


@pytest.mark.parametrize("weight", ["scans", "participants"])
def test_site_that_lost_its_labels_moves_nothing(federation, weight):
    """Forty scans without a label beside forty with one would halve every step of the others."""
    made = federation(
        {
            "sites": {"train": ["alpha", "beta"], "quorum": 1},
            "pretraining.rounds": 1,
            "aggregation.weight": weight,
        },
        lacks={"beta": ("age", "sex")},
    )
    run = made.simulate()
    [record] = run.federated.records()
    assert list(record["answered"]) == ["alpha"]
    assert record["refused"] == {"beta": "NO_DATA"}
    assert record["degraded"]
    with open_arrays(run.federated.round(1) / "replies" / "alpha.safetensors") as file:
        sent = file.all()
    found = final_arrays(run)
    assert_same_bits({name: found[name] for name in sent}, sent)


def test_a_site_without_labels_is_named_at_the_census(federation, capsys):
    """And on the page, so that whoever reads the numbers knows what they are of."""
    made = federation(
        {"sites": {"train": ["alpha", "beta"], "quorum": 1}, "pretraining.rounds": 1},
        lacks={"beta": ("age", "sex")},
    )
    run = made.simulate()
    wanted = "beta holds 40 scans and no label of age or sex"
    assert wanted in capsys.readouterr().err
    assert wanted in write_report(run).read_text()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every final model and of the results, by place in the run folder."""
    files = [*folder.rglob("final.safetensors"), folder / "results.csv"]
    return {str(file.relative_to(folder)): sha256(file) for file in files}


def test_same_study_data_and_seed_give_the_same_bytes(module_federation, everything):
    """A result that cannot be repeated cannot be checked."""
    first, second = module_federation(everything), module_federation(everything)
    found = digests(first.simulate().folder)
    assert len(found) == 6  # federated, pooled, three single sites, results.csv
    assert digests(second.simulate().folder) == found


def test_another_seed_gives_another_model(federation):
    """The seed reaches weights and batches: the equality above is not that of a constant."""
    made = federation()
    one, two = (arrays_of(build(made.study, seed=seed)) for seed in (1, 2))
    assert one["backbone.layers.0.weight"].tobytes() != two["backbone.layers.0.weight"].tobytes()
    first = final_arrays(made.simulate("seven"))
    made.changes["seed"] = 8
    second = final_arrays(made.simulate("eight"))
    name = "backbone.layers.0.weight"
    assert first[name].tobytes() != second[name].tobytes()


def sgd(study: Study, **more: Any) -> Any:
    return study.pretraining.model_copy(
        update={"optimiser": "sgd", "momentum": 0.0, "gradient_clip": 0.0, "schedule": "constant"}
        | {"batch_size": 8}
        | more
    )


def locally_trained(made: Any, steps: Any, *, mu: float, epochs: int = 3) -> tuple[Any, Any]:
    """The arrays before and after training at one site."""
    study = made.study
    agent = made.agent("alpha", study)
    network = build(study, seed=1)
    before = arrays_of(network)
    recipe = Recipe(
        steps=steps, rate=0.05, weight_decay=0.0, epochs=epochs, of=epochs, seed=5, proximal_mu=mu
    )
    train(network, agent.cohort, agent.cohort.indices("train", study.splits), recipe, CPU)
    return before, arrays_of(network)


def moved(before: dict[str, Any], after: dict[str, Any], names: Sequence[str]) -> float:
    return float(np.sqrt(sum(np.sum((after[n] - before[n]) ** 2.0) for n in names)))


def test_fedprox_moves_less_the_larger_mu_is(federation):
    """The pull is towards the round's global weights, and it grows."""
    made = federation({"aggregation": {"normalisation": "groupnorm"}})
    names = [name for name, _ in build(made.study, seed=1).named_parameters()]
    norms = [moved(*locally_trained(made, sgd(made.study), mu=mu), names) for mu in (0.0, 0.3, 3.0)]
    assert norms[0] > norms[1] > norms[2] > 0


def test_fedprox_vanishes_with_mu(federation):
    """At mu = 0 it is FedAvg bit for bit, and so it is where mu is too small for a float32."""
    made = federation({"aggregation": {"normalisation": "groupnorm"}})
    _, plain = locally_trained(made, sgd(made.study), mu=0.0)
    _, faint = locally_trained(made, sgd(made.study), mu=1e-12)
    _, strong = locally_trained(made, sgd(made.study), mu=0.1)
    assert_same_bits(plain, faint)
    assert plain["heads.age.weight"].tobytes() != strong["heads.age.weight"].tobytes()


def test_fedprox_gradient_is_the_formulas(federation):
    """w2 = w1 - rate (g(w1) + mu (w1 - w0)), with g the gradient of (xw + b - y)^2 / 2."""
    made = federation({
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask", "targets": ["age"], "regression_loss": "squared"},
    })  # fmt: skip
    study, rate, mu = made.study, 0.05, 2.5
    cohort = made.agent("alpha", study).cohort
    rows = cohort.indices("train", study.splits)
    network = build(study, seed=1)
    start = {"heads.age.weight": np.array([[0.9, -0.4, 0.2, 0.5]]), "heads.age.bias": np.ones(1)}
    load_arrays(network, {name: array.astype(np.float32) for name, array in start.items()})
    w = arrays_of(network)["heads.age.weight"].astype(np.float64)[0]
    b = float(arrays_of(network)["heads.age.bias"][0])
    x = np.asarray(cohort.samples[rows], np.float64)
    y = (cohort.labels["age"][rows].astype(np.float64) - 50) / 10
    w0, b0 = w.copy(), b
    for _ in range(2):
        error = x @ w + b - y
        gw = (error[:, None] * x).mean(0) + mu * (w - w0)
        gb = error.mean() + mu * (b - b0)
        w, b = w - rate * gw, b - rate * gb
    steps = sgd(study, batch_size=4096)
    recipe = Recipe(
        steps=steps, rate=rate, weight_decay=0.0, epochs=2, of=2, seed=1, proximal_mu=mu
    )
    train(network, cohort, rows, recipe, CPU)
    found = arrays_of(network)
    np.testing.assert_allclose(found["heads.age.weight"][0], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["heads.age.bias"][0], b, rtol=1e-5, atol=1e-6)
