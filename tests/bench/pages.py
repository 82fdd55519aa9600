"""A page of a very large study: processor seconds to make it, MB, and seconds until a browser has it."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from common.protocol.orders import Measurement
from common.study import load_study
from server.report.page import write_report
from server.results import write_results
from server.run import Run, open_run, read_run
from server.run_files import write_json, write_sealed
from tests.server.report.chromium import Tab, browsing

SITES, TARGETS, ROUNDS = 200, 10, 100
MODELS = ("federated", "pooled", "pooled-linear", "training-mean", "training-median")
WAYS = ("pretrained/full", "scratch/full", "linear")
COUNTS = (10, 20, 50, 100, 200)


def table() -> str:
    """A row for a study of a few sites, and one for a very large one."""
    titles = ("sites of each role", "targets", "rows", "CPU s to make", "MB", "seconds to load")
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for sites, targets in ((3, 2), (SITES, TARGETS)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run, count = large_run(folder, sites, targets)
            began = time.process_time()
            page = write_report(run)
            made = time.process_time() - began
            size = page.stat().st_size / 1e6
            rows.append(
                f"| {sites} | {targets} | {count:,} | {made:.1f} | {size:.1f} | "
                f"{_loaded(page, folder)} |"
            )
    return "\n".join(rows)


def large_run(folder: Path, sites: int, targets: int) -> tuple[Run, int]:
    """A finished run of made-up numbers, and how many rows its table has."""
    names = [f"target-{number}" for number in range(targets)]
    train = [f"train-{number:03d}" for number in range(sites)]
    heldout = [f"judge-{number:03d}" for number in range(sites)]
    (folder / "study.toml").write_text(_study(names, train, heldout))
    with open_run(folder / "run", load_study(folder / "study.toml"), folder / "study.toml"):
        pass
    run = read_run(folder / "run")
    for number in range(1, ROUNDS + 1):
        place = run.federated.round(number)
        place.mkdir(parents=True)
        write_sealed(place / "record.json", _record(number, train, names))
    write_json(run.folder / "census.json", _census(train, heldout, names))
    run.federated.final.parent.mkdir(parents=True, exist_ok=True)
    run.federated.final.write_bytes(b"weights")
    draw = random.Random(1)
    rows = [*_judged(draw, heldout, names), *_tuned(draw, train, names[0])]
    write_results(run, rows)
    return run, len(rows)


def _study(targets: list[str], train: list[str], heldout: list[str]) -> str:
    said = "".join(f'[targets.{name}]\nkind = "regression"\nunit = "years"\n' for name in targets)
    ways, counts = list(WAYS), list(COUNTS)
    return (
        'name = "large"\n[data]\nkind = "t1w"\nshape = [20, 24, 20]\nspacing_mm = 8.0\n'
        f'{said}[backbone]\nname = "sfcn"\nchannels = [4]\ntop = 4\n'
        f'[objective]\nname = "multitask"\n[pretraining]\nrounds = {ROUNDS}\n'
        f"[sites]\ntrain = {train}\nheldout = {heldout}\n".replace("'", '"')
        + f'[[finetuning]]\nname = "own"\ntarget = "{targets[0]}"\nmethods = {ways}\n'
        f"participants = {counts}\ndraws = 3\n".replace("'", '"')
    )


def _record(number: int, train: list[str], targets: list[str]) -> dict[str, Any]:
    line = {"support": {"shared": 40}, "participants": {"shared": 36}, "seconds": 1, "bytes": 9}
    told = dict.fromkeys(targets, 1 / number)
    return {
        "round": number, "model": "federated", "degraded": False, "refused": {}, "seconds": 2.5,
        "answered": dict.fromkeys(train, line), "loss": told, "validation_loss": told,
        "validation": {name: {"n": 30, "mae": 9 / number} for name in targets}, "update_norm": 0.5,
    }  # fmt: skip


def _census(train: list[str], heldout: list[str], targets: list[str]) -> dict[str, Any]:
    held = {"scans": 120, **{f"labels/{name}": 120 for name in targets}}
    return {
        site: {"role": "train" if site in train else "heldout", "refused": "", "held": held,
               "participants": held}
        for site in (*train, *heldout)
    }  # fmt: skip


def _row(draw: random.Random, value: float, **more: Any) -> Measurement:
    half = draw.uniform(0.2, 0.6)
    ends = {"ci_low": round(value - half, 3), "ci_high": round(value + half, 3)}
    known = {"metric": "mae", "value": round(value, 3), "n_participants": 60, "n_scans": 72}
    return Measurement.model_validate({**known, **ends, **more})


def _judged(draw: random.Random, sites: list[str], targets: list[str]) -> list[Measurement]:
    rows = []
    for site in (*sites, "all"):
        for target in targets:
            about = {"phase": "evaluate", "target": target, "site": site, "role": "heldout"}
            for model in MODELS:
                rows.append(_row(draw, draw.uniform(4, 8), model=model, **about))
                apart = {"metric": "mae_minus_federated", "p": draw.random() ** 3}
                if model != "federated":
                    rows.append(_row(draw, draw.gauss(0, 1), model=model, **about, **apart))
    return rows


def _tuned(draw: random.Random, sites: list[str], target: str) -> list[Measurement]:
    rows = []
    for site in (*sites, "all"):
        for k in COUNTS:
            for number, way in enumerate(WAYS):
                init, _, method = way.rpartition("/")
                about = {"phase": "finetune", "task": "own", "target": target, "site": site, "k": k,
                         "role": "train", "model": "federated", "init": init,
                         "method": method}  # fmt: skip
                rows.append(_row(draw, 9 - k / 50, metric="mae_over_draws", **_named(about)))
                for rival in WAYS[:number]:
                    apart = {"metric": f"mae_minus_{rival.replace('/', '-')}", "p": draw.random()}
                    rows.append(_row(draw, draw.gauss(0, 1), **_named(about), **apart))
    return rows


def _named(about: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if value != ""}


def _loaded(page: Path, folder: Path) -> str:
    """Seconds until the page is there and laid out, the least of three; or why nobody knows."""
    try:
        with browsing(folder) as tab:
            tab.open("about:blank", 1200, 900, folder)
            return f"{min(_load(tab, page) for _ in range(3)):.1f}"
    except pytest.skip.Exception as why:
        return str(why)


def _load(tab: Tab, page: Path) -> float:
    began = time.monotonic()
    tab.go(page.as_uri())
    tab.evaluate("document.documentElement.scrollHeight")
    return time.monotonic() - began
