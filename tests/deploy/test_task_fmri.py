"""DeepLight over hospitals of functional runs, from the study file that comes along, made small."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path

import pytest
import tomli_w

from client.data.cohort import open_cohort
from client.learning.person_maps import write_person_maps
from client.site import load_site
from common.errors import DataError
from common.study import load_study
from deploy.hospitals.task_fmri import write_task_fmri
from deploy.local import simulate
from server.run import Run
from tests.conftest import overridden

STUDY = Path(__file__).parents[2] / "deploy" / "studies" / "task-fmri.toml"
SMALL = {
    "data.shape": [10, 12, 10],
    "data.spacing_mm": 16.0,
    "pretraining.rounds": 2,
    "pretraining.local_epochs": 1,
    "splits": {"validation": 0.25, "test": 0.35, "salt": "small7"},
    "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
    "evaluation.bootstrap": 100,
}


@pytest.mark.whole
def test_states_are_learnt_across_hospitals_and_others_at_each(tmp_path: Path) -> None:
    """Sites are weighed by people; each tunes its own head on the states of k people of its own."""
    names = [*SMALL["sites"]["train"], *SMALL["sites"]["heldout"]]  # type: ignore[call-overload]
    files = write_task_fmri(
        tmp_path / "wards", names=names, heldout=["elm"], participants=21, spacing_mm=16.0
    )
    for file in files:
        file.write_text(f'{file.read_text()}\n[device]\nkind = "cpu"\nthreads = 1\nloaders = 1\n')
    table = overridden(tomllib.loads(STUDY.read_text()), SMALL)
    for task, k in zip(table["finetuning"], ([1, 2], [2]), strict=True):
        task |= {"participants": k, "epochs": 1}
    study = tmp_path / "task-fmri.toml"
    study.write_text(tomli_w.dumps(table))
    run = simulate(study, tmp_path / "wards", tmp_path / "run")
    records = list(run.federated.records())
    assert len(records) == 2
    people = {site: line["participants"]["shared"] for site, line in records[0]["answered"].items()}
    assert people == {"amber": 5, "birch": 6}  # who saw signs and trains, of 21
    with (tmp_path / "run/results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    tuned = {(row["site"], row["init"], row["method"], row["k"], row["metric"]) for row in rows}
    for site in ("amber", "birch", "all"):
        for k in ("1", "2"):
            for rival in ("scratch-full", "linear"):
                apart = f"balanced_accuracy_minus_{rival}"
                assert (site, "pretrained", "full", k, apart) in tuned
            for init in ("pretrained", "scratch"):
                assert (site, init, "full", k, "balanced_accuracy_over_draws") in tuned
    assert sorted(p.stem for p in (run.folder / "explain/maps").glob("*/*.safetensors")) == [
        "amber", "birch"
    ]  # fmt: skip
    judged = {row["target"] for row in rows if row["site"] == "elm"}
    assert "sign" in judged
    whose = {row["site"] for row in rows if row["phase"] == "explain" and row["value"]}
    assert whose == {"amber", "birch"}
    made = person_maps(run, tmp_path, "sub-0002")
    assert {path.name for path in made} >= {"01-memory1.nii.gz", "04-memory4.nii.gz"}
    assert all(path.with_name(path.name.replace(".nii.gz", ".png")).exists() for path in made)
    with pytest.raises(DataError, match="sub-9999 is not among the people"):
        person_maps(run, tmp_path, "sub-9999")


def person_maps(run: Run, folder: Path, *people: str) -> list[Path]:
    """What amber would see of its own people."""
    own = load_site(folder / "wards/amber/site.toml")
    study = load_study(folder / "task-fmri.toml")
    return list(write_person_maps(study, own, open_cohort(study, own), folder / "maps", people))
