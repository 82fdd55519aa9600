"""Every network by everything that it can learn by, federated; and sites with labels beside others."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import catalogue
from common.protocol.wire import Stored
from common.seams import TERM
from deploy.local import simulate
from deploy.pictures import learnt
from server.report.page import write_report
from server.run import Run
from tests.common.backbones.test_families import CPU_SIZES
from tests.conftest import Federation

pytestmark = pytest.mark.whole
SMALL: dict[str, dict[str, Any]] = {
    **CPU_SIZES,
    "swin": {"patch": (2, 2, 2), "width": 8, "depths": (2, 2), "heads": (2, 2), "window": (3, 3, 3)},
    "vit": {**CPU_SIZES["vit"], "patch": 4},
    "nit": {**CPU_SIZES["nit"], "patch": 4, "dropout": 0.0, "embedding_dropout": 0.0},
    "minit": {**CPU_SIZES["minit"], "block": 8, "patch": 4},
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {
    "multitask": {},
    "mae": {"width": 16, "depth": 1},
    "simmim": {"cube": 4, "width": 8},
    "simclr": {"width": 8},
    "y-aware": {"width": 8, "targets": ["age"]},
    "joint": {"unlabelled": {"name": "simmim", "cube": 4, "width": 8}},
}
GRID = {"data.shape": [18, 20, 18], "data.spacing_mm": 10.0}
PAIRS = [
    *((backbone, "multitask") for backbone in CPU_SIZES),
    *((backbone, "mae") for backbone in ("vit", "nit")),
    *((backbone, "simmim") for backbone in ("sfcn", "densenet", "resnet", "swin")),
    *((backbone, "simclr") for backbone in CPU_SIZES),
    ("resnet", "y-aware"),
    ("sfcn", "joint"),
]


def changes(backbone: str, objective: str, **more: Any) -> dict[str, Any]:
    # views of a transformer, or of a deep network without norms, look all alike at first
    slow = objective == "simclr" and backbone in ("vit", "nit", "minit", "deeplight")
    return {
        **GRID,
        "backbone": {"name": backbone, **SMALL[backbone]},
        "objective": {"name": objective, **KEYS[objective]},
        "augmentation": [{"name": "shift", "voxels": 1}, {"name": "scale"}, {"name": "noise"}],
        "pretraining.rounds": 3,
        "pretraining.local_epochs": 6 if slow else 2,
        "pretraining.batch_size": 4,
        "pretraining.learning_rate": 0.01 if slow else 0.003,
        "pretraining.warmup": 0.1,
        "sites.heldout": [],
        **more,
    }


def losses(run: Run) -> list[float]:
    """The rounds' mean training losses, over terms and sites."""
    found = []
    for record in run.federated.records():
        totals = list(record["loss"].values())
        found.append(float(np.mean(totals)))
    return found


@pytest.mark.parametrize(("backbone", "objective"), PAIRS)
def test_it_trains_over_two_sites_and_its_report_says_so(
    brains: Callable[..., Federation], backbone: str, objective: str
) -> None:
    """The loss falls, the last checkpoint holds every array, and the page is written."""
    federation = brains(changes(backbone, objective))
    run = federation.simulate()
    seen = losses(run)
    assert seen[-1] < seen[0]
    final = Stored(run.federated.final, "model/")
    assert all(np.isfinite(final[name]).all() for name in final)
    assert any(name.startswith("backbone.") for name in final)
    shown = learnt(run, federation.sites)
    self_supervised = objective not in ("multitask", "joint")
    assert bool(shown) == self_supervised
    text = write_report(run, shown).read_text()
    assert ("what the network was shown" in text) == (objective in ("mae", "simmim"))
    assert ("similarity of two views" in text) == (objective in ("simclr", "y-aware"))


def test_every_network_for_volumes_is_tried_by_everything_it_can_learn_by() -> None:
    """What is left out here was refused with a reason, or belongs to `joint`, which is made of it."""
    from common.catalogue_listing import entries

    refused = {e.name: set(e.refuses) for e in entries() if e.sort == "objective"}
    able = {
        (backbone, objective)
        for objective in ("multitask", "mae", "simmim", "simclr")
        for backbone in catalogue.names("backbones")
        if backbone not in refused[objective] | {"linear", "mlp", "bnt", "lcm"}  # of no volumes
    }
    assert able == {pair for pair in PAIRS if pair[1] not in ("y-aware", "joint")}


def without_labels(site: Path) -> None:
    """Empty the columns of a site's table."""
    table = site / "bids" / "participants.tsv"
    rows = list(csv.DictReader(table.open(), delimiter="\t"))
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(
            {k: v if k == "participant_id" else "n/a" for k, v in row.items()} for row in rows
        )


@pytest.fixture
def two_sorts(hospitals: Path, tmp_path: Path) -> Callable[..., Federation]:
    """amber has labels, birch has none, elm judges; in files of this test's own."""
    import shutil

    from tests.conftest import BRAINS

    shutil.copytree(hospitals / "sites", tmp_path / "sites")
    without_labels(tmp_path / "sites" / "birch")
    return lambda more: Federation(tmp_path, BRAINS, more)


def test_sites_with_and_without_labels_train_one_backbone_that_a_third_judges(
    two_sorts: Callable[..., Federation],
) -> None:
    """Masked learning at the one, ages at the other, and a held-out hospital says what came of it."""
    more = changes("sfcn", "joint", **{"sites.heldout": ["elm"]})
    run = two_sorts(more).simulate()
    records = list(run.federated.records())
    support = {site: told["support"] for site, told in records[-1]["answered"].items()}
    group = f"{TERM}reconstruction"
    assert support["amber"][group] == 0
    assert support["birch"][group] == support["birch"]["shared"] > 0
    assert support["birch"]["labels/age"] == 0 < support["amber"]["labels/age"]
    rows = list(csv.DictReader((run.folder / "results.csv").open()))
    judged = {
        (row["target"], row["metric"]): row["value"]
        for row in rows
        if row["site"] == "elm" and row["model"] == "federated"
    }
    assert float(judged["age", "mae"]) > 0


def test_a_site_of_masks_alone_moves_the_decoder_and_no_head(
    two_sorts: Callable[..., Federation],
) -> None:
    """Each array is averaged over those who trained it: a bystander must not hold it back."""
    federation = two_sorts(changes("sfcn", "joint", **{"pretraining.rounds": 1}))
    run = federation.simulate()
    alone = Stored(run.federated.final, "model/")
    first = Stored(run.folder / "checkpoints" / "0000.safetensors", "model/")
    replies = run.folder / "rounds" / "0001" / "replies"
    birch, amber = (Stored(replies / f"{site}.safetensors") for site in ("birch", "amber"))
    for name in alone:
        if name.startswith("part."):
            assert np.allclose(alone[name], birch[name]), name
            assert np.array_equal(amber[name], first[name])
        if name.startswith("heads."):
            assert np.allclose(alone[name], amber[name]), name


def test_a_run_of_additions_ends_as_one_network_that_others_begin_from(
    brains: Callable[..., Federation], tmp_path: Path
) -> None:
    """LoRA in rounds: the base stays, a task begins merged, and so does another study."""
    import tomllib

    from server.federation.initial import start_table

    task = {
        "name": "own", "target": "sex", "methods": ["pretrained/full", "pretrained/frozen"],
        "epochs": 1, "learning_rates": [0.01], "warmup": 0.1,
    }  # fmt: skip
    lora = {"pretraining.trains": "lora", "pretraining.rounds": 1, "finetuning": [task]}
    more = changes("vit", "multitask", **lora, **{"objective.targets": ["age"]})
    federation = brains(more)
    run = federation.simulate()
    first = Stored(run.folder / "checkpoints" / "0000.safetensors", "model/")
    final = Stored(run.federated.final, "model/")
    still = [n for n in final if n.startswith("backbone.") and "low_rank" not in n]
    assert all(np.array_equal(first[name], final[name]) for name in still)
    assert any(not np.array_equal(first[n], final[n]) for n in final if "low_rank" in n)
    second = tmp_path / "second.toml"
    text = federation.study_file.read_text().replace('trains = "lora"', 'trains = "full"')
    second.write_text(text.replace('name = "coarse"', 'name = "second"'))
    table = start_table(second, run.federated.final, "backbone", ())
    with second.open("a") as stream:
        stream.write(f"\n{table}")
    taken = tomllib.loads(table)["start"]
    assert taken["contributors"] == ["amber", "birch"]
    again = simulate(second, federation.sites, tmp_path / "again")
    begun = Stored(again.folder / "checkpoints" / "0000.safetensors", "model/")
    assert not any("low_rank" in name for name in begun)
    moved = "backbone.blocks.0.attention.look.weight"
    assert not np.array_equal(begun[moved], first[moved])
