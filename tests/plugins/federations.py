"""The eight prototypes as federations on disk: two sites that train, one that judges."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from tests.conftest import BRAINS, COLUMNS, overridden, write_table_site
from tests.plugins.prototypes import bold, connectomes

SHARED = Path(__file__).parents[3] / "shared" / "data"
SITES = {"alpha": "train", "beta": "train", "omega": "heldout"}
LENIENT = {
    "policy": {"minimum_support": 1}
}  # six people are left to test on, of two to four classes
BASE: dict[str, Any] = {
    "seed": 3,
    "pretraining": {"rounds": 2, "batch_size": 8, "learning_rate": 0.01},
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
    "comparisons": {"single_site": False, "pooled": False},
    "evaluation": {"bootstrap": 100},
}
MOTION = {"motion": {"kind": "categorical", "classes": ["left", "right", "up", "down"]}}
TABLE: dict[str, Any] = {
    "data": {"kind": "features", "columns": list(COLUMNS)},
    "targets": {
        "age": {"kind": "regression", "unit": "years", "centre": 50.0, "scale": 10.0},
        "diagnosis": {"kind": "binary", "classes": ["control", "ad"]},
    },
}


def task(target: str, *methods: str, **more: Any) -> dict[str, Any]:
    settings = {"name": "own", "target": target, "methods": list(methods), "epochs": 2}
    return {"finetuning": [{**settings, "learning_rates": [0.01], **more}]}


def tables(folder: Path) -> None:
    for name, role in SITES.items():
        write_table_site(folder, name, role=role, participants=30, site=LENIENT)


def series(folder: Path) -> None:
    for seed, (name, role) in enumerate(SITES.items()):
        home = folder / "sites" / name
        connectomes.write(home / "series", name, seed)
        targets = {
            "age": {"column": "age"},
            "sex": {"column": "sex", "codes": {"F": "female", "M": "male"}},
            "task": {"value": "rest"} if name == "beta" else {"column": "task", "codes": TASKS},
        }
        write_site(home, name, role, {"kind": "proto-connectome", "folder": "series"}, targets)


TASKS = {"a": "rest", "b": "motor", "c": "memory"}


def clips(folder: Path) -> None:
    for seed, (name, role) in enumerate(SITES.items(), start=1):
        data = {"kind": "proto-clips", "seed": seed, "clips": 40}
        targets = {"motion": {"column": "motion"}}
        write_site(folder / "sites" / name, name, role, data, targets)


def functional(folder: Path) -> None:
    for name, runs in bold.sites(SHARED / "haxby_sub1").items():
        data = {"kind": "proto-bold", "runs": runs}
        site = {"policy": {"minimum_cohort": 1, "minimum_support": 1}}
        write_site(
            folder / "sites" / name, name, SITES[name], data, {"state": {"column": "state"}}, site
        )


def films_and_scans(folder: Path) -> None:
    """Clips without a patient for the first study of a chain, coarse heads for the others."""
    from deploy.hospitals.dataset import write_hospitals

    for seed, name in enumerate(("film-a", "film-b"), start=1):
        data = {"kind": "proto-clips", "seed": seed, "clips": 24}
        write_site(folder / "films" / name, name, "train", data, {"motion": {"column": "motion"}})
    write_hospitals(
        folder / "sites", names=[*SCANS["train"], *SCANS["heldout"]], heldout=SCANS["heldout"],
        participants=20, spacing_mm=14.0, seed=3,
    )  # fmt: skip
    for name in (*SCANS["train"], *SCANS["heldout"]):
        file = folder / "sites" / name / "site.toml"
        text = file.read_text().replace("minimum_support = 4 ", "minimum_support = 1 ")
        file.write_text(f'{text}\n[device]\nkind = "cpu"\nthreads = 1\n')


def chained(folder: Path) -> None:
    """Let the study of `folder` begin where clips and then scans have led a network."""
    from deploy.local import simulate
    from server.federation.initial import start_table

    last = tomllib.loads((folder / "study.toml").read_text())
    first = {**last, **CLIPS, "finetuning": [], "sites": {"train": ["film-a", "film-b"]}}
    (folder / "clips.toml").write_text(tomli_w.dumps(first))
    simulate(folder / "clips.toml", folder / "films", folder / "clips")
    shutil.copy(folder / "clips/checkpoints/final.safetensors", folder / "clips.safetensors")
    second = folder / "scans.toml"
    second.write_text(tomli_w.dumps({**last, "name": "scans", "finetuning": []}))
    _begins(second, start_table(second, folder / "clips.safetensors", "backbone", ()))
    simulate(second, folder / "sites", folder / "scans")
    shutil.copy(folder / "scans/checkpoints/final.safetensors", folder / "scans.safetensors")
    third = folder / "study.toml"
    _begins(third, start_table(third, folder / "scans.safetensors", "backbone", ()))
    for path in (folder / "films", folder / "clips", folder / "scans"):
        shutil.rmtree(path)


def _begins(file: Path, start: str) -> None:
    with file.open("a") as stream:
        stream.write(f"\n{start}")


def write_site(
    home: Path,
    name: str,
    role: str,
    data: dict[str, Any],
    targets: dict[str, Any],
    more: dict[str, Any] | None = None,
) -> None:
    home.mkdir(parents=True, exist_ok=True)
    device = {"kind": "cpu", "threads": 1}
    tables = {
        "name": name, "role": role, "secret": "in the open", "data": data, "targets": targets,
        "device": device,
    }  # fmt: skip
    (home / "site.toml").write_text(tomli_w.dumps({**tables, **(more or LENIENT)}))


CLIP = {"kind": "proto-clips", "shape": [8, 8, 8]}
CLIPS = {"name": "clips", "data": CLIP, "targets": MOTION, "objective": {"name": "multitask"}}
SCANS = {"train": ["amber", "birch"], "heldout": ["elm"]}
CHAIN = "clips then scans then a task"
PROTOTYPES: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "token decoder on connectomes": (
        series,
        {
            "data": {"kind": "proto-connectome", "regions": 8},
            "targets": {
                "age": TABLE["targets"]["age"],
                "sex": {"kind": "binary", "classes": ["female", "male"]},
                "task": {"kind": "categorical", "classes": ["rest", "motor", "memory"]},
            },
            "backbone": {"name": "proto-rows"},
            "objective": {"name": "proto-tokens", "targets": ["age", "task"]},
            "splits": {"salt": "rows-0"},  # both sexes in every split of both sites
            **task("sex", "pretrained/full", "pretrained/tokens", "pretrained/frozen", "linear"),
        },
    ),
    "DeepLight on real BOLD": (
        functional,
        {
            "data": {"kind": "proto-bold", "shape": [6, 10, 10], "states": ["face", "house"]},
            "targets": {"state": {"kind": "binary", "classes": ["house", "face"]}},
            "backbone": {"name": "proto-slices"},
            "objective": {"name": "multitask", "targets": ["state"]},
            "aggregation": {"weight": "participants"},
            "pretraining.sampling": "participants",
            "splits": {"salt": "runs-23", "validation": 0.25, "test": 0.25},
            **task("state", "pretrained/full", "scratch/full", patience=1),
        },
    ),
    "SimCLR": (
        clips,
        {
            "data": CLIP,
            "targets": MOTION,
            "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4},
            "objective": {"name": "proto-simclr"},
            "augmentation": [{"name": "shift", "voxels": 1}, {"name": "noise"}],
            **task("motion", "pretrained/full", "pretrained/lora", "scratch/full"),
        },
    ),
    "masked autoencoder": (
        clips,
        {
            "data": CLIP,
            "targets": MOTION,
            "backbone": {"name": "proto-patches"},
            "objective": {"name": "proto-masked"},
            "pretraining.warmup": 0.25,
            "pretraining.optimiser_state": "kept",
            **task("motion", "pretrained/last-blocks", "pretrained/adapters"),
        },
    ),
    "LoRA": (
        tables,
        {
            **TABLE,
            "backbone": {"name": "proto-lora"},
            "objective": {"name": "multitask"},
            **task(
                "diagnosis", "pretrained/prompts", "pretrained/lora", "scratch/full",
                then=["judge", "explain", "send"],
            ),
        },
    ),
    "per-person gradients": (
        tables,
        {
            **TABLE,
            "backbone": {"name": "mlp", "hidden": [6]},
            "objective": {"name": "proto-by-person"},
            "aggregation": {"weight": "participants", "normalisation": "groupnorm"},
            **task("diagnosis", "pretrained/full", participants=[6, 12], draws=2),
        },
    ),
    "MixUp": (
        tables,
        {
            **TABLE,
            "backbone": {"name": "mlp", "hidden": [6]},
            "objective": {"name": "proto-mixup"},
            "pretraining.layer_decay": 0.7,
            **task("diagnosis", "pretrained/full", "linear", repeats=2),
        },
    ),
    CHAIN: (
        films_and_scans,
        {
            "data": BRAINS["data"],
            "targets": BRAINS["targets"],
            "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4},
            "objective": {"name": "multitask", "targets": ["age"]},
            "sites": SCANS,
            **task("sex", "pretrained/full", "scratch/full"),
        },
    ),
}  # fmt: skip


def write(folder: Path, name: str) -> None:
    """A prototype's study.toml and its sites/."""
    make, changes = PROTOTYPES[name]
    folder.mkdir(parents=True)
    make(folder)
    plain = name.lower().replace(" ", "-")
    study = overridden({"name": plain, **BASE}, changes)
    (folder / "study.toml").write_text(tomli_w.dumps(study))
