"""Synthetic hospitals are valid BIDS, reproducible bit by bit, careful with other people's folders."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from client.site import load_site
from common.errors import FolderError, SettingError, StorageError
from deploy.hospitals.dataset import VOLUMES, write_hospitals
from deploy.hospitals.folders import MARKER

NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training hospitals and a held-out one, of 20 people each."""
    out = tmp_path_factory.mktemp("hospitals")
    write(out)
    return out


def write(out: Path, **settings: object) -> list[Path]:
    usual = {"names": NAMES, "heldout": ["gamma"], "participants": 20, "spacing_mm": 16.0}
    return write_hospitals(out, **{**usual, **settings})  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    """Every file below `folder` with the digest of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


# What is written


@pytest.mark.parametrize("name", NAMES)
def test_a_hospital_is_a_bids_dataset(written: Path, name: str) -> None:
    """Any BIDS reader must find the scans without knowing where they came from."""
    bids = written / name / "bids"
    description = json.loads((bids / "dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"
    assert {"Name", "BIDSVersion"} <= set(description)
    assert (bids / "README").read_text()
    rows = table(bids / "participants.tsv")
    people = [row["participant_id"] for row in rows]
    assert sorted(path.name for path in bids.glob("sub-*")) == people
    assert set(json.loads((bids / "participants.json").read_text())) == set(rows[0]) - {
        "participant_id"
    }
    pattern = re.compile(r"(sub-\d{4})/(?:(ses-\d\d)/)?anat/\1(?:_(ses-\d\d))?_T1w\.nii\.gz")
    scans = [str(path.relative_to(bids)) for path in bids.glob("sub-*/**/*") if path.is_file()]
    for scan_path in scans:
        found = pattern.fullmatch(scan_path)
        assert found is not None, scan_path
        assert found[2] == found[3], "the session's folder and file name must agree"
    assert len(scans) == 24, "one participant in five has two scans"


def test_the_data_say_that_they_are_synthetic(written: Path) -> None:
    """Nobody may take these for patients."""
    description = json.loads((written / "alpha/bids/dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "callosum hospitals"
    assert "No real person" in (written / "alpha/bids/README").read_text()


def test_scans_are_ras_in_mni_millimetres(written: Path) -> None:
    """A reader must not need to guess the frame of a scan."""
    for file in written.glob("alpha/bids/sub-*/**/*.nii.gz"):
        image = nib.load(file)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 4)
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.header.get_zooms(), 16)
        voxels = np.asarray(image.dataobj)
        assert 0 < (voxels > 0).mean() < 1, "a brain in an empty background"


def test_each_scan_has_its_row_of_region_volumes(written: Path) -> None:
    """The linear model and the networks must be compared on the same scans."""
    bids = written / "gamma/bids"
    rows = table(bids / "derivatives/regions/regions.tsv")
    named = {
        "_".join(part for part in (row["participant_id"], row["session"]) if part != "n/a")
        for row in rows
    }
    assert named == {path.name.removesuffix("_T1w.nii.gz") for path in bids.rglob("*_T1w.nii.gz")}
    assert len(rows[0]) == 2 + 21 + 1
    assert all(1000 < float(row["tiv"]) < 2800 for row in rows), "ml of a human head"


def test_volumes_are_columns_of_the_people_too(written: Path) -> None:
    """A study may learn them in pretraining, and then they are those of the first scan."""
    bids = written / "gamma/bids"
    first = {
        row["participant_id"]: row
        for row in reversed(table(bids / "derivatives/regions/regions.tsv"))
    }
    for person in table(bids / "participants.tsv"):
        measured = first[person["participant_id"]]
        assert {name: person[name] for name in VOLUMES} == {n: measured[n] for n in VOLUMES}


def test_clinics_examine_everyone_and_the_others_nobody(tmp_path: Path) -> None:
    """Pretraining where nobody is ill, then a disease at clinics: the paper's two kinds of cohort."""
    write(tmp_path, clinics=["beta"], pool=0.0, participants=6)
    rows = {name: table(tmp_path / name / "bids/participants.tsv") for name in NAMES}
    assert {row["diagnosis"] for row in rows["beta"]} == {"control", "ad"}
    assert not any("diagnosis" in row for name in ("alpha", "gamma") for row in rows[name])


def test_the_site_file_names_what_the_table_has(written: Path) -> None:
    """A hospital must be usable by a client without edits."""
    for name in NAMES:
        site = tomllib.loads((written / name / "site.toml").read_text())
        columns = set(table(written / name / "bids/participants.tsv")[0]) - {"participant_id"}
        assert {target["column"] for target in site["targets"].values()} == columns
        assert (site["name"], site["role"]) == (name, "heldout" if name == "gamma" else "train")
        assert (written / name / site["data"]["root"]).is_dir()
        assert (written / name / site["data"]["regions"]).is_file()
        assert site["targets"]["sex"]["codes"] == {"F": "female", "M": "male"}


def test_a_site_file_says_how_many_threads_to_take(tmp_path: Path) -> None:
    """Threads that wait for a busy core made a round of the demo take 170 s in place of 21."""
    [file] = write(tmp_path, names=["alpha"], heldout=[], participants=4, threads=1)
    assert load_site(file).device.threads == 1


def test_each_participant_advances_the_progress_once(tmp_path: Path) -> None:
    """A progress bar must end at its end, also when all was there already."""
    for _ in range(2):
        steps: list[None] = []
        write(tmp_path, advance=lambda steps=steps: steps.append(None))
        assert len(steps) == 60


# Reproducible, resumable, careful with other people's folders


def test_the_same_seed_gives_the_same_files(written: Path, tmp_path: Path) -> None:
    """Results on these data can be compared only if the data are the same."""
    write(tmp_path)
    assert digests(tmp_path) == digests(written)


def test_another_seed_gives_other_people(written: Path, tmp_path: Path) -> None:
    """Repeats of an experiment must not repeat the people."""
    write(tmp_path, seed=1)
    tables = [out / "alpha/bids/participants.tsv" for out in (written, tmp_path)]
    assert tables[0].read_text() != tables[1].read_text()


def test_adding_a_hospital_changes_no_other(written: Path, tmp_path: Path) -> None:
    """A new site must not silently replace the data that others were measured on."""
    write(tmp_path, names=["delta", "gamma", "alpha"])
    for name in ("alpha", "gamma"):
        assert digests(tmp_path / name) == digests(written / name)


def test_a_killed_write_resumes_to_the_same_files(written: Path, tmp_path: Path) -> None:
    """The same command must repair what a crash left, whatever it left."""

    class KilledError(Exception):
        pass

    steps: list[None] = []

    def kill() -> None:
        steps.append(None)
        if len(steps) == 27:
            raise KilledError

    with pytest.raises(KilledError):
        write(tmp_path, advance=kill)
    (tmp_path / "alpha" / MARKER).unlink()
    next(tmp_path.glob("alpha/bids/sub-0003/**/*.nii.gz")).unlink()
    (tmp_path / "beta/bids/.README.partial").write_text("half a fi")
    write(tmp_path)
    (tmp_path / "beta/bids/.README.partial").unlink(missing_ok=True)
    assert digests(tmp_path) == digests(written)


def test_a_complete_hospital_is_left_as_it_is(tmp_path: Path) -> None:
    """A hospital may edit its site file and keep its own state beside it."""
    [file] = write(tmp_path, names=["alpha"], heldout=[])
    file.write_text(file.read_text() + "\nminimum_cohort = 5\n")
    (tmp_path / "alpha/.callosum").mkdir()
    (tmp_path / "alpha/.callosum/ledger").write_text("mine")
    before = digests(tmp_path)
    write(tmp_path, names=["alpha"], heldout=[])
    assert digests(tmp_path) == before


@pytest.mark.parametrize("place", ["beta/notes.txt", "beta/bids/participants.tsv"])
def test_a_foreign_folder_is_refused_before_anything_is_written(tmp_path: Path, place: str) -> None:
    """Somebody's own data must not be mixed with synthetic people, nor overwritten."""
    foreign = tmp_path / place
    foreign.parent.mkdir(parents=True)
    foreign.write_text("participant_id\n")
    with pytest.raises(FolderError, match="beta"):
        write(tmp_path)
    assert list(digests(tmp_path)) == [place]


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_with_other_settings_is_refused(tmp_path: Path, killed: bool) -> None:
    """Scans of two settings in one folder would be a dataset that nobody asked for."""
    write(tmp_path, names=["alpha"], heldout=[])
    if killed:
        (tmp_path / "alpha" / MARKER).unlink()
    with pytest.raises(FolderError, match=r"strength = 1\.0, but strength = 2\.0"):
        write(tmp_path, names=["alpha"], heldout=[], strength=2.0)


def test_a_folder_of_an_older_generator_is_refused(tmp_path: Path) -> None:
    """Its people and scans are others under the same settings, and results would not compare."""
    write(tmp_path, names=["alpha"], heldout=[])
    for file in (tmp_path / "alpha" / MARKER, tmp_path / "alpha/bids/dataset_description.json"):
        file.write_text(file.read_text().replace('"generator": 2', '"generator": 1'))
    with pytest.raises(FolderError, match="generator = 1, but generator = 2"):
        write(tmp_path, names=["alpha"], heldout=[])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("names", ["alpha", "alpha", "gamma"]),
        ("names", ["../alpha", "gamma"]),
        ("heldout", ["omega"]),
        ("clinics", ["omega"]),
        ("participants", 0),
        ("strength", -1.0),
        ("pool", 1.5),
        ("spacing_mm", 0.0),
    ],
)
def test_impossible_settings_are_refused_by_name(
    tmp_path: Path, setting: str, value: object
) -> None:
    """A wrong value must be named before an hour is spent on it."""
    with pytest.raises(SettingError, match=setting if setting != "names" else "alpha"):
        write(tmp_path, **{setting: value})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """A full or missing disk is not a fault of the data."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(file)
