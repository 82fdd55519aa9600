"""A study without rounds, and the constants that every model must beat, through the whole engine."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
import torch

from client.learning.census import settle
from common.errors import QuorumError, SettingError
from common.network import settling
from common.network.buildable import check_networks
from common.network.building import build, load_arrays
from common.protocol.wire import open_arrays
from server.checkpoints import about_checkpoint

RIDGE = {
    "backbone": {"name": "linear"},
    "objective": {
        "name": "ridge",
        "targets": ["age", "sex"],
        "penalties": [0.1],
        "site_weights": [0.0],
    },
    "pretraining": {"rounds": 0},
    "sites.heldout": ["omega", "psi"],
    "comparisons": {"single_site": False, "pooled": True},
    "evaluation": {"bootstrap": 100, "head": False},
}
OPEN = {"policy": {"minimum_cohort": 3, "minimum_support": 3, "sums_of_few": True}}


def arrays(path: Any) -> dict[str, Any]:
    with open_arrays(path) as file:
        return {
            n.removeprefix("model/"): a for n, a in file.all().items() if n.startswith("model/")
        }


def rows(run: Any) -> list[dict[str, str]]:
    with (run.folder / "results.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.whole
def test_sums_of_sites_make_the_model_that_pooled_rows_make(federation: Any) -> None:
    """Three hospitals and one table of all their rows: the same heads, to the eighth digit."""
    made = federation(RIDGE, site=OPEN)
    run = made.simulate()
    ours, pooled = arrays(run.federated.final), arrays(run.comparison("pooled").final)
    for name, array in ours.items():
        np.testing.assert_allclose(array, pooled[name], rtol=1e-6, atol=1e-8, err_msg=name)
    about = about_checkpoint(run.federated.final, run.study)
    assert about.lineage.contributors == ("alpha", "beta", "gamma")
    assert about.round == 0
    found = {(row["site"], row["model"], row["metric"]): row for row in rows(run)}
    everyone = [made.agent(name).cohort for name in ("alpha", "beta", "gamma")]
    ages = np.concatenate([c.labels["age"][c.indices("train", run.study.splits)] for c in everyone])
    for site in ("omega", "psi"):
        judged = made.agent(site).cohort.labels["age"]
        for model, constant, near in (
            ("training-mean", ages.mean(), 0.01),
            ("training-median", np.median(ages), 1.0),
        ):
            wanted = np.abs(judged - constant).mean()
            assert float(found[site, model, "mae"]["value"]) == pytest.approx(wanted, abs=near)
            assert found[site, model, "mae_minus_federated"]["value"]
    assert ("all", "training-median", "mae") in found

    assert not list(run.folder.glob("settle/*/*.safetensors"))  # they are not kept any longer
    before = {path: path.read_bytes() for path in run.folder.rglob("*.safetensors")}
    run.federated.final.unlink()
    again = made.simulate()
    assert {path: path.read_bytes() for path in again.folder.rglob("*.safetensors")} == before


@pytest.mark.whole
def test_sums_that_so_few_people_cannot_hide_behind_stay_at_their_site(federation: Any) -> None:
    """By default products of columns stay where they are of too few; the quorum then decides."""
    made = federation({**RIDGE, "sites.quorum": 2, "comparisons.pooled": False})
    with pytest.raises(QuorumError, match="gave sums|settle"):
        made.simulate()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**RIDGE, "pretraining": {"rounds": 3}}, "ridge is settled by sums and takes 0"),
        ({"pretraining.rounds": 0}, "1 or more are needed"),
        (
            {**RIDGE, "backbone": {"name": "mlp"}, "objective.random_features": 10},
            "backbone.name = linear",
        ),
    ],
)
def test_rounds_in_which_nothing_is_learnt_are_refused(
    federation: Any, changes: dict[str, Any], words: str
) -> None:
    """And none, where something should be."""
    made = federation(changes)
    with pytest.raises(SettingError, match=words):
        check_networks(made.study)


@pytest.mark.whole
def test_sums_are_of_what_the_coordinators_own_network_makes_of_samples(federation: Any) -> None:
    """Random features, or a frozen network, drawn otherwise at the sites would fit other heads."""
    changes = {**RIDGE, "comparisons.pooled": False, "sites.heldout": ["omega"]}
    made = federation({**changes, "objective.random_features": 20}, site=OPEN)
    run = made.simulate()
    final = arrays(run.federated.final)
    parts = []
    for name in ("alpha", "beta", "gamma"):
        agent = made.agent(name)
        network = build(agent.study, seed=0)
        load_arrays(network, final)
        device = torch.device("cpu")
        parts.append(settle(agent.study, agent.site, agent.cohort, network, 1, device).arrays)
    settling.settle({"heads": network.heads}, parts, 1)
    found = network.heads.coefficients_age.numpy()
    np.testing.assert_allclose(found, final["heads.coefficients_age"], rtol=1e-6, atol=1e-9)
