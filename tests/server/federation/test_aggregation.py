"""Reports become the next arrays as Flower's own strategies say, group by group, one at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy
from hypothesis import given
from hypothesis import strategies as st

from common import arrays as arrays_module
from common.arrays import Arrays
from common.network.plan import Plan, Role, Rule
from common.sections import Aggregation
from server.federation.aggregation import Contribution, aggregate

# in name order: Flower's FedAvgM pairs arrays by position
SHAPES = {"backbone.bias": (5,), "backbone.weight": (5, 3), "heads.age.weight": (1, 5)}
FLOWER: dict[str, tuple[type[Strategy], dict[str, float], dict[str, float]]] = {
    # our name: Flower's class, our settings, the same settings in Flower's words
    "fedavg": (FedAvg, {}, {}),
    "fedavgm": (
        FedAvgM,
        {"learning_rate": 0.7, "momentum": 0.8},
        {"server_learning_rate": 0.7, "server_momentum": 0.8},
    ),
    "fedadam": (
        FedAdam,
        {"learning_rate": 0.05, "beta_1": 0.85, "beta_2": 0.97, "tau": 0.01},
        {"eta": 0.05, "beta_1": 0.85, "beta_2": 0.97, "tau": 0.01},
    ),
    "fedyogi": (
        FedYogi,
        {"learning_rate": 0.05, "beta_1": 0.85, "beta_2": 0.97, "tau": 0.01},
        {"eta": 0.05, "beta_1": 0.85, "beta_2": 0.97, "tau": 0.01},
    ),
    "fedadagrad": (
        FedAdagrad,
        {"learning_rate": 0.05, "tau": 0.01},
        {"eta": 0.05, "tau": 0.01},
    ),
}


def rule(shape: Sequence[int] = (2,), group: str = "shared", role: Role = "parameter") -> Rule:
    return Rule(shape=tuple(shape), dtype="float32", group=group, role=role, kept=False)


def settings(server_optimiser: str = "fedavg", **more: Any) -> Aggregation:
    return Aggregation.model_validate({"server_optimiser": server_optimiser, **more})


def averaged(*arguments: Any) -> tuple[Arrays, Arrays]:
    found = aggregate(*arguments)
    return found.arrays, found.state


def contribution(site: str, support: Mapping[str, float], arrays: Arrays) -> Contribution:
    return Contribution(site=site, support=support, read=arrays.__getitem__)


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def same_bits(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def flower_reply(arrays: Arrays, weight: int) -> Message:
    """Flower's own way to test a strategy; float64, so that it sums as precisely as we do."""
    record = {name: Array(array.astype(np.float64)) for name, array in arrays.items()}
    content = RecordDict(
        {"arrays": ArrayRecord(record), "metrics": MetricRecord({"num-examples": weight})}
    )
    reply = Mock(spec=Message)
    reply.content = content
    reply.has_error.side_effect = lambda: False
    reply.has_content.side_effect = lambda: True
    return reply


@pytest.mark.parametrize("name", FLOWER)
def test_five_rounds_are_those_of_flowers_strategy(name):
    """Whoever reads `fedyogi` in a paper gets that, not our reading of it."""
    kind, ours, theirs = FLOWER[name]
    oracle = kind(fraction_train=0.0, fraction_evaluate=0.0, **theirs)
    plan = {array: rule(shape) for array, shape in SHAPES.items()}
    current, state = drawn(0), {}
    for number in range(1, 6):
        sites = {site: drawn(10 * number + i) for i, site in enumerate("abc")}
        weights = {"a": 3, "b": 50, "c": 17}
        before = ArrayRecord({k: Array(v.astype(np.float64)) for k, v in current.items()})
        oracle.current_arrays = None  # sites get float32: both start the round from the same
        oracle.configure_train(number, before, ConfigRecord(), Mock())
        wanted, _ = oracle.aggregate_train(
            number, [flower_reply(arrays, weights[site]) for site, arrays in sites.items()]
        )
        current, state = averaged(
            plan,
            current,
            [contribution(site, {"shared": weights[site]}, sites[site]) for site in "abc"],
            settings(name, **ours),
            state,
            number,
        )
        for array, found in current.items():
            rounded = wanted[array].numpy().astype(np.float32)
            if name == "fedavg":
                np.testing.assert_array_equal(found, rounded)
            else:  # float64 sums in another order: at most the neighbouring float32
                np.testing.assert_array_max_ulp(found, rounded, maxulp=1)


def test_each_array_is_averaged_by_its_own_support():
    """A site with many scans and few labels must not decide a head it hardly knows."""
    shapes = {"backbone.w": (4,), "heads.age.weight": (3,), "heads.sex.weight": (2,)}
    plan: Plan = {
        "backbone.w": rule((4,)),
        "heads.age.weight": rule((3,), "labels/age"),
        "heads.sex.weight": rule((2,), "labels/sex"),
    }
    support = {
        "a": {"shared": 100, "labels/age": 2, "labels/sex": 90},
        "b": {"shared": 10, "labels/age": 9, "labels/sex": 0},
        "c": {"shared": 31, "labels/age": 30, "labels/sex": 7},
    }
    sites = {site: drawn(i, shapes) for i, site in enumerate("abc")}
    found, _ = averaged(
        plan,
        drawn(9, shapes),
        [contribution(site, support[site], sites[site]) for site in "abc"],
        settings(),
        {},
        1,
    )
    for name, described in plan.items():
        total, count = np.zeros(shapes[name]), 0
        for site in "abc":
            for _ in range(support[site][described.group]):  # one term a scan or label
                total += sites[site][name].astype(np.float64)
                count += 1
        np.testing.assert_array_max_ulp(found[name], (total / count).astype(np.float32), maxulp=1)


def test_site_without_labels_does_not_move_the_head():
    """Its head never trained: averaging it in would pull everyone's towards the old one."""
    plan = {"heads.age.weight": rule((3,), "labels/age")}
    shapes = {"heads.age.weight": (3,)}
    knows = contribution("a", {"shared": 5, "labels/age": 5}, drawn(1, shapes))
    knows_not = contribution("b", {"shared": 500, "labels/age": 0}, drawn(2, shapes))
    absent = contribution("c", {"shared": 500}, drawn(3, shapes))
    found, _ = averaged(plan, drawn(0, shapes), [knows, knows_not, absent], settings(), {}, 1)
    assert same_bits(found, drawn(1, shapes))


@pytest.mark.parametrize("name", FLOWER)
def test_head_that_nobody_knows_keeps_its_bits_and_its_moments(name):
    """With momentum, a head would otherwise drift on from labels that nobody has any more."""
    plan = {"heads.age.weight": rule((3,), "labels/age"), "backbone.w": rule((4,))}
    shapes = {"heads.age.weight": (3,), "backbone.w": (4,)}
    known = {"shared": 5, "labels/age": 5}
    first, moments = averaged(
        plan,
        drawn(0, shapes),
        [contribution("a", known, drawn(1, shapes))],
        settings(name),
        {},
        1,
    )
    unknown = {"shared": 5, "labels/age": 0}
    found, later = averaged(
        plan, first, [contribution("a", unknown, drawn(2, shapes))], settings(name), moments, 2
    )
    head = "heads.age.weight"
    assert found[head].tobytes() == first[head].tobytes()
    assert found["backbone.w"].tobytes() != first["backbone.w"].tobytes()
    own = {key for key in moments if key.endswith(head)}
    assert bool(own) == (name != "fedavg")
    assert all(later[key].tobytes() == moments[key].tobytes() for key in own)


@given(st.permutations("abcdef"), st.sampled_from(sorted(FLOWER)))
def test_order_of_contributions_does_not_change_a_bit(order, name):
    """Replies come as hospitals finish; a run must not depend on whose GPU was busy."""
    # magnitudes far apart: sums of near ones are exact in float64, in whatever order
    sites = {
        site: {name: array * np.float32(1000.0 ** (i - 3)) for name, array in drawn(i).items()}
        for i, site in enumerate("abcdef")
    }
    plan = {array: rule(shape) for array, shape in SHAPES.items()}

    def in_order(names: Sequence[str]) -> tuple[Arrays, Arrays]:
        terms = [contribution(site, {"shared": 3 + 7 * ord(site)}, sites[site]) for site in names]
        return averaged(plan, drawn(99), terms, settings(name), {}, 1)

    (arrays, moments), (wanted, wanted_moments) = in_order(order), in_order("abcdef")
    assert same_bits(arrays, wanted)
    assert same_bits(moments, wanted_moments)


def test_averaged_statistics_are_those_of_all_samples_together():
    """Sites two deviations apart would otherwise lend unseen sites too small a variance."""
    random = np.random.default_rng(4)
    sizes = {"a": 30, "b": 50, "c": 120}
    samples = {
        site: random.normal(2 * n, 1 + n, (size, 3)) for n, (site, size) in enumerate(sizes.items())
    }
    names = ("bn.running_mean", "bn.running_var")
    plan = {name: rule((3,), role="statistic") for name in names}
    plan["other.running_var"] = rule((3,), role="statistic")  # of no mean that anybody sends
    contributions = [
        contribution(site, {"shared": len(of)}, {
            "bn.running_mean": of.mean(0), "bn.running_var": of.var(0),
            "other.running_var": of.var(0),
        })
        for site, of in samples.items()
    ]  # fmt: skip
    now = {name: np.zeros(3, np.float32) for name in plan}
    found, _ = averaged(plan, now, contributions, settings(), {}, 1)
    everyone = np.concatenate(list(samples.values()))
    np.testing.assert_allclose(found["bn.running_mean"], everyone.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["bn.running_var"], everyone.var(0), rtol=1e-6)
    within = sum(len(of) * of.var(0) for of in samples.values()) / len(everyone)
    np.testing.assert_allclose(found["other.running_var"], within, rtol=1e-6)
    assert (found["bn.running_var"] > 1.2 * within).all()
    alone, _ = averaged(plan, now, contributions[:1], settings(), {}, 1)
    assert alone["bn.running_var"].tobytes() == samples["a"].var(0).astype(np.float32).tobytes()


@pytest.mark.parametrize("name", FLOWER)
def test_statistics_never_meet_the_server_optimiser(name):
    """Momentum on a running variance can make it negative, and every prediction NaN."""
    plan = {
        "running_var": rule((4,), role="statistic"),
        "backbone.w": rule((4,)),
    }
    shapes = {"running_var": (4,), "backbone.w": (4,)}
    now, state = drawn(0, shapes), {}
    for number in range(1, 4):
        a, b = drawn(number, shapes), drawn(50 + number, shapes)
        now, state = averaged(
            plan,
            now,
            [contribution("a", {"shared": 1}, a), contribution("b", {"shared": 3}, b)],
            settings(name),
            state,
            number,
        )
        plain = (a["running_var"].astype(np.float64) + 3 * b["running_var"].astype(np.float64)) / 4
        np.testing.assert_array_equal(now["running_var"], plain.astype(np.float32))
    assert not [key for key in state if key.endswith("running_var")]


@pytest.mark.parametrize("role", ["statistic", "parameter"])
@pytest.mark.parametrize("name", FLOWER)
def test_positive_variances_stay_positive_where_plain_arrays_may_not(name, role):
    """The reason for the rule above: the same numbers as a parameter do fall below zero."""
    plan = {"running_var": rule((2,), role=role)}
    now: Arrays = {"running_var": np.array([5.0, 4.0], np.float32)}
    state: Arrays = {}
    steep = {} if name == "fedavg" else {"learning_rate": 8.0}
    lowest = np.inf
    for number in range(1, 6):
        shrunk = {"running_var": now["running_var"] * np.float32(0.1)}
        if shrunk["running_var"].min() < 0:
            break
        term = contribution("a", {"shared": 3}, shrunk)
        now, state = averaged(plan, now, [term], settings(name, **steep), state, number)
        lowest = min(lowest, float(now["running_var"].min()))
    if role == "statistic" or name == "fedavg":
        assert lowest > 0
    else:
        assert lowest < 0


@given(
    st.sampled_from([1, 3, 7, 49, 1_000_003, 2**29 - 1]),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
)
def test_one_contribution_comes_back_bit_for_bit(weight, values):
    """One site alone is its own training, to the last bit, whatever it weighs."""
    array = np.array(values, dtype=np.float32)
    plan = {"w": rule(array.shape)}
    found, _ = averaged(
        plan,
        {"w": np.zeros_like(array)},
        [contribution("a", {"shared": weight}, {"w": array})],
        settings(),
        {},
        1,
    )
    assert found["w"].tobytes() == array.tobytes()


def test_arrays_that_do_not_travel_stay_as_they_are():
    """A site's own and frozen arrays are in no report: reading them would fail the round."""
    plan = {"own": rule(group="site", role="statistic"), "fixed": rule(group="frozen")}
    now = drawn(0, {"own": (2,), "fixed": (2,)})
    found, state = averaged(
        plan,
        now,
        [contribution("a", {"shared": 4, "site": 4, "frozen": 4}, {})],
        settings("fedadam"),
        {},
        1,
    )
    assert same_bits(found, now)
    assert not state


def test_memory_does_not_grow_with_sites():
    """A coordinator of 64 hospitals needs no bigger machine than one of 4."""
    plan = {f"layer{i}": rule((250_000,)) for i in range(4)}  # 1 MB each
    now = drawn(0, dict.fromkeys(plan, (250000,)))

    def peak(sites: int) -> int:
        def read(name: str) -> np.ndarray:
            return np.full(250_000, 0.5, dtype=np.float32)  # from disk, as in a round

        terms = [
            Contribution(site=f"s{i:02d}", support={"shared": i + 1}, read=read)
            for i in range(sites)
        ]
        tracemalloc.start()
        aggregate(plan, now, terms, settings(), {}, 1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(4), peak(64)
    assert many < few + 500_000  # 60 more sites cost less than half of one array


@pytest.mark.parametrize("name", FLOWER)
def test_blocks_of_an_array_are_averaged_as_the_whole(name, monkeypatch):
    """Large arrays are read by rows so that memory holds a few; the bits must not show it."""
    plan = {"w": rule((7, 3)), "n": rule(()), "none": rule((0, 3))}
    shapes = {array: described.shape for array, described in plan.items()}
    terms = [
        contribution(site, {"shared": 3 + i}, drawn(i, shapes)) for i, site in enumerate("abc")
    ]
    before = {f"{which}/{n}": np.abs(a) for which in "mv" for n, a in drawn(8, shapes).items()}
    whole = aggregate(plan, drawn(9, shapes), terms, settings(name), before, 2)
    monkeypatch.setattr(arrays_module, "_BLOCK", 6)
    assert len(list(arrays_module.blocks((7, 3)))) == 4
    parts = aggregate(plan, drawn(9, shapes), terms, settings(name), before, 2)
    assert same_bits(parts.arrays, whole.arrays)
    assert same_bits(parts.state, whole.state)
    moved = arrays_module.norm_of_difference(whole.arrays, drawn(9, shapes))
    assert parts.moved == pytest.approx(moved)
