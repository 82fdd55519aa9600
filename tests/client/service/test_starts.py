"""A site tunes from the model that a way names, and where it is held out for itself alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.authority.consent import consent
from client.authority.records import open_records
from client.learning.tuned_models import TunedModels
from client.service.agent import Agent
from client.service.order_arrays import expected
from tests.client.service.test_agent import initial, order_for

CHANGES = {
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "comparisons": {"single_site": True, "pooled": False, "targets": {"age-only": ["age"]}},
    "evaluation": {"bootstrap": 100, "head": False, "baselines": False},
    "finetuning": [
        {"name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01],
         "methods": ["pretrained/full", "age-only/full", "single-site/full", "scratch/full"]}
    ],
}  # fmt: skip


@pytest.fixture
def made(federation: Any) -> Any:
    return federation(CHANGES)


def tuned(agent: Agent, init: str, model: str, arrays: Any) -> str:
    more = {"task": "dementia", "init": init, "method": "full", "model": model}
    return agent.answer(order_for(agent, "finetune", arrays, **more), arrays)[0].refusal


def test_a_model_of_some_targets_trains_as_if_the_others_were_unknown(made: Any) -> None:
    """The oracle: a hospital that never wrote down the sex sends the same bytes."""
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays, round=1, model="age-only")
    report, sent = agent.answer(order, arrays)
    unknown = {**agent.cohort.labels, "sex": np.full(len(agent.cohort), np.nan, dtype=np.float32)}
    other = replace(agent, cohort=replace(agent.cohort, labels=unknown))
    plain = order_for(agent, "train", arrays, round=1)
    theirs, wanted = other.answer(plain, arrays)
    assert report.refusal == theirs.refusal == ""
    assert report.support == theirs.support
    assert report.support["labels/sex"] == 0 < report.support["labels/age"]
    assert {name: array.tobytes() for name, array in sent.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }
    assert sent["heads.sex.weight"].tobytes() == arrays["heads.sex.weight"].tobytes()
    assert {row.target for row in report.measurements} == {"age"}


def test_whoever_lacks_the_labels_of_such_a_model_says_so(made: Any) -> None:
    """Before the ledger is charged: a site without ages has nothing to give to it."""
    agent = made.agent("alpha")
    unknown = {**agent.cohort.labels, "age": np.full(len(agent.cohort), np.nan, dtype=np.float32)}
    other = replace(agent, cohort=replace(agent.cohort, labels=unknown))
    arrays = initial(agent.study)
    order = order_for(agent, "train", arrays, round=1, model="age-only")
    assert other.answer(order, arrays)[0].refusal == "NO_DATA"
    assert other.answer(order_for(agent, "train", arrays, round=1), arrays)[0].refusal == ""


def test_a_judge_tells_nothing_of_heads_that_were_never_trained(made: Any) -> None:
    """They are as they were drawn, and would stand in a table as the model's."""
    agent = made.agent("omega")
    arrays = initial(agent.study)
    for model, targets in (("age-only", {"age"}), ("single-alpha", {"age", "sex"})):
        report, _ = agent.answer(order_for(agent, "evaluate", arrays, model=model), arrays)
        assert report.refusal == ""
        assert {row.target for row in report.measurements} == targets


@pytest.mark.parametrize(
    ("init", "model"),
    [
        ("pretrained", "age-only"), ("age-only", "federated"), ("single-site", "federated"),
        ("single-site", "single-beta"), ("scratch", "age-only"), ("pooled", "pooled"),
    ],
)  # fmt: skip
def test_a_way_is_never_learnt_from_another_model_than_its_own(
    made: Any, init: str, model: str
) -> None:
    """Another site's model, or a column in results that tells of the wrong one."""
    agent = made.agent("alpha")
    arrays = initial(agent.study) if init != "scratch" else {}
    assert tuned(agent, init, model, arrays) == "ORDER_MALFORMED"


@pytest.mark.parametrize(
    ("init", "model"),
    [("pretrained", "federated"), ("age-only", "age-only"), ("single-site", "single-alpha")],
)
def test_arrays_that_come_with_a_way_are_those_of_the_network(
    made: Any, init: str, model: str
) -> None:
    """What an order may bring is known before any of it is fetched."""
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    order = order_for(agent, "finetune", arrays, task="dementia", init=init, method="full")
    assert expected(order, agent.study, agent.cohort).keys() == arrays.keys()
    assert tuned(agent, init, model, arrays) == ""


@pytest.mark.parametrize(
    ("init", "model"),
    [("pretrained", "federated"), ("age-only", "age-only"), ("single-site", "single-alpha"),
     ("scratch", "federated")],
)  # fmt: skip
def test_tuning_begins_where_its_way_says(federation: Any, init: str, model: str) -> None:
    """With next to no learning, what was tuned is what came; or what scratch draws."""
    [task] = CHANGES["finetuning"]
    made = federation({**CHANGES, "finetuning": [{**task, "learning_rates": [1e-9]}]})
    agent = made.agent("alpha")
    moved = {name: array + np.float32(0.25) for name, array in initial(agent.study).items()}
    sent = {} if init == "scratch" else moved
    more = {"task": "dementia", "init": init, "method": "full", "model": model}
    order = order_for(agent, "finetune", sent, **more)
    assert agent.answer(order, sent)[0].refusal == ""
    kept = TunedModels(agent.site.state / "runs" / order.run[:16]).find(order, 0)
    assert kept is not None
    first = "backbone.layers.0.weight"
    assert np.allclose(kept.arrays[first], moved[first], atol=1e-5) == (init != "scratch")


def test_a_way_follows_what_the_site_itself_trained_of_its_model(made: Any) -> None:
    """Arrays far from this site's last report of that model single people out."""
    agent = made.agent("alpha")
    arrays = initial(agent.study)
    for number in (1, 2):
        order = order_for(agent, "train", arrays, round=number, model="age-only")
        report, sent = agent.answer(order, arrays)
        assert report.refusal == ""
        arrays = {**arrays, **sent}
    assert tuned(agent, "age-only", "age-only", arrays) == ""
    far = {name: array + np.float32(10) for name, array in arrays.items()}
    assert tuned(agent, "age-only", "age-only", far) == "ORDER_MALFORMED"
    assert tuned(agent, "pretrained", "federated", far) == ""  # it trained nothing of that one


def test_whoever_approves_reads_how_often_more_models_learn_from_its_people(made: Any) -> None:
    """Each round of each model is another exposure."""
    agent = made.agent("alpha")
    text = "\n".join(consent(agent.site, agent.study).lines)
    assert "2 rounds, 2 for a model of this site alone, 2 for models of some targets" in text


# Where a site is held out.

SHOTS = {
    **CHANGES,
    "comparisons": {"single_site": False, "pooled": False, "targets": {"age-only": ["age"]}},
    "splits": {"validation": 0.2, "test": 0.4},
    "finetuning": [{"name": "dementia", "target": "diagnosis", "methods": ["age-only/frozen"],
                    "then": ["judge", "explain", "send"]}],
    "protocols": [
        {"name": "shots", "task": "dementia", "scheme": "subjects", "sizes": [2], "repeats": 3,
         "each_class": True, "at": "heldout"},
        {"name": "draws", "task": "dementia", "scheme": "subjects", "sizes": [2], "repeats": 3},
    ],
}  # fmt: skip
EVERYTHING = ("census", "evaluate", "finetune", "protocol", "judge", "explain", "send", "train")


def told(agent: Agent, kind: str, task: str, **more: Any) -> Any:
    arrays = initial(agent.study)
    way = {"init": "age-only", "method": "frozen", "model": "age-only", "task": task, "k": 2}
    return agent.answer(order_for(agent, kind, arrays, **{**way, **more}), arrays)


@pytest.fixture
def judge(federation: Any) -> Agent:
    """A held-out site that allows whatever it can be asked for."""
    made = federation(SHOTS, participants={"omega": 100}, site={"policy.orders": EVERYTHING})
    found: Agent = made.agent("omega")
    judged(found)
    return found


def judged(agent: Agent, **more: Any) -> None:
    """The site has judged the model that it then learns from."""
    arrays = initial(agent.study)
    order = order_for(agent, "evaluate", arrays, model="age-only", **more)
    assert agent.answer(order, arrays)[0].refusal == ""


def test_a_held_out_site_learns_from_its_own_and_sends_figures_alone(judge: Agent) -> None:
    """Few-shot at an unseen site; the model that it made stays, or it would have contributed."""
    report, arrays = told(judge, "protocol", "shots")
    assert (report.refusal, arrays, report.support, report.counts) == ("", {}, {}, {})
    of_all = [row for row in report.measurements if row.metric == "auc_over_draws"]
    assert [(row.role, row.model, row.n_train) for row in of_all] == [("heldout", "age-only", 0)]
    assert {row.n_train for row in report.measurements if row.metric == "auc"} == {4}


@pytest.mark.parametrize("kind", ["finetune", "judge", "explain", "send", "train"])
def test_whatever_would_make_it_a_party_it_refuses(judge: Agent, kind: str) -> None:
    """Its policy allows all of it; its role does not."""
    assert told(judge, kind, "dementia", k=0)[0].refusal == "ROLE"


def test_each_protocol_is_for_sites_of_its_role(federation: Any) -> None:
    """Those of training sites are no way round, nor the other way."""
    made = federation(SHOTS, site={"policy.orders": EVERYTHING})
    assert told(made.agent("omega"), "protocol", "draws")[0].refusal == "ROLE"
    assert told(made.agent("omega"), "protocol", "other")[0].refusal == "ROLE"
    assert told(made.agent("alpha"), "protocol", "shots")[0].refusal == "ROLE"


def test_a_held_out_site_refuses_a_start_that_its_scans_are_in(judge: Agent) -> None:
    """Then it would tune what it had made."""
    report, _ = told(judge, "protocol", "shots", lineage=("alpha", "omega"))
    assert report.refusal == "ROLE"


def test_what_it_learns_from_its_people_is_counted(judge: Agent) -> None:
    """An exposure is one, wherever the model goes."""
    policy = judge.site.policy.model_copy(update={"most_exposures": 1})
    with open_records(judge.site) as records:
        counted = replace(
            judge, site=judge.site.model_copy(update={"policy": policy}), records=records
        )
        assert told(counted, "protocol", "shots")[0].refusal == ""
        assert told(counted, "protocol", "shots")[0].refusal == ""  # the same order is paid for
        assert records.ledger.exposures() == 1
        judged(counted, run="cd" * 32)
        assert told(counted, "protocol", "shots", run="cd" * 32)[0].refusal == "PRIVACY_SPENT"


def test_it_learns_from_no_arrays_but_those_that_it_judged(judge: Agent) -> None:
    """How often it judges is capped; crafted arrays by another door would be as many askings more."""
    arrays = initial(judge.study)
    crafted = {**arrays, "backbone.layers.0.bias": arrays["backbone.layers.0.bias"] + 1}
    way = {"init": "age-only", "method": "frozen", "model": "age-only", "task": "shots", "k": 2}
    order = order_for(judge, "protocol", crafted, **way)
    assert judge.answer(order, crafted)[0].refusal == "ORDER_MALFORMED"
    assert told(judge, "protocol", "shots", run="ef" * 32)[0].refusal == "ORDER_MALFORMED"
    assert told(judge, "protocol", "shots")[0].refusal == ""
