"""Time series become connectomes; what is wrong with a run is told by its name."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.data.cohort import open_cohort
from client.data.prepare import prepare
from client.data.reader import Found, Prepared
from client.data.readers.connectome import ConnectomeReader
from client.learning.linear import regional_features
from client.site import Site
from common.errors import DataError, ScanError
from common.kinds.connectome import Connectome
from common.study import parse_study

SHARED = Path(__file__).parents[4].parent / "shared" / "data" / "abide_cc200_timeseries"
REGIONS = 6
STUDY = Connectome.Study(kind="connectome", regions=REGIONS, least_points=40)


def series(seed: int = 0, points: int = 50) -> Any:
    chance = np.random.default_rng(seed)
    return chance.normal(size=(points, REGIONS)) @ (
        np.eye(REGIONS) + 0.3 * chance.normal(size=(REGIONS, REGIONS))
    )


def text(values: Any, mark: str = "\t", header: str = "") -> str:
    rows = [mark.join(f"{value!r}" for value in row) for row in values.tolist()]
    return "\n".join([*([header] if header else []), *rows]) + "\n"


def find(root: Path, files: str, **keys: Any) -> Found:
    site = Connectome.Site(kind="connectome", root=".", files=files, **keys)
    return ConnectomeReader.find(STUDY, site, root, frozenset({"age"}))


def only(root: Path, files: str, study: Any = STUDY, **keys: Any) -> Prepared:
    (source,) = find(root, files, **keys).sources
    return ConnectomeReader.prepare(study, source)


def people(root: Path, *names: str) -> None:
    rows = [f"{name}\t{30 + place}" for place, name in enumerate(names)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage", *rows]) + "\n")


def write(path: Path, values: Any) -> None:
    """The series in the format that the name asks for."""
    match path.name.partition(".")[2]:
        case "npy":
            np.save(path, values)
        case "npz":
            np.savez(path, **{"sub-01": values})
        case "1D":
            path.write_text(text(values, " ", "#" + " ".join(map(str, range(REGIONS)))))
        case "1D.gz":
            path.write_bytes(gzip.compress(text(values, "\t", "#1\t#2").encode()))
        case "csv":
            path.write_text(text(values, ","))
        case _:
            path.write_text(text(values, "\t", "\t".join("abcdef")))


@pytest.mark.parametrize("ending", ["npy", "npz", "1D", "1D.gz", "csv", "tsv"])
def test_every_format_gives_the_same_connectome(tmp_path: Path, ending: str) -> None:
    """Hospitals export from AFNI, from Python and from spreadsheets."""
    write(tmp_path / f"sub-01_timeseries.{ending}", series())
    prepared = only(tmp_path, f"*.{ending}")
    wanted = np.corrcoef(series().T)
    np.fill_diagonal(wanted, 0)
    assert prepared.samples.dtype == np.dtype(Connectome.dtype)
    assert prepared.samples[0] == pytest.approx(np.arctanh(wanted), abs=1e-5)
    assert prepared.labels == {"time_points": ["50"]}


def test_edges_for_the_linear_rival_are_fisher_z_whatever_the_sample_is(tmp_path: Path) -> None:
    """The rival has to be the one that is hard to beat."""
    write(tmp_path / "sub-01.npy", series())
    study = STUDY.model_copy(update={"measure": "partial"})
    prepared = only(tmp_path, "*.npy", study)
    wanted = np.arctanh(np.corrcoef(series().T)[np.triu_indices(REGIONS, 1)])
    assert prepared.measures is not None
    assert prepared.measures[0] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("place", "files", "who"),
    [
        ("CMU_a_0050642_rois.1D", "{participant}_rois.1D", "sub-CMU_a_0050642"),
        ("sub-01/func/sub-01_task-rest_timeseries.tsv", "sub-*/func/*_timeseries.tsv", "sub-01"),
        ("sub-7/ses-2/x.npy", "sub-{participant}/ses-{session}/x.npy", "sub-7"),
    ],
)
def test_people_are_named_by_files(tmp_path: Path, place: str, files: str, who: str) -> None:
    """A pattern of names is all that a site has to write."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, series())
    people(tmp_path, who)
    found = find(tmp_path, files)
    assert [(one.participant, one.scan) for one in found.sources] == [(who, place)]
    assert found.sources[0].row == {"age": "30"}
    assert [join.matched_rows for join in found.joins] == [1]


def test_the_task_of_a_run_is_what_its_name_says(tmp_path: Path) -> None:
    """States are targets, and BIDS keeps them in names; a table's own column goes before."""
    for task in ("rest", "motor"):
        np.save(tmp_path / f"sub-01_task-{task}_timeseries.npy", series(len(task)))
    site = Connectome.Site(kind="connectome", root=".", files="*.npy")
    found = ConnectomeReader.find(STUDY, site, tmp_path, frozenset({"task"}))
    assert [one.row["task"] for one in found.sources] == ["motor", "rest"]
    assert "task" in found.columns
    (tmp_path / "participants.tsv").write_text("participant_id\ttask\nsub-01\tsleep\n")
    found = ConnectomeReader.find(STUDY, site, tmp_path, frozenset({"task"}))
    assert [one.row["task"] for one in found.sources] == ["sleep", "sleep"]


def test_an_archive_holds_a_site_and_the_table_says_whose(tmp_path: Path) -> None:
    """One file of everybody, rows of two sites: each site reads its own people alone."""
    np.savez(tmp_path / "all.npz", **{f"sub-0{n}": series(n) for n in range(1, 5)})
    rows = ["participant_id\tage\tsite", "sub-01\t30\tA", "sub-02\t31\tB", "sub-03\t32\tA"]
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    found = find(tmp_path, "*.npz", rows={"site": "A"})
    assert [one.participant for one in found.sources] == ["sub-01", "sub-03"]
    assert [one.what for one in found.findings if one.left_out] == ["sub-04"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (series(points=30), "30 usable time points; the study's data.least_points is 40"),
        (np.vstack([series(points=39), np.zeros((30, 6))]), "besides 30 of zeros at the end"),
        (np.zeros((50, 6)), "6 of 6 regions have no signal"),
        (series() * [0, 0, 1, 1, 1, 1], "2 of 6 regions have no signal (regions 1, 2)"),
        (series()[:, :5], "has 5 regions; the study has 6"),
        (series().T, 'if time goes along the columns, data.time = "columns"'),
        (series()[0], "has shape (6,); time by regions is needed"),
    ],
)
def test_a_run_that_cannot_be_used_says_why(tmp_path: Path, values: Any, told: str) -> None:
    """What was found, what was needed, and the key to look at."""
    np.save(tmp_path / "sub-01.npy", values)
    with pytest.raises(ScanError) as error:
        only(tmp_path, "*.npy")
    assert told in str(error.value)


def test_time_may_go_along_the_columns(tmp_path: Path) -> None:
    """MATLAB exports so."""
    write(tmp_path / "sub-01.npy", series())
    np.save(tmp_path / "sub-02.npy", series().T)
    assert np.array_equal(
        only(tmp_path, "*1.npy").samples, only(tmp_path, "*2.npy", time="columns").samples
    )


def test_silent_regions_and_dropped_time_points_are_told(tmp_path: Path) -> None:
    """Zeros in a sample look like weak edges to whoever is not told."""
    values = series()
    values[:, 3] = 5
    values[7, 0] = np.nan
    np.save(tmp_path / "sub-01.npy", values)
    names = tuple("abcdef")
    prepared = only(tmp_path, "*.npy", STUDY.model_copy(update={"names": names}))
    assert prepared.notes == (
        "no signal in region 4 (d); correlations there are undefined, and set to 0",
        "49 time points are used, besides 1 without a number",
    )
    assert prepared.quality["silent_regions"] == 1
    assert not prepared.samples[0, 3].any()


def test_columns_are_read_by_name_where_the_study_names_them(tmp_path: Path) -> None:
    """Two atlases' orders differ, and a network's first row must mean one region."""
    (tmp_path / "sub-01.tsv").write_text(text(series()[:, ::-1], header="\t".join("fedcba")))
    (tmp_path / "sub-02.tsv").write_text(text(series(), header="\t".join("abcdeg")))
    (tmp_path / "sub-03.npy").write_bytes(b"")
    np.save(tmp_path / "sub-03.npy", series())
    named = STUDY.model_copy(update={"names": tuple("abcdef")})
    turned, plain = only(tmp_path, "*1.tsv", named), only(tmp_path, "*3.npy", named)
    assert turned.samples == pytest.approx(plain.samples, abs=1e-6)
    with pytest.raises(ScanError, match='no one column "f"'):
        only(tmp_path, "*2.tsv", named)


class _Run:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no array of NumPy's"),
        (b"PK\x03\x04 no archive", "it is a ZIP archive"),
        (b"\x89HDF" + b"\0" * 600, "it is HDF5"),
    ],
)
def test_what_is_no_array_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    """A renamed MATLAB file is the commonest of all."""
    (tmp_path / "sub-01.npy").write_bytes(content)
    with pytest.raises(ScanError, match=told):
        only(tmp_path, "*.npy")


def test_nothing_is_unpickled_and_no_promise_believed(tmp_path: Path) -> None:
    """An array of objects runs code, and a header may claim more than any memory holds."""
    np.save(tmp_path / "sub-01.npy", np.array([[_Run()]], dtype=object), allow_pickle=True)
    whole = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        whole, {"descr": "<f8", "fortran_order": False, "shape": (10**9, REGIONS)}
    )
    (tmp_path / "sub-02.npy").write_bytes(whole.getvalue() + b"\0" * 80)
    with pytest.raises(ScanError, match="never read"):
        only(tmp_path, "*1.npy")
    with pytest.raises(ScanError, match="cut off"):
        only(tmp_path, "*2.npy")
    assert not Path("ran").exists()


def test_a_shape_of_negative_numbers_is_no_shape(tmp_path: Path) -> None:
    """Two of them multiply to a number of bytes that is there."""
    whole = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        whole, {"descr": "<f8", "fortran_order": False, "shape": (-50, -REGIONS)}
    )
    (tmp_path / "sub-01.npy").write_bytes(whole.getvalue() + b"\0" * (50 * REGIONS * 8))
    with pytest.raises(ScanError, match="cut off or longer"):
        only(tmp_path, "*.npy")


def test_a_text_of_too_many_lines_is_refused_before_it_is_taken_apart(tmp_path: Path) -> None:
    """A line costs fifty times its bytes once it is a string of its own."""
    (tmp_path / "sub-01_timeseries.tsv.gz").write_bytes(gzip.compress(b"1\n" * 1_000_002, 1))
    with pytest.raises(ScanError, match="more than 1,000,000 lines"):
        only(tmp_path, "*.tsv.gz")


def test_a_table_without_header_loses_no_region_to_names(tmp_path: Path) -> None:
    """Seven columns are not the six that the study names, whichever of them those are."""
    wide = np.hstack([series(), series()[:, :1]])
    (tmp_path / "sub-01.tsv").write_text(text(wide))
    named = STUDY.model_copy(update={"names": tuple("abcdef")})
    with pytest.raises(ScanError, match="has 7 regions; the study has 6"):
        only(tmp_path, "*.tsv", named)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_nobodys(tmp_path: Path) -> None:
    """Whichever were read, the other would vanish."""
    np.savez(tmp_path / "a.npz", **{"sub-01": series(1)})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("sub-01.npy", archive.read("sub-01.npy"))
    (problem,) = [one.problem for one in find(tmp_path, "*.npz").findings if one.what == "a.npz"]
    assert "two arrays of one name" in problem


def test_archives_that_are_damaged_or_nameless_are_told(tmp_path: Path) -> None:
    """Neither may stop the site, and neither may vanish."""
    np.savez(tmp_path / "a.npz", **{"sub-01": series(1), "?": series(2)})
    (tmp_path / "b.npz").write_bytes(b"not an archive")
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    (tmp_path / "sub-02.mat").write_bytes(b"MATLAB")
    found = find(tmp_path, "*.*")
    told = {one.what: one.problem for one in found.findings}
    assert [one.participant for one in found.sources] == ["sub-01"]
    assert "names nobody" in told["a.npz/?"]
    assert "no .npz archive" in told["b.npz"]
    assert "without an array" in told["c.npz"]
    assert ".1D, .tsv" in told["sub-02.mat"]


def test_a_changed_array_is_prepared_anew(tmp_path: Path) -> None:
    """An archive keeps its name and its size when one person's series are replaced."""
    stamps = []
    for seed in (1, 2):
        np.savez(tmp_path / "a.npz", **{"sub-01": series(seed)})
        os.utime(tmp_path / "a.npz", (0, 0))
        stamps += [one.stamp for one in find(tmp_path, "*.npz").sources]
    assert stamps[0] != stamps[1]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """Another study's people must not come in by a link."""
    np.save(tmp_path / "sub-01.npy", series())
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "sub-01.npy").symlink_to(tmp_path / "sub-01.npy")
    found = find(inside, "*.npy")
    assert not found.sources
    assert "link out of the data folder" in found.findings[0].problem
    assert find(inside, "*.npy", links=(str(tmp_path),)).sources


def test_a_pattern_that_fits_nothing_names_what_is_there(tmp_path: Path) -> None:
    """A misspelt ending costs a minute, not a day."""
    np.save(tmp_path / "sub-01_ts.npy", series())
    assert any('"sub-01_ts.npy"' in one.problem or "sub-01_ts.npy" in one.problem
               for one in find(tmp_path, "*_timeseries.npy").findings)  # fmt: skip
    with pytest.raises(DataError, match="does not exist"):
        find(tmp_path / "nowhere", "*.npy")


@pytest.mark.parametrize("files", ["/etc/*", "../*.npy", "{person}.npy", "{session}/{session}.npy"])
def test_patterns_stay_below_the_root(files: str) -> None:
    """A site file that looks elsewhere is a mistake, or somebody's trick."""
    with pytest.raises(ValidationError):
        Connectome.Site(kind="connectome", root=".", files=files)


def test_one_series_under_two_names_trains_once(tmp_path: Path) -> None:
    """The same run of two people would stand on both sides of a split."""
    home = tmp_path / "data"
    home.mkdir()
    for name, seed in (("01", 1), ("02", 2), ("03", 1)):
        np.save(home / f"sub-{name}.npy", series(seed))
    people(home, "sub-01", "sub-02", "sub-03")
    study = parse_study(
        {
            "name": "tiny",
            "data": {"kind": "connectome", "regions": REGIONS, "least_points": 40},
            "targets": {"age": {"kind": "regression"}, "points": {"kind": "regression"}},
            "backbone": {"name": "linear"},
            "objective": {"name": "multitask"},
            "sites": {"train": ["alpha"]},
        },
        Path("study.toml"),
    )
    site = Site.model_validate(
        {
            "name": "alpha",
            "role": "train",
            "data": Connectome.Site(kind="connectome", root=str(home), files="*.npy"),
            "targets": {"age": {"column": "age"}, "points": {"column": "time_points"}},
            "file": tmp_path / "site.toml",
        }
    )
    prepare(study, site)
    cohort = open_cohort(study, site)
    assert cohort.participants == ("sub-01", "sub-02")
    assert any("content is that of sub-01.npy" in one.problem for one in cohort.findings)
    assert cohort.labels["points"].tolist() == [50, 50]
    assert regional_features(cohort).shape == (2, REGIONS * (REGIONS - 1) // 2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not on this machine")
def test_abide_is_described_by_a_site_file() -> None:
    """Real time series of a real site: everybody is read, and silent regions are named."""
    study = Connectome.Study(kind="connectome", regions=200)
    site = Connectome.Site(kind="connectome", root=".", files="*.npz", rows={"site": "CMU"})
    found = ConnectomeReader.find(study, site, SHARED, frozenset({"age"}))
    assert len(found.sources) == 27
    assert not found.findings
    second = ConnectomeReader.prepare(study, found.sources[1])
    assert second.notes[0].startswith("no signal in regions 27, 30, 32, 43, 52, 198;")
