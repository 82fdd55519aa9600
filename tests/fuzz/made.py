"""Sound things to begin from, and a folder in memory for what is read from files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from common.study import parse_study

STUDY_TABLE: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "data": {"kind": "features", "columns": ["thickness", "volume"]},
    "targets": {
        "age": {"kind": "regression", "unit": "years", "centre": 50.0, "scale": 10.0},
        "sex": {"kind": "binary", "classes": ["female", "male"], "weight": 0.5},
        "diagnosis": {"kind": "binary", "classes": ["control", "ad"]},
    },
    "backbone": {"name": "mlp", "hidden": [6], "dropout": 0.1},
    "objective": {"name": "multitask", "targets": ["age", "sex"]},
    "augmentation": [{"name": "noise"}],
    "pretraining": {"rounds": 2, "batch_size": 16, "learning_rate": 0.01},
    "aggregation": {"server_optimiser": "fedadam"},
    "sites": {"train": ["alpha", "beta"], "heldout": ["omega"], "quorum": 1},
    "splits": {"validation": 0.2, "test": 0.2},
    "finetuning": [{"name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"]}],
    "evaluation": {"bootstrap": 100},
}
SCANS_TABLE: dict[str, Any] = {
    **STUDY_TABLE,
    "data": {"kind": "t1w", "shape": [12, 14, 12], "spacing_mm": 14.0, "align": "world"},
    "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4},
    "augmentation": [],
}
SITE_TABLE: dict[str, Any] = {
    "name": "alpha",
    "role": "train",
    "data": {"kind": "features", "table": "table.csv", "rows": {"site": "a"}},
    "targets": {
        "age": {"column": "age", "missing": ["-9999"]},
        "sex": {"column": "sex", "codes": {"m": "male", "f": "female"}},
    },
    "device": {"kind": "cpu", "threads": 1},
    "policy": {"minimum_cohort": 5, "hours": ["Mon-Fri 19:00-07:00"]},
}
STUDY = parse_study(STUDY_TABLE, Path("study.toml"))


Made = TypeVar("Made")


def of_this_process(make: Callable[[], Made]) -> Callable[[], Made]:
    """Made once in each process: folders are not shared."""
    made: dict[int, Made] = {}

    def found() -> Made:
        if os.getpid() not in made:
            made[os.getpid()] = make()
        return made[os.getpid()]

    return found


@of_this_process
def _folder() -> Path:
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="callosum-fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def folder(name: str) -> Path:
    """A folder of this process alone."""
    made = _folder() / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def written(name: str, table: dict[str, Any]) -> Path:
    """A TOML file."""
    path = folder("toml") / name
    path.write_text(tomli_w.dumps(table))
    return path
