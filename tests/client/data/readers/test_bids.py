"""One scan or folder that the operating system refuses is told as it is; the others go on."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.cohort import open_cohort
from client.data.generation import QUALITY, read_index
from client.data.prepare import prepare
from client.data.reader import find_sources, inspected
from client.data.readers.t1w import T1wReader
from client.data.workers import prepare_one
from client.site import load_site
from common.errors import DataError
from common.kinds.t1w import T1w

NOBODY = 65534
NAMES = ("sub-01", "sub-02", "sub-03")


def data_set(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "participants.tsv").write_text(
        "participant_id\tage\n" + "".join(f"{name}\t40\n" for name in NAMES)
    )
    for name in NAMES:
        scan = root / name / "anat" / f"{name}_T1w.nii.gz"
        scan.parent.mkdir(parents=True)
        scan.write_bytes(b"x" * 2000)
    return root


AGE = frozenset({"age"})


def told(root: Path, **keys: Any) -> tuple[list[str], dict[str, str]]:
    """Participants with scans, and findings by what they are about."""
    found = T1wReader.find(
        T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0),
        T1w.Site(kind="t1w", root=root.name, **keys),
        root.parent,
        AGE,
    )
    people = [source.participant for source in found.sources]
    return people, {finding.what: finding.problem for finding in found.findings}


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder below which permissions count: root is let in everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        folder.chmod(0o755)
        data_set(folder / "bids")
        told(folder / "bids")  # what Python loads at first use may be closed to nobody
        if root:
            os.seteuid(NOBODY)
        try:
            yield folder / "bids"
        finally:
            if root:
                os.seteuid(0)
            for path in (folder / "bids").glob("sub-*/anat"):
                path.chmod(0o755)


def closed(path: Path, mode: int) -> None:
    """Change a mode as the owner of the files does."""
    user = os.geteuid()
    os.seteuid(path.stat().st_uid)
    path.chmod(mode)
    os.seteuid(user)


@pytest.mark.parametrize(
    ("mode", "what"),
    [(0o000, "sub-02/anat"), (0o444, "sub-02/anat/sub-02_T1w.nii.gz")],
)
def test_a_folder_without_permission_is_told_as_that(as_nobody: Path, mode: int, what: str) -> None:
    """Neither "has a row but no scan" nor "is a link to nothing" sends anybody to chmod."""
    closed(as_nobody / "sub-02/anat", mode)
    people, problems = told(as_nobody)
    assert people == ["sub-01", "sub-03"]
    assert list(problems) == [what]
    assert "Permission denied" in problems[what]


def test_a_scan_without_permission_is_told_as_that_and_tried_again(as_nobody: Path) -> None:
    """Its stamp stays the same when somebody gives permission: it must not be left out for good."""
    closed(as_nobody / "sub-02/anat/sub-02_T1w.nii.gz", 0o000)
    study: Any = T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0)
    found = T1wReader.find(study, T1w.Site(kind="t1w", root="bids"), as_nobody.parent, AGE)
    source = found.sources[1]
    whole: Any = SimpleNamespace(kind_name="t1w", data=study)
    (_, odd) = inspected(whole, (source,))
    assert [finding.problem for finding in odd] == ["cannot be read: Permission denied"]
    outcome = prepare_one("t1w", study, (None, ()), source)  # type: ignore[arg-type]
    assert (outcome.status, outcome.notes) == ("failed", ("cannot be read: Permission denied",))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("name", ["sub-02_T1w.nii.gz", "anat", "sub-02", "sub-02_sessions.tsv"])
def test_a_handle_that_went_stale_costs_one_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    """Files on NFS and failing disks: the site goes on without that one and says why."""
    root = data_set(tmp_path / "bids")
    refuse(monkeypatch, "sub-02/anat" if name == "anat" else name, number)
    people, problems = told(root)
    table = name.endswith(".tsv")
    assert people == (list(NAMES) if table else ["sub-01", "sub-03"])
    (problem,) = problems.values()
    assert os.strerror(number) in problem


def test_a_data_set_that_cannot_be_listed_is_an_error_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then no scan can be told from another."""
    root = data_set(tmp_path / "bids")
    refuse(monkeypatch, "bids", errno.EACCES)
    with pytest.raises(DataError, match="bids cannot be listed: Permission denied"):
        told(root)


def refuse(monkeypatch: pytest.MonkeyPatch, ending: str, number: int) -> None:
    """Let the operating system refuse whatever path ends so."""

    def refusing(original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(path: Any, *rest: Any, **more: Any) -> Any:
            if isinstance(path, str | Path) and str(path).endswith(ending):
                raise OSError(number, os.strerror(number), str(path))
            return original(path, *rest, **more)

        return ask

    for name in ("listdir", "stat", "lstat", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def test_a_name_that_is_no_utf_8_is_kept_under_an_escaped_one(
    brains: Callable[..., Any],
) -> None:
    """One scan from an old Windows share ended the site, and in a simulation every other."""
    made = brains()
    site = load_site(made.sites / "amber" / "site.toml")
    home = site.root / site.data.root
    (first, *_) = find_sources(made.study, site).sources
    old = home / first.scan
    old.rename(old.with_name(old.name.replace("_T1w", "_acq-Universit\udce4t_T1w")))
    (source, *others) = find_sources(made.study, site).sources
    assert source.scan == first.scan.replace("_T1w", r"_acq-Universit\xe4t_T1w")
    assert (source.participant, dict(source.row)) == (first.participant, dict(first.row))
    assert len(inspected(made.study, (source,))[0]) == 1
    generation = prepare(made.study, site, workers=2)
    assert [record.status for record in read_index(generation)] == ["ready"] * (len(others) + 1)
    assert source.scan in open_cohort(made.study, site).scans
    old_table = (generation / QUALITY).read_bytes()
    assert prepare(made.study, site, workers=1) == generation
    assert (generation / QUALITY).read_bytes() == old_table


def test_names_that_look_alike_when_escaped_stay_two(tmp_path: Path) -> None:
    """A backslash in a name is doubled, so that no file can take another's place."""
    root = data_set(tmp_path / "bids")
    for name in (r"sub-01_acq-\xe4_T1w.nii.gz", "sub-01_acq-\udce4_T1w.nii.gz"):
        (root / "sub-01" / "anat" / name).write_bytes(b"x" * 2000)
    people, problems = told(root)
    assert people == ["sub-01"] * 3 + ["sub-02", "sub-03"]
    assert not problems


def test_links_lead_to_the_folders_that_the_site_file_names(tmp_path: Path) -> None:
    """Scans on scratch storage, their table in the data set; whoever checks sees that it is so."""
    root = data_set(tmp_path / "bids")
    (tmp_path / "scratch").mkdir()
    (root / "derivatives").mkdir()
    for name in NAMES:
        (root / name).rename(tmp_path / "scratch" / name)
    (root / "derivatives" / "prep").symlink_to("../../scratch")
    keys = {"derivative": "derivatives/prep"}
    people, problems = told(root, **keys)
    assert not people
    assert "under data.links in the site file" in problems["sub-01/anat/sub-01_T1w.nii.gz"]
    assert not any("has a row but no scan" in problem for problem in problems.values())
    people, problems = told(root, **keys, links=("scratch",))
    assert people == list(NAMES)
    assert problems == {
        "data.links": f"links in the data folder may lead to {tmp_path / 'scratch'}"
    }
    (tmp_path / "elsewhere.nii.gz").write_bytes(b"x")
    (tmp_path / "scratch/sub-01/anat/sub-01_run-2_T1w.nii.gz").symlink_to(
        tmp_path / "elsewhere.nii.gz"
    )
    people, problems = told(root, **keys, links=("scratch",))
    assert "is a link out of" in problems["sub-01/anat/sub-01_run-2_T1w.nii.gz"]
    with pytest.raises(DataError, match=r"data\.links names .*absent.*: No such file or directory"):
        told(root, **keys, links=("absent",))


ANY_NAME = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, ord("/")} & set(name))


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_NAME, min_size=1, max_size=4, unique=True))
def test_whatever_bytes_a_name_holds_its_scan_is_kept_or_named(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    """Shares of thirty years hold names in every encoding; none may end a site."""
    root = tmp_path_factory.mktemp("d") / "bids"
    data_set(root)
    anat = os.fsencode(root / "sub-01/anat")
    for name in names:
        Path(os.fsdecode(anat + b"/sub-01_acq-" + name + b"_T1w.nii.gz")).write_bytes(b"x")
    found = T1wReader.find(
        T1w.Study(kind="t1w", shape=(24, 28, 24), spacing_mm=8.0),
        T1w.Site(kind="t1w", root=root.name),
        root.parent,
        AGE,
    )
    kept = [source.scan for source in found.sources if source.participant == "sub-01"]
    named = [f.what for f in found.findings if f.left_out and f.what.startswith("sub-01/anat/")]
    assert len({*kept, *named}) == len(kept) + len(named) == 1 + len(names)
    for text in (*kept, *named):
        text.encode()  # for any file or screen
