"""Canaries in the product's own private training: what they show of it whole, and broken."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.learning.privacy.chance import Chance
from common.privacy.cost import cost_of
from common.sections import Pretraining
from deploy.audit.bounds import CONFIDENCE
from deploy.audit.canaries import Bounded, bounded
from deploy.audit.mechanism import Arena, Mechanism, by_turn
from tests.deploy.audit.breaks import (
    BREAKS,
    SAMPLED,
    WHOLE,
    Break,
    drawn_twice,
    everyone,
    intact,
    mechanism,
    no_clipping,
    noise_halved,
    two_names,
)

# one step over everybody: epsilon 2.7 at a delta of 0.01, where few games show much
ONCE = replace(mechanism(1.0, 256, 256, 1), delta=0.01)
ONCE_OF_MORE = replace(mechanism(1.0, 512, 512, 1), delta=0.01)
FEW = mechanism(1.0, 64, 512, 1)  # eight steps, one of eight in each: epsilon 2.4


def shown(mechanism: Mechanism, broken: Break, trainings: int) -> Bounded:
    with broken():
        arena, coins = Arena(mechanism), np.random.default_rng(3)
        played = [arena.play(coins) for _ in range(trainings)]
    found = bounded([{**one.scores, "inside": one.inside} for one in played], mechanism, CONFIDENCE)
    assert found is not None
    return found


@pytest.mark.parametrize("clipping", ["flat", "layers", "automatic"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_canary_pulls_by_one_clip_in_her_own_direction(
    clipping: str, optimiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise, each step shows exactly who is in; steps before it change nothing of that."""
    monkeypatch.setattr(Chance, "normal", lambda self, like, deviation: 0 * like)
    privacy = ONCE.privacy.model_copy(update={"clipping": clipping})
    steps = Pretraining(optimiser=optimiser, learning_rate=0.5)
    arena = Arena(replace(ONCE, privacy=privacy, passes=3, people=20, steps=steps))
    seen: list[Any] = []
    monkeypatch.setattr("deploy.audit.mechanism.SCORES", {"seen": lambda s, _: seen.append(s)})
    inside = arena.play(np.random.default_rng(0)).inside
    (sums,) = seen
    assert sums.shape == (3, 20)
    assert 0 < inside.sum() < 20
    # a little of her gradient is the bias's
    np.testing.assert_allclose(sums, np.where(inside, 0.99, 0.0)[None].repeat(3, 0), atol=0.01)


def test_it_is_accounted_for_as_a_site_is(federation: Any) -> None:
    """The claim that is attacked is the one that a site's ledger is charged with."""
    changes = {
        "privacy": {"unit": "participant", "people_per_step": 8, "noise": 2.0},
        "aggregation.normalisation": "groupnorm",
        "pretraining.local_epochs": 3,
    }
    study = federation(changes).study
    cost = cost_of(study, 30)
    found = Mechanism(privacy=study.privacy, people=30, passes=3, delta=cost.delta)
    assert found.cost == cost


def test_whoever_comes_in_turn_is_seen_in_her_turn_alone() -> None:
    """Of 4 people, 2 a step, the second pass over them is of the same two steps."""
    four = mechanism(1.0, 2, 4, 2)
    seen = np.array([[1, 10, 0, 0], [0, 0, 100, 0], [2, 20, 0, 0], [0, 0, 200, 1]], dtype=float)
    assert by_turn(seen, four).tolist() == [3, 30, 300, 1]


@pytest.mark.parametrize(
    ("case", "trainings"), [(ONCE, 40), (SAMPLED, 24)], ids=["everybody", "sampled"]
)
def test_what_is_whole_stays_below_its_claim(case: Mechanism, trainings: int) -> None:
    """And is not far below: an audit that finds nothing anywhere would be no audit."""
    found = shown(case, intact, trainings)
    assert 0.2 * case.epsilon < found.by_rates < case.epsilon
    assert 0 < found.by_one_run < case.epsilon


@pytest.mark.parametrize(
    ("case", "broken", "trainings"),
    [
        (ONCE, noise_halved, 80), (ONCE, no_clipping, 20), (ONCE, drawn_twice, 80),
        (ONCE_OF_MORE, two_names, 80), (FEW, everyone, 16),
    ],
    ids=["noise halved", "no clipping", "added twice", "two ids", "no Poisson sampling"],
)  # fmt: skip
def test_what_is_broken_is_found_out(case: Mechanism, broken: Break, trainings: int) -> None:
    """The lower bound lies above what accountants believe, with 95 % confidence."""
    assert shown(case, broken, trainings).by_rates > case.epsilon


def test_two_ids_break_nothing_where_each_person_has_one() -> None:
    """The seam itself changes nobody else: the same cohort without it is sound."""
    assert shown(ONCE_OF_MORE, nullcontext, 20).by_rates < ONCE_OF_MORE.epsilon


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKS)
def test_every_break_of_the_benchmark_is_found_out(name: str) -> None:
    """34,000 games; fixed batches among them, which a canary shows who knows her turn."""
    case, broken = BREAKS[name]
    assert shown(case, broken, 200).by_rates > case.epsilon


@pytest.mark.slow
@pytest.mark.parametrize("case", [SAMPLED, WHOLE], ids=["sampled", "whole"])
def test_the_benchmarks_settings_hold_where_nothing_is_broken(case: Mechanism) -> None:
    """The same games, the same attacker."""
    assert shown(case, intact, 200).by_rates < case.epsilon
