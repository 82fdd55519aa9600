"""A private round declares what it cost, by the study's own noise, or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import Refusal
from common.network.building import build, plan_of
from common.privacy.cost import Cost
from common.protocol.orders import Report, read_report
from server.federation.report_validation import accept
from tests.client.service.test_agent import initial, order_for
from tests.client.service.test_private_orders import PRIVATE


@pytest.fixture
def answered(federation):
    agent = federation(PRIVATE).agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays)
    report, sent = agent.answer(order, arrays)
    plan = plan_of(build(agent.study, seed=0), agent.study.aggregation.normalisation)

    def check(changed: Report = report, study: Any = agent.study) -> str:
        try:
            accept(study, order, plan, changed, sent)
        except Refusal as refusal:
            return refusal.code
        return ""

    return report, check, agent.study


def test_a_round_that_says_what_it_cost_is_accepted(answered):
    """The control, with the report of a real agent."""
    report, check, _ = answered
    assert check() == ""
    assert report.cost is not None


@pytest.mark.parametrize(
    "change",
    [None, {"noise": 0.5}, {"steps": 1}, {"steps": 1000}, {"rate": 0.01}, {"rate": 1.0}],
    ids=str,
)
def test_another_cost_than_the_study_asks_for_is_refused(answered, change):
    """Less noise than agreed must not pass as the study's; nor must silence about it."""
    report, check, _ = answered
    cost = None if change is None else report.cost.model_copy(update=change)
    assert check(report.model_copy(update={"cost": cost})) == "REPORT_MALFORMED"


def test_a_study_without_privacy_hears_of_no_cost(answered):
    """A site that claims protection which nobody agreed on has misread the study."""
    report, check, study = answered
    plain = study.model_copy(update={"privacy": study.privacy.model_copy(update={"unit": "none"})})
    assert check(report, plain) == "REPORT_MALFORMED"
    assert check(report.model_copy(update={"cost": None}), plain) == ""


@pytest.mark.parametrize("change", [{"noise": -1}, {"rate": 0}, {"steps": 0}, {"delta": 1}])
def test_a_cost_that_none_can_be_is_no_report(answered, change):
    """It is read from a text of the other end."""
    report, _, _ = answered
    with pytest.raises(ValueError):
        Cost.model_validate({**report.cost.model_dump(), **change})


@pytest.mark.parametrize(
    "words",
    [["x"], ["mixed 1 .5 1e-5 -3"], ["mixed 1 .5 1e-5 3"] * 65, [["mixed"]], "mixed", [7], [None]],
    ids=str,
)
def test_books_with_steps_that_none_can_be_are_no_report(answered, words):
    """They are kept, compared, and sent back to the site: a hostile one must not get that far."""
    report, _, _ = answered
    books = {"state": "a" * 32, "exposures": 1, "receipt": 1, "hash": "e" * 64, "private": words}
    text = json.dumps({**report.model_dump(mode="json"), "books": books})
    with pytest.raises(Refusal) as refusal:
        read_report(text)
    assert refusal.value.code == "REPORT_MALFORMED"
