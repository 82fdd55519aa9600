"""A private round at a site: what leaves of it, and that its answer is given once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.authority.records import open_records
from client.service.agent import Agent
from client.service.report_cache import ReportCache
from common.network.building import arrays_of, build, plan_of
from common.protocol.orders import Order, Report, digest_of
from common.seeding import seed_of

RUN = "ab" * 32
PRIVATE = {
    "sites": {"train": ["alpha"]},
    "objective.targets": ["age", "sex"],
    "aggregation.normalisation": "groupnorm",
    "splits": {"validation": 0.4},  # enough people for their losses to leave
    "privacy": {"unit": "participant", "people_per_step": 8, "noise": 1.0},
}


@pytest.fixture
def agent(federation: Callable[..., Any]) -> Iterator[Agent]:
    """A training site of a private study, with its records open."""
    made = federation(PRIVATE).agent("alpha")
    with open_records(made.site) as records:
        yield replace(made, records=records)


def asked(agent: Agent, number: int = 1) -> tuple[Order, dict[str, Any]]:
    network = build(agent.study, seed=seed_of(agent.study.seed, "initial"))
    arrays = arrays_of(network)
    plan = plan_of(network, agent.study.aggregation.normalisation)
    moving = {name: array for name, array in arrays.items() if plan[name].travels}
    static = {name: array for name, array in arrays.items() if not plan[name].travels}
    order = Order.model_validate({
        "kind": "train", "study": agent.study.digest, "run": RUN, "site": agent.site.name,
        "round": number, "arrays": digest_of(moving), "base": digest_of(static),
    })  # fmt: skip
    return order, arrays


def answered(agent: Agent) -> tuple[Report, dict[str, Any]]:
    report, sent = agent.answer(*asked(agent))
    assert report.refusal == ""
    return report, sent


def test_a_private_report_tells_no_loss_and_not_who_was_drawn(agent: Agent) -> None:
    """Sums over training people are exact, and who was drawn is what accountants take for secret.

    Support is everyone who may be drawn, in each round.
    """
    report, _ = answered(agent)
    training = agent.cohort.indices("train", agent.study.splits)
    assert not [name for name in report.counts if name.startswith("loss/")]
    assert [name for name in report.counts if name.startswith("validation-loss/")]
    assert set(report.support.values()) == {len(training)}
    assert report.support == {n: report.participants[n] for n in report.support}


def test_a_plain_report_tells_its_losses_as_ever(federation: Callable[..., Any]) -> None:
    """What is withheld is withheld for privacy alone."""
    plain = federation({**PRIVATE, "privacy": {"unit": "none"}}).agent("alpha")
    report, _ = answered(plain)
    assert {"loss/age", "loss/sex"} <= set(report.counts)


def test_every_array_of_a_private_round_has_noise_on_it(agent: Agent) -> None:
    """Constants alone are as they came."""
    _, sent = answered(agent)
    _, arrays = asked(agent)
    assert sent
    assert all((array != arrays[name]).all() for name, array in sent.items())


def test_an_order_that_was_answered_gets_the_same_bits(agent: Agent) -> None:
    """From disk: a second drawing would cost as much again."""
    one, sent = answered(agent)
    other, again = answered(agent)
    assert digest_of(sent) == digest_of(again)
    assert one.support == other.support
    assert agent.records is not None
    assert agent.records.ledger.exposures() == 1


def kept(agent: Agent) -> Any:
    (path,) = (agent.site.state / "runs").glob("*/federated/report-0001.safetensors")
    return path


@pytest.mark.parametrize("damage", ["gone", "short", "another"])
def test_an_answer_that_left_is_never_drawn_anew(
    agent: Agent, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without privacy the same bits would come of it; here they would be a second, unpaid release."""
    answered(agent)
    if damage == "gone":
        kept(agent).unlink()
    elif damage == "short":
        kept(agent).write_bytes(kept(agent).read_bytes()[:-9])
    else:
        report, answer = ReportCache(kept(agent).parents[1]).report(asked(agent)[0])  # type: ignore[misc]
        answer.arrays["heads.age.bias"] += np.float32(1)
        ReportCache(kept(agent).parents[1]).keep(asked(agent)[0], report, answer)
    monkeypatch.setattr("client.service.agent.train_round", lambda *_, **__: pytest.fail("drawn"))
    report, sent = agent.answer(*asked(agent))
    assert (report.refusal, sent) == ("SITE_FAILED", {})


def test_a_drawing_that_nobody_saw_is_paid_for_once(
    agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the answer was kept, nothing left: the next drawing is the first to leave."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReportCache, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            agent.answer(*asked(agent))
    assert not list((agent.site.state / "runs").glob("*/federated/report-0001.safetensors"))
    answered(agent)
    assert agent.records is not None
    assert agent.records.ledger.exposures() == 1
    assert "was kept, and none left; it is drawn anew" in caplog.text
