"""Columns that some sites or people lack: the training sites' mean stands in, and it is told."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.learning.census import settle
from client.learning.linear import choose, fit
from common.backbones.linear import Standardise
from common.errors import SettingError
from common.network.building import build
from common.network.settling import added, sums_of
from common.network.settling import settle as settle_modules
from server.checkpoints import load_checkpoint
from server.results import measurements
from tests.conftest import overridden

HOLES: dict[str, Any] = {
    "data.missing_columns": 0.3,
    "backbone": {"name": "linear"},
    "objective": {"name": "ridge", "targets": ["age"]},
    "pretraining": {"rounds": 0},
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "evaluation": {"bootstrap": 100},
}
FEW = {"policy": {"sums_of_few": True}}


def rewrite(table: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    change(rows)
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def without(name: str) -> Callable[[list[dict[str, str]]], None]:
    def drop(rows: list[dict[str, str]]) -> None:
        for row in rows:
            del row[name]

    return drop


def test_means_are_of_those_who_have_a_column() -> None:
    """Zeros for what is missing would move a mean; one site without it moves nothing."""
    x = torch.randn(30, 3) * 2 + 5
    x[:10, 1] = torch.nan
    module = Standardise(3)
    module.let_columns_be_missing()
    parts = [
        {n: v.numpy() for n, v in sums_of({"it": module}, part, {}, 0).items()}
        for part in x.split(10)
    ]
    settle_modules({"it": module}, [added(parts)], 0)
    np.testing.assert_allclose(module.mean, np.nanmean(x.numpy(), axis=0), rtol=1e-6)
    np.testing.assert_allclose(module.deviation, np.nanstd(x.numpy(), axis=0), rtol=1e-4)
    assert (module(x)[:10, 1] == 0).all()
    assert module(x).isfinite().all()


def test_a_site_of_other_columns_trains_judges_and_is_named(module_federation: Any) -> None:
    """What stands in comes of training sites alone, and nobody reads a figure without being told."""
    made = module_federation(HOLES, site=FEW)
    rewrite(made.sites / "beta" / "table.csv", without("volume"))
    rewrite(made.sites / "omega" / "table.csv", without("depth"))
    rewrite(made.sites / "alpha" / "table.csv", lambda rows: rows[0].update(thickness="n/a"))
    run = made.simulate()
    found = json.loads((run.folder / "columns.json").read_text())["findings"]
    assert "1 of 4 columns imputed at beta: volume" in found
    assert any(text.startswith("omega: 40 of 40 scans lack columns") for text in found)
    alpha = made.agent("alpha").cohort
    own = np.asarray(alpha.samples)[alpha.indices("train", made.study.splits)]
    arrays = load_checkpoint(run.federated.final, run.study).arrays
    volume = arrays["backbone.standardise.mean"][1]
    assert volume == pytest.approx(own[:, 1].mean(), rel=1e-5)  # beta has none, omega judges
    row = next(
        r for r in measurements(run) if (r.target, r.metric, r.model) == ("age", "mae", "federated")
    )
    assert 0 < row.value < 8
    models = {r.model for r in measurements(run) if r.value is not None}
    assert {"site-linear", "federated+head"} <= models


def test_a_column_that_few_have_leaves_in_no_sum(federation: Any) -> None:
    """The sum of a column that one person has is hers; so is the difference of two such sums."""
    made = federation({**HOLES, "sites": {"train": ["alpha"]}})
    agent = made.agent("alpha")
    network, device = build(agent.study, seed=1), torch.device("cpu")
    training = agent.cohort.indices("train", agent.study.splits)

    def known(has: Any, age: Any) -> float:
        samples = np.array(agent.cohort.samples)
        samples[np.setdiff1d(training, has), 1] = np.nan
        labels = {**agent.cohort.labels, "age": np.full_like(agent.cohort.labels["age"], np.nan)}
        labels["age"][age] = 50.0
        cohort = replace(agent.cohort, samples=samples, labels=labels)
        site = agent.site.model_copy(
            update={"policy": agent.site.policy.model_copy(update={"minimum_support": 3})}
        )
        told = settle(agent.study, site, cohort, network, 0, device)
        return float(told.arrays["backbone.standardise/n_known"][1])

    everyone = training
    assert known(everyone, everyone) == len(training)
    assert known(everyone[:-1], everyone) == len(training) - 1
    assert known(everyone[:2], everyone) == 0
    # nine have no age; of them one has the column
    assert known(everyone[:-8], everyone[:-9]) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective": {"name": "mae"}}, "learns from the columns themselves"),
        ({"backbone.harmonisation": "combat"}, "ComBat needs whole rows"),
    ],
)
def test_what_would_hand_holes_on_is_refused(federation: Any, changes: Any, told: str) -> None:
    """NaN in a loss would end training at every site at once."""
    made = federation(overridden(HOLES, changes))
    with pytest.raises(SettingError, match=told):
        build(made.study, seed=1)


def test_linear_rivals_take_the_mean_of_those_whom_they_were_fitted_on() -> None:
    """A rival that a hole keeps away would leave the network without one."""
    from common.sections import Target

    random = np.random.default_rng(0)
    x, target = random.normal(size=(80, 3)), Target(kind="regression", centre=0.0, scale=1.0)
    y = (x @ [1.0, 2.0, 0.5]).astype(np.float32)
    x[::7, 0], x[:, 2] = np.nan, np.nan
    rows = np.arange(80)
    model = fit(target, x, y, rows, choose(target, x, y, [(rows[:60], rows[60:])]))
    told = model.predict(x, rows)
    assert np.isfinite(told).all()
    assert np.corrcoef(told, y)[0, 1] > 0.9
