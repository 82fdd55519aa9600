"""What training and judging read: samples with their people, labels and splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import cohort as cohorts
from client.data import prepare as preparing
from client.data.check import check
from client.data.cohort import Chosen, Cohort, open_cohort
from client.data.finding import Finding
from client.data.prepare import prepare
from client.data.reader import Found, Prepared, find_sources
from client.data.readers.features import FeaturesReader
from client.site import Site, load_site
from common.errors import DataError, ScanError
from common.sections import Splits
from common.study import Study, parse_study

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared real data are not on this machine"
)
HEADER = "participant_id,age,sex,a,b\n"
ROWS = "p0,20,F,0.5,0\np1,21,M,1.5,1\np1,22,M,2.5,4\np2,n/a,x,3.5,9\n"


def study_of(data: dict[str, Any]) -> Study:
    tables = {
        "name": "tiny",
        "data": data,
        "targets": {
            "age": {"kind": "regression", "unit": "years", "low": 0, "high": 120},
            "sex": {"kind": "binary", "classes": ["female", "male"]},
            "iq": {"kind": "regression"},
        },
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"]},
    }
    return parse_study(tables, Path("study.toml"))


STUDY = study_of({"kind": "features", "columns": ["a", "b"]})
TARGETS = (
    '[targets.age]\ncolumn = "age"\n'
    '[targets.sex]\ncolumn = "sex"\ncodes = {F = "female", M = "male"}\n'
)


def site_in(folder: Path, rows: str = ROWS, name: str = "here") -> Site:
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text(HEADER + rows)
    (folder / "site.toml").write_text(
        f'name = "{name}"\nrole = "train"\n'
        f'[data]\nkind = "features"\ntable = "table.csv"\n{TARGETS}'
    )
    return load_site(folder / "site.toml")


def opened(folder: Path, rows: str = ROWS, name: str = "here") -> Cohort:
    site = site_in(folder, rows, name)
    prepare(STUDY, site, workers=1)
    return open_cohort(STUDY, site)


def test_every_field_runs_along_the_samples(tmp_path: Path) -> None:
    """Sample k is scan k of participant k with label k."""
    cohort = opened(tmp_path)
    assert isinstance(cohort.samples, np.memmap)
    assert not cohort.samples.flags.writeable
    assert cohort.samples.tolist() == [[0.5, 0], [1.5, 1], [2.5, 4], [3.5, 9]]
    assert cohort.participants == ("p0", "p1", "p1", "p2")
    assert cohort.scans == ("p0", "p1", "p1/2", "p2")
    np.testing.assert_array_equal(cohort.labels["age"], [20, 21, 22, np.nan])
    np.testing.assert_array_equal(cohort.labels["sex"], [0, 1, 1, np.nan])
    assert np.isnan(cohort.labels["iq"]).all()
    assert cohort.labelled() == {"age": 3, "sex": 3, "iq": 0}
    assert cohort.measures is None  # a table is its own measures
    assert cohort.layout == "table"
    assert [finding.what for finding in cohort.findings] == ['p2, column "sex"']


def test_corrected_labels_need_no_new_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A phenotype table is edited often, scans hardly ever."""
    opened(tmp_path)
    site = site_in(tmp_path, ROWS.replace("p0,20,F", "p0,88,M"))
    monkeypatch.setattr(preparing, "prepare_all", None)  # would crash if anything were prepared
    assert open_cohort(STUDY, site).labels["age"][0] == 88
    assert open_cohort(STUDY, site).labels["sex"][0] == 1


def test_changed_scans_must_be_prepared_first(tmp_path: Path) -> None:
    """Old samples under new labels, silently, would be the worst of all."""
    with pytest.raises(DataError, match="not prepared"):
        open_cohort(STUDY, site_in(tmp_path))
    opened(tmp_path)
    with pytest.raises(DataError, match="prepare again"):
        open_cohort(STUDY, site_in(tmp_path, ROWS.replace("0.5", "0.6")))
    with pytest.raises(DataError, match="prepare again"):
        open_cohort(STUDY, site_in(tmp_path, ROWS + "p3,50,F,7,7\n"))


def test_a_generation_that_vanishes_meanwhile_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may replace it between finding and mapping it."""
    site = site_in(tmp_path)
    newest = prepare(STUDY, site, workers=1)
    answers = iter([tmp_path / "gone", newest])
    monkeypatch.setattr(cohorts, "current_generation", lambda _: next(answers))
    records = preparing.read_index(newest)
    monkeypatch.setattr(cohorts, "read_index", lambda _: records)
    assert len(open_cohort(STUDY, site)) == 4


def test_a_fingerprint_follows_the_content_and_not_the_names(tmp_path: Path) -> None:
    """A held-out folder that is a training folder under another name is recognised."""
    plain = opened(tmp_path / "a").fingerprint
    rows = [row.replace("p", "patient_") for row in ROWS.splitlines(keepends=True)]
    assert opened(tmp_path / "b", "".join(rows[::-1]), "elsewhere").fingerprint == plain
    assert opened(tmp_path / "c", ROWS.replace("3.5", "3.25")).fingerprint != plain


def test_a_subset_keeps_everything_together(tmp_path: Path) -> None:
    """And its samples stay on disk: a large site's do not fit into memory."""
    cohort = opened(tmp_path)
    some = cohort.subset([3, 0])
    assert some.participants == ("p2", "p0")
    assert some.samples.shape == (2, 2)
    assert some.samples.dtype == cohort.samples.dtype
    for chosen in (slice(None), np.array([1, 0]), slice(1, 2), [0, 0], 1):
        wanted = np.array([[3.5, 9], [0.5, 0]])[chosen]
        np.testing.assert_array_equal(some.samples[chosen], wanted)
    np.testing.assert_array_equal(np.asarray(some.samples), [[3.5, 9], [0.5, 0]])
    np.testing.assert_array_equal(some.labels["age"], [np.nan, 20])
    run = cohort.subset(np.array([1, 2]))
    assert isinstance(run.samples, Chosen)
    assert run.samples.samples is cohort.samples
    assert run.scans == ("p1", "p1/2")
    assert run.subset([1]).scans == ("p1/2",)
    np.testing.assert_array_equal(run.subset([1]).samples[:], [[2.5, 4]])
    assert len(cohort.subset([])) == 0
    assert cohort.subset([]).samples.shape == (0, 2)


def test_people_of_several_sites_are_placed_by_their_own_sites_secret(tmp_path: Path) -> None:
    """A pooled model must train on the very people whom the federated one was trained on."""
    names = tuple(f"p{number}" for number in range(60))
    cohort = opened(tmp_path)
    parts = [
        replace(
            cohort, samples=np.zeros((60, 2)), participants=names, scans=names, labels={},
            contents=names, secrets=(secret,) * 60,
        )
        for secret in ("here", "there")
    ]  # fmt: skip
    pooled = replace(
        parts[0], samples=np.zeros((120, 2)), participants=names * 2, scans=names * 2,
        contents=names * 2, secrets=parts[0].secrets + parts[1].secrets,
    )  # fmt: skip
    here, there = (part.indices("train", Splits()).tolist() for part in parts)
    assert here != there
    wanted = [*here, *(60 + index for index in there)]
    assert pooled.indices("train", Splits()).tolist() == wanted


@given(
    participants=st.lists(st.text(max_size=10), min_size=1, max_size=30),
    salt=st.text(max_size=5),
    test=st.floats(0, 0.4),
    validation=st.floats(0, 0.4),
)
def test_splits_share_out_people_and_never_scans(
    participants: list[str], salt: str, test: float, validation: float
) -> None:
    """All scans of a person are in one split; every scan is in exactly one."""
    splits = Splits(salt=salt, validation=validation, test=test)
    n = len(participants)
    cohort = Cohort(
        samples=np.zeros((n, 1)),
        participants=tuple(participants),
        scans=tuple(participants),
        labels={},
        measures=None,
        layout="table",
        findings=(),
        contents=("",) * n,
        secrets=("",) * n,
    )
    parts = [cohort.indices(part, splits) for part in ("train", "validation", "test")]
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    people = [{participants[index] for index in part} for part in parts]
    assert not (people[0] & people[1] | people[0] & people[2] | people[1] & people[2])


def test_samples_of_one_scan_may_have_labels_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of fMRI volumes: the participant's age, each volume's cognitive state."""

    def volumes(study: Any, source: Any) -> Prepared:
        values = np.frombuffer(source.payload, "<f4")
        samples = np.float32([values, values + 1])
        return Prepared(samples=samples, labels={"sex": ["F", "M"]})

    monkeypatch.setattr(FeaturesReader, "prepare", staticmethod(volumes))
    cohort = opened(tmp_path)
    assert cohort.samples.shape == (8, 2)
    assert cohort.participants == ("p0", "p0", "p1", "p1", "p1", "p1", "p2", "p2")
    assert cohort.labels["sex"].tolist() == [0, 1] * 4
    np.testing.assert_array_equal(cohort.labels["age"], [20, 20, 21, 21, 22, 22, np.nan, np.nan])


def test_regions_are_those_of_the_session_or_of_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most specific measure that there is; NaN where there is none."""
    measures = {"p1": np.array([1.0]), "p1/2": np.array([2.0]), "p": np.array([9.0])}
    monkeypatch.setattr(
        FeaturesReader, "regions", staticmethod(lambda *_: iter(measures.items())), raising=False
    )
    cohort = opened(tmp_path)
    np.testing.assert_array_equal(cohort.measures, [[np.nan], [1], [2], [np.nan]])
    measures.clear()
    assert open_cohort(STUDY, load_site(tmp_path / "site.toml")).measures is None


def measuring(monkeypatch: pytest.MonkeyPatch, widths: dict[str, int]) -> list[str]:
    """Let the reader measure each scan, `widths` by participant; the scans that it was asked for."""
    asked: list[str] = []
    original = FeaturesReader.prepare

    def measured(study: Any, source: Any) -> Prepared:
        asked.append(source.scan)
        samples = original(study, source).samples
        wide = np.repeat(samples.astype(np.float64), widths.get(source.participant, 2), axis=1)
        return Prepared(samples=samples, measures=wide if wide.size else None)

    monkeypatch.setattr(FeaturesReader, "prepare", staticmethod(measured))
    return asked


def test_measures_are_prepared_once_and_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edges of a connectome took 1.9 s at each opening when they were computed there."""
    asked = measuring(monkeypatch, {})
    cohort = opened(tmp_path)
    assert isinstance(cohort.measures, np.memmap)
    np.testing.assert_array_equal(cohort.measures, np.repeat(cohort.samples, 2, axis=1))
    cohort = opened(tmp_path, ROWS + "p3,30,F,7,8\n")  # the others' are lent, with their measures
    np.testing.assert_array_equal(cohort.measures, np.repeat(cohort.samples, 2, axis=1))
    assert asked == ["p0", "p1", "p1/2", "p2", "p3"]


def test_measures_that_rotted_on_disk_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit must not become a coefficient; a file that is gone must not stop a site."""
    asked = measuring(monkeypatch, {})
    opened(tmp_path)
    (file,) = tmp_path.rglob("measures.bin")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    cohort = opened(tmp_path, ROWS + "p3,30,F,7,8\n")
    np.testing.assert_array_equal(cohort.measures, np.repeat(cohort.samples, 2, axis=1))
    (file,) = tmp_path.rglob("measures.bin")
    file.unlink()
    cohort = opened(tmp_path, ROWS)
    np.testing.assert_array_equal(cohort.measures, np.repeat(cohort.samples, 2, axis=1))
    assert asked == ["p0", "p1", "p1/2", "p2", "p0", "p3", "p0", "p1", "p1/2", "p2"]


@pytest.mark.parametrize("other", [0, 3])
def test_scans_with_unlike_measures_have_none_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    """A linear rival over columns that mean different things would be worse than none."""
    measuring(monkeypatch, {"p1": other})
    cohort = opened(tmp_path)
    assert cohort.measures is None
    (told,) = [finding for finding in cohort.findings if finding.what == "measures"]
    assert f"p1 has {2 * other}" in told.problem


def test_lazy_samples_are_those_that_would_have_been_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthetic scans need no disk: every way of choosing gives what would have lain there."""
    kept = opened(tmp_path / "kept")
    monkeypatch.setattr(FeaturesReader, "lazy", True, raising=False)
    site = site_in(tmp_path / "lazy")
    cohort = open_cohort(STUDY, site)
    assert [path.name for path in site.state.iterdir()] == ["secret"]  # that of its splits
    assert (cohort.samples.shape, cohort.samples.dtype) == (kept.samples.shape, kept.samples.dtype)
    for chosen in (np.array([3, 0]), slice(1, 3), np.array([], dtype=int), [2, 2]):
        np.testing.assert_array_equal(cohort.samples[chosen], np.asarray(kept.samples)[chosen])
    np.testing.assert_array_equal(cohort.samples[1], kept.samples[1])
    assert cohort.participants == kept.participants
    assert open_cohort(STUDY, site).fingerprint == cohort.fingerprint
    assert open_cohort(STUDY, site_in(tmp_path / "b", ROWS.replace("3.5", "3.25"))).fingerprint != (
        cohort.fingerprint
    )


def test_a_lazy_source_that_breaks_its_promise_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made in the middle of training, where nobody sees which scan it was."""
    monkeypatch.setattr(FeaturesReader, "lazy", True, raising=False)
    wrong = Prepared(samples=np.zeros((2, 2), dtype=np.float32))
    monkeypatch.setattr(FeaturesReader, "prepare", staticmethod(lambda *_: wrong))
    cohort = open_cohort(STUDY, site_in(tmp_path))
    with pytest.raises(ScanError, match="p1/2: 2 samples were made, 1 announced"):
        cohort.samples[[2]]


def test_a_site_where_nothing_is_usable_opens_empty(tmp_path: Path) -> None:
    """How few are too few is the policy's question."""
    cohort = opened(tmp_path, "p0,20,F,x,0\n")
    assert cohort.samples.shape == (0, 2)
    assert cohort.labels["age"].shape == (0,)
    assert len(cohort.indices("train", Splits())) == 0


def test_the_check_counts_what_the_cohort_holds(tmp_path: Path) -> None:
    """Before anything is prepared, and without writing."""
    site = site_in(tmp_path)
    told = check(STUDY, site)
    assert (told.participants, told.scans) == (3, 4)
    assert told.targets["age"].participants == 2
    assert told.targets["age"].scans == 3
    assert told.targets["age"].span == (20, 22)
    assert told.targets["sex"].classes == {"female": 1, "male": 1}
    assert told.targets["iq"].span is None
    assert [finding.what for finding in told.findings] == ['p2, column "sex"']
    assert not site.state.exists()


@real
def test_the_check_reads_headers_and_names_what_is_odd(tmp_path: Path) -> None:
    """The awkward collection as a BIDS folder: what a header tells is told before preparing."""
    study = study_of({"kind": "t1w", "shape": [24, 28, 24], "spacing_mm": 8.0})
    files = sorted((SHARED / "nasty_nifti").glob("*.nii*"))
    table = "participant_id\tage\tsex\n"
    for number, file in enumerate(files):
        name = f"sub-{file.name.partition('.')[0].replace('_', '')}"
        ending = file.name.partition(".")[2]
        path = tmp_path / "bids" / name / "anat" / f"{name}_T1w.{ending}"
        path.parent.mkdir(parents=True)
        path.write_bytes(file.read_bytes())
        table += f"{name}\t{20 + number}\t{'FM'[number % 2]}\n"
    (tmp_path / "bids" / "participants.tsv").write_text(table)
    (tmp_path / "site.toml").write_text(
        f'name = "here"\nrole = "train"\n[data]\nkind = "t1w"\nroot = "bids"\n{TARGETS}'
    )
    site = load_site(tmp_path / "site.toml")
    told = check(study, site)
    assert told.scans == 14 - 2  # empty and pointer; the rest shows in the voxels alone
    assert {finding.left_out for finding in told.findings} == {True, False}
    generation = prepare(study, site, workers=1)
    statuses = Counter(record.status for record in preparing.read_index(generation))
    # the same image in six storages, twice more with a doubtful header, once as float64
    assert statuses["left out"] == 5
    assert statuses["duplicate"] >= 5
    cohort = open_cohort(study, site)
    assert len(cohort) == statuses["ready"]
    assert all(isinstance(finding, Finding) for finding in cohort.findings)
    assert isinstance(find_sources(study, site), Found)
