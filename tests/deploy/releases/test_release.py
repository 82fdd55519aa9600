"""A release holds together, says what it is, and whoever changes it is found out."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common.errors import FolderError
from deploy.releases.judging import judge
from deploy.releases.release import write_release
from deploy.releases.verification import Claim, verified
from server.checkpoints import about_checkpoint
from server.federation.initial import start_table
from server.run import Run
from tests.conftest import FEATURES, Federation
from tests.deploy.releases.conftest import STUDY


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def false(claims: list[Claim]) -> list[str]:
    return [claim.what for claim in claims if claim.holds is False]


@pytest.fixture
def release(run: Run, tmp_path: Path) -> Path:
    return write_release(run.folder, tmp_path / "release")


def test_a_release_and_its_run_hold(run: Run, release: Path) -> None:
    """Nothing that was just written may be doubted."""
    assert not false(verified(release))
    assert not false(verified(run.folder))


def test_it_is_the_runs_very_weights_and_says_who_made_them(run: Run, release: Path) -> None:
    """With people and scans in counts, and no name of anybody."""
    weights = release / "checkpoints" / "final.safetensors"
    assert weights.read_bytes() == run.federated.final.read_bytes()
    lineage = json.loads((release / "lineage.json").read_text())
    [stage] = lineage["stages"]
    told = {part["site"]: (part["uses"], part["participants"]) for part in stage["parts"]}
    assert told == {site: (["constants", "weights"], 40) for site in ("alpha", "beta")}
    assert "alpha-0" not in "".join(
        path.read_text(errors="replace") for path in release.rglob("*") if path.is_file()
    )


def test_the_card_tells_figures_with_intervals_baselines_and_limits(release: Path) -> None:
    """Whoever gets weights alone knows nothing of where they hold."""
    card = (release / "MODEL_CARD.md").read_text()
    assert "### age at all held-out sites together" in card
    assert "| the study's constant |" in card
    assert "weights from alpha (40 people, 40 scans), beta (40 people, 40 scans)" in card
    assert "FILL IN" in card


def put(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(path.read_text().replace(old, new))

    return change


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forget(path: Path) -> None:
    table = json.loads(path.read_text())
    table["lineage"]["stages"][0]["parts"].pop()
    path.write_text(json.dumps(table))


CHANGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights": ("checkpoints/final.safetensors", flip, "weights"),
    "study": ("study.json", put("0.01", "0.1"), "study"),
    "figure": ("results.csv", put(",omega,heldout,mae,", ",omega,heldout,mae,1"), "results"),
    "lineage": ("certificate.json", forget, "lineage"),
    "tokens": ("seen.safetensors", flip, "lineage"),
    "certificate": ("certificate.json", put('"code"', '"kode"'), ""),
    "card": ("MODEL_CARD.md", put("It is no medical device", "It is a medical device"), "manifest"),
    "missing": ("census.json", Path.unlink, "manifest"),
    "more": ("thesis.docx", Path.touch, "manifest"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_was_changed_is_named(release: Path, change: str) -> None:
    """By a disk or by a hand; a reader learns what no longer holds, and that the rest does."""
    name, do, what = CHANGES[change]
    do(release / name)
    if not what:
        with pytest.raises(FolderError, match="is no certificate"):
            verified(release)
        return
    found = false(verified(release))
    assert any(text.startswith(what) for text in found), found
    assert any(text.startswith("manifest") and name in text for text in found), found


def test_a_reader_with_the_coordinators_key_wants_its_signature(run: Run, tmp_path: Path) -> None:
    """Whoever rewrites the whole folder can write every digest anew, but sign none."""
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "theirs")
    signed = write_release(run.folder, tmp_path / "signed", private)
    assert not false(verified(signed, keys=public))
    assert any("not in" in text for text in false(verified(signed, keys=other)))
    for name in ("manifest", "certificate"):
        (signed / f"{name}.sig").unlink()
    assert len(false(verified(signed, keys=public))) >= 2
    unsigned = write_release(run.folder, tmp_path / "unsigned")
    assert not false(verified(unsigned))
    assert false(verified(unsigned, keys=public))


def test_a_signature_of_another_document_is_none(run: Run, tmp_path: Path) -> None:
    """Moved from beside a document that was signed to one that was not."""
    private, _ = keys(tmp_path, "ours")
    signed = write_release(run.folder, tmp_path / "signed", private)
    shutil.copy(signed / "manifest.sig", signed / "certificate.sig")
    assert any("not what was signed" in text for text in false(verified(signed)))


def test_the_key_of_a_hub_signs_by_itself(run: Run, tmp_path: Path) -> None:
    """Nobody has to remember where it lies."""
    private, public = keys(tmp_path, "ours")
    hub = tmp_path / "hub"
    shutil.copytree(run.folder, hub / "runs" / "tiny")
    shutil.copy(private, hub / "coordinator.key")
    signed = write_release(hub / "runs" / "tiny", tmp_path / "signed")
    assert not false(verified(signed, keys=public))


def test_an_evaluation_is_held_against_its_reports_and_the_model(
    run: Run, judges: Path, tmp_path: Path
) -> None:
    """Both the table and what it was made of can be changed; neither goes unseen."""
    out = judge(run.folder, judges, tmp_path / "out")
    assert not false(verified(out))
    moved = tmp_path / "moved"
    shutil.move(run.folder, moved)
    assert any("not at hand" in text for text in false(verified(out)))
    assert not false(verified(out, moved))
    flip(out / "evaluation" / "federated" / "sigma.safetensors")
    assert any(text.startswith("results") for text in false(verified(out, moved)))


def test_a_judge_that_is_in_the_lineage_makes_the_certificate_untrue(
    run: Run, judges: Path, tmp_path: Path
) -> None:
    """Whatever wrote it: tokens of both lie there, and are counted again."""
    out = judge(run.folder, judges, tmp_path / "out")
    shutil.copy(run.folder / "overlap/alpha.safetensors", out / "overlap/sigma.safetensors")
    assert any("sigma shares 40 of its 40" in text for text in false(verified(out)))


def test_a_study_begins_from_a_release_as_from_its_run(run: Run, release: Path) -> None:
    """The same arrays, the same lineage, the same tokens."""
    changes = {**STUDY, "sites": {"train": ["gamma"]}, "name": "next"}
    made = Federation(run.folder.parent, FEATURES, changes)
    of_run = tomllib.loads(start_table(made.study_file, run.folder, "backbone", ()))["start"]
    of_release = tomllib.loads(start_table(made.study_file, release, "backbone", ()))["start"]
    assert {**of_run, "file": ""} == {**of_release, "file": ""}
    assert of_run["seen"]
    assert of_run["lineage"] == about_checkpoint(run.federated.final).lineage.digest


def test_without_tokens_none_are_there_and_a_beginner_is_told(run: Run, tmp_path: Path) -> None:
    """Whoever holds the very scan cannot find that it trained; and later judges less can be."""
    release = write_release(run.folder, tmp_path / "release", tokens=False)
    assert not (release / "seen.safetensors").exists()
    assert not false(verified(release))


def test_a_release_is_written_once_and_whole(run: Run, release: Path, tmp_path: Path) -> None:
    """Nobody finds half of one, or two in one folder."""
    with pytest.raises(FolderError, match="exists"):
        write_release(run.folder, release)
    flip(run.federated.final)
    with pytest.raises(FolderError):
        write_release(run.folder, tmp_path / "other")
    assert not list(tmp_path.glob("*other*"))


def test_a_folder_without_a_certificate_is_told_where_one_comes_from(tmp_path: Path) -> None:
    """Not every folder claims something."""
    with pytest.raises(FolderError, match="callosum release writes one"):
        verified(tmp_path)
