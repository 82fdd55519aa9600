"""Hospitals of functional runs: valid BIDS, reproducible, with a truth that the runs really hold."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.data.check import check
from client.data.reader import find_sources, reader_of
from client.data.synthesis.activation import (
    MEMORIES,
    SIGNS,
    STATES,
    Ward,
    dictionary,
    person_of,
    scanner_of,
)
from client.site import load_site
from common.errors import FolderError, SettingError
from common.study import Study, load_study
from deploy.hospitals.folders import MARKER
from deploy.hospitals.task_fmri import TRUTH, write_task_fmri

STUDY = Path(__file__).parents[3] / "deploy" / "studies" / "task-fmri.toml"
NAMES = ("amber", "birch", "cedar", "delta", "elm")


def write(out: Path, **keys: object) -> list[Path]:
    usual = {"names": NAMES[:2], "heldout": ["birch"], "participants": 2, "seed": 3}
    return write_task_fmri(out, **{**usual, **keys})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals of two people, one of whom does each task."""
    out = tmp_path_factory.mktemp("wards")
    write(out)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_hospital_is_a_bids_data_set_of_nobody(written: Path) -> None:
    """Any BIDS reader must find runs, events and repetition times; nobody may take it for people."""
    bids = written / "amber/bids"
    description = json.loads((bids / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "callosum hospitals"
    assert "No real person" in (bids / "README").read_text()
    names = sorted(path.name for path in bids.rglob("sub-*_*"))
    assert names == [
        "sub-0001_task-signs_bold.nii.gz", "sub-0001_task-signs_events.tsv",
        "sub-0002_task-memory_bold.nii.gz", "sub-0002_task-memory_events.tsv",
    ]  # fmt: skip
    for path in bids.rglob("*_bold.nii.gz"):
        image = nib.load(path)
        task = path.name.split("_")[1]
        said = json.loads((bids / f"{task}_bold.json").read_text())["RepetitionTime"]
        assert image.header.get_zooms()[3] == pytest.approx(said)
        assert image.header.get_xyzt_units() == ("mm", "sec")
        assert int(image.header["sform_code"]) == 4
        with path.with_name(path.name.replace("bold.nii.gz", "events.tsv")).open() as lines:
            last = list(csv.DictReader(lines, delimiter="\t"))[-1]
        assert float(last["onset"]) + float(last["duration"]) < image.shape[3] * said


def test_the_study_that_comes_along_finds_every_state(written: Path) -> None:
    """From one command to a census, without an edit; each person has one task's states."""
    study = load_study(STUDY)
    assert (*study.sites.train, *study.sites.heldout) == NAMES
    assert study.targets["sign"].classes == SIGNS
    assert study.targets["memory"].classes == MEMORIES
    assert study.aggregation.weight == "participants"
    found = check(study, load_site(written / "amber/site.toml"))
    assert {finding.what for finding in found.findings} == {"motion"}
    assert found.targets["sign"].classes == dict.fromkeys(SIGNS, 1)
    assert found.targets["memory"].classes == dict.fromkeys(MEMORIES, 1)
    assert load_site(written / "birch/site.toml").role == "heldout"


def samples(study: Study, site: Path) -> tuple[np.ndarray, list[str]]:
    """All blocks of a hospital as the reader gives them."""
    reader = reader_of("bold")
    prepared = [
        reader.prepare(study.data, one) for one in find_sources(study, load_site(site)).sources
    ]
    states = [state for one in prepared for state in one.labels["trial_type"]]
    return np.concatenate([one.samples for one in prepared]).astype(float), states


def test_the_truth_beside_is_what_blocks_show(written: Path) -> None:
    """Relevance maps are judged by it: each state's blocks resemble its own map above all others."""
    study = load_study(STUDY)
    x, states = samples(study, written / "amber/site.toml")
    truth = np.stack([
        nib.load(written / "amber/bids" / TRUTH / f"state-{state}_activation.nii.gz").get_fdata()
        for state in STATES
    ])  # fmt: skip
    alike = np.corrcoef(x.reshape(len(x), -1), truth.reshape(len(truth), -1))[: len(x), len(x) :]
    own = np.array([row[STATES.index(state)] for row, state in zip(alike, states, strict=True)])
    others = (alike.sum(1) - own) / (len(STATES) - 1)
    assert (own - others).mean() > 5 * (own - others).std() / len(own) ** 0.5
    assert own.mean() > 0.1


def test_states_share_blobs_and_are_none_of_each_other() -> None:
    """Pretraining can only help where features are reused, and only teaches if states differ."""
    weights = dictionary().weights
    assert ((weights != 0).sum(1) == 5).all()
    assert (weights[16:] != 0).any(0)[(weights[:16] != 0).any(0)].any()
    alike = np.corrcoef(weights) - np.eye(len(STATES))
    assert alike.max() < 0.9
    strengths = np.abs(weights[weights != 0])
    assert 0.7 <= strengths.min() <= strengths.max() <= 1.3
    assert 0.1 < (weights < 0).sum() / (weights != 0).sum() < 0.4


def test_people_differ_and_scanners_do_by_their_strength() -> None:
    """At strength 0 hospitals differ in nothing but their people."""
    ward = Ward(name="amber", seed=3)
    one, other = person_of(ward, 0), person_of(ward, 1)
    apart = np.linalg.norm(one.centres_mm - dictionary().centres_mm, axis=1)
    assert 4 < apart.mean() < 13
    assert not np.allclose(one.weights, other.weights)
    assert len({scanner_of(Ward(name=name, seed=3)) for name in NAMES}) == len(NAMES)
    plain = {scanner_of(Ward(name=name, seed=3, strength=0.0)) for name in NAMES}
    assert len(plain) == 1


def test_a_killed_write_is_finished_to_the_same_bytes(written: Path, tmp_path: Path) -> None:
    """And a finished one is left alone."""
    write(tmp_path, names=["amber"], heldout=[])
    whole = digests(tmp_path / "amber")
    (tmp_path / "amber" / MARKER).unlink()  # it is written last
    (tmp_path / "amber/site.toml").unlink()
    (tmp_path / "amber/bids/sub-0002/func/sub-0002_task-memory_bold.nii.gz").unlink()
    write(tmp_path, names=["amber"], heldout=[])
    assert digests(tmp_path / "amber") == whole == digests(written / "amber")


def test_another_hospitals_folder_is_refused(written: Path, tmp_path: Path) -> None:
    """Nothing of somebody's is written over."""
    with pytest.raises(
        FolderError, match="a hospital with participants = .*, but participants = 3"
    ):
        write(written, participants=3)
    (tmp_path / "amber").mkdir()
    (tmp_path / "amber/data.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds data\.txt, which is not ours"):
        write(tmp_path)
    with pytest.raises(SettingError, match="participants is 0"):
        write(tmp_path / "new", participants=0)
