"""The coordinator's view of privacy: by site over rounds, from what the sites declared."""

from __future__ import annotations

import csv

import pytest

from common.privacy.accounting import epsilon
from common.privacy.cost import Cost
from server.report.privacy import last_of, paid, write_paid

ONE = Cost(noise=1.0, rate=0.1, steps=10, delta=1e-4)
FEWER = Cost(noise=1.0, rate=0.125, steps=8, delta=2e-4)  # people have left


def record(number, **sites):
    lines = {name: {"cost": cost.model_dump()} if cost else {} for name, cost in sites.items()}
    return {"round": number, "answered": lines}


BRANCHES = {
    "federated": [record(1, amber=ONE, birch=ONE), record(2, amber=FEWER)],
    "single-amber": [record(1, amber=ONE)],
}


def test_epsilon_grows_over_rounds_and_models_at_the_smallest_delta():
    """A site that missed a round has paid less; one whose rival was trained as well, more."""
    every = list(paid(BRANCHES))
    assert [(each.site, each.order, each.model, each.round) for each in every] == [
        ("amber", 1, "federated", 1),
        ("amber", 2, "federated", 2),
        ("amber", 3, "single-amber", 1),
        ("birch", 1, "federated", 1),
    ]
    assert [each.epsilon for each in every] == [
        epsilon([ONE], 1e-4), epsilon([ONE, FEWER], 1e-4), epsilon([ONE, FEWER, ONE], 1e-4),
        epsilon([ONE], 1e-4),
    ]  # fmt: skip
    assert [(each.site, each.order) for each in last_of(every)] == [("amber", 3), ("birch", 1)]


def test_the_table_beside_the_page_has_every_order(tmp_path):
    """Whoever checks the arithmetic needs its numbers, in full."""
    path = write_paid(tmp_path, list(paid(BRANCHES)))
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 4
    assert float(rows[2]["epsilon"]) == epsilon([ONE, FEWER, ONE], 1e-4)
    assert rows[0]["noise"] == "1.0"


def test_a_run_without_privacy_has_no_such_table(tmp_path):
    """An empty table would read as a cost of nothing."""
    assert list(paid({"federated": [record(1, amber=None)]})) == []
    assert write_paid(tmp_path, []) is None
    assert list(tmp_path.iterdir()) == []


def test_a_cost_that_makes_no_sense_is_no_small_one():
    """Records are checked before; a hand that wrote one later must not look like protection."""
    broken = {"round": 1, "answered": {"amber": {"cost": {"noise": 1, "rate": 0.1}}}}
    with pytest.raises(ValueError):
        list(paid({"federated": [broken]}))
