"""A site whose people have no privacy left is left out of the rounds to come, and the run goes on."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from common.privacy.accounting import epsilon
from common.privacy.cost import Cost, cost_of
from common.privacy.plan import learners_of
from server.report.page import write_report


@pytest.mark.whole
def test_a_run_goes_on_without_a_site_that_has_spent_its_budget(federation: Any) -> None:
    """Small sites pay most: they leave in the middle, each round says so, the table shows why."""
    changes = {
        "privacy": {"unit": "participant", "people_per_step": 8, "noise": 2.0, "epsilon": 0.0},
        "aggregation": {"normalisation": "groupnorm"},
        "objective.targets": ["age"],
        "pretraining.rounds": 4,
        "sites": {"train": ["alpha", "beta", "gamma"], "quorum": 2},
    }
    made = federation(changes, participants={"alpha": 200, "beta": 180, "gamma": 30})
    small = cost_of(made.study, learners_of(made.study, 34))  # a few more than there are
    made.changes["privacy"] = {
        **changes["privacy"],
        "epsilon": epsilon([small, small], small.delta),
    }
    run = made.simulate()
    records = run.federated.records()
    assert [record["degraded"] for record in records][-1]
    left = [record["refused"] for record in records]
    assert {} in left
    assert left[-1] == {"gamma": "BUDGET_EXHAUSTED"}
    cap = made.study.privacy.epsilon
    page = write_report(run).read_text()
    assert 'data-table="privacy"' in page
    assert "no formal bound" not in page
    rows = list(csv.DictReader((run.folder / "privacy.csv").open()))
    by_site = {
        name: [row for row in rows if row["site"] == name] for name in made.study.sites.train
    }
    assert len(by_site["alpha"]) == 4 > len(by_site["gamma"]) > 0
    for told in by_site.values():
        costs = [
            Cost(noise=float(row["noise"]), rate=float(row["rate"]), steps=int(row["steps"]),
                 delta=float(row["delta"]))
            for row in told
        ]  # fmt: skip
        assert float(told[-1]["epsilon"]) == pytest.approx(epsilon(costs, costs[-1].delta))
        assert float(told[-1]["epsilon"]) <= cap
