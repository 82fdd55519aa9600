"""A head that one hospital tuned and agreed to send is judged on another's people, as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from client.authority.records import open_records
from client.learning.linear import LinearModel
from client.learning.prediction import features_of
from client.service.agent import Agent
from client.service.order_arrays import check_announced, expected
from common.errors import Refusal
from common.network.building import build, load_arrays
from common.protocol.orders import digest_of
from tests.client.service.test_agent import initial, order_for

ORDERS = ("census", "finetune", "send", "cross")
TASK = {
    "name": "dementia", "target": "diagnosis", "then": ["send", "cross"],
    "methods": ["pretrained/frozen", "age-only/frozen", "linear", "pretrained/full"],
}  # fmt: skip
FROZEN = {"task": "dementia", "init": "pretrained", "method": "frozen"}
AGE_ONLY = {**FROZEN, "init": "age-only", "model": "age-only"}
LINEAR = {"task": "dementia", "method": "linear"}


@pytest.fixture
def made(federation: Any) -> Any:
    changes = {
        "finetuning": [TASK], "sites": {"train": ["alpha", "beta", "gamma"]},
        "splits": {"validation": 0.15, "test": 0.4},
        "comparisons": {"single_site": False, "pooled": False, "targets": {"age-only": ["age"]}},
    }  # fmt: skip
    sites = dict.fromkeys(("alpha", "beta", "gamma"), 100)
    return federation(changes, participants=sites, site={"policy.orders": ORDERS})


def sent_by(agent: Agent, way: Any) -> tuple[Any, dict[str, Any]]:
    """The site tunes, and sends what it has tuned; in these tests no rounds came before."""
    agent = replace(agent, keeps_training=False)
    arrays = initial(agent.study) if way.get("init") else {}
    assert agent.answer(order_for(agent, "finetune", arrays, **way), arrays)[0].refusal == ""
    return agent.answer(order_for(agent, "send", arrays, **way), arrays)


def crossed(agent: Agent, heads: dict[str, Any], way: Any) -> Any:
    """Judge `heads`, as they are by site."""
    named = {f"{site}/{name}": one for site, own in heads.items() for name, one in own.items()}
    below = initial(agent.study) if way.get("init") else {}
    base = digest_of(below) if below else ""
    order = order_for(agent, "cross", None, **way).model_copy(
        update={"arrays": digest_of(named), "base": base}
    )
    return agent.answer(order, {**named, **below})[0]


@pytest.mark.parametrize("way", [FROZEN, AGE_ONLY, LINEAR], ids=["frozen", "age-only", "linear"])
def test_a_head_is_judged_elsewhere_as_its_own_arithmetic_says(made: Any, way: Any) -> None:
    """The oracle: weights times what the site itself makes of a scan, ranked by scikit-learn."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    report, head = sent_by(alpha, way)
    assert report.refusal == ""
    assert set(head) == {f"linear/diagnosis/{part}" for part in
                         ("centre", "scale", "coefficients", "intercepts")}  # fmt: skip
    report = crossed(beta, {"alpha": head, "beta": head}, way)
    assert report.refusal == ""
    assert {row.model for row in report.measurements} == {"tuned-alpha"}  # its own it knows
    [found] = [row for row in report.measurements if row.metric == "auc"]
    features = np.asarray(beta.cohort.samples, dtype=np.float64)
    if way != LINEAR:
        network = build(beta.study, seed=0)
        load_arrays(network, initial(beta.study))
        features = features_of(network, beta.cohort, torch.device("cpu"))
    test = beta.cohort.indices("test", beta.study.splits)
    model = LinearModel.from_arrays("diagnosis", beta.study.targets["diagnosis"], head)
    label = beta.cohort.labels["diagnosis"][test]
    wanted = roc_auc_score(label, model.predict(features, test))
    assert found.value == pytest.approx(wanted, abs=0.00051)  # three figures leave
    assert (found.n_participants, found.phase, found.method) == (len(test), "cross", way["method"])
    assert found.ci_low is not None


def test_only_what_a_site_agreed_to_leaves_it_or_is_judged_there(made: Any) -> None:
    """Neither is in a policy unless the hospital writes it there."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, FROZEN)
    for agent, ask in (
        (alpha, lambda one: sent_by(one, FROZEN)[0]),
        (beta, lambda one: crossed(one, {"alpha": head}, FROZEN)),
    ):
        policy = agent.site.policy.model_copy(update={"orders": ("census", "finetune")})
        strict = replace(agent, site=agent.site.model_copy(update={"policy": policy}))
        assert ask(strict).refusal == "POLICY"


def test_a_head_of_few_people_stays(made: Any) -> None:
    """A mean, a spread and a weight for each feature: thrice as many people are needed."""
    alpha = made.agent("alpha")
    people = len(alpha.cohort.indices("train", alpha.study.splits))
    policy = alpha.site.policy.model_copy(update={"minimum_support": people // 3 + 1})
    strict = replace(alpha, site=alpha.site.model_copy(update={"policy": policy}))
    assert sent_by(strict, FROZEN)[0].refusal == "COHORT_TOO_SMALL"


def test_a_group_too_small_to_judge_is_told_without_a_value(made: Any) -> None:
    """Withheld, as any other figure would be."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, LINEAR)
    policy = beta.site.policy.model_copy(update={"minimum_support": 60})
    strict = replace(beta, site=beta.site.model_copy(update={"policy": policy}))
    report = crossed(strict, {"alpha": head}, LINEAR)
    assert report.measurements
    assert all(row.value is None and not row.n_participants for row in report.measurements)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda head: {name: one[:-1] if one.ndim else one for name, one in head.items()},
        lambda head: {name: one * np.nan for name, one in head.items()},
        lambda head: {name: one * 0 if "scale" in name else one for name, one in head.items()},
        lambda head: {name: one for name, one in head.items() if "centre" not in name},
    ],
    ids=["narrower", "not finite", "nothing to divide by", "a part is missing"],
)
def test_what_is_no_head_of_these_features_is_refused(made: Any, spoilt: Any) -> None:
    """A damaged or hostile head gets one clear answer."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, LINEAR)
    assert crossed(beta, {"alpha": spoilt(head)}, LINEAR).refusal == "ORDER_MALFORMED"
    assert crossed(beta, {"alpha": head}, LINEAR).refusal == ""


def test_a_way_without_a_head_of_its_own_is_not_judged_elsewhere(made: Any) -> None:
    """A whole network that was tuned at one site goes to no other."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, LINEAR)
    whole = {"task": "dementia", "init": "pretrained", "method": "full"}
    assert crossed(beta, {"alpha": head}, whole).refusal == "ORDER_MALFORMED"
    made.changes["finetuning"] = [{**TASK, "then": ["send"]}]
    assert crossed(made.agent("beta"), {"alpha": head}, LINEAR).refusal == "ORDER_MALFORMED"


@pytest.mark.parametrize("way", [FROZEN, LINEAR], ids=["frozen", "linear"])
def test_what_may_come_with_heads_is_known_before_it_is_fetched(made: Any, way: Any) -> None:
    """A head of each site that trains, of this network's width, and the network itself."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, way)
    plan = expected(order_for(beta, "cross", {}, **way), beta.study, beta.cohort)
    below = set(initial(beta.study)) if way == FROZEN else set()
    sites = ("alpha", "beta", "gamma")
    assert set(plan) == below | {f"{site}/{name}" for site in sites for name in head}
    for name, array in head.items():
        assert plan[f"alpha/{name}"].shape == array.shape
    with pytest.raises(Refusal, match="ORDER_MALFORMED"):
        check_announced(
            order_for(beta, "cross", {}, **way), [("omega/linear/diagnosis/centre", 160)], plan
        )


def test_each_asking_with_heads_from_elsewhere_counts(made: Any) -> None:
    """Whoever sends heads asks about test participants what these heads ask."""
    alpha, beta = made.agent("alpha"), made.agent("beta")
    _, head = sent_by(alpha, LINEAR)
    policy = beta.site.policy.model_copy(update={"most_exposures": 1})
    with open_records(beta.site) as records:
        site = beta.site.model_copy(update={"policy": policy})
        counted = replace(beta, site=site, records=records)
        assert crossed(counted, {"alpha": head}, LINEAR).refusal == ""
        assert crossed(counted, {"alpha": head}, LINEAR).refusal == ""
        other = {name: one + 1 for name, one in head.items()}
        assert crossed(counted, {"alpha": other}, LINEAR).refusal == "PRIVACY_SPENT"
