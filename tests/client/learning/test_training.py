"""Training at a site: what a missing label, a batch and a normalisation layer may do to weights."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data.cohort import Cohort
from client.data.loading import Batch, batches, split_evenly
from client.learning.prediction import predict, reestimate_statistics
from client.learning.training import Recipe, train
from client.service.agent import Agent
from common.network.building import arrays_of, build, load_arrays, plan_of
from common.network.loss import total_loss
from common.protocol.orders import Order
from common.protocol.wire import open_arrays
from common.seams import Terms
from common.seeding import seed_of
from common.study import Study
from server.federation.parcel import parcel_of

CPU = torch.device("cpu")
MEAN, VARIANCE = "backbone.layers.1.running_mean", "backbone.layers.1.running_var"
SCALE, SHIFT = "backbone.layers.1.weight", "backbone.layers.1.bias"
NAN = float("nan")


@pytest.fixture
def study(federation) -> Study:
    """Age, sex and a third class, without dropout: what comes out depends on the batch alone."""
    return federation({
        "sites": {"train": ["alpha"]},
        "backbone": {"name": "mlp", "hidden": [6], "dropout": 0.0},
        "aggregation.normalisation": "groupnorm",
        "targets.stage": {"kind": "categorical", "classes": ["a", "b", "c"], "weight": 0.25},
        "targets.sex.positive_weight": 3.0,
        "objective.targets": ["age", "sex", "stage"],
    }).study  # fmt: skip


def network_of(study: Study, seed: int = 1) -> Any:
    """The study's network with heads that are not zero, so that the backbone has a gradient."""
    network = build(study, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def batch_of(n: int, **labels: list[float]) -> Batch:
    x = torch.randn((n, 4), generator=torch.Generator().manual_seed(n))
    everyone = torch.arange(n)
    labels = {name: torch.tensor(values) for name, values in labels.items()}
    return Batch(x, labels, indices=everyone, participants=everyone)


def part_of(batch: Batch, chosen: list[int]) -> Batch:
    labels = {name: label[chosen] for name, label in batch.labels.items()}
    return Batch(batch.x[chosen], labels, batch.indices[chosen], batch.participants[chosen])


def gradients(network: Any, batch: Batch) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    total_loss(network.terms(batch.x, batch.labels), network.weights).backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def test_missing_labels_contribute_nothing(study):
    """The gradient is that of the batch from which the unlabelled samples were never drawn."""
    network = network_of(study)
    whole = batch_of(
        6,
        age=[40.0, NAN, 61.0, NAN, NAN, 33.0],
        sex=[NAN] * 6,
        stage=[NAN] * 6,
    )
    known = [0, 2, 5]
    part = part_of(whole, known)
    found, wanted = gradients(network, whole), gradients(network, part)
    for name, gradient in found.items():
        assert torch.isfinite(gradient).all(), name
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)
    assert found["backbone.layers.0.weight"].abs().max() > 0.01
    assert not found["heads.sex.weight"].any()
    assert not found["heads.stage.bias"].any()


def test_each_target_leaves_out_its_own_missing_labels(study):
    """A person without a diagnosis still has an age: targets are masked one by one."""
    network = network_of(study)
    labels = {
        "age": [40.0, NAN, 61.0, 25.0],
        "sex": [1.0, 0.0, NAN, NAN],
        "stage": [NAN, 2.0, NAN, NAN],
    }
    together = gradients(network, batch_of(4, **labels))
    summed = {name: torch.zeros_like(gradient) for name, gradient in together.items()}
    for target in labels:
        alone = {name: labels[name] if name == target else [NAN] * 4 for name in labels}
        for name, gradient in gradients(network, batch_of(4, **alone)).items():
            summed[name] += gradient
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-5, atol=1e-6)


def test_batch_without_any_label_moves_nothing(study):
    """Zero labels over max(1, 0) is zero; 0 / 0 would make the whole network NaN."""
    network = network_of(study)
    batch = batch_of(3, age=[NAN] * 3, sex=[NAN] * 3, stage=[NAN] * 3)
    assert not any(gradient.any() for gradient in gradients(network, batch).values())
    assert total_loss(network.terms(batch.x, batch.labels), network.weights).item() == 0


def test_loss_is_the_formula(study):
    """L = sum_t w_t [sum_i m_it l_t(i)] / max(1, sum_i m_it), by hand in plain Python."""
    network = network_of(study)
    labels = {
        "age": [40.0, NAN, 75.0, 52.0],
        "sex": [1.0, 0.0, NAN, 1.0],
        "stage": [NAN, 2.0, NAN, 0.0],
    }
    batch = batch_of(4, **labels)
    outputs = {name: values.tolist() for name, values in network(batch.x).items()}
    age = []
    for (output,), label in zip(outputs["age"], labels["age"], strict=True):
        if not math.isnan(label):
            e = output - (label - 50.0) / 10.0
            age.append(e * e / 2 if abs(e) <= 1 else abs(e) - 0.5)  # Huber with delta 1
    sex = []
    for (logit,), label in zip(outputs["sex"], labels["sex"], strict=True):
        if not math.isnan(label):
            chance = 1 / (1 + math.exp(-logit))
            sex.append(-3.0 * math.log(chance) if label else -math.log(1 - chance))
    stage = []
    for logits, label in zip(outputs["stage"], labels["stage"], strict=True):
        if not math.isnan(label):
            total = sum(math.exp(logit) for logit in logits)
            stage.append(-math.log(math.exp(logits[int(label)]) / total))
    wanted = sum(age) / 3 + 0.5 * sum(sex) / 3 + 0.25 * sum(stage) / 2
    found = total_loss(network.terms(batch.x, batch.labels), network.weights).item()
    assert found == pytest.approx(wanted, rel=1e-5)


def test_uncounted_value_is_never_read():
    """An objective may leave anything in an uncounted place; 0 * inf would be NaN."""
    values = torch.tensor([2.0, float("inf"), 4.0], requires_grad=True)
    term = Terms(values=values, counted=torch.tensor([True, False, True]))
    loss = total_loss({"age": term}, {"age": 1.5})
    loss.backward()
    assert loss.item() == 4.5
    assert values.grad.tolist() == [0.75, 0.0, 0.75]


@given(st.integers(1, 300), st.integers(1, 64))
def test_batches_are_even_and_never_of_one(n, batch_size):
    """Batch normalisation fails on one sample, and a small last batch would count for more."""
    indices = np.arange(100, 100 + n)
    parts = split_evenly(indices, batch_size)
    assert np.array_equal(np.concatenate(parts), indices)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if n > 1:
        assert min(sizes) >= 2
    if batch_size >= 3:
        assert max(sizes) <= batch_size
        assert len(sizes) == -(-n // batch_size) or min(sizes) >= 2


def test_batches_hold_what_their_indices_say(federation):
    """Samples and labels must stay together through the reading thread."""
    made = federation({"sites": {"train": ["alpha"]}})
    cohort = made.agent("alpha").cohort
    order = split_evenly(np.random.default_rng(3).permutation(40), 7)
    seen = list(batches(cohort, order, CPU))
    assert len(seen) == len(order)
    for chosen, batch in zip(order, seen, strict=True):
        np.testing.assert_array_equal(batch.x.numpy(), cohort.samples[chosen])
        np.testing.assert_array_equal(batch.indices.numpy(), chosen)
        for name, values in batch.labels.items():
            np.testing.assert_array_equal(values.numpy(), cohort.labels[name][chosen])


def test_batches_say_whose_their_samples_are(federation):
    """A gradient of one's own, and every count of people, needs equal numbers for one person."""
    cohort = _cohort_of(federation().study, 12)
    people = ("c", "a", "c", "b", "a", "c", "d", "b", "a", "c", "e", "c")
    cohort = replace(cohort, participants=people)
    order = split_evenly(np.random.default_rng(3).permutation(12), 5)
    numbers: dict[str, set[int]] = {}
    for batch in batches(cohort, order, CPU):
        for index, person in zip(batch.indices.tolist(), batch.participants.tolist(), strict=True):
            numbers.setdefault(people[index], set()).add(person)
    assert [len(found) for found in numbers.values()] == [1] * 5
    assert len(set.union(*numbers.values())) == 5


@pytest.mark.parametrize("n", [1, 63, 64, 65, 130])
def test_predictions_do_not_depend_on_batches(federation, n):
    """A participant's predicted age must not depend on who else is in the table, nor on dropout."""
    study = federation({"aggregation.normalisation": "average", "backbone.dropout": 0.5}).study
    cohort = _cohort_of(study, n)
    network = network_of(study)
    together = predict(network, cohort, np.arange(n), CPU)
    alone = [predict(network, cohort, np.array([i]), CPU)["age"][0] for i in range(n)]
    np.testing.assert_allclose(together["age"], alone, rtol=1e-5, atol=1e-4)
    assert predict(network, cohort, np.arange(0), CPU) == {}


def _cohort_of(study: Study, n: int) -> Any:
    random = np.random.default_rng(n)
    return Cohort(
        samples=random.normal(size=(n, 4)).astype(np.float32),
        participants=tuple(f"p{i}" for i in range(n)),
        scans=tuple(f"p{i}" for i in range(n)),
        labels={name: np.full(n, np.nan, np.float32) for name in study.targets},
        measures=None,
        layout="table",
        findings=(),
        contents=tuple(f"c{i}" for i in range(n)),
        secrets=("",) * n,
    )


# --- normalisation policies -------------------------------------------------------------------

TRAVELS = {
    "average": {SCALE, SHIFT, MEAN, VARIANCE},
    "silobn": {SCALE, SHIFT},
    "fedbn": {SCALE, SHIFT, MEAN, VARIANCE},
    "groupnorm": {SCALE, SHIFT},
}
KEPT = {
    "average": set(),
    "silobn": {MEAN, VARIANCE},
    "fedbn": {SCALE, SHIFT, MEAN, VARIANCE},
    "groupnorm": set(),
}
POLICIES = sorted(TRAVELS)


def under(policy: str, **more: Any) -> dict[str, Any]:
    return {
        "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
        "objective.targets": ["age"],
        "aggregation.normalisation": policy,
        "evaluation.head": False,
        **more,
    }


def order_for(agent: Agent, arrays: Any, number: int, kind: str = "train", **more: Any) -> Order:
    policy = agent.study.aggregation.normalisation
    parcel = parcel_of(arrays, plan_of(build(agent.study, seed=0), policy))
    return Order.model_validate({
        "kind": kind,
        "study": agent.study.digest,
        "run": "cd" * 32,
        "site": agent.site.name,
        "round": number,
        **parcel.digests,
        **more,
    })  # fmt: skip


def normalising(names: Any) -> set[str]:
    return {name for name in names if name.startswith("backbone.layers.1.")}


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_decides_what_travels_and_what_is_kept(federation, policy):
    """Each policy is a promise to the site about which numbers of its scanner leave."""
    agent = federation(under(policy)).agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    report, sent = agent.answer(order_for(agent, arrays, 1), arrays)
    assert report.refusal == ""
    assert normalising(sent) == TRAVELS[policy]
    own = list((agent.site.state / "runs").rglob("own-0001.safetensors"))
    if not KEPT[policy]:
        assert own == []
        return
    with open_arrays(own[0]) as file:
        assert set(file.names()) == KEPT[policy]


@pytest.mark.parametrize("policy", ["silobn", "fedbn"])
def test_kept_arrays_go_on_from_the_sites_own(federation, policy):
    """Round 2 starts from the site's own layers, whatever the global arrays hold in their place."""
    agent = federation(under(policy)).agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    _, first = agent.answer(order_for(agent, arrays, 1), arrays)
    own = next((agent.site.state / "runs").rglob("own-0001.safetensors"))
    with open_arrays(own) as file:
        kept = file.all()

    following = {**arrays, **first}
    strange = {name: following[name] + np.float32(7) for name in kept}  # another scanner's
    _, second = agent.answer(order_for(agent, following | strange, 2), following | strange)

    network = build(agent.study, seed=0)
    load_arrays(network, {**following, **kept})
    settings = agent.study.pretraining
    recipe = Recipe(
        steps=settings, rate=settings.learning_rate, weight_decay=settings.weight_decay,
        first=1, epochs=1, of=2, seed=seed_of(agent.study.seed, "train", "alpha", 2),
    )  # fmt: skip
    assert (settings.rounds, settings.local_epochs) == (2, 1)
    train(network, agent.cohort, agent.cohort.indices("train", agent.study.splits), recipe, CPU)
    wanted = arrays_of(network)
    for name, array in second.items():
        assert array.tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize("policy", ["silobn", "fedbn"])
def test_round_asked_again_starts_from_the_state_before_it(federation, policy):
    """After a crash round 2 is repeated: its own layers must not have moved in between."""
    agent = federation(under(policy)).agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    agent.answer(order_for(agent, arrays, 1), arrays)
    _, first = agent.answer(order_for(agent, arrays, 2), arrays)
    for path in (agent.site.state / "runs").rglob("report-*.safetensors"):
        path.unlink()
    _, again = agent.answer(order_for(agent, arrays, 2), arrays)
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


def test_average_starts_from_the_global_layers(federation):
    """The control of the above: under `average` nothing of the site's own survives a round."""
    agent = federation(under("average")).agent("alpha")
    arrays = arrays_of(build(agent.study, seed=seed_of(agent.study.seed, "initial")))
    agent.answer(order_for(agent, arrays, 1), arrays)
    shifted = {**arrays, MEAN: arrays[MEAN] + np.float32(1)}
    _, plain = agent.answer(order_for(agent, arrays, 2), arrays)
    _, moved = agent.answer(order_for(agent, shifted, 2), shifted)
    assert plain[MEAN].tobytes() != moved[MEAN].tobytes()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("statistics", ["shared", "reestimated"])
def test_unseen_site_can_judge_under_every_policy(federation, policy, statistics):
    """A backbone that only works where it was trained is no backbone."""
    made = federation(under(policy, **{
        "evaluation.statistics": statistics,
        "pretraining": {"rounds": 8, "batch_size": 8, "learning_rate": 0.05},
    }), participants={"alpha": 60, "beta": 60, "omega": 20})  # fmt: skip
    run = made.simulate()
    with (run.folder / "results.csv").open() as stream:
        rows = {
            row["model"]: float(row["value"])
            for row in csv.DictReader(stream)
            if row["site"] == "omega" and row["metric"] == "mae"
        }
    assert rows["federated"] < rows["constant"]  # it learnt, and carries over


def test_shared_and_reestimated_statistics_differ_and_are_what_they_say(federation):
    """`reestimated` is the mean and variance of this site's own scans, labels playing no part."""
    made = federation(under("average"))
    agent = made.agent("omega")
    network = build(agent.study, seed=2)
    before = arrays_of(network)
    everyone = np.arange(len(agent.cohort))
    reestimate_statistics(network, agent.cohort, everyone, CPU)
    after = arrays_of(network)
    x = torch.from_numpy(np.array(agent.cohort.samples))
    first = network.backbone.layers[0](network.backbone.standardise(x)).detach().double()
    np.testing.assert_allclose(after[MEAN], first.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[VARIANCE], first.var(0), rtol=1e-5, atol=1e-6)
    for name in before:
        changed = before[name].tobytes() != after[name].tobytes()
        assert changed == (name in {MEAN, VARIANCE}), name


@pytest.mark.parametrize("policy", POLICIES)
def test_plan_says_what_travels_and_what_is_kept(federation, policy):
    """Both ends build the plan for themselves: it is the contract of a report."""
    plan = plan_of(build(federation(under(policy)).study, seed=0), policy)
    assert normalising(name for name, rule in plan.items() if rule.travels) == TRAVELS[policy]
    assert {name for name, rule in plan.items() if rule.kept} == KEPT[policy]
    assert not plan["backbone.standardise.mean"].travels
    assert all(plan[name].role == "statistic" for name in {MEAN, VARIANCE} & plan.keys())
    assert plan[SCALE].role == "parameter"


@pytest.mark.parametrize("optimiser", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_server_optimisers_never_give_a_negative_variance(federation, optimiser):
    """A negative running variance makes every later prediction NaN, at every site."""
    made = federation({
        "sites": {"train": ["alpha", "beta"]},
        "aggregation": {"server_optimiser": optimiser, "learning_rate": 2.0},
        "pretraining": {"rounds": 12, "batch_size": 8, "learning_rate": 0.02},
    })  # fmt: skip
    run = made.simulate()
    with open_arrays(run.federated.final) as file:
        arrays = file.all()
    assert float(arrays[f"model/{VARIANCE}"].min()) > 0
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert [record["refused"] for record in run.federated.records()] == [{}] * 12
