"""What a round costs follows from the study and the number of people, alike at both ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.cost import Cost, Spent, cost_of, read_spent, steps_in
from common.privacy.models import orders_of
from common.privacy.plan import learners_of, plan_for


@pytest.fixture
def study(federation):
    changes = {"privacy": {"unit": "participant", "people_per_step": 8, "epsilon": 4.0}}
    return federation({**changes, "pretraining.local_epochs": 2, "pretraining.rounds": 5}).study


@pytest.mark.parametrize(
    ("people", "rate", "steps"), [(1, 1.0, 2), (8, 1.0, 2), (9, 8 / 9, 4), (49, 8 / 49, 14)]
)
def test_a_pass_is_as_many_steps_as_draw_everybody_once_on_average(study, people, rate, steps):
    """Whole numbers: a rounded rate of 1/49 would make a step that nobody agreed to."""
    cost = cost_of(study, people)
    assert (cost.rate, cost.steps, cost.noise) == (rate, steps, 1.0)
    assert cost.delta == pytest.approx(0.1 / people)


def test_a_studys_own_delta_holds_at_every_site_that_is_small_enough_for_it(study):
    """One number for all, unless it would let one of a large site's people be shown whole."""
    privacy = study.privacy.model_copy(update={"delta": 1e-3})
    named = study.model_copy(update={"privacy": privacy})
    assert cost_of(named, 40).delta == 1e-3
    assert cost_of(named, 10_000).delta < 1e-4


def test_a_model_of_the_site_alone_costs_as_much_again(study, federation):
    """It is trained on the same people: a plan that forgot it would be half of the truth."""
    assert orders_of(study) == 5
    both = study.model_copy(
        update={"comparisons": study.comparisons.model_copy(update={"single_site": True})}
    )
    assert orders_of(both) == 10
    assert plan_for(both, 100).after(10) > plan_for(study, 100).after(5)


def test_a_plan_stays_within_its_cap_by_the_noise_that_it_names(study):
    """Two ways out of a budget that is too small: fewer rounds, or more noise."""
    plan = plan_for(study, 100)
    assert plan.learners == learners_of(study, 100) == 65
    assert plan.affordable < plan.orders == 5
    assert plan.after(plan.affordable) <= 4.0 < plan.after(plan.affordable + 1)
    louder = study.privacy.model_copy(update={"noise": plan.noise})
    enough = plan_for(study.model_copy(update={"privacy": louder}), 100)
    assert enough.affordable == 5
    assert enough.after(5) <= 4.0
    uncapped = plan_for(study, 100, 0.0)
    assert (uncapped.affordable, uncapped.bought, uncapped.noise) == (5, 0, None)


studies = st.sampled_from(["ab" * 32, "mixed"])
spendings = st.builds(
    Spent,
    study=studies,
    cost=st.builds(
        Cost,
        noise=st.floats(0, 1e6),
        rate=st.floats(0, 1, exclude_min=True),
        steps=st.integers(1, 2**53),
        delta=st.floats(0, 1, exclude_min=True, exclude_max=True),
    ),
)


@given(spendings)
def test_what_books_tell_comes_back_to_the_last_bit(spent):
    """It is what a restored ledger takes over."""
    assert read_spent(spent.word) == spent
    assert steps_in([spent.word, spent.word]) == 2 * spent.cost.steps


@pytest.mark.parametrize(
    "word",
    ["", "mixed 1 .5 1e-5", "mixed 1 .5 1e-5 0", "mixed 1 2 1e-5 3", "mixed nan .5 1e-5 3",
     "mixed 1 .5 1e-5 3 4", "x 1 .5 1e-5 3", "mixed 1 .5 0 3", "mixed 1 .5 1e-5 1e3",
     f"mixed 1 .5 1e-5 {2**60}"],
)  # fmt: skip
def test_what_is_no_spending_is_refused(word):
    """It comes from the other end, and would be entered into a ledger."""
    with pytest.raises(ValueError):
        read_spent(word)
