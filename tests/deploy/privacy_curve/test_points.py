"""A study at one epsilon after another: just as much noise as each asks for, and nothing twice."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.errors import SettingError
from common.settings import read_toml
from deploy.local import simulate
from deploy.privacy_curve.page import format_outcome, outcome, write_page
from deploy.privacy_curve.points import Point, Points, design
from deploy.privacy_curve.variants import variants
from server.run import read_run
from tests.conftest import overridden

SITES = {"train": ["alpha", "beta"], "heldout": ["omega"]}
PRIVATE = {"unit": "participant", "people_per_step": 20, "noise": 1.0, "epsilon": 8.0}


@pytest.fixture
def made(federation: Callable[..., Any]) -> Any:
    """Three small sites."""
    return federation({
        "sites": SITES, "objective.targets": ["age"], "pretraining.rounds": 2,
        "comparisons": {"single_site": False, "pooled": False}, "evaluation.head": False,
        "aggregation": {"normalisation": "groupnorm"}, "privacy": PRIVATE,
    })  # fmt: skip


@pytest.fixture
def study(made: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write the study with changes; its path."""

    def write(name: str = "first", **changes: Any) -> Path:
        table = overridden(overridden(made.base, made.changes), {"name": name, **changes})
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(table))
        return file

    return write


def settings(study: Path, text: str) -> Path:
    file = study.with_name("settings.toml")
    file.write_text(f'study = "{study.name}"\n{text}')
    return file


def test_the_noiseless_point_goes_first_and_a_public_study_is_run_as_it_is(study: Any) -> None:
    """It tells who trains; a study that is not private has no curve, and stands beside."""
    plain = study("plain", privacy={"unit": "none"})
    found = design([study(), plain], [1.0, 8.0, 8.0], repeats=2)
    assert [(one.study, one.epsilon, one.repeat) for one in found.points()] == [
        *(("first", epsilon, repeat) for epsilon in (math.inf, 8.0, 1.0) for repeat in (0, 1)),
        ("plain", math.inf, 0), ("plain", math.inf, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, 1e-4])
def test_an_epsilon_that_no_noise_reaches_is_refused_before_any_run(
    study: Any, wrong: float
) -> None:
    """Not after hours."""
    with pytest.raises(SettingError, match="--epsilon is"):
        design([study()], [8.0, wrong], repeats=1)


def test_what_has_no_curve_is_refused(study: Any) -> None:
    """Nobody judges, nobody is private, or two studies have one name."""
    alone = study("alone", sites={"train": ["alpha", "beta"]})
    with pytest.raises(SettingError, match="nobody judges alone"):
        design([alone], [8.0], repeats=1)
    with pytest.raises(SettingError, match='privacy.unit is "none" in plain'):
        design([study("plain", privacy={"unit": "none"})], [8.0], repeats=1)
    with pytest.raises(SettingError, match='both called "first"'):
        design([study(), study()], [8.0], repeats=1)
    whole = study(
        "whole", privacy={"unit": "site", "noise": 0.5}, secure_sums={"on": True},
        sites={"train": ["alpha", "beta", "gamma"], "heldout": ["omega"]},
    )  # fmt: skip
    with pytest.raises(SettingError, match='privacy.unit is "site" in whole'):
        design([study(), whole], [8.0], repeats=1)


def test_settings_take_the_place_of_keys_and_another_network_of_the_table(study: Any) -> None:
    """Keys of a perceptron have no place in a linear network."""
    file = study(backbone={"name": "mlp", "hidden": [4], "dropout": 0.0})
    text = """
        [[settings]]
        name = "short"
        pretraining = {rounds = 1}
        [[settings]]
        name = "linear"
        backbone = {name = "linear"}
    """
    (_, plain), (_, short), (_, linear) = variants(settings(file, text))
    assert short["pretraining"] == {**plain["pretraining"], "rounds": 1}
    assert short["name"] == "first-short"
    assert linear["backbone"] == {"name": "linear"}
    found = design([settings(file, text)], [8.0], repeats=1)
    assert list(found.studies) == ["first", "first-short", "first-linear"]


@pytest.mark.parametrize(("text", "told"), [
    ('[[settings]]\nname = "a"\nrounds = 3', "rounds"),
    ("[[settings]]\npretraining = {rounds = 3}", "name"),
    ('[[settings]]\nname = "a"\npretraining = {round = 3}', "pretraining.round"),
    ("settings = []", "settings"),
])  # fmt: skip
def test_settings_that_mean_nothing_are_named(study: Any, text: str, told: str) -> None:
    """By key and file."""
    with pytest.raises(SettingError, match=told):
        design([settings(study(), text)], [8.0], repeats=1)


@pytest.mark.whole
def test_every_site_stays_within_epsilon_and_the_dearest_comes_close(
    study: Any, made: Any, tmp_path: Path
) -> None:
    """The noise is just enough for all models of a run, nobody declines, the same command goes on,
    a page tells it."""
    alone = study(comparisons={"single_site": True, "pooled": False})
    asked = design([alone], [8.0, 2.0], repeats=1)
    work = Points(asked, tmp_path, tmp_path / "out")
    every = asked.points()
    assert work.run(every[:2]) == {}
    early = outcome(work, every, {})
    assert early.waiting == ("first at epsilon 2, repeat 0",)
    assert work.run(every) == {}
    for point in every[1:]:
        run = work.finished(point)
        assert run is not None
        records = run.federated.records()
        assert [record["refused"] for record in records] == [{}, {}]
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.csv")}
    assert work.run(every) == {}
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}
    found = outcome(work, every, {})
    page = write_page(tmp_path / "out", found).read_text()
    rows = list(csv.DictReader((tmp_path / "out" / "curve.csv").open()))
    federated = [row for row in rows if row["model"] == "federated"]
    assert [row["epsilon"] for row in federated] == ["inf", "8.0", "2.0"]
    for row in federated[1:]:  # of the dearest site, over rounds together and alone
        assert 0.98 < float(row["spent"]) / float(row["epsilon"]) <= 1
    assert {row["site"] for row in rows} == {"omega"}
    assert "age: MAE in years by epsilon" in page
    assert "<script" not in page
    told = format_outcome(found)
    assert "best at epsilon 2: first" in told
    assert "the training median" in told
    assert "3 points are finished, 0 failed, 0 were not run yet." in told


@pytest.mark.whole
def test_a_private_study_also_begins_from_what_is_public(
    study: Any, made: Any, tmp_path: Path
) -> None:
    """Of another study's run, with its lineage; a plain study does not begin from it."""
    plain = study("plain", privacy={"unit": "none"}, sites={"train": ["alpha"]})
    earlier = simulate(plain, made.sites, tmp_path / "public")
    private = study(sites={"train": ["beta"], "heldout": ["omega"]})
    rival = study("rival", privacy={"unit": "none"})
    asked = design([private, rival], [8.0], repeats=1, begin=earlier.folder)
    assert list(asked.studies) == ["first", "first-begun", "rival"]
    start = asked.studies["first-begun"].start
    assert start is not None
    assert (start.study, start.take, start.contributors) == ("plain", "all", ("alpha",))
    work = Points(asked, tmp_path, tmp_path / "out")
    assert work.run(asked.points()) == {}


@pytest.mark.whole
def test_a_point_that_fails_ends_no_other_and_another_study_is_run_anew(
    study: Any, made: Any, tmp_path: Path
) -> None:
    """Without the noiseless point nobody knows who trains; a changed study is no finished one."""
    asked = design([study()], [8.0], repeats=1)
    work = Points(asked, tmp_path, tmp_path / "out")
    failed = work.run([Point(study="first", epsilon=8.0, repeat=0)])
    assert "must be finished first" in failed["first at epsilon 8, repeat 0"]
    noiseless = asked.points()[0]
    assert work.run([noiseless]) == {}
    assert read_toml(work.study_file(noiseless))["privacy"]["noise"] == 0.0
    assert read_run(work.folder(noiseless)).study.privacy.epsilon == 0.0
    changed = design([study(**{"pretraining.rounds": 3})], [8.0], repeats=1)
    assert Points(changed, tmp_path, tmp_path / "out").finished(noiseless) is None
