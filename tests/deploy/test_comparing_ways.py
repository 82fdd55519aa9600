"""A whole federation compares the ways of a task: from the study file to the table and the page."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.service.agent import Agent
from common.network.building import build
from common.protocol.wire import Stored, read_spooled
from common.seeding import seed_of
from common.study import with_plugins
from deploy.local import simulate
from deploy.releases.certificate import certify, read_certificate
from server.checkpoints import about_checkpoint
from server.federation.starts import Starts
from server.report.page import write_report
from server.report.terminal import format_tables

TASK = {
    "name": "dementia", "target": "diagnosis", "repeats": 0,
    "methods": ["linear", "pretrained/frozen", "scratch/frozen"],
}  # fmt: skip
DRAWS = {
    "name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50, 100], "repeats": 6,
}  # fmt: skip


def told(run: Any) -> list[dict[str, str]]:
    with Path(run.folder, "results.csv").open() as stream:
        return [row for row in csv.DictReader(stream) if row["phase"] == "protocol"]


@pytest.mark.whole
def test_a_protocol_is_told_by_site_and_over_all_and_is_not_done_twice(federation: Any) -> None:
    """The same command again changes no byte, and asks no site."""
    made = federation(
        {
            "finetuning": [TASK], "protocols": [DRAWS], "sites": {"train": ["alpha", "beta"]},
            "splits": {"validation": 0.2, "test": 0.3},
        },
        participants={"alpha": 200, "beta": 150},
    )  # fmt: skip
    run = made.simulate()
    first = Path(run.folder, "results.csv").read_bytes()
    rows = told(run)
    assert {row["site"] for row in rows} == {"alpha", "beta", "all"}
    by_repeat = [row for row in rows if row["metric"] == "auc" and row["site"] == "alpha"]
    assert len(by_repeat) == 3 * 2 * 6
    assert {(row["k"], row["n_train"]) for row in by_repeat} == {("50", "50"), ("100", "100")}
    together = {row["metric"] for row in rows if row["site"] == "all"}
    assert together == {
        "auc_over_draws", "auc_minus_linear", "auc_minus_pretrained-frozen",
    }  # fmt: skip
    shown = format_tables(run)
    assert "protocol draws at alpha: median AUC of 6 repeats" in shown
    assert "protocol draws at all sites: mean AUC" in shown
    assert 'id="protocols"' in write_report(run).read_text()
    assert made.simulate().folder == run.folder
    assert Path(run.folder, "results.csv").read_bytes() == first


STARTS = {
    "sites": {"train": ["alpha", "beta", "gamma"], "heldout": ["omega"]},
    "comparisons": {"single_site": True, "pooled": True, "targets": {"age-only": ["age"]}},
    "evaluation": {"bootstrap": 100, "head": False, "baselines": False},
    "splits": {"validation": 0.2, "test": 0.4},
    "finetuning": [{
        "name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01],
        "methods": ["scratch/full", "pretrained/full", "age-only/full", "pooled/frozen",
                    "single-site/full"],
        "then": ["cross", "send"],
    }, {
        "name": "few", "target": "diagnosis", "methods": ["linear", "age-only/frozen"],
        "repeats": 0,
    }],
    "protocols": [
        {"name": "folds", "task": "dementia", "scheme": "folds", "folds": 3, "repeats": 1},
        {"name": "shots", "task": "few", "scheme": "subjects", "sizes": [1, 5], "repeats": 4,
         "each_class": True, "at": "heldout"},
    ],
}  # fmt: skip
ORDERS = (
    "census", "overlap", "settle", "train", "finetune", "protocol", "judge", "send", "cross",
    "evaluate",
)  # fmt: skip
GRID = {"learning_rates": [0.003, 0.01, 0.03], "weight_decays": [0.0, 1e-3, 1e-2]}


@pytest.fixture(scope="module")
def begun(module_federation: Any) -> Any:
    """A run whose ways begin from every kind of model; gamma knows nobody's age."""
    task, few = STARTS["finetuning"]
    made = module_federation(
        {**STARTS, "finetuning": [{**task, **GRID}, few]},
        participants=dict.fromkeys(("alpha", "beta", "gamma", "omega"), 120),
        lacks={"gamma": ("age",)},
        site={"policy.orders": ORDERS},
    )
    return made.simulate()


def arrays_of(branch: Any) -> dict[str, np.ndarray]:
    return dict(Stored(branch.final, "model/").items())


@pytest.mark.whole
def test_a_model_of_some_targets_is_trained_by_those_who_have_their_labels(begun: Any) -> None:
    """Gamma has no ages: it is not asked, and the heads that nobody learnt are as they were drawn."""
    age_only, federated = begun.comparison("age-only"), begun.federated
    for record in age_only.records():
        assert sorted(record["answered"]) == ["alpha", "beta"]
        assert not record["refused"]
    assert all(sorted(r["answered"]) == ["alpha", "beta", "gamma"] for r in federated.records())
    ours, theirs = arrays_of(age_only), arrays_of(federated)
    first = "backbone.layers.0.weight"
    assert (ours[first] != theirs[first]).any()
    whole = with_plugins(begun.study)
    drawn = build(whole, seed=seed_of(whole.seed, "initial")).state_dict()
    np.testing.assert_array_equal(ours["heads.sex.weight"], drawn["heads.sex.weight"].numpy())
    assert (theirs["heads.sex.weight"] != ours["heads.sex.weight"]).any()
    judged = read_spooled(begun.folder / "evaluation" / "age-only" / "omega.safetensors")
    assert {row.target for row in judged.measurements} == {"age"}
    assert any(row.metric == "mae_minus_federated" for row in judged.measurements)


@pytest.mark.whole
def test_every_start_has_its_model_in_the_results(begun: Any) -> None:
    """A reader sees from one row what was tuned from what, at each site and over all."""
    with Path(begun.folder, "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for phase in ("finetune", "protocol"):
        told = {
            (r["init"], r["method"], r["site"], r["model"]) for r in rows if r["phase"] == phase
        }
        for site in ("alpha", "beta", "gamma"):
            assert {one for one in told if one[2] == site} == {
                ("scratch", "full", site, "federated"), ("pretrained", "full", site, "federated"),
                ("age-only", "full", site, "age-only"), ("pooled", "frozen", site, "pooled"),
                ("single-site", "full", site, f"single-{site}"),
            }  # fmt: skip
        assert ("single-site", "full", "all", "single-site") in told
    metrics = {r["metric"] for r in rows if r["init"] == "single-site" and r["site"] == "all"}
    assert {"auc_minus_pretrained-full", "auc_minus_age-only-full"} <= metrics
    shown = format_tables(begun)
    assert "single-site full minus pretrained full" in shown
    assert "age-only full" in shown


@pytest.mark.whole
def test_a_site_s_own_model_goes_back_to_that_site_alone(begun: Any) -> None:
    """Whoever never agreed to share it must not find it at a neighbour's."""
    found = Starts(begun).of("single-site", ["alpha", "beta"], "")
    for site, start in found.items():
        own = arrays_of(begun.comparison(f"single-{site}"))
        sent = {name: one for part in start.parcel.sets.values() for name, one in part.items()}
        assert sent.keys() == own.keys()
        assert start.model == f"single-{site}"
        assert start.lineage == (site,)
        assert all((sent[name] == own[name]).all() for name in sent)
    assert found["alpha"].parcel.arrays != found["beta"].parcel.arrays


@pytest.mark.whole
def test_what_was_not_trained_is_begun_from_by_nobody(
    begun: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Pooled data exist in the local engine alone: over the wire the way is named and left out."""
    bare = replace(begun, folder=tmp_path)
    (tmp_path / "checkpoints").symlink_to(begun.folder / "checkpoints")
    assert Starts(bare).of("pooled", ["alpha"], "fine-tuning dementia, pooled-frozen") == {}
    assert "pooled was not trained, so nothing begins from it" in capsys.readouterr().err
    assert Starts(bare).of("scratch", ["alpha"], "")["alpha"].parcel.sets == {}


@pytest.mark.whole
def test_a_held_out_site_tunes_on_its_own_and_no_model_knows_it(begun: Any) -> None:
    """Few-shot at an unseen site, told as what it is: in results, on the page, in the certificate."""
    with Path(begun.folder, "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["task"] == "shots"]
    assert {(row["site"], row["role"], row["phase"]) for row in rows} == {
        ("omega", "heldout", "protocol")
    }
    assert {row["n_train"] for row in rows if row["metric"] == "auc"} == {"2", "10"}
    assert any(row["metric"] == "auc_minus_linear" and row["init"] == "age-only" for row in rows)
    shown = format_tables(begun)
    assert "protocol shots at omega, held out: median AUC of 4 repeats" in shown
    assert "The judging site learnt from some of its own people here" in shown
    for branch in begun.branches():
        assert "omega" not in about_checkpoint(branch.final, begun.study).lineage.contributors
    certificate = read_certificate(certify(begun, begun.folder, None))
    assert [(judge.site, judge.tuned) for judge in certificate.judges] == [("omega", ("shots",))]


@pytest.mark.whole
def test_heads_that_were_sent_are_a_matrix_from_site_to_site(begun: Any) -> None:
    """Does what one hospital learnt of a disease hold at another? Each head at each other site."""
    with Path(begun.folder, "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["phase"] == "cross"]
    sites = ("alpha", "beta", "gamma")
    assert {(r["model"], r["site"]) for r in rows} == {
        (f"tuned-{own}", other) for own in sites for other in sites if own != other
    }
    assert {(r["init"], r["method"]) for r in rows} == {("pooled", "frozen")}
    assert all(r["value"] and r["ci_low"] for r in rows if r["metric"] == "auc")
    page = write_report(begun).read_text()
    assert "dementia by pooled frozen: AUC by where the head was tuned and judged" in page


@pytest.mark.whole
def test_the_same_command_asks_nobody_again(begun: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads, few-shot protocols and models of some targets resume as all else does."""
    first = {path: path.read_bytes() for path in begun.folder.rglob("*.safetensors")}
    monkeypatch.setattr(Agent, "_work", lambda *_: pytest.fail("a site worked again"))
    simulate(begun.folder / "study.toml", begun.folder.parent / "sites", begun.folder)
    assert {path: path.read_bytes() for path in begun.folder.rglob("*.safetensors")} == first
