"""What may come with an order, known before a byte of it is fetched."""

from __future__ import annotations

from typing import Any

import pytest

from client.service.order_arrays import expected
from common.label_sums import CONSTANTS
from common.protocol.orders import EMPTY, Order

RIDGE = {
    "backbone": {"name": "linear"},
    "objective": {"name": "ridge", "targets": ["age", "sex"], "random_features": 5},
    "pretraining": {"rounds": 0},
}


def names(agent: Any, kind: str, model: str = "federated") -> set[str]:
    order = Order(
        kind=kind, study=agent.study.digest, run="0" * 64, site="alpha", model=model, arrays=EMPTY
    )  # type: ignore[arg-type]
    return set(expected(order, agent.study, agent.cohort))


@pytest.mark.parametrize("model", CONSTANTS)
def test_a_constant_comes_by_target_and_nothing_else(federation: Any, model: str) -> None:
    """Over the wire a judge fetches only what it expects: the median must be among it."""
    agent = federation().agent("alpha")
    assert names(agent, "evaluate", model) == {"constant/age"}
    assert "constant/age" not in names(agent, "evaluate")


def test_a_network_whose_sums_need_all_of_it_comes_whole(federation: Any) -> None:
    """Sites draw no arrays of their own: random features are the coordinator's."""
    agent = federation(RIDGE).agent("alpha")
    sent = names(agent, "settle")
    assert {"curvature.directions", "heads.point_sex", "backbone.standardise.mean"} <= sent


def test_a_network_whose_sums_need_its_constants_alone_brings_no_more(federation: Any) -> None:
    """What is settled goes out in each pass, and nothing besides."""
    agent = federation().agent("alpha")
    assert names(agent, "settle") == {
        "backbone.standardise.mean", "backbone.standardise.deviation"
    }  # fmt: skip
