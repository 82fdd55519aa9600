"""Lower bounds of epsilon: never above the truth more often than they say, and not far below it."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deploy.audit.bounds import Cut, best_cut, best_guesses, by_one_run, by_rates

GAMES = 4000


def coin_flips(epsilon: float, chance: np.random.Generator, games: int = GAMES):
    """Randomised response: right with odds e^epsilon, so (epsilon, 0)-private and no better."""
    inside = chance.random(games) < 0.5
    right = chance.random(games) < 1 / (1 + exp(-epsilon))
    return np.where(right, inside, ~inside).astype(float), inside


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_bounds_are_above_the_truth_as_seldom_as_they_say(epsilon: float) -> None:
    """The false alarm of an audit: at most one in twenty audits of a sound mechanism."""
    chance, above = np.random.default_rng(4), np.zeros(2)
    cut, tried = Cut(at=0.5, inward=True), 300
    found = []
    for _ in range(tried):
        scores, inside = coin_flips(epsilon, chance)
        half = GAMES // 2 - 100
        pair = by_rates(cut, scores, inside, 0.0), by_one_run(scores, inside, 0.0, (half, half))
        above += np.array(pair) > epsilon
        found.append(pair)
    assert (above <= stats.binom.ppf(0.999, tried, 0.05)).all()
    assert (np.mean(found, axis=0) > 0.8 * epsilon - 0.1).all()


def test_rates_are_clopper_and_pearsons() -> None:
    """By hand: 30 hits of 100 and 2 false alarms of 200, each at 97.5 %, delta taken off the hits."""
    inside = np.arange(300) < 100
    scores = np.zeros(300)
    scores[[*range(30), 150, 250]] = 1
    least, most = stats.beta.ppf(0.025, 30, 71), stats.beta.ppf(0.975, 3, 198)
    found = by_rates(Cut(at=0.5, inward=True), scores, inside, 0.01)
    assert found == pytest.approx(log((least - 0.01) / most))
    assert found < by_rates(Cut(at=0.5, inward=True), scores, inside, 0.0)


def test_one_run_without_delta_is_a_binomial_tail() -> None:
    """At the bound, so many right guesses had a chance of one in twenty."""
    inside = np.arange(200) % 2 == 0
    scores = inside.astype(float)
    scores[:40] = 1 - scores[:40]  # wrong guesses
    found = by_one_run(scores, inside, 0.0, (100, 100))
    chance = stats.binom.sf(160 - 1, 200, 1 / (1 + exp(-found)))
    assert chance == pytest.approx(0.05, abs=1e-3)


def test_one_run_pays_for_delta() -> None:
    """A mechanism may show everything with a chance of delta: that is no epsilon."""
    scores, inside = coin_flips(2.0, np.random.default_rng(0))
    bounds = [by_one_run(scores, inside, delta, (1000, 1000)) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[2] + 0.01
    assert bounds[3] == 0.0


@given(right=st.integers(0, 60), more=st.integers(0, 40), delta=st.floats(0, 1e-3))
def test_more_right_guesses_never_show_less(right: int, more: int, delta: float) -> None:
    """Else a better attack would look like a better defence."""

    def bound(n: int) -> float:
        inside = np.zeros(200, dtype=bool)
        inside[:n] = True  # of the hundred that are guessed in
        return by_one_run(-np.arange(200.0), inside, delta, (100, 0))

    assert bound(right) <= bound(right + more)


@pytest.mark.parametrize("inward", [True, False])
def test_the_cut_is_where_and_which_way_it_pays(inward: bool) -> None:
    """A tenth of one sort stand out at one end; nothing else tells."""
    chance = np.random.default_rng(1)
    inside = chance.random(20_000) < 0.5
    scores = chance.normal(size=20_000)
    apart = (inside == inward) & (chance.random(20_000) < 0.1)
    scores[apart] = 6.0 if inward else -6.0
    cut = best_cut(scores, inside, 1e-5)
    assert cut.inward is inward
    assert 3 < abs(cut.at) <= 6
    assert by_rates(cut, scores, inside, 1e-5) > 3


def test_guesses_are_made_where_they_are_right() -> None:
    """Who stands out is guessed, and of the others nobody."""
    chance = np.random.default_rng(2)
    inside = chance.random(4000) < 0.5
    scores = chance.normal(size=4000) + np.where(inside & (chance.random(4000) < 0.1), 8.0, 0.0)
    high, low = best_guesses(scores, inside, later=8000)
    assert 100 < high < 600
    assert low <= 200
    assert by_one_run(scores, inside, 0.0, (high // 2, low // 2)) > 2


def test_nothing_is_shown_by_nobody() -> None:
    """No games of a sort, no hits, more guesses wrong than right: the bound is 0, never an error."""
    everyone, nobody = np.ones(50, dtype=bool), np.zeros(50, dtype=bool)
    for inside in (everyone, nobody):
        assert by_rates(Cut(at=0.5, inward=True), np.zeros(50), inside, 0.0) == 0.0
    assert by_one_run(np.arange(50.0), nobody, 0.0, (50, 0)) == 0.0
    assert by_rates(Cut(at=9.0, inward=True), np.zeros(50), np.arange(50) < 25, 0.0) == 0.0
