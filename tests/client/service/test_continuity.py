"""Arrays that neither the study nor the rounds before can have led to are not trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.answer import Answer
from client.service.continuity import check_drawn, check_follows, check_joined
from client.service.report_cache import ReportCache, Trained
from client.site import Policy
from common.errors import Refusal
from common.network.building import arrays_of, build, plan_of
from common.network.settling import constants
from common.protocol.orders import Order, Report, digest_of
from common.seeding import seed_of

HEX = "0" * 64
POLICY = Policy()


@pytest.fixture
def study(federation: Any) -> Any:
    return federation({"sites": {"train": ["alpha"]}}).study


@pytest.fixture
def drawn(study: Any) -> dict[str, np.ndarray]:
    return arrays_of(build(study, seed=seed_of(study.seed, "initial")))


def refused(check: Any, *things: Any) -> bool:
    try:
        check(*things)
    except Refusal as refusal:
        assert refusal.code == "ORDER_MALFORMED"
        return True
    return False


def norm(arrays: Any) -> float:
    return float(np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in arrays)))


def away(arrays: Any, name: str, by: float) -> dict[str, np.ndarray]:
    """The arrays with one number of one of them moved."""
    changed = arrays[name].astype(np.float64)
    changed.flat[0] += by
    return {**arrays, name: changed.astype(arrays[name].dtype)}


# The first round.


def test_a_first_round_begins_with_what_the_seed_draws(study, drawn):
    """The control, and the seed: those of another one are anybody's."""
    assert not refused(check_drawn, study, drawn)
    other = arrays_of(build(study, seed=seed_of(study.seed + 1, "initial")))
    assert refused(check_drawn, study, other)
    assert refused(check_drawn, study, arrays_of(build(study, seed=study.seed)))


def test_every_array_of_a_first_round_is_looked_at(study, drawn):
    """One row of one layer is enough to single somebody out."""
    for name in drawn.keys() - constants(build(study, seed=0)):
        assert refused(check_drawn, study, away(drawn, name, 0.1)), name
        assert refused(check_drawn, study, away(drawn, name, np.nan)), name
        assert refused(check_drawn, study, away(drawn, name, np.inf)), name


def test_another_processors_rounding_is_no_other_beginning(study, drawn):
    """A sampler may differ in its last bits between machines; a planted number differs by more."""
    close = {
        name: (array * np.float32(1 + 1e-6)).astype(array.dtype) for name, array in drawn.items()
    }
    assert digest_of(close) != digest_of(drawn)
    assert not refused(check_drawn, study, close)
    assert refused(check_drawn, study, {n: a * np.float32(1.001) for n, a in drawn.items()})


def test_settled_constants_are_everyones_and_no_one_draws_them(study, drawn):
    """They were made of all sites' sums; a site cannot say alone what they come to."""
    names = constants(build(study, seed=0))
    assert names
    settled = {name: drawn[name] + np.float32(40) for name in names}
    assert not refused(check_drawn, study, {**drawn, **settled})


# Later rounds.


def round_of(number: int) -> Order:
    return Order(kind="train", study=HEX, run=HEX, site="alpha", round=number, arrays=HEX)


def sent(moved: float = 1.0, number: int = 1) -> Trained:
    return Trained(number, {"a": np.ones(4, np.float32), "b": np.zeros(2, np.float32)}, moved, "")


@pytest.mark.parametrize("since", [1, 2, 5])
@pytest.mark.parametrize("moved", [0.5, 2.0])
def test_later_arrays_lie_within_some_of_the_sites_own_steps(since, moved):
    """Everyone's mean moves about as far as each does, round by round; a plant lies anywhere."""
    trained, order = sent(moved, 3), round_of(3 + since)
    most = POLICY.largest_drift * moved * since
    for by, wrong in ((0.0, False), (0.999 * most, False), (1.001 * most, True), (np.nan, True)):
        arrays = away(trained.arrays, "b", by)
        assert refused(check_follows, order, arrays, trained, POLICY) == wrong, by


def test_a_site_that_barely_moved_does_not_hold_the_others_back():
    """One without news sends what it was given; the others' mean goes on all the same."""
    trained = sent(moved=0.0)
    step = 1e-3 * norm(trained.arrays.values())
    assert not refused(check_follows, round_of(2), away(trained.arrays, "b", 29 * step), trained,
                       POLICY)  # fmt: skip
    assert refused(
        check_follows, round_of(2), away(trained.arrays, "b", 31 * step), trained, POLICY
    )


def test_a_round_asked_again_counts_as_one():
    """Its own report may be of the very round that is judged from; that is no step of none."""
    assert not refused(check_follows, round_of(1), away(sent().arrays, "b", 29), sent(), POLICY)


def test_the_sites_own_number_decides_how_far():
    """A hospital may be stricter than is usual, or trust its coordinator."""
    arrays, trained = away(sent().arrays, "b", 5.0), sent()
    strict, trusting = Policy(largest_drift=4.9), Policy(largest_drift=0.0)
    assert refused(check_follows, round_of(2), arrays, trained, strict)
    assert not refused(check_follows, round_of(2), arrays, trained, POLICY)
    far = away(sent().arrays, "b", 1e6)
    assert not refused(check_follows, round_of(2), far, trained, trusting)


def test_arrays_that_nobody_trains_are_those_of_the_round_before() -> None:
    """They never leave a site, so nothing else would show that others were sent instead."""
    order = round_of(2).model_copy(update={"base": "1" * 64})
    assert refused(check_follows, order, sent().arrays, sent(), POLICY)


def test_a_site_that_comes_late_measures_from_the_first_arrays(study, drawn):
    """It has no report of its own; the largest update of any round is all that it can say."""
    policy = Policy(largest_update_norm=2.0)
    name, plan = "heads.age.bias", plan_of(build(study, seed=0), "average")
    for number, by, wrong in ((2, 1.9, False), (2, 2.1, True), (4, 5.9, False), (4, 6.1, True)):
        arrays = away(drawn, name, by)
        assert refused(check_joined, study, plan, round_of(number), arrays, policy) == wrong
    assert refused(check_joined, study, plan, round_of(2), away(drawn, name, np.nan), policy)
    unlimited = Policy(largest_update_norm=0.0)
    assert not refused(check_joined, study, plan, round_of(2), away(drawn, name, 1e6), unlimited)


# What is kept to measure by.


def kept(cache: ReportCache, number: int, moved: float) -> None:
    report = Report(order=HEX, site="alpha", kind="train", round=number)
    cache.keep(
        round_of(number), report, Answer(arrays={"a": np.full(3, number, np.float32)}), moved
    )


def test_the_last_report_before_a_round_is_what_is_measured_by(tmp_path):
    """Not one of the round itself, which is asked again after a crash."""
    cache = ReportCache(tmp_path)
    assert cache.trained("federated") is None
    kept(cache, 1, 0.25)
    kept(cache, 2, 1 / 3)
    for before, number, moved in ((3, 2, 1 / 3), (2, 1, 0.25), (99, 2, 1 / 3)):
        found = cache.trained("federated", before)
        assert found is not None
        assert (found.round, found.moved, found.arrays["a"][0]) == (number, moved, number)
    assert cache.trained("federated", 1) is None
    assert cache.trained("pooled", 3) is None


def test_a_damaged_report_gives_way_to_the_one_before(tmp_path):
    """A flipped bit must neither stop a site nor loosen what it checks."""
    cache = ReportCache(tmp_path)
    kept(cache, 1, 0.25)
    kept(cache, 2, 0.5)
    file = tmp_path / "federated" / "report-0002.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    found = cache.trained("federated")
    assert found is not None
    assert (found.round, found.moved) == (1, 0.25)
