"""Synthetic hospitals of time series: read as any site's, drawn from their seed, never mixed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.data.reader import find_sources, reader_of
from client.data.synthesis.connectomes import REGIONS, Clinic, draw_people, series, shared_modes
from client.site import load_site
from common.errors import FolderError, SettingError
from common.study import load_study
from deploy.cli import app
from deploy.hospitals.connectomes import write_connectomes
from deploy.hospitals.folders import MARKER

STUDY = Path(__file__).parents[3] / "deploy/studies/connectomes.toml"
NAMES = ("amber", "birch", "elm")


def write(folder: Path, participants: int = 3, **keys: object) -> list[Path]:
    return write_connectomes(
        folder, names=NAMES, heldout=["elm"], participants=participants, **keys,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_clinic_rests_and_others_are_scanned_in_two_states(tmp_path: Path) -> None:
    """Sites with other labels in one study are what the tokens are for."""
    study = load_study(STUDY)
    found = {file.parent.name: find_sources(study, load_site(file)) for file in write(tmp_path)}
    assert {name: len(one.sources) for name, one in found.items()} == {
        "amber": 6, "birch": 3, "elm": 3,
    }  # fmt: skip
    assert all(not one.findings for one in found.values())
    tasks = Counter(source.participant for source in found["amber"].sources)
    assert set(tasks.values()) == {2}
    assert len({source.row["task"] for source in found["amber"].sources}) > 1
    assert {source.row["diagnosis"] for source in found["birch"].sources} == {"control", "ad"}
    assert load_site(tmp_path / "elm/site.toml").role == "heldout"
    assert load_site(tmp_path / "elm/site.toml").targets["state"].value == "rest"


def test_a_run_of_a_hospital_becomes_a_connectome(tmp_path: Path) -> None:
    """What is written is what the generator drew, but for the last decimals."""
    study, file = load_study(STUDY), write(tmp_path, 1)[1]
    (source,) = find_sources(study, load_site(file)).sources
    prepared = reader_of("connectome").prepare(study.data, source)
    clinic = Clinic(name="birch", participants=1)
    drawn = series(clinic, shared_modes(0), draw_people(clinic)[0], 0, 0)
    wanted = np.corrcoef(drawn.T)[np.triu_indices(REGIONS, 1)]
    assert np.tanh(prepared.measures) == pytest.approx(wanted[None], abs=1e-3)
    assert prepared.labels == {"time_points": [str(len(drawn))]}


def test_the_same_call_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    """Half-written hospitals are finished; two data sets are never mixed."""
    write(tmp_path)
    files = sorted(tmp_path.rglob("*.tsv"))
    before = [file.read_bytes() for file in files]
    files[3].unlink()
    for marker in tmp_path.rglob(MARKER):  # it is written last
        marker.unlink()
    write(tmp_path)
    assert [file.read_bytes() for file in files] == before
    with pytest.raises(FolderError, match="choose another"):
        write(tmp_path, seed=1)
    with pytest.raises(SettingError, match="strength"):
        write(tmp_path / "b", strength=-1.0)


def test_the_disease_shares_modes_with_age_and_tasks_or_nothing() -> None:
    """Without the negative control nobody could say why pretraining helped."""
    whole, none = shared_modes(0).directions, shared_modes(0, shared=False).directions
    assert whole["disease"] @ whole["memory"] > 0.4
    assert whole["disease"] @ whole["age"] > 0.1
    assert all(abs(none["disease"] @ none[name]) < 1e-9 for name in ("age", "sex", "memory"))


def test_what_people_are_moves_what_is_correlated() -> None:
    """A generator that labels do not move teaches nothing: same person, same noise, ill and not."""
    clinic, modes = Clinic(name="a", participants=2, severity=1.0), shared_modes(0)
    ill, well = sorted(draw_people(clinic), key=lambda person: not person.patient)
    as_well = type(ill)(age=ill.age, male=ill.male, patient=False, states=ill.states)
    one, other = (np.corrcoef(series(clinic, modes, who, 0, 0).T) for who in (ill, as_well))
    assert ill.patient
    assert not well.patient
    assert np.abs(one - other).max() > 0.02


def test_the_command_writes_them(tmp_path: Path) -> None:
    """One command, a folder for each hospital."""
    words = ["--kind", "connectome", "--names", "amber,birch", "--heldout", "birch"]
    done = CliRunner().invoke(app, ["hospitals", str(tmp_path), *words, "--participants", "2"])
    assert done.exit_code == 0, done.output
    assert {load_site(tmp_path / name / "site.toml").role for name in ("amber", "birch")} == {
        "train", "heldout",
    }  # fmt: skip
