"""Site files of drawn films and rendered heads: usable as they are, and kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import client.cli
from client.data.check import check
from client.site import load_site
from common.errors import FolderError, SettingError
from common.study import load_study
from deploy.cli import app
from deploy.hospitals.sources import KINDS, write_sources

STUDIES = Path(__file__).parents[3] / "deploy" / "studies"
NAMED = {
    "synthetic-video": ("video-pretext", ["film-a", "film-b", "film-c"]),
    "synthetic-t1w": ("synthetic-pretext", ["head-a", "head-b", "head-c"]),
}


def write(out: Path, kind: str, **keys: Any) -> list[Path]:
    names = NAMED[kind][1]
    usual = {"names": names, "heldout": names[2:], "number": 16, "seed": 1}
    return write_sources(out, kind=kind, **{**usual, **keys})


@pytest.mark.parametrize("kind", KINDS)
def test_the_study_that_comes_along_finds_every_label(tmp_path: Path, kind: str) -> None:
    """From one command to a census, without an edit."""
    study = load_study(STUDIES / f"{NAMED[kind][0]}.toml")
    assert [*study.sites.train, *study.sites.heldout] == NAMED[kind][1]
    for file in write(tmp_path, kind):
        site = load_site(file)
        assert (site.role == "heldout") == (site.name in study.sites.heldout)
        found = check(study, site)
        assert not found.findings
        assert found.participants == 16
        assert {name: count.participants for name, count in found.targets.items()} == dict.fromkeys(
            study.targets, 16
        )


def test_every_source_has_a_seed_of_its_own_whoever_else_is_named(tmp_path: Path) -> None:
    """Two sites of one seed would be one site; a new one must not change the others."""
    first = [load_site(file).data for file in write(tmp_path / "a", "synthetic-video")]
    assert len({data.seed for data in first}) == 3  # type: ignore[attr-defined]
    names = ["film-z", "film-a"]
    other = write(tmp_path / "b", "synthetic-video", names=names, heldout=[])
    assert load_site(other[1]).data == first[0]
    again = write(tmp_path / "c", "synthetic-video", seed=2)
    assert load_site(again[0]).data != first[0]


def test_what_a_person_changed_is_kept_and_another_source_is_refused(tmp_path: Path) -> None:
    """The same command again changes nothing; another one must not mix two data sets."""
    file = write(tmp_path, "synthetic-t1w")[0]
    file.write_text(file.read_text() + '\n[device]\nkind = "cpu"\n')
    before = file.read_bytes()
    write(tmp_path, "synthetic-t1w")
    assert file.read_bytes() == before
    with pytest.raises(FolderError, match="choose another folder"):
        write(tmp_path, "synthetic-t1w", number=17)
    with pytest.raises(SettingError, match="heldout names"):
        write(tmp_path, "synthetic-t1w", heldout=["head-x"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--kind", "video"], "there are: t1w, bold, connectome, synthetic-t1w"),
        (["--kind", "connectome", "--spacing-mm", "4"], "no voxels"),
        (["--kind", "synthetic-t1w", "--spacing-mm", "4"], "in the study"),
        (["--kind", "synthetic-video", "--strength", "2"], "in the study"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tmp_path: Path, words: list[str], told: str
) -> None:
    """A grid that was asked for here and is the study's would be another one than meant."""
    done = CliRunner().invoke(app, ["hospitals", str(tmp_path / "out"), *words])
    assert done.exit_code == 2
    assert told in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_the_command_writes_them(tmp_path: Path) -> None:
    """One command, one site file each, and nothing besides."""
    words = ["--kind", "synthetic-video", "--names", "film-a,film-b", "--heldout", "film-b"]
    done = CliRunner().invoke(app, ["hospitals", str(tmp_path), *words, "--participants", "9"])
    assert done.exit_code == 0, done.output
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert files == [tmp_path / f"film-{letter}/site.toml" for letter in "ab"]
    assert load_site(files[1]).role == "heldout"


@pytest.mark.parametrize("kind", KINDS)
def test_preparing_them_writes_nothing(tmp_path: Path, kind: str) -> None:
    """A person who follows the guide is told so, and no disk is filled."""
    file, study = write(tmp_path, kind)[0], STUDIES / f"{NAMED[kind][0]}.toml"
    words = ["prepare", "--study", str(study), "--site", str(file)]
    done = CliRunner().invoke(client.cli.app, words)
    assert done.exit_code == 0, done.output
    assert "nothing to prepare" in done.output
    assert not (file.parent / ".callosum/prepared").exists()
