"""The seams carry what comes from elsewhere: the guide's examples, and a package from outside."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tomli_w
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from client.data.cohort import Cohort
from client.data.splits import split_of
from client.doctor.demand import Demand
from client.learning.training import Recipe, train
from common import catalogue
from common.arrays import Arrays
from common.backbones.mlp import Mlp
from common.backbones.sfcn import Sfcn
from common.documentation import study_keys
from common.errors import Refusal, SettingError
from common.metrics import figures
from common.network.buildable import check_networks
from common.network.building import arrays_of, build, carried_over, load_arrays, plan_of
from common.network.size import Limits
from common.objectives.multitask import Multitask
from common.protocol.wire import open_arrays
from common.seams import FROZEN
from common.sections import Pretraining, Splits, Target
from common.study import Study, parse_study
from deploy.local import simulate
from tests.conftest import FEATURES, overridden

HOUSE = Path(__file__).parents[2]
PLUGINS = HOUSE / "tests" / "plugins"
SECRET = "in the open"  # of every site here: the tests must know who trains
GUIDE = HOUSE / "common" / "README.md"
RATE, ROUNDS, WIDTH, GAIN, LEVEL_WEIGHT = 0.5, 3, 3, 2.0, 0.5


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of `tests/plugins`, as if it were installed."""
    monkeypatch.syspath_prepend(str(PLUGINS))


# The guide


def blocks(text: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text[: found.start()].count("\n") + 1, found.group(1)


def test_every_worked_example_of_the_guide_runs_and_keeps_its_promise() -> None:
    """A guide that does not run teaches yesterday's seams; each block asserts what it says."""
    space: dict[str, Any] = {"__name__": "guide"}
    found = list(blocks(GUIDE.read_text()))
    assert len(found) >= 7
    for line, block in found:
        exec(compile("\n" * line + block, str(GUIDE), "exec"), space)


def test_the_guide_shows_one_example_of_everything_that_is_to_come() -> None:
    """Six shapes of future work, each with a heading of its own."""
    titles = re.findall(r"^### (.+)$", GUIDE.read_text(), re.MULTILINE)
    for word in ("Volumes", "Masked", "Contrastive", "tokens", "Adapters", "Private"):
        assert any(word in title for title in titles), word


def guide_package(folder: Path) -> None:
    """The guide's code as a lab would install it: one module, and its entry points."""
    code = "\n".join(block for _, block in blocks(GUIDE.read_text()))
    (folder / "guide.py").write_text(code)
    about = folder / "guide-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: guide\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[callosum.kinds]\nvolumes = guide:Volumes\n"
        "[callosum.backbones]\nslices = guide:Slices\n"
        "[callosum.objectives]\nown-heads = guide:OwnHeads\n"
    )


def write_runs(folder: Path, name: str, role: str, people: int) -> None:
    """A site of functional runs, ten volumes each, in which `right` is brighter than `left`."""
    home = folder / "sites" / name
    (home / "runs").mkdir(parents=True)
    random = np.random.default_rng(sum(name.encode()))
    words = ["left", "right", "none", "left", "right", "left", "right", "none", "right", "left"]
    for person in range(people):
        run = random.normal(size=(6, 7, 5, len(words))).astype(np.float32)
        run[:3, ..., [word == "right" for word in words]] += 1.5
        nib.save(nib.Nifti1Image(run, np.eye(4)), home / f"runs/{name}{person}_task_bold.nii.gz")
        (home / f"runs/{name}{person}_task_states.txt").write_text(" ".join(words))
    site = {
        "name": name,
        "role": role,
        "data": {"kind": "volumes", "root": "runs"},
        "secret": SECRET,
        "targets": {"state": {"column": "state"}},
        "policy": {"minimum_support": 2},  # four of 24 people validate
        "device": {"kind": "cpu", "threads": 1},
    }
    (home / "site.toml").write_text(tomli_w.dumps(site))


def test_the_guides_slice_network_trains_on_volumes_in_a_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of 2D kernels on volumes: the guide's own example failed where it was laid out."""
    guide_package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, role in {"oak": "train", "maple": "train", "elder": "heldout"}.items():
        write_runs(tmp_path, name, role, people=24)
    study = {
        "name": "slices",
        "seed": 1,
        "data": {"kind": "volumes", "shape": [6, 7, 5]},
        "targets": {"state": {"kind": "binary", "classes": ["left", "right"]}},
        "backbone": {"name": "slices"},
        "objective": {"name": "own-heads", "targets": ["state"]},
        "pretraining": {"rounds": 3, "batch_size": 16, "learning_rate": 0.02},
        "sites": {"train": ["oak", "maple"], "heldout": ["elder"]},
        "splits": {"validation": 0.25},  # enough people for the sites to report on them
        "comparisons": {"single_site": False, "pooled": False},
        "evaluation": {"bootstrap": 100},
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(study))
    run = simulate(tmp_path / "study.toml", tmp_path / "sites", tmp_path / "run")
    first, last = (
        json.loads((tmp_path / f"run/rounds/{number}/record.json").read_text())
        for number in ("0001", "0003")
    )
    assert last["loss"]["state"] < 0.8 * first["loss"]["state"]
    assert last["validation_loss"]["state"] < first["validation_loss"]["state"]
    rows = rows_of(run.folder)
    found = next(r for r in rows if r["model"] == "federated+head" and r["metric"] == "auc")
    assert float(found["value"]) > 0.9
    assert (found["n_participants"], found["n_scans"]) == ("24", str(24 * 8))


def test_weights_that_come_from_elsewhere_need_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone that reads a file in its constructor would make `scratch` a lie, without lineage."""
    study = parse_study(overridden(FEATURES, {}), Path("study.toml"))
    check_networks(study)
    plain = Mlp.__init__

    def reading(self: Any, *given: Any) -> None:
        plain(self, *given)
        with torch.no_grad():  # as from a file
            self.layers[0].weight.copy_(torch.arange(24.0).view(6, 4))

    monkeypatch.setattr(Mlp, "__init__", reading)
    with pytest.raises(SettingError, match=r"layers\.0\.weight is the same whatever the seed"):
        check_networks(study)


# A package from outside, in a whole federation


def numbers(site: str, participants: int, samples: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    """What each participant of a site has: (samples, WIDTH) by name."""
    random = np.random.default_rng(sum(site.encode()))
    return {
        f"{site}-{i:02d}": random.normal(loc=len(site), size=(samples, WIDTH)).astype(np.float32)
        for i in range(participants)
    }


SITES = {"oak": 20, "maple": 24}
JUDGE = ("elder", 30)


def write_lines(folder: Path, name: str, participants: int, role: str) -> None:
    home = folder / "sites" / name
    (home / "lines").mkdir(parents=True)
    for i, (person, samples) in enumerate(numbers(name, participants).items()):
        lines = [f"age {30 + i}"]
        for j, sample in enumerate(samples):
            lines.append(" ".join([*(f"{value:.9g}" for value in sample), ("on", "off")[j % 2]]))
        (home / "lines" / f"{person}.txt").write_text("\n".join(lines) + "\n")
    (home / "lines" / "stray.txt").write_text("no age here\n")
    site: dict[str, Any] = {
        "name": name,
        "role": role,
        "secret": SECRET,
        "data": {"kind": "toy-lines", "folder": "lines"},
        "device": {"kind": "cpu", "threads": 1},
    }
    if role == "heldout":  # the sites that train have no label of anything
        site["targets"] = {"age": {"column": "age"}, "phase": {"column": "phase"}}
    (home / "site.toml").write_text(tomli_w.dumps(site))


TOYS: dict[str, Any] = {
    "name": "toys",
    "seed": 5,
    "data": {"kind": "toy-lines", "width": WIDTH},
    "targets": {
        "age": {"kind": "regression", "unit": "years"},
        "phase": {"kind": "binary", "classes": ["off", "on"]},
    },
    "backbone": {"name": "toy-gain", "gain": GAIN},
    "objective": {"name": "toy-centre", "level_weight": LEVEL_WEIGHT},
    "pretraining": {
        "rounds": ROUNDS,
        "batch_size": 4096,
        "optimiser": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "gradient_clip": 0.0,
        "learning_rate": RATE,
        "schedule": "constant",
    },
    "sites": {"train": list(SITES), "heldout": [JUDGE[0]]},
    "comparisons": {"single_site": False, "pooled": False},
    "evaluation": {"bootstrap": 100},
}
SIMULATE = """
import sys
from pathlib import Path
from deploy.local import simulate
simulate(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study in a process of its own, which knows the package only by its path."""
    folder = tmp_path_factory.mktemp("toys")
    for name, participants in SITES.items():
        write_lines(folder, name, participants, "train")
    write_lines(folder, *JUDGE, "heldout")
    (folder / "study.toml").write_text(tomli_w.dumps(TOYS))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SIMULATE,
            *(str(folder / p) for p in ("study.toml", "sites", "run")),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(PLUGINS), str(HOUSE)])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def arrays_in(path: Path) -> Arrays:
    with open_arrays(path) as file:
        return file.all()


def training_features(site: str) -> np.ndarray[Any, Any]:
    """GAIN times the samples of the site's training participants, (N, WIDTH)."""
    chosen = [
        samples
        for person, samples in numbers(site, SITES[site]).items()
        if split_of(person, Splits(), SECRET) == "train"
    ]
    return GAIN * np.concatenate(chosen).astype(np.float64)


def test_a_package_from_outside_trains_to_what_paper_says(toy_run: Path) -> None:
    """Backbone, objective and kind by name alone; a step of rate r goes r w of the way to the
    scan-weighted mean of all sites, so after R rounds (1 - (1 - r w)^R) of the way."""
    final = arrays_in(toy_run / "run" / "checkpoints" / "final.safetensors")
    everything = np.concatenate([training_features(site) for site in SITES])
    way, slower = 1 - (1 - RATE) ** ROUNDS, 1 - (1 - RATE * LEVEL_WEIGHT) ** ROUNDS
    assert final["model/centre"] == pytest.approx(way * everything.mean(0), rel=1e-5)
    assert final["model/level"] == pytest.approx(slower * everything.mean(), rel=1e-5)


def test_an_array_without_axes_travels_as_one(toy_run: Path) -> None:
    """Temperatures and uncertainties are single numbers; a wire that adds an axis breaks them."""
    assert (
        arrays_in(toy_run / "run" / "checkpoints" / "final.safetensors")["model/level"].shape == ()
    )


def replies(run: Path) -> list[Path]:
    found = sorted(run.glob("rounds/*/replies/*.safetensors"))
    assert found
    return found


def test_what_a_site_owns_never_leaves_it_and_goes_on_from_round_to_round(toy_run: Path) -> None:
    """No reply holds it, no checkpoint changes it, and each site ends at its own mean."""
    run = toy_run / "run"
    assert all("own" not in arrays_in(path) for path in replies(run))
    for path in (run / "checkpoints").glob("*.safetensors"):
        assert arrays_in(path)["model/own"] == 0.0  # as it was drawn
    way = 1 - (1 - RATE) ** ROUNDS
    for site in SITES:
        newest = max((toy_run / "sites" / site).glob(".callosum/runs/*/federated/own-*"))
        mine = arrays_in(newest)
        assert set(mine) == {"own"}
        assert mine["own"] == pytest.approx(way * training_features(site).mean(), rel=1e-5)


def test_what_is_frozen_is_never_returned_and_stays_to_the_bit(toy_run: Path) -> None:
    """A parameter too: the loop must not have trained it, nor the server averaged it."""
    run = toy_run / "run"
    assert all("backbone.gain" not in arrays_in(path) for path in replies(run))
    final = arrays_in(run / "checkpoints" / "final.safetensors")["model/backbone.gain"]
    assert np.array_equal(final, np.full(WIDTH, GAIN, dtype=np.float32))


def test_losses_stand_in_the_record_under_the_names_of_their_terms(toy_run: Path) -> None:
    """A term need not be a target; the record still merges its sums before it divides."""
    record = json.loads((toy_run / "run" / "rounds" / "0001" / "record.json").read_text())
    assert set(record["loss"]) == {"centre", "level", "own"}
    everything = np.concatenate([training_features(site) for site in SITES])
    # in the first round everything starts at zero; each site rounds its sum before it leaves
    sums = [figures(float((training_features(site) ** 2).sum() / 2)) for site in SITES]
    assert record["loss"]["centre"] == pytest.approx(sum(sums) / len(everything), rel=1e-9)
    assert record["validation"] == {}
    assert not record["degraded"]


def rows_of(run: Path) -> list[dict[str, str]]:
    head, *lines = (run / "results.csv").read_text().splitlines()
    return [dict(zip(head.split(","), line.split(","), strict=True)) for line in lines]


def test_an_unseen_site_judges_a_backbone_that_predicts_nothing(toy_run: Path) -> None:
    """Through heads of its own, for labels of participants and of single samples alike."""
    found = {(row["target"], row["model"]) for row in rows_of(toy_run / "run")}
    assert {("age", "federated+head"), ("phase", "federated+head")} <= found
    assert not {model for _, model in found} & {"federated"}
    row = next(r for r in rows_of(toy_run / "run") if r["model"] == "federated+head")
    assert (row["n_participants"], row["n_scans"]) == (str(JUDGE[1]), str(2 * JUDGE[1]))


def test_a_file_that_a_foreign_kind_leaves_out_is_named_to_the_site(toy_run: Path) -> None:
    """Findings of a package from outside reach the same table as ours."""
    quality = next((toy_run / "sites" / "oak").rglob("quality.tsv")).read_text()
    assert "stray.txt\tleft out\ttells no age" in quality


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("data", "widht", "width"),
        ("backbone", "gian", "gain"),
        ("objective", "levelweight", "level_weight"),
    ],
)
def test_a_misspelt_key_of_a_foreign_table_is_told_with_the_nearest(
    section: str, key: str, near: str
) -> None:
    """The author of a plug-in writes nothing for this."""
    tables = {**TOYS, section: {**TOYS[section], key: 1}}
    with pytest.raises(SettingError, match=rf"{section}\.{key} .*did you mean {near}\?"):
        parse_study(tables, Path("study.toml"))


@pytest.mark.usefixtures("installed")
def test_foreign_keys_are_listed_with_ours() -> None:
    """`callosum study keys` prints this table."""
    listed = study_keys()
    assert "| `backbone.gain` | `2.0` | (toy-gain) Factor. |" in listed
    assert "| `data.width` | `required` | (toy-lines) Numbers in a line. |" in listed
    assert "(toy-centre) Weight of the level." in listed


def test_a_name_that_is_not_installed_is_refused_with_the_nearest() -> None:
    """A study never causes an import from elsewhere."""
    with pytest.raises(SettingError, match='backbone "toy-gain" is not installed'):
        catalogue.load("backbones", "toy-gain")


# Heads that stay at their site


@pytest.mark.usefixtures("installed")
def test_with_one_site_heads_of_its_own_are_the_averaged_heads(
    federation: Callable[..., Any],
) -> None:
    """The oracle of going on: one site's average is itself, so keeping must equal averaging."""
    made = federation({"sites.train": ["alpha"], "pretraining.rounds": 3, "backbone.dropout": 0.0})
    averaged = arrays_in(made.simulate("averaged").folder / "checkpoints" / "final.safetensors")
    made.changes["objective.name"] = "toy-own-heads"
    own = arrays_in(made.simulate("own").folder / "checkpoints" / "final.safetensors")
    for name in averaged:
        if name.startswith("model/backbone."):
            assert np.array_equal(averaged[name], own[name]), name
    (kept,) = made.sites.glob("alpha/.callosum/runs/*/federated/own-0003.safetensors")
    for name, array in arrays_in(kept).items():
        if name.startswith("heads."):
            assert np.array_equal(array, averaged[f"model/{name}"]), name


@pytest.mark.usefixtures("installed")
def test_an_unseen_site_reports_nothing_through_heads_that_never_came(
    federation: Callable[..., Any],
) -> None:
    """The coordinator has such heads as drawn: their predictions would pass for the model's."""
    made = federation(
        {
            "objective.name": "toy-own-heads",
            "sites.heldout": ["omega"],
            "splits.validation": 0.5,  # enough people for the sites to report on them
        },
        participants=dict.fromkeys(("alpha", "beta", "gamma"), 80),
    )
    run = made.simulate()
    models = {row["model"] for row in rows_of(run.folder) if row["phase"] == "evaluate"}
    assert "federated" not in models
    assert "federated+head" in models
    record = json.loads((run.folder / "rounds" / "0002" / "record.json").read_text())
    assert record["validation"]["age"]["n"] > 0  # where the heads are, they are judged


# What a study asks of its sites


@pytest.mark.usefixtures("installed")
def test_pretraining_without_labels_needs_no_target_of_its_own(
    federation: Callable[..., Any],
) -> None:
    """Every target may be a site's own task; pretraining sites then hold no label at all."""
    task = {"name": "dementia", "target": "diagnosis", "epochs": 1, "methods": ["pretrained/full"]}
    made = federation(
        {
            "objective": {"name": "toy-centre"},
            "targets": {"diagnosis": {"kind": "binary", "classes": ["control", "ad"]}},
            "finetuning": [task],
        },
        lacks={"alpha": ("age", "sex", "diagnosis"), "beta": ("age", "sex", "diagnosis"),
               "gamma": ("age", "sex")},
    )  # fmt: skip
    run = made.simulate()
    held = json.loads((run.folder / "census.json").read_text())
    assert held["alpha"]["held"]["labels/diagnosis"] == 0
    record = json.loads((run.folder / "rounds" / "0001" / "record.json").read_text())
    assert sorted(record["answered"]) == ["alpha", "beta", "gamma"]
    assert {row["site"] for row in rows_of(run.folder) if row["phase"] == "finetune"} == {"gamma"}


def test_pretraining_on_labels_still_needs_a_target() -> None:
    """The same study with a supervised objective would pretrain nothing."""
    tables = {
        "name": "none",
        "data": {"kind": "features", "columns": ["a"]},
        "targets": {"diagnosis": {"kind": "binary", "classes": ["control", "ad"]}},
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"]},
        "finetuning": [{"name": "dementia", "target": "diagnosis"}],
    }
    with pytest.raises(SettingError, match="must be left to pretrain"):
        parse_study(tables, Path("study.toml"))


# Rules and arrays


def study_of(**changes: Any) -> Study:
    tables: dict[str, Any] = {
        "name": "rules",
        "data": {"kind": "features", "columns": ["a", "b", "c"]},
        "targets": {
            "age": {"kind": "regression"},
            "diagnosis": {"kind": "binary", "classes": ["control", "ad"]},
        },
        "backbone": {"name": "toy-adapted"},
        "objective": {"name": "multitask", "targets": ["age"]},
        "sites": {"train": ["here"]},
    }
    return parse_study({**tables, **changes}, Path("study.toml"))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("policy", ["average", "silobn", "fedbn"])
def test_a_backbone_says_itself_what_is_frozen(policy: str) -> None:
    """Adapters then work under any objective, and no policy makes a frozen array a site's."""
    network = build(study_of(), seed=1)
    plan = plan_of(network, policy)
    base = {name for name in plan if name.startswith("backbone.base.")}
    assert {plan[name].group for name in base} == {FROZEN}
    assert not any(plan[name].kept or plan[name].travels for name in base)
    assert {name for name, rule in plan.items() if rule.travels} == {
        "backbone.down", "backbone.up", "heads.age.weight", "heads.age.bias",
    }  # fmt: skip
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not trained & base


def table_cohort(rows: int) -> Cohort:
    random = np.random.default_rng(0)
    people = tuple(f"p{i}" for i in range(rows))
    return Cohort(
        samples=random.normal(loc=3.0, size=(rows, 3)).astype(np.float32),
        participants=people,
        scans=people,
        labels={
            "age": random.normal(size=rows).astype(np.float32),
            "diagnosis": np.full(rows, np.nan, dtype=np.float32),
        },
        measures=None,
        layout="table",
        findings=(),
        contents=people,
        secrets=("",) * len(people),
    )


def trained(network: Any, rows: int, batch_size: int) -> None:
    recipe = Recipe(
        steps=Pretraining(batch_size=batch_size), rate=0.1, weight_decay=0.0, epochs=2, of=2, seed=3
    )
    train(network, table_cohort(rows), np.arange(rows), recipe, torch.device("cpu"))


@pytest.mark.usefixtures("installed")
def test_training_leaves_every_frozen_array_alone_running_statistics_too() -> None:
    """Else adapters would be trained against a base that nobody else has."""
    network = build(study_of(), seed=1)
    plan, before = plan_of(network, "average"), arrays_of(network)
    trained(network, rows=10, batch_size=5)
    after = arrays_of(network)
    for name, rule in plan.items():
        assert np.array_equal(before[name], after[name]) == (rule.group == FROZEN), name


@pytest.mark.usefixtures("installed")
def test_a_coupled_loss_gets_whole_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss over pairs grows with its batch; sites of any size must be alike in scale."""
    network = build(study_of(objective={"name": "toy-pairs"}), seed=1)
    sizes: list[int] = []
    plain = type(network).terms
    monkeypatch.setattr(
        type(network),
        "terms",
        lambda self, x, labels: sizes.append(len(x)) or plain(self, x, labels),
    )
    trained(network, rows=11, batch_size=4)
    assert sizes == [4, 4, 4, 4]
    with pytest.raises(Refusal, match="NO_DATA"):
        trained(network, rows=3, batch_size=4)


@pytest.mark.usefixtures("installed")
def test_views_need_an_augmentation_to_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal views are told apart from other samples by any network: nothing would be learnt."""
    monkeypatch.setattr(catalogue.load("objectives", "toy-pairs"), "views", 2, raising=False)
    objective = {"name": "toy-pairs"}
    with pytest.raises(SettingError, match=r"^objective.name: Pairs compares 2 views of each"):
        check_networks(study_of(objective=objective))
    check_networks(study_of(objective=objective, augmentation=[{"name": "noise"}]))
    monkeypatch.setattr(catalogue.load("objectives", "toy-pairs"), "views", 0)
    with pytest.raises(SettingError, match=r"Pairs\.views is 0; 1 or more"):
        check_networks(study_of(objective=objective))


@pytest.mark.usefixtures("installed")
def test_a_step_is_as_large_as_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that bears one view of each sample may not bear four."""
    study = study_of(
        objective={"name": "toy-pairs"},
        augmentation=[{"name": "noise"}],
        pretraining={"batch_size": 4096},
    )
    alone = Demand(study).memory_bytes
    bearable = Limits(step_gb=3 * alone / 1e9)
    check_networks(study, bearable)
    monkeypatch.setattr(catalogue.load("objectives", "toy-pairs"), "views", 4, raising=False)
    assert 3.5 * alone < Demand(study).memory_bytes <= 4 * alone
    with pytest.raises(SettingError, match="a step of 16384 views of 3 would take"):
        check_networks(study, bearable)


@pytest.mark.usefixtures("installed")
def test_an_owner_that_is_no_group_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every report would be refused for a support that it cannot hold."""
    monkeypatch.setattr(Multitask, "owner", lambda self, name: "label/age")
    with pytest.raises(SettingError, match=r'the owner of heads\.age\.weight is "label/age"'):
        build(study_of(), seed=1)


@pytest.mark.usefixtures("installed")
def test_an_objective_that_cannot_be_built_says_so_as_a_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An objective may ask more of a backbone than the seam does."""

    def refuse(*_: object) -> None:
        raise ValueError("toy-pairs needs a backbone with `regions`")

    monkeypatch.setattr(catalogue.load("objectives", "toy-pairs"), "__init__", refuse)
    with pytest.raises(SettingError, match=r"^objective: toy-pairs needs a backbone"):
        build(study_of(objective={"name": "toy-pairs"}), seed=1)


@pytest.mark.usefixtures("installed")
def test_a_task_may_be_learnt_by_the_objective_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tokens beside the old ones: everything is taken over but the new target's own arrays."""
    study = study_of(objective={"name": "toy-own-heads", "targets": ["age"]})
    task = {"diagnosis": study.targets["diagnosis"]}
    assert "heads.age.weight" not in arrays_of(build(study, task, seed=1))
    monkeypatch.setattr(
        catalogue.load("objectives", "toy-own-heads"), "finetunes", True, raising=False
    )
    network = build(study, task, seed=1)
    pretrained = arrays_of(build(study, seed=2))
    assert {"heads.age.weight", "heads.diagnosis.weight"} < set(arrays_of(network))
    assert set(carried_over(network, pretrained, "diagnosis")) == set(pretrained)


@pytest.mark.usefixtures("installed")
def test_such_a_task_is_learnt_at_every_site(
    federation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run with an objective that fine-tunes: old targets and the new one in one network."""
    objective = catalogue.load("objectives", "toy-own-heads")
    monkeypatch.setattr(objective, "finetunes", True, raising=False)
    task = {"name": "dementia", "target": "diagnosis", "epochs": 2, "methods": ["pretrained/full"]}
    made = federation({"objective.name": "toy-own-heads", "finetuning": [task]})
    found = {row["site"] for row in rows_of(made.simulate().folder) if row["task"] == "dementia"}
    assert found == {"alpha", "beta", "gamma"}


def test_plain_fine_tuning_takes_over_the_backbone_and_nothing_else() -> None:
    """Even where a task's target was pretrained, its head is learnt anew, as published."""
    study = study_of(
        backbone={"name": "mlp"}, objective={"name": "multitask", "targets": ["diagnosis", "age"]}
    )
    network = build(study, {"diagnosis": study.targets["diagnosis"]}, seed=1)
    taken = carried_over(network, arrays_of(build(study, seed=2)), "diagnosis")
    assert taken
    assert all(name.startswith("backbone.") for name in taken)


@pytest.mark.usefixtures("installed")
def test_a_scalar_survives_being_loaded() -> None:
    """Arrays of shape () are copied as such."""
    network = build(study_of(objective={"name": "toy-centre"}), seed=1)
    load_arrays(network, {"level": np.array(0.25, dtype=np.float32)})
    assert arrays_of(network)["level"].shape == ()
    assert float(network.level) == 0.25


# Terms by sample


def by_sample(network: Any) -> nn.Module:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
            found = network.terms(x, labels)
            return sum(
                network.weights[name] * torch.where(term.counted, term.values, 0.0)
                for name, term in found.items()
            )

    return Loss()


TARGETS = {
    "age": Target(kind="regression", centre=50, scale=10),
    "sex": Target(kind="binary", classes=("female", "male"), weight=0.5, positive_weight=2.0),
    "state": Target(kind="categorical", classes=("a", "b", "c")),
}


@pytest.mark.parametrize("name", ["sfcn", "mlp"])
def test_terms_give_each_participant_her_own_gradient(name: str) -> None:
    """What private training clips: vectorised gradients equal a loop over one sample at a time,
    missing labels and all, on networks without batch normalisation."""
    torch.manual_seed(0)
    if name == "sfcn":
        settings = Sfcn.Settings(name="sfcn", channels=(4, 8), top=8)
        backbone: Any = Sfcn(settings, (8, 10, 8), "groupnorm")
        x = torch.randn(5, 8, 10, 8)
    else:
        backbone = Mlp(Mlp.Settings(name="mlp", hidden=(6, 5), dropout=0.0), (4,), "groupnorm")
        x = torch.randn(5, 4)
    network = Multitask(Multitask.Settings(name="multitask"), backbone, TARGETS)
    for head in network.heads.values():
        nn.init.normal_(head.weight)  # heads of zero would hide the backbone's gradients
    missing = float("nan")
    labels = {
        "age": torch.tensor([40.0, missing, 60.0, 55.0, missing]),
        "sex": torch.tensor([0.0, 1.0, missing, 1.0, missing]),
        "state": torch.tensor([2.0, missing, 0.0, 1.0, missing]),
    }
    loss = by_sample(network)
    arrays = {key: p.detach() for key, p in loss.named_parameters()}

    def of_one(arrays: Any, x: torch.Tensor, labels: Any) -> torch.Tensor:
        one = {key: label[None] for key, label in labels.items()}
        return functional_call(loss, arrays, (x[None], one)).sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pooling has no batching rule and falls back to a loop
        together = vmap(grad(of_one), in_dims=(None, 0, 0))(arrays, x, labels)
    for i in range(len(x)):
        network.zero_grad()
        loss(
            x[i : i + 1], {key: label[i : i + 1] for key, label in labels.items()}
        ).sum().backward()
        for key, parameter in loss.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(together[key][i], expected, atol=1e-5), (i, key)
    assert all(float(together[key][4].abs().max()) == 0 for key in together)  # she has no label
    batch = torch.stack([together[key].sum(0).norm() for key in together]).norm()
    network.zero_grad()
    loss(x, labels).sum().backward()
    whole = torch.stack([p.grad.norm() for p in loss.parameters() if p.grad is not None]).norm()
    assert math.isclose(float(batch), float(whole), rel_tol=1e-4)
