"""`check` reads whatever a run will read, and says no where what a site file promises is absent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client import cli
from client.data.check import check
from client.data.cohort import open_cohort
from client.data.prepare import prepare
from client.site import Site, load_site
from common.errors import SettingError
from common.study import Study, parse_study
from deploy.site_files import write_site_files

TABLES = {
    "name": "tiny",
    "targets": {
        "age": {"kind": "regression", "unit": "years", "low": 0, "high": 120},
        "sex": {"kind": "binary", "classes": ["female", "male"]},
    },
    "objective": {"name": "multitask"},
    "sites": {"train": ["here"]},
}
TARGETS = (
    '[targets.age]\ncolumn = "age"\n'
    '[targets.sex]\ncolumn = "sex"\ncodes = {F = "female", M = "male"}\n'
)


def study_of(data: dict[str, object], backbone: str) -> Study:
    return parse_study({**TABLES, "data": data, "backbone": {"name": backbone}}, Path("s.toml"))


ROWS = study_of({"kind": "features", "columns": ["a"]}, "linear")
SCANS = study_of({"kind": "t1w", "shape": [24, 28, 24], "spacing_mm": 8.0}, "sfcn")


def site(folder: Path, data: str) -> Site:
    (folder / "site.toml").write_text(
        f'name = "here"\nrole = "train"\n[policy]\nminimum_cohort = 2\n[data]\n{data}\n{TARGETS}'
    )
    return load_site(folder / "site.toml")


def table_site(folder: Path, content: bytes) -> Site:
    (folder / "t.tsv").write_bytes(content)
    return site(folder, 'kind = "features"\ntable = "t.tsv"')


def scan_site(folder: Path, regions: str) -> Site:
    """Two heads, and a table of their regions."""
    rows = ["participant_id\tage\tsex"]
    axes = np.indices((30, 34, 30)) - np.array([15, 17, 15]).reshape(3, 1, 1, 1)
    for number in (1, 2):
        head = (np.square(axes).sum(axis=0) < 120 + 10 * number) * 90.0
        path = folder / f"bids/sub-{number}/anat/sub-{number}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        image = nibabel.Nifti1Image(head.astype(np.float32), np.diag([7.0, 7.0, 7.0, 1.0]))
        nibabel.save(image, path)
        rows.append(f"sub-{number}\t{40 + number}\tF")
    (folder / "bids/participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "regions.tsv").write_text(regions)
    return site(folder, 'kind = "t1w"\nroot = "bids"\nregions = "regions.tsv"')


LOST = {
    "UTF-16": "participant_id\ta\tage\tsex\np\t1\t40\tF\nq\t2\t41\tM\n".encode("utf-16"),
    "sep": b"sep=\t\nparticipant_id\ta\tage\tsex\np\t1\t40\tF\n",
    "Latin-1": "participant_id\ta\tage\tsex\nM\u00fcller\t1\t40\tF\n".encode("latin-1"),
    "empty": b"participant_id\ta\tage\tsex\np\t1\t\t\nq\t2\tn/a\t\n",
    "commas": b"participant_id\ta\tage\tsex\np\t1\t39,5\tF\nq\t2\t40,5\tM\n",
    "months": b"participant_id\ta\tage\tsex\np\t1\t480\tF\nq\t2\t490\tM\n",
    "codes": b"participant_id\ta\tage\tsex\np\t1\t40\tfem\nq\t2\t41\tmal\n",
}


@pytest.mark.parametrize("how", LOST)
def test_labels_that_are_lost_end_a_check_with_the_likeliest_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """One `note` and exit 0 was all that a hospital heard of it."""
    (tmp_path / "study.toml").write_text(
        '[data]\nkind = "features"\ncolumns = ["a"]\n[targets.age]\nkind = "regression"\n'
        'unit = "years"\nlow = 0\nhigh = 120\n[targets.sex]\nkind = "binary"\n'
        'classes = ["female", "male"]\n[backbone]\nname = "linear"\n'
        '[objective]\nname = "multitask"\n[sites]\ntrain = ["here"]\n'
    )
    study = (tmp_path / "study.toml").read_text()
    (tmp_path / "study.toml").write_text('name = "tiny"\n' + study)
    table_site(tmp_path, LOST[how])
    words = ["check", "--study", tmp_path / "study.toml", "--site", tmp_path / "site.toml"]
    monkeypatch.setattr(sys, "argv", ["callosum-site", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    written = capsys.readouterr()
    said = " ".join((written.out + written.err).split())
    assert ended.value.code == 4
    reason = {
        "UTF-16": "UTF-16", "sep": "delete it", "Latin-1": "0xFC", "empty": "not known",
        "commas": "decimal point as .", "months": "factor = 0.083333", "codes": "no known code",
    }[how]  # fmt: skip
    assert reason in said


def test_a_sound_site_passes(tmp_path: Path) -> None:
    """No error where every promise is kept, though not by everybody."""
    found = check(
        ROWS, table_site(tmp_path, b"participant_id\ta\tage\tsex\np\t1\t40\tF\nq\t2\t\t\n")
    )
    assert not found.errors
    assert (found.targets["age"].participants, found.participants) == (1, 2)


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ("Measure:volume\thipp\nsub-1\t3\n", 'no column "participant_id"'),
        ("participant_id\thipp\nsub-01\t3\nsub-02\t4\n", "hardly any row belongs to a scan"),
        ("", "is empty"),
    ],
)
def test_a_table_of_regions_that_cannot_be_used_is_told_and_costs_only_the_linear_rival(
    tmp_path: Path, regions: str, said: str
) -> None:
    """`check` was silent, and in a run the whole site answered that it had no data."""
    here = scan_site(tmp_path, regions)
    assert any(said in error.problem for error in check(SCANS, here).errors)
    prepare(SCANS, here, workers=1)
    cohort = open_cohort(SCANS, here)
    assert len(cohort) == 2
    assert cohort.measures is None or np.isnan(cohort.measures).all()
    assert any(said in finding.problem for finding in cohort.findings if finding.error)


def test_a_bad_row_of_regions_costs_that_row(tmp_path: Path) -> None:
    """A mean below the people is in many tables; the people are as good as before."""
    found = check(SCANS, scan_site(tmp_path, "participant_id\thipp\n1\t3\nthe mean\t4\n2\t5\n"))
    assert not found.errors
    assert [(f.what, f.left_out) for f in found.findings] == [("regions.tsv, line 3", True)]


def test_regions_with_two_rows_of_one_scan_are_named(tmp_path: Path) -> None:
    """The last one won."""
    here = scan_site(tmp_path, "participant_id\thipp\n1\t3\n1\t4\nsub-2\t5\n")
    found = check(SCANS, here)
    assert not found.errors
    assert any("two rows with different measures" in f.problem for f in found.findings)
    assert [join.told for join in found.joins][-1] == (
        "regions: 1 of 1 rows have scans, 1 of 2 scans have a row"
    )


def test_the_dictionary_of_the_data_set_is_read(tmp_path: Path) -> None:
    """Months and exchanged codes are plausible to every other check."""
    here = scan_site(tmp_path, "participant_id\thipp\n1\t3\n2\t4\n")
    about = {"age": {"Units": "months"}, "sex": {"Levels": {"F": "male", "M": "female"}}}
    (tmp_path / "bids/participants.json").write_text(json.dumps(about))
    notes = {f.what: f.problem for f in check(SCANS, here).findings}
    assert "months" in notes["targets.age"]
    assert "the site file says female" in notes["targets.sex"]


def test_two_spellings_of_one_site_are_an_error_that_names_both(tmp_path: Path) -> None:
    """Which half of its people were dropped was a matter of the hash seed."""
    (tmp_path / "t.csv").write_text(
        "participant_id,site,a,age,sex\n" + "".join(
            f"p{n},{('NYU', 'nyu', 'CMU')[n % 3]},{n},40,F\n" for n in range(60)
        )
    )  # fmt: skip
    (tmp_path / "pattern.toml").write_text(f'[data]\nkind = "features"\ntable = "t.csv"\n{TARGETS}')
    study = parse_study(
        {**TABLES, "data": {"kind": "features", "columns": ["a"]}, "backbone": {"name": "linear"},
         "sites": {"train": ["nyu", "cmu"]}}, Path("s.toml"),
    )  # fmt: skip
    with pytest.raises(SettingError, match='"NYU" and "nyu", which would both be the site "nyu"'):
        write_site_files(study, tmp_path / "pattern.toml", tmp_path, "site", tmp_path / "out")


def test_a_scan_under_two_names_with_other_labels_is_named(tmp_path: Path) -> None:
    """One of the two labels is wrong, and nobody but the site can say which."""
    rows = [(f"p{n}", n / 7, 40 + n, "F") for n in range(20)]
    rows += [("again", 3 / 7, 71, "M"), ("same", 4 / 7, 44, "F")]
    text = "participant_id\ta\tage\tsex\n" + "".join(
        "\t".join(map(str, row)) + "\n" for row in rows
    )
    here = table_site(tmp_path, text.encode())
    assert not [one for one in check(ROWS, here).findings if "once more" in one.problem]
    prepare(ROWS, here, workers=1)
    found = {one.what: one.problem for one in check(ROWS, here).findings if one.left_out}
    assert found["again"] == (
        "it is the scan p3 once more, which is another person's; its labels contradict: age is "
        "71 years here and 43 years there, sex is male here and female there"
    )
    assert found["same"] == "it is the scan p4 once more, which is another person's"
