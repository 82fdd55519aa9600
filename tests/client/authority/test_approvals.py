"""What a person at the site allowed is what is done, and nothing that only looks like it."""

from __future__ import annotations

import getpass
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from client.authority import approvals
from client.authority.approvals import approve, approved, pause, paused, resume, revoke, study_of
from client.site import Site, load_site
from common.errors import SettingError

HUNDRED = 100  # bytes of a report, where it does not matter


@pytest.fixture
def made(federation: Any) -> Any:
    return federation({"sites": {"train": ["alpha"]}})


@pytest.fixture
def site(made: Any) -> Site:
    return load_site(made.sites / "alpha" / "site.toml")


def test_an_approved_study_is_found_by_its_digest_after_a_restart(made, site):
    """The site's word is kept on disk, not in a process."""
    assert study_of(site, made.study.digest) is None
    approve(site, made.study_file, HUNDRED)
    assert study_of(load_site(site.file), made.study.digest) == made.study
    assert study_of(site, "0" * 64) is None


def test_an_approval_says_who_when_and_what(made, site):
    """Somebody will be asked about it in a year."""
    approve(site, made.study_file, HUNDRED)
    [found] = approved(site)
    assert (found.name, found.digest, found.by) == ("tiny", made.study.digest, getpass.getuser())
    assert found.approved.endswith("+00:00")
    assert found.file == str(made.study_file)
    kept = site.state / "studies" / f"{found.digest}.toml"
    assert kept.read_bytes() == made.study_file.read_bytes()


def test_the_copy_is_kept_when_the_file_goes_or_changes(made, site):
    """What was approved is what the site keeps, whatever becomes of the file that was shown."""
    approve(site, made.study_file, HUNDRED)
    digest = made.study.digest
    made.study_file.write_text("# nothing left\n")
    assert study_of(site, digest) is not None


def test_a_changed_study_needs_approval_again(made, federation, site):
    """One more round is one more exposure of everybody: another study, by its digest."""
    approve(site, made.study_file, HUNDRED)
    text = made.study_file.read_text()
    changed = made.folder / "changed.toml"
    changed.write_text(text.replace("rounds = 2", "rounds = 3"))
    from common.study import load_study

    assert study_of(site, load_study(changed).digest) is None
    changed.write_text("# a remark\n" + text)
    assert study_of(site, load_study(changed).digest) is not None  # layout is nobody's business


def test_an_edited_copy_is_no_approval(made, site, caplog):
    """Whoever may write the folder must not be able to widen what was agreed to."""
    approve(site, made.study_file, HUNDRED)
    kept = site.state / "studies" / f"{made.study.digest}.toml"
    kept.write_text(kept.read_text().replace("rounds = 2", "rounds = 200"))
    assert study_of(site, made.study.digest) is None
    assert "approve the study again" in caplog.text
    kept.write_text("not TOML at all [")
    assert study_of(site, made.study.digest) is None


def test_a_copy_without_its_record_is_no_approval(made, site):
    """A crash between the two files, or a file that somebody dropped there."""
    approve(site, made.study_file, HUNDRED)
    record = site.state / "studies" / f"{made.study.digest}.json"
    text = record.read_text()
    record.unlink()
    assert study_of(site, made.study.digest) is None
    record.write_text(text[:40])
    assert study_of(site, made.study.digest) is None
    assert approved(site) == []


def test_a_record_under_another_digest_is_no_approval(made, site):
    """Renaming an approval must not approve something else."""
    approve(site, made.study_file, HUNDRED)
    folder = site.state / "studies"
    for suffix in (".json", ".toml"):
        shutil.copy(folder / f"{made.study.digest}{suffix}", folder / f"{'0' * 64}{suffix}")
    assert study_of(site, "0" * 64) is None
    assert len(approved(site)) == 1


@pytest.mark.parametrize("digest", ["", "..", "../../x", "A" * 64, "a" * 63, "a" * 64 + "\n", "\0"])
def test_a_digest_is_no_path(made, site, digest):
    """It comes in an order, and names a file."""
    assert study_of(site, digest) is None


def test_a_revoked_study_is_refused_and_can_be_approved_again(made, site):
    """A hospital may change its mind; the record of what was stays."""
    approve(site, made.study_file, HUNDRED)
    gone = revoke(site, made.study.digest[:8])
    assert gone.revoked
    assert study_of(site, made.study.digest) is None
    assert approved(site) == []
    record = json.loads((site.state / "studies" / f"{made.study.digest}.json").read_text())
    assert record["revoked_by"] == getpass.getuser()
    approve(site, made.study_file, HUNDRED)
    assert study_of(site, made.study.digest) is not None


def test_what_cannot_be_revoked_is_said(made, site):
    """A name that fits nothing, or two studies, must not pass for done."""
    with pytest.raises(SettingError, match="no approved study is called tiny; approved: none"):
        revoke(site, "tiny")
    approve(site, made.study_file, HUNDRED)
    other = made.folder / "other.toml"
    other.write_text(made.study_file.read_text().replace("rounds = 2", "rounds = 3"))
    approve(site, other, HUNDRED)
    with pytest.raises(SettingError, match="each of 2 approved studies is called tiny"):
        revoke(site, "tiny")


def near_copy(made: Any, validation: float, name: str = "near") -> Path:
    """The same study with another share of validation, and another name."""
    text = made.study_file.read_text().replace('name = "tiny"', f'name = "{name}"', 1)
    path = made.folder / f"{name}.toml"
    path.write_text(f"{text}\n[splits]\nvalidation = {validation}\n")
    return path


def test_a_study_that_differs_by_a_few_people_is_not_approved(made, site):
    """Two models, one of which was trained on one person more: their difference is hers."""
    approve(site, made.study_file, HUNDRED)
    with pytest.raises(SettingError, match="near and tiny .*differ by [1-9] of this site's people"):
        approve(site, near_copy(made, 0.2), HUNDRED)
    assert len(approved(site)) == 1
    assert not list((site.state / "studies").glob("*near*"))
    far = approve(site, near_copy(made, 0.6, "far"), HUNDRED)  # twenty others: a group of people
    assert study_of(site, far.digest) is not None
    lenient = site.model_copy(
        update={"policy": site.policy.model_copy(update={"minimum_support": 1})}
    )
    approve(lenient, near_copy(made, 0.2), HUNDRED)


def test_a_revoked_study_is_still_compared_with(made, site):
    """It was answered before it was revoked; taking it back takes no answer back."""
    approve(site, made.study_file, HUNDRED)
    revoke(site, made.study.digest)
    with pytest.raises(SettingError, match="near and tiny"):
        approve(site, near_copy(made, 0.2), HUNDRED)


def test_a_pause_lasts_over_restarts_until_it_is_ended(site):
    """Whoever pauses a site has a reason, and whoever resumes it must see it."""
    assert paused(site) is None
    pause(site, "audit until Friday")
    found = paused(load_site(site.file))
    assert found is not None
    assert found.reason == "audit until Friday"
    assert resume(site) is True
    assert paused(site) is None
    assert resume(site) is False


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"since": 1}'])
def test_any_file_of_that_name_is_a_pause(site, content):
    """In a hurry somebody types `touch paused`; a torn file must not start the work again."""
    site.state.mkdir(parents=True)
    (site.state / "paused").write_bytes(content)
    assert paused(site) is not None


def test_a_study_that_is_no_study_cannot_be_approved(made, site, tmp_path):
    """The error is the one that `study check` gives, with its line."""
    bad = tmp_path / "bad.toml"
    bad.write_text(made.study_file.read_text().replace("rounds = 2", "rounds = -1"))
    with pytest.raises(SettingError, match=r"pretraining\.rounds is -1"):
        approve(site, bad, HUNDRED)
    assert not Path(site.state / "studies").exists()
    assert approvals.approval_of(site, made.study.digest) is None
