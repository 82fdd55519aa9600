"""Epsilon is what Opacus, Google and the formula say, an upper bound, and never a surprise."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from common.privacy import accounting
from common.privacy.accounting import epsilon, noise_for, rounds_for, tighter_epsilon
from common.privacy.cost import Cost

ROOT = Path(__file__).parents[3]
DELTA = 1e-5


def cost(noise: float, rate: float, steps: int) -> Cost:
    return Cost(noise=noise, rate=rate, steps=steps, delta=DELTA)


KNOWN = cost(1.0, 0.01, 1000)
GRID = [
    cost(noise, rate, steps)
    for noise in (0.7, 2.0, 8.0)
    for rate, steps in ((0.005, 2000), (0.05, 400), (0.3, 60), (1.0, 20))
]
MIXED = [
    [KNOWN, cost(2.0, 0.05, 300)],
    [cost(1.0, 0.01, 400), cost(1.3, 0.25, 12), cost(4.0, 1.0, 6), cost(1.0, 0.01, 600)],
]
HISTORIES = [*([one] for one in GRID), *MIXED]


def event(history: list[Cost]) -> dp_accounting.DpEvent:
    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(
                    one.rate, dp_accounting.GaussianDpEvent(one.noise)
                ),
                one.steps,
            )
            for one in history
        ]
    )


def test_the_known_point_is_met() -> None:
    """The figures that this stack was first measured by."""
    assert epsilon([KNOWN], DELTA) == pytest.approx(2.1014, abs=1e-3)
    assert tighter_epsilon([KNOWN], DELTA) == pytest.approx(1.838, rel=0.01)


@pytest.mark.filterwarnings("ignore:Optimal order is the largest")  # of Opacus's, which are fewer
@pytest.mark.parametrize("history", HISTORIES, ids=range(len(HISTORIES)))
def test_epsilon_is_that_of_opacus_and_of_google(history: list[Cost]) -> None:
    """Two implementations by other people: ours reads a file of the one, and composes by itself."""
    own = epsilon(history, DELTA)
    opacus = RDPAccountant()
    opacus.history = [(one.noise, one.rate, one.steps) for one in history]
    large = (*accounting._WHOLE, *accounting._LARGE)
    every = sorted({*large, *(tenths / 10 for tenths in range(11, 120))})
    spent, _ = opacus.get_privacy_spent(delta=DELTA, alphas=every)
    assert own == pytest.approx(spent, rel=1e-6)  # fractions elsewhere would gain nothing
    usual = opacus.get_epsilon(DELTA)
    assert own <= usual * (1 + 1e-6)
    assert own == pytest.approx(usual, rel=0.01) or usual < 0.3  # its orders end at 63
    google = rdp.RdpAccountant().compose(event(history)).get_epsilon(DELTA)  # at its own orders
    if google < 30:
        assert own == pytest.approx(google, rel=0.01)
    else:  # it gives up on orders below 2, which only matter there, and so bounds by more
        assert own <= google * 1.01


# Google's other accountant takes seconds where steps are many
@pytest.mark.parametrize("history", [[KNOWN], [GRID[6]], MIXED[1]], ids=range(3))
def test_the_tighter_epsilon_is_that_of_googles_privacy_loss(history: list[Cost]) -> None:
    """Another way to compose, by another library, and between it and the bound that decides."""
    google = pld.PLDAccountant(value_discretization_interval=1e-3).compose(event(history))
    found = tighter_epsilon(history, DELTA)
    assert found == pytest.approx(google.get_epsilon(DELTA), rel=0.01)
    assert found < epsilon(history, DELTA)


@pytest.mark.parametrize("history", [[cost(4.0, 1.0, 1)], [cost(3.0, 1.0, 10), cost(5.0, 1.0, 7)]])
def test_where_everybody_is_drawn_the_formula_is_exact(history: list[Cost]) -> None:
    """Without sampling, steps are one Gaussian mechanism, whose delta is known (Balle 2018)."""
    mu = math.sqrt(sum(one.steps / one.noise**2 for one in history))

    def excess(eps: float) -> float:
        first, second = norm.cdf(mu / 2 - eps / mu), norm.cdf(-mu / 2 - eps / mu)
        return float(first - math.exp(eps) * second - DELTA)

    exact = brentq(excess, 1e-6, 100)
    assert tighter_epsilon(history, DELTA) == pytest.approx(exact, rel=0.01)
    assert exact < epsilon(history, DELTA) < 1.25 * exact


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    """A ledger without private orders, and a study that only tries clipping."""
    assert epsilon([], DELTA) == tighter_epsilon([], DELTA) == 0.0
    for noise in (0.0, 1e-300, 1e-160):
        assert epsilon([KNOWN, cost(noise, 0.5, 1)], DELTA) == math.inf
        assert tighter_epsilon([KNOWN, cost(noise, 0.5, 1)], DELTA) is None


@pytest.mark.parametrize(
    "extreme",
    [
        cost(1e6, 1e-9, 1), cost(1e6, 1.0, 2**53), cost(0.02, 1e-9, 2**53), cost(0.1, 0.999, 10**6),
        cost(50.0, 1 - 1e-12, 10), cost(1.0, 1e-9, 10**9), cost(0.1, 1e-4, 1), cost(300.0, 0.5, 3),
    ],
    ids=range(8),
)  # fmt: skip
def test_extreme_values_end_and_are_bounded_by_no_sampling(extreme: Cost) -> None:
    """Whatever a study asks for, an answer comes, and sampling is never counted as a harm."""
    found = epsilon([extreme], DELTA)
    assert found >= 0
    unsampled = epsilon([extreme.model_copy(update={"rate": 1.0})], DELTA)
    assert found <= unsampled * (1 + 1e-6) + 1e-6
    assert tighter_epsilon([extreme.model_copy(update={"steps": 2**40})], DELTA) is None


steps = st.integers(1, 5000)
noises = st.sampled_from([0.7, 1.0])
rates = st.sampled_from([0.01, 0.05, 1.0])
costs = st.builds(cost, noises, rates, steps)


@settings(max_examples=50, deadline=None)
@given(st.lists(costs, min_size=1, max_size=4), costs, st.randoms())
def test_more_is_never_cheaper_and_order_does_not_matter(history, more, random) -> None:
    """What a ledger relies on: a cap that is reached stays reached."""
    before, after = epsilon(history, DELTA), epsilon([*history, more], DELTA)
    assert before <= after <= (before + epsilon([more], DELTA)) * (1 + 1e-9)
    shuffled = [*history, more]
    random.shuffle(shuffled)
    assert epsilon(shuffled, DELTA) == pytest.approx(after, rel=1e-12)
    assert epsilon(history, DELTA / 10) >= before
    split = [one.model_copy(update={"steps": 1}) for one in history]
    rest = [one.model_copy(update={"steps": one.steps - 1}) for one in history if one.steps > 1]
    assert epsilon([*split, *rest], DELTA) == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("target", [0.5, 8.0])
def test_the_noise_for_a_target_is_the_least_that_reaches_it(target: float) -> None:
    """Less noise would be declined in the last round; more would cost accuracy for nothing."""
    noise = noise_for(target, KNOWN, DELTA)
    assert epsilon([cost(noise, KNOWN.rate, KNOWN.steps)], DELTA) <= target
    assert epsilon([cost(0.997 * noise, KNOWN.rate, KNOWN.steps)], DELTA) > target


def test_no_noise_reaches_what_cannot_be_reached() -> None:
    """An answer of none, not an endless search or a number that lies."""
    assert noise_for(0.0, KNOWN, DELTA) is None
    assert noise_for(1e-9, cost(1.0, 1.0, 2**53), DELTA) is None


def test_rounds_that_a_budget_buys_are_counted_to_the_last_one() -> None:
    """One more is declined: the plan must not promise it."""
    one = cost(1.2, 0.1, 10)
    spent = [epsilon([cost(1.2, 0.1, 10 * n)], DELTA) for n in range(1, 40)]
    assert all(low < high for low, high in pairwise(spent))
    for budget in (spent[0] - 1e-6, spent[0], spent[7], spent[20] + 1e-6):
        assert rounds_for(budget, one, DELTA, most=39) == sum(each <= budget for each in spent)
    assert rounds_for(math.inf, one, DELTA, most=39) == 39


def test_the_bound_that_decides_needs_no_torch() -> None:
    """The coordinator's commands and a look at the ledger must not wait for a deep-learning stack."""
    program = (
        "import sys; from common.privacy.accounting import epsilon; from common.privacy.cost "
        "import Cost; print(epsilon([Cost(noise=1, rate=.01, steps=1000, delta=1e-5)], 1e-5)); "
        "assert not {'torch', 'opacus', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("2.10"), done.stderr


def test_an_order_that_cannot_be_computed_makes_the_bound_larger(monkeypatch) -> None:
    """Opacus's series may raise at some order: the others still bound, and nothing is guessed."""
    plain = accounting._opacus()._compute_rdp

    class Broken:
        @staticmethod
        def _compute_rdp(rate, noise, order):
            if order < 6:
                raise ValueError("The result of subtraction must be non-negative.")
            return plain(rate, noise, order)

    before = epsilon([KNOWN], DELTA)
    accounting._curve.cache_clear()
    monkeypatch.setattr(accounting, "_opacus", lambda: Broken)
    try:
        assert before <= epsilon([KNOWN], DELTA) < math.inf
    finally:
        accounting._curve.cache_clear()
