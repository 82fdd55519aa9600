"""A site takes its scanner off its columns: a training site always, a judge only as declared."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.learning.harmonisation import Constants, calibrated_on, harmonised
from client.site import Policy
from common.errors import SettingError
from common.network.building import build
from common.study import parse_study
from server.checkpoints import load_checkpoint
from server.results import measurements
from tests.conftest import overridden

COMBAT: dict[str, Any] = {
    "backbone": {"name": "linear", "harmonisation": "combat", "covariates": ["age", "sex"]},
    "objective": {"name": "ridge", "targets": ["age"]},
    "pretraining": {"rounds": 0},
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "evaluation": {"calibration": [12, 13], "head": False},
}
POLICY = Policy(sums_of_few=True)
FAR = 25.0  # deviations that omega's scanner adds


def move(table: Path) -> None:
    """Another scanner: every column moved and stretched."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        for name in ("thickness", "volume", "depth", "curvature"):
            row[name] = f"{FAR + 1.5 * float(row[name]):.6f}"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def done(module_federation: Any) -> Any:
    """A federation whose sites have other scanners, harmonised; the judge's is the oddest."""
    made = module_federation(COMBAT, site={"policy": {"sums_of_few": True}})
    for site in ("beta", "omega"):
        move(made.sites / site / "table.csv")
    return made, made.simulate()


def arrays_of(run: Any) -> Any:
    return load_checkpoint(run.federated.final, run.study).arrays


def constants_of(made: Any, run: Any) -> Constants:
    found = Constants.among(build(made.study, seed=0), arrays_of(run))
    assert found is not None
    return found


def test_training_sites_look_alike_afterwards(done: Any) -> None:
    """What harmonisation is for: no scanner is left to learn from."""
    made, run = done
    network = build(made.study, seed=0)
    means, before = [], []
    for site in ("alpha", "beta"):
        cohort = made.agent(site).cohort
        training = cohort.indices("train", made.study.splits)
        own = harmonised(made.study, POLICY, cohort, network, arrays_of(run))
        means.append(np.asarray(own.samples)[training].mean(0))
        before.append(np.asarray(cohort.samples)[training].mean(0))
    assert np.abs(before[0] - before[1]).min() > 20
    assert np.abs(means[0] - means[1]).max() < 1.5


def test_a_judge_is_left_as_it_is_unless_calibrated_without_labels(done: Any) -> None:
    """Zero-shot stays zero-shot; calibration reads no label, and says so in the model's name."""
    made, run = done
    cohort, constants = made.agent("omega").cohort, constants_of(made, run)
    for values in cohort.labels.values():
        values[:] = np.nan  # nobody's label is there to be read
    chosen = np.arange(12)
    calibrated = np.asarray(calibrated_on(cohort, constants, chosen).samples)
    assert np.abs(calibrated[chosen].mean(0) - constants.mean).max() < 3
    rows = {
        (row.model, row.metric): row
        for row in measurements(run)
        if row.target == "age" and row.site == "omega"
    }
    plain, own = rows["federated", "mae"], rows["federated+unlabelled-12", "mae"]
    assert (plain.n_participants, own.n_participants) == (40, 28)
    assert own.value < plain.value / 2
    paired = rows["federated+unlabelled-12", "mae_minus_federated"]
    assert paired.n_participants == 28
    assert paired.ci_high < 0
    # figures of all but 12 people and of all but 13 would be about one
    assert not [model for model, _ in rows if model.endswith("-13")]


def test_what_harmonises_is_of_training_sites_alone(done: Any) -> None:
    """ComBat that has seen the judge inflates every figure; its lineage would say so."""
    made, run = done
    lineage = load_checkpoint(run.federated.final, run.study).lineage
    assert {p.site for p in lineage.stages[-1].parts if "harmonisation" in p.uses} == {
        "alpha",
        "beta",
    }
    cohorts = [made.agent(site).cohort for site in ("alpha", "beta")]
    rows = [np.asarray(c.samples)[c.indices("train", made.study.splits)] for c in cohorts]
    joint = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(constants_of(made, run).mean, joint.mean(0), rtol=1e-9)


def test_too_few_with_all_covariates_leave_columns_alone(done: Any, caplog: Any) -> None:
    """A site without ages has nothing to tell its scanner from its people by, and is told."""
    made, run = done
    cohort = made.agent("alpha").cohort
    cohort.labels["age"][2:] = np.nan
    same = harmonised(made.study, POLICY, cohort, build(made.study, seed=0), arrays_of(run))
    assert same is cohort
    assert "columns are left as they are" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbone.covariates": ["iq"]}, "backbone.covariates names iq"),
        (
            {
                "backbone.harmonisation": "none",
                "backbone.covariates": [],
                "objective.targets": ["age"],
            },
            "nothing of",
        ),
    ],
)
def test_covariates_and_calibration_that_cannot_be_are_refused(
    federation: Any, change: Any, told: str
) -> None:
    """A misspelt covariate would protect nothing, in silence."""
    with pytest.raises(SettingError, match=told):
        _ = federation(overridden(COMBAT, change)).study


def test_constants_are_the_same_however_the_columns_are_read(done: Any) -> None:
    """A finished run asked again is the same model: own parameters are made anew from own rows."""
    made, run = done
    network, cohort = build(made.study, seed=0), made.agent("beta").cohort
    one, two = (harmonised(made.study, POLICY, cohort, network, arrays_of(run)) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(one.samples), np.asarray(two.samples))


def test_whoever_is_in_no_sum_moves_nobody(done: Any) -> None:
    """Sums over harmonised columns tell location and scale, and with them her whom a sum left out."""
    made, run = done
    cohort, network = made.agent("beta").cohort, build(made.study, seed=0)
    training = cohort.indices("train", made.study.splits)
    her, others = training[3], np.delete(training, 3)
    cohort.labels["diagnosis"][her] = np.nan  # one sum is without her, and so must all be
    far = np.array(cohort.samples)
    far[her] += 100.0
    study = parse_study(
        overridden(made.study.model_dump(mode="json"), {"objective.targets": ["age", "diagnosis"]}),
        Path("s.json"),
    )
    one, other = (
        np.asarray(harmonised(study, Policy(), there, network, arrays_of(run)).samples)[others]
        for there in (cohort, replace(cohort, samples=far))
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - np.asarray(cohort.samples)[others]).max() > 1
