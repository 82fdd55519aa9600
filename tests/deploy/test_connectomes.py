"""Connectomes from files to judges: tokens of sites with other labels, and ABIDE in short."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from common.arrays import Arrays
from common.protocol.wire import Stored
from common.study import load_study
from deploy.hospitals.connectomes import write_connectomes
from deploy.local import simulate
from deploy.site_files import write_site_files
from tests.conftest import overridden

pytestmark = pytest.mark.whole
STUDIES = Path(__file__).parents[2] / "deploy" / "studies"
ABIDE = Path(__file__).parents[2].parent / "shared" / "data" / "abide_cc200_timeseries"
TINY = {"width": 16, "depth": 2, "heads": 2, "feed_forward": 16}
ONE_THREAD = '\n[device]\nkind = "cpu"\nthreads = 1\n'


def shortened(name: str, folder: Path, changes: dict[str, Any]) -> Path:
    table = tomllib.loads((STUDIES / f"{name}.toml").read_text())
    file = folder / f"{name}.toml"
    file.write_text(tomli_w.dumps(overridden(table, {"evaluation.bootstrap": 100, **changes})))
    return file


def final(run: Path) -> Arrays:
    stored = Stored(run / "checkpoints/final.safetensors", "model/")
    return {name: np.array(stored[name]) for name in stored}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_states_and_a_diagnosis_are_learnt_by_one_decoder(tmp_path: Path) -> None:
    """Tokens of what a site lacks move elsewhere; a task gets tokens of its own, and a judge all."""
    names = ("amber", "birch", "elm")
    for file in write_connectomes(tmp_path / "sites", names=names, heldout=["elm"],
                                  participants=24):  # fmt: skip
        text = file.read_text().replace("minimum_support = 4 ", "minimum_support = 1 ")
        file.write_text(text + ONE_THREAD)
    study = shortened(
        "connectomes",
        tmp_path,
        {
            "backbone": {"name": "lcm", **TINY},
            "pretraining.rounds": 2,
            "splits": {"salt": "connectomes"},
            "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
        },
    )
    table = tomllib.loads(study.read_text())
    few = {"participants": [4], "draws": 2, "epochs": 2, "learning_rates": [1e-3]}
    table["finetuning"][0] |= few
    study.write_text(tomli_w.dumps(table))
    simulate(study, tmp_path / "sites", tmp_path / "run")
    told = rows(tmp_path / "run")
    methods = {(row["init"], row["method"]) for row in told if row["phase"] == "finetune"}
    wanted = {("pretrained", way) for way in ("full", "tokens", "semi-supervised")}
    assert wanted | {("scratch", "full"), ("", "linear")} <= methods
    judged = {row["target"] for row in told if row["phase"] == "evaluate" and row["value"]}
    assert {"age", "sex"} <= judged


def test_a_tangent_space_is_that_of_all_training_sites(tmp_path: Path) -> None:
    """Its reference is settled over the wire, as if the sites' matrices lay in one place."""
    write_connectomes(tmp_path / "sites", names=("amber", "birch"), heldout=[], participants=24)
    for file in (tmp_path / "sites").glob("*/site.toml"):
        text = file.read_text().replace("minimum_support = 4 ", "minimum_support = 1 ")
        file.write_text(text + ONE_THREAD)
    study = shortened(
        "connectomes",
        tmp_path,
        {
            "backbone": {"name": "linear", "space": "tangent"},
            "objective": {"name": "multitask", "targets": ["age", "sex"]},
            "data.measure": "ledoit-wolf",
            "pretraining.rounds": 1,
            "splits": {"salt": "connectomes"},
            "comparisons": {"single_site": False, "pooled": True},
            "finetuning": [],
            "sites": {"train": ["amber", "birch"]},
        },
    )
    simulate(study, tmp_path / "sites", tmp_path / "run")
    federated, pooled = final(tmp_path / "run"), final(tmp_path / "run/comparisons/pooled")
    name = "backbone.standardise.seen.whitening"
    assert federated[name] == pytest.approx(pooled[name], abs=1e-5)
    assert not np.allclose(federated[name], np.eye(len(federated[name])), atol=0.1)
    name = "backbone.standardise.deviation"
    assert federated[name] == pytest.approx(pooled[name], rel=1e-3)


@pytest.mark.skipif(not ABIDE.is_dir(), reason="the shared real data are not on this machine")
def test_abide_in_short_is_gradient_descent_on_everyone_together(tmp_path: Path) -> None:
    """Whole-cohort steps of two real sites, averaged by people, are those of the pooled sites."""
    study = shortened(
        "abide",
        tmp_path,
        {"pretraining.rounds": 3, "sites": {"train": ["caltech", "ohsu"], "heldout": ["sbl"]}},
    )
    sites = tmp_path / "sites"
    files = write_site_files(load_study(study), STUDIES / "abide-site.toml", ABIDE, "site", sites)
    for file in files:
        file.write_text(file.read_text() + ONE_THREAD)
    simulate(study, sites, tmp_path / "run")
    federated = final(tmp_path / "run")
    pooled = final(tmp_path / "run/comparisons/pooled")
    weights = {name for name in federated if name.startswith("heads.") and "weight" in name}
    assert len(weights) == 3
    for name in sorted(weights):
        assert np.abs(federated[name]).max() > 1e-5
        difference = np.abs(federated[name] - pooled[name]).max()
        assert difference < 0.02 * np.abs(pooled[name]).max(), name
    told = [row for row in rows(tmp_path / "run") if row["target"] == "diagnosis"]
    values = {row["model"]: float(row["value"]) for row in told
              if row["site"] == "sbl" and row["metric"] == "auc" and row["value"]}  # fmt: skip
    assert values["federated"] == pytest.approx(values["pooled"], abs=0.01)
