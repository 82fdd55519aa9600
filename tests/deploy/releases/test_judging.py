"""Judges come later, as groups with names; what others have found never changes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from common.errors import DataError, FolderError, LineageError, SettingError
from deploy.releases.judging import judge
from deploy.releases.release import write_release
from server.results import write_results
from server.run import Run
from tests.conftest import write_table_site


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_later_group_has_an_all_of_its_own_and_changes_no_other(run: Run, judges: Path) -> None:
    """An evaluation that can be added to until it looks well is none."""
    before = table(run.folder)
    out = judge(run.folder, judges)
    assert out == run.folder / "groups" / "later"
    after = table(run.folder)
    assert [row for row in after if row in before] == before
    assert {row["site"] for row in after if row not in before} == {"sigma", "tau", "all-later"}
    assert {row["site"] for row in table(out)} == {"sigma", "tau", "all-later"}


def test_asked_again_it_changes_nothing(run: Run, judges: Path) -> None:
    """The same command after any interruption; and the run's own command, which writes anew."""
    judge(run.folder, judges)
    before = (run.folder / "results.csv").read_bytes()
    judge(run.folder, judges)
    assert (run.folder / "results.csv").read_bytes() == before
    write_results(run)
    assert (run.folder / "results.csv").read_bytes() == before


def test_a_release_is_judged_like_its_run(run: Run, judges: Path, tmp_path: Path) -> None:
    """Whoever is given the weights must come to the figures of whoever made them."""
    release = write_release(run.folder, tmp_path / "release")
    there = judge(release, judges, tmp_path / "there")
    here = judge(run.folder, judges)
    assert table(there) == table(here)
    assert not (release / "evaluation").exists()


def test_a_release_takes_nothing_in(run: Run, judges: Path, tmp_path: Path) -> None:
    """It was signed as it is."""
    release = write_release(run.folder, tmp_path / "release")
    with pytest.raises(SettingError, match="give --out"):
        judge(release, judges)


def test_a_group_that_has_judged_takes_nobody_in(run: Run, judges: Path) -> None:
    """One more hospital in it would be a figure chosen after the fact."""
    judge(run.folder, judges / "sigma" / "site.toml", group="later")
    with pytest.raises(FolderError, match="another --group"):
        judge(run.folder, judges, group="later")


def test_nobody_judges_a_run_twice_under_another_group(run: Run, judges: Path) -> None:
    """The rows of one site would stand in its table twice."""
    judge(run.folder, judges / "sigma" / "site.toml")
    with pytest.raises(FolderError, match="sigma judged"):
        judge(run.folder, judges)


@pytest.mark.parametrize("group", ["heldout", "../x", "Later", ""])
def test_a_group_has_a_name_that_is_nobody_elses(run: Run, judges: Path, group: str) -> None:
    """It becomes a folder, and stands in the table beside sites."""
    with pytest.raises(SettingError):
        judge(run.folder, judges, group=group)
    assert not (run.folder / "groups").exists()


def test_a_copy_within_a_group_does_not_count(run: Run, judges: Path) -> None:
    """Each scan counts once in what is said over all."""
    shutil.rmtree(judges / "tau")
    folder = judges / "upsilon"
    shutil.copytree(judges / "sigma", folder)
    file = folder / "site.toml"
    file.write_text(file.read_text().replace('"sigma"', '"upsilon"'))
    out = judge(run.folder, judges)
    assert {row["site"] for row in table(out)} == {"sigma", "upsilon"}
    assert "upsilon shares 30 of its 30 scans" in (out / "overlap.json").read_text()


def test_one_that_trained_stops_the_whole_group_before_anyone_judges(
    run: Run, finished: Run, judges: Path, tmp_path: Path
) -> None:
    """Else the others' figures stand there, and the command was not in vain."""
    folder = judges / "renamed"
    shutil.copytree(finished.folder.parent / "sites" / "alpha", folder)
    file = folder / "site.toml"
    text = file.read_text().replace('name = "alpha"', 'name = "renamed"')
    file.write_text(text.replace('role = "train"', 'role = "heldout"'))
    lines = (folder / "table.csv").read_text().splitlines()
    (folder / "table.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(LineageError, match="renamed shares 39 of its 39 scans"):
        judge(run.folder, judges, tmp_path / "out")
    assert not list((tmp_path / "out").glob("evaluation/*/*"))


def test_a_folder_of_something_else_is_left_alone(run: Run, judges: Path, tmp_path: Path) -> None:
    """A thesis is not an evaluation."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("not ours")
    with pytest.raises(FolderError, match="something else"):
        judge(run.folder, judges, tmp_path / "out")


def test_a_site_that_cannot_judge_is_named(run: Run, judges: Path) -> None:
    """Too few people: its code, and no figures of the others."""
    write_table_site(judges.parent, "rho", role="heldout", participants=4)
    with pytest.raises(DataError, match="rho cannot judge: COHORT_TOO_SMALL"):
        judge(run.folder, judges)


def test_an_unfinished_run_is_not_judged(run: Run, judges: Path) -> None:
    """There is nothing to judge."""
    run.federated.final.unlink()
    with pytest.raises(FolderError, match="not finished"):
        judge(run.folder, judges)
