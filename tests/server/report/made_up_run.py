"""A run that nobody ran: a small study, made-up records and rows, for tests of its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.protocol.orders import Measurement
from common.study import load_study
from server.report.page import Picture
from server.results import write_results
from server.run import Run, open_run, read_run
from server.run_files import write_json, write_sealed

TRAIN = ("amber", "birch", "cedar")
STUDY = """
name = "trial"
seed = 3
[data]
kind = "t1w"
shape = [20, 24, 20]
spacing_mm = 8.0
[targets.age]
kind = "regression"
unit = "years"
[targets.sex]
kind = "binary"
classes = ["female", "male"]
[targets.diagnosis]
kind = "binary"
classes = ["control", "patient"]
[backbone]
name = "sfcn"
channels = [4]
top = 4
[objective]
name = "multitask"
[pretraining]
rounds = 4
[sites]
train = ["amber", "birch", "cedar"]
heldout = ["elm"]
quorum = 2
[[finetuning]]
name = "dementia"
target = "diagnosis"
methods = ["pretrained/full", "scratch/full"]
"""


def row(model: str, value: float | None, **more: Any) -> Measurement:
    known = {"phase": "evaluate", "target": "age", "site": "elm", "role": "heldout"}
    known |= {"metric": "mae", "n_participants": 60, "n_scans": 72}
    if value is not None:
        known |= {"ci_low": value - 0.5, "ci_high": value + 0.625}
    return Measurement.model_validate({**known, "model": model, "value": value, **more})


def withheld(model: str, **more: Any) -> Measurement:
    """As a site's egress gate leaves it: neither a value nor how few people there were."""
    return row(model, None, **{"n_participants": 0, "n_scans": 0, **more})


def rows() -> list[Measurement]:
    values = {"federated": 5.123456789, "pooled": 4.9, "constant": 14.0, "site-linear": 4.0}
    values |= {"single-amber": 7.25, "single-birch": 6.1, "single-cedar": 9.0}
    found = [row(model, value) for model, value in values.items()]
    found += [row("federated+head", 4.5), row("federated", 0.9, metric="r")]
    for model in ("pooled", "single-amber", "single-birch", "single-cedar"):
        apart = values[model] - values["federated"]
        p = 0.4 if model == "pooled" else 0.0004
        found.append(row(model, apart, metric="mae_minus_federated", p=p))
    found += [row("federated", 0.75, target="sex", metric="auc", n_participants=41)]
    for site in TRAIN:
        for init, value in (("pretrained", 0.8), ("scratch", 0.7)):
            found.append(tuned(site, init, None if site == "cedar" else value))
    return found


def tuned(site: str, init: str, value: float | None, **more: Any) -> Measurement:
    """A measurement of a site's own task; without a value it is one that the site withheld."""
    known = {"phase": "finetune", "task": "dementia", "target": "diagnosis", "init": init,
             "method": "full", "site": site, "role": "train", "metric": "auc"}  # fmt: skip
    if value is None:
        return withheld("federated", **{**known, **more})
    return row("federated", value, **{**known, "n_participants": 30, "n_scans": 31, **more})


def record(number: int, model: str = "federated", **more: Any) -> dict[str, Any]:
    line = {"support": {"shared": 40}, "participants": {"shared": 36}}
    line |= {"seconds": 1.5, "bytes": 250_000}
    return {
        "round": number,
        "model": model,
        "degraded": False,
        "answered": dict.fromkeys(TRAIN, line),
        "refused": {},
        "loss": {"age": 1.0 / number, "sex": 0.7},
        "validation_loss": {"age": 1.5 / number, "sex": 0.8},
        "validation": {"age": {"n": 30, "mae": 9.0 - number}, "sex": {"n": 30, "auc": 0.6}},
        "update_norm": 0.5,
        "seconds": 2.5,
        **more,
    }


def census(**refused: str) -> dict[str, Any]:
    held = {"scans": 50, "labels/age": 50, "labels/sex": 44, "labels/diagnosis": 40}
    return {
        site: {
            "role": "heldout" if site == "elm" else "train",
            "refused": refused.get(site, ""),
            "held": {} if site in refused else held,
            "participants": {} if site in refused else dict.fromkeys(held, 40),
        }
        for site in (*TRAIN, "elm")
    }


def start(folder: Path, study: str = STUDY) -> Run:
    file = folder.parent / f"{folder.name}.toml"
    file.write_text(study)
    with open_run(folder, load_study(file), file):
        pass
    # what differs from machine to machine would hide what differs from call to call
    about = json.loads((folder / "provenance.json").read_text())
    write_sealed(folder / "provenance.json", {**about, "run": "ab" * 32})
    return read_run(folder)


def put_record(run: Run, found: dict[str, Any]) -> None:
    branch = run.federated if found["model"] == "federated" else run.comparison(found["model"])
    branch.round(found["round"]).mkdir(parents=True, exist_ok=True)
    write_sealed(branch.round(found["round"]) / "record.json", found)


def finished(folder: Path, study: str = STUDY) -> Run:
    run = start(folder, study)
    for number in range(1, 5):
        put_record(run, record(number))
        put_record(run, record(number, "pooled"))
        put_record(run, record(number, "single-amber"))
    line = record(2)["answered"]["amber"]
    put_record(run, record(2, degraded=True, answered=dict.fromkeys(TRAIN[:2], line),
                           refused={"cedar": "NOT_FINITE"}))  # fmt: skip
    put_record(run, record(3, degraded=True, answered=dict.fromkeys(TRAIN[1:], line),
                           refused={"amber": "NO_ANSWER"}))  # fmt: skip
    write_json(folder / "census.json", census())
    run.federated.final.parent.mkdir(parents=True, exist_ok=True)
    run.federated.final.write_bytes(b"weights")
    write_results(run, rows())
    return run


def pictures() -> list[Picture]:
    grey = np.linspace(0, 1, 20 * 24).reshape(20, 24)
    return [Picture(site="amber", caption="synthetic T1w", slices=(grey, grey * np.nan))]
