"""A private order is paid for before its noise is drawn, and drawn once for what leaves."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.authority.records import open_records
from client.authority.spendings import lifetime
from client.learning.support import learnt_from, people_among
from client.service import agent as client_agent
from client.service.agent import Agent
from common.errors import Refusal
from common.privacy.accounting import epsilon
from common.privacy.cost import cost_of
from tests.client.service.test_agent import initial, order_for, refusal_of, with_policy

PRIVATE = {
    "sites": {"train": ["alpha"]},
    "objective.targets": ["age"],
    "aggregation": {"normalisation": "groupnorm"},
    "privacy": {"unit": "participant", "people_per_step": 8, "noise": 2.0, "epsilon": 50.0},
}


@pytest.fixture
def private(federation):
    return federation(PRIVATE)


@pytest.fixture
def booked(private):
    agent = private.agent("alpha")
    with open_records(agent.site) as records:
        yield replace(agent, records=records)


@pytest.fixture
def draws(monkeypatch):
    """Each training draws noise of its own; what the ledger had been charged for is noted."""
    noted: list[Any] = []
    plain = client_agent.train_round

    def noisy(*things, **more):
        done = plain(*things, **more)
        noted.append(done)
        arrays = {
            name: array + np.random.default_rng().normal(scale=1e-3, size=array.shape)
            for name, array in done.answer.arrays.items()
        }
        same = {n: a.astype(done.answer.arrays[n].dtype) for n, a in arrays.items()}
        return replace(done, answer=replace(done.answer, arrays=same))

    monkeypatch.setattr(client_agent, "train_round", noisy)
    return noted


def steps(agent: Agent) -> int:
    return sum(each.cost.steps for each in agent.records.ledger.private())


def learners(agent: Agent) -> int:
    study = agent.study
    cohort, training = learnt_from(study, agent.cohort, agent.site.policy.minimum_support)
    return people_among(cohort, training)


def test_a_round_says_what_it_cost_and_the_ledger_holds_it(booked, draws):
    """The coordinator can follow what a run costs; the site need not believe its arithmetic."""
    arrays = initial(booked.study)
    report, _ = booked.answer(order_for(booked, "train", arrays), arrays)
    assert report.refusal == ""
    assert report.cost == cost_of(booked.study, learners(booked))
    [spent] = booked.records.ledger.private()
    assert (spent.cost, spent.study) == (report.cost, booked.study.digest)
    assert report.books.private == (spent.word,)
    local, _ = replace(booked, records=None).answer(order_for(booked, "train", arrays), arrays)
    assert local.cost == report.cost


def test_a_draw_is_paid_for_before_it_is_made(booked, draws, monkeypatch):
    """Written after the work, it would be lost by whoever pulls the plug."""
    seen, plain = [], client_agent.train_round

    def watched(*things, **more):
        seen.append(steps(booked))
        return plain(*things, **more)

    monkeypatch.setattr(client_agent, "train_round", watched)
    arrays = initial(booked.study)
    assert booked.answer(order_for(booked, "train", arrays), arrays)[0].refusal == ""
    assert seen == [cost_of(booked.study, learners(booked)).steps]


def test_the_same_order_gets_the_kept_draw(booked, draws):
    """Two draws of one round are two releases, and their mean has less noise than either."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    _, first = booked.answer(order, arrays)
    _, again = booked.answer(order, arrays)
    assert len(draws) == 1
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert steps(booked) == cost_of(booked.study, learners(booked)).steps


def test_a_draw_that_nobody_saw_is_made_again_at_no_cost(booked, draws, monkeypatch):
    """A kill between the ledger and the kept report: nothing left, so nothing more is spent."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    with monkeypatch.context() as patch:
        patch.setattr(client_agent, "inspect", killed)
        with pytest.raises(KeyboardInterrupt):
            booked.answer(order, arrays)
    assert booked.answer(order, arrays)[0].refusal == ""
    assert len(draws) == 2
    assert steps(booked) == cost_of(booked.study, learners(booked)).steps


def killed(*_, **__):
    raise KeyboardInterrupt


def test_a_draw_that_a_code_tells_of_is_paid_for(booked, draws, monkeypatch):
    """EGRESS says that the noise fell far: whoever asks until it falls near has asked each time."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)

    def withheld(*_, **__):
        raise Refusal("EGRESS", "too long")

    with monkeypatch.context() as patch:
        patch.setattr(client_agent, "inspect", withheld)
        assert refusal_of(booked, order, arrays) == "EGRESS"
        assert refusal_of(booked, order, arrays) == "EGRESS"
    assert booked.answer(order, arrays)[0].refusal == ""
    assert len(draws) == 3
    assert steps(booked) == 3 * cost_of(booked.study, learners(booked)).steps
    assert booked.records.ledger.exposures() == 1


def test_a_lost_answer_is_not_drawn_anew(booked, draws):
    """What left cannot be called back; a second answer to the same order would be another."""
    arrays = initial(booked.study)
    order = order_for(booked, "train", arrays)
    assert booked.answer(order, arrays)[0].refusal == ""
    shutil.rmtree(booked.site.state / "runs")
    assert refusal_of(booked, order, arrays) == "SITE_FAILED"
    assert len(draws) == 1
    assert steps(booked) == cost_of(booked.study, learners(booked)).steps


@pytest.mark.parametrize("whose", ["study", "site"])
def test_a_round_over_the_budget_is_declined_before_any_work(federation, draws, whose):
    """The tighter of two caps ends it; what was answered before is still answered."""
    made = federation({**PRIVATE, "privacy": dict(PRIVATE["privacy"])})
    one = cost_of(made.study, learners(made.agent("alpha")))
    cap = 1.0001 * epsilon([one.model_copy(update={"steps": 2 * one.steps})], one.delta)
    if whose == "study":
        made.changes["privacy"]["epsilon"] = cap
    agent = made.agent("alpha")
    with open_records(agent.site) as records:
        booked = replace(agent, records=records)
        if whose == "site":
            booked = with_policy(booked, epsilon=cap)
        arrays = initial(booked.study)
        orders = [order_for(booked, "train", arrays, run=f"{n}" * 64) for n in range(3)]
        found = [booked.answer(order, arrays)[0].refusal for order in [*orders, orders[0]]]
        assert found == ["", "", "BUDGET_EXHAUSTED", ""]
        assert len(draws) == 2
        assert lifetime(records.ledger.private()) <= cap
        assert records.ledger.exposures() == 2


def test_what_learns_without_privacy_costs_no_epsilon(federation, draws):
    """A count remains; a bound that nobody made must not be told."""
    made = federation({**PRIVATE, "privacy": {}})
    agent = made.agent("alpha")
    with open_records(agent.site) as records:
        booked = with_policy(replace(agent, records=records), epsilon=0.001)
        arrays = initial(booked.study)
        report, _ = booked.answer(order_for(booked, "train", arrays), arrays)
        assert (report.refusal, report.cost, report.books.private) == ("", None, ())
        assert (records.ledger.exposures(), records.ledger.private()) == (1, [])


def test_a_simulation_declines_where_the_sites_would(private, draws):
    """It keeps no ledger; but what it says of a study must be what a hospital's agent does."""
    agent = private.agent("alpha")
    study = agent.study
    one = cost_of(study, learners(agent))
    cap = 1.0001 * epsilon([one.model_copy(update={"steps": 3 * one.steps})], one.delta)
    agent = with_policy(agent, epsilon=cap)
    arrays = initial(study)

    def code(number: int, model: str) -> str:
        order = order_for(agent, "train", arrays, round=number, model=model)
        return agent.answer(order, arrays)[0].refusal

    assert study.pretraining.rounds == 2
    single = study.model_copy(
        update={"comparisons": study.comparisons.model_copy(update={"single_site": True})}
    )
    agent = replace(agent, study=single)
    found = [code(n, model) for model in ("federated", "single-alpha") for n in (1, 2)]
    assert found == ["", "", "", "BUDGET_EXHAUSTED"]
