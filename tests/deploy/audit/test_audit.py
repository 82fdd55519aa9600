"""A whole audit of a small private run: what it writes, says, resumes and refuses."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.errors import FolderError, RunBusyError, SettingError
from deploy.audit import audit as auditing
from deploy.audit.audit import PARTS, Asked, audited
from deploy.audit.subject import read_subject
from deploy.cli import app
from deploy.releases.release import write_release
from server.report.audit import read_audit
from server.report.page import write_report
from server.run import alone
from tests.conftest import Federation
from tests.deploy.audit.breaks import no_clipping
from tests.deploy.audit.conftest import PRIVATE, Standing

pytestmark = pytest.mark.whole
# as if the command had started itself again already
STARTED = {"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_TRIM_THRESHOLD_": "1"}
ASKED = Asked(trials=2000, shadows=6, inverted=2, people=30, seed=2)
CANARIES = replace(ASKED, parts=("mechanism",))


def asked_of(standing: Standing, **more: Any) -> Asked:
    return replace(ASKED, sites=standing.sites, **more)


def test_an_audit_puts_what_it_found_beside_what_was_promised(standing: Standing) -> None:
    """All three parts, with and without privacy; tables, a page, a release that carries them."""
    folder = standing.run.folder
    found = audited(folder, asked_of(standing))
    lines = list(csv.DictReader((folder / "audit.csv").open()))
    assert {line["part"] for line in lines} == set(PARTS)
    page = write_report(standing.run).read_text()
    paid = {row["site"]: row for row in csv.DictReader((folder / "privacy.csv").open())}
    dearest = max(float(row["epsilon"]) for row in paid.values())
    first = found.lines[0]
    assert (first.part, first.metric, first.accounted) == ("mechanism", "epsilon", dearest)
    assert 0 < first.value < dearest
    shadows = [line for line in found.lines if line.model.startswith("6 shadows")]
    assert {line.model.endswith("without [privacy]") for line in shadows} == {True, False}
    assert all(line.accounted is None or line.value < line.accounted for line in found.lines)
    assert any(line.model == "the finished model" for line in found.lines)
    hers = {line.model: line.value for line in found.lines if "her gradient" in line.attack}
    assert hers["without [privacy]"] < 0.1 < hers["private"]
    assert read_audit(folder) == found
    assert page.count('data-table="audit"') >= 4
    assert "No attack broke the claim" in page
    for name in ("alpha-0", "beta-0"):  # people have numbers, and stay among themselves
        assert name not in (folder / "audit.json").read_text() + page
    release = write_release(folder, folder.parent / "release")
    assert (release / "audit.csv").read_bytes() == (folder / "audit.csv").read_bytes()


def test_canaries_alone_need_nobodys_data(standing: Standing) -> None:
    """The mechanism is audited beside a run, by whoever has its folder."""
    found = audited(standing.run.folder, CANARIES)
    assert [line.metric for line in found.lines] == ["epsilon", "epsilon"]
    assert not found.broken
    assert not found.people
    claim = read_subject(standing.run.folder).dearest
    assert claim is not None
    assert claim.cost.steps == 3 * 2 * -(-claim.people // 10)


def test_an_audit_goes_on_where_it_was_killed(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials that are there are not played again, and the figures rest on all."""
    folder, played = standing.run.folder, []
    play = auditing.Arena.play

    def noted(self: Any, coins: Any) -> Any:
        if len(played) == 5:
            raise KeyboardInterrupt
        played.append(1)
        return play(self, coins)

    monkeypatch.setattr(auditing.Arena, "play", noted)
    with pytest.raises(KeyboardInterrupt):
        audited(folder, CANARIES)
    assert read_audit(folder) is None
    kept = {path: path.read_bytes() for path in folder.glob("audit/mechanism/*")}
    assert len(kept) == 5
    monkeypatch.setattr(auditing.Arena, "play", play)
    audited(folder, CANARIES)
    assert all(path.read_bytes() == before for path, before in kept.items())
    assert read_audit(folder) is not None


def test_a_broken_mechanism_is_told_loudly(standing: Standing) -> None:
    """In words, in the exit code, and on the page; old trials of it are not taken for mended."""
    folder = standing.run.folder
    with no_clipping():
        done = CliRunner().invoke(
            app, ["audit", str(folder), "--only", "mechanism", "--trials", "4000"], env=STARTED
        )
    assert done.exit_code == FolderError.exit_code
    assert "The claim does not hold" in done.output
    assert "The claim does not hold" in (folder / "report.html").read_text()


def test_trials_of_other_code_are_not_taken(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was mended is audited anew; what was not mended, is not forgotten."""
    audited(standing.run.folder, CANARIES)
    monkeypatch.setattr(auditing, "_code", lambda: "another")
    with pytest.raises(FolderError, match="holds trials of another audit"):
        audited(standing.run.folder, CANARIES)


def test_two_audits_of_one_folder_do_not_mix(standing: Standing) -> None:
    """The second waits for a person to see that the first is at work."""
    (standing.run.folder / "audit").mkdir()
    with alone(standing.run.folder / "audit"), pytest.raises(RunBusyError):
        audited(standing.run.folder, CANARIES)


def test_other_people_are_another_audit(standing: Standing, tmp_path: Path) -> None:
    """Scores by number would be taken for others'; canaries need nobody, and stay."""
    folder = standing.run.folder
    audited(folder, CANARIES)
    one = replace(ASKED, parts=("inversion",), inverted=1)
    found = audited(folder, replace(one, sites=standing.sites / "alpha"))
    assert [line.part for line in found.lines] == ["mechanism"] * 2 + ["inversion"] * 4
    assert "alpha" in found.people
    with pytest.raises(FolderError, match=r"holds trials of another audit \(site alpha was"):
        audited(folder, replace(one, sites=standing.sites / "beta"))
    again = audited(folder, CANARIES)
    assert again.lines == found.lines
    assert again.people == found.people


def test_a_release_is_audited_beside_it_by_what_was_planned(
    standing: Standing, tmp_path: Path
) -> None:
    """Nothing is added to a release; it counts people, and the study says what that costs."""
    release = write_release(standing.run.folder, tmp_path / "release")
    with pytest.raises(FolderError, match="nothing is added; give --out"):
        audited(release, CANARIES)
    found = audited(release, CANARIES, tmp_path / "beside")
    assert "as the study plans it" in found.remarks[0]
    by_run = read_subject(standing.run.folder).dearest
    by_plan = read_subject(release).dearest
    assert by_run is not None
    assert by_plan is not None
    assert by_plan.epsilon == pytest.approx(by_run.epsilon, rel=0.3)
    (release / "census.json").unlink()
    with pytest.raises(FolderError, match=r"neither rounds nor census\.json"):
        audited(release, CANARIES, tmp_path / "third")


def test_what_is_no_finished_run_is_refused(standing: Standing, tmp_path: Path) -> None:
    """A folder of something else, and a run that is still going on."""
    with pytest.raises(FolderError, match="is no folder"):
        audited(tmp_path / "nowhere", CANARIES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match="is not a run"):
        audited(tmp_path / "empty", CANARIES)
    standing.run.federated.final.unlink()
    with pytest.raises(FolderError, match="not finished"):
        audited(standing.run.folder, CANARIES)


def test_a_run_without_privacy_has_no_mechanism_but_the_rest(federation: Any) -> None:
    """What it tells is told, and that nothing was promised."""
    plain = {key: value for key, value in PRIVATE.items() if key != "privacy"}
    made: Federation = federation(plain)
    run = made.simulate()
    with pytest.raises(SettingError, match="not trained privately"):
        audited(run.folder, CANARIES)
    found = audited(run.folder, replace(ASKED, inverted=1))  # two hospitals are made up
    assert {line.part for line in found.lines} == {"membership", "inversion"}
    assert not any(line.accounted for line in found.lines)
    assert 'privacy.unit is "none"' in found.remarks[0]
    assert "Nothing was promised" in found.verdict
    assert "made people, of nobody" in found.people


def test_privacy_without_noise_promises_nothing(federation: Any) -> None:
    """What no epsilon bounds is no claim, whatever canaries show; and no number that breaks files."""
    noiseless = {**PRIVATE["privacy"], "noise": 0.0}
    run = federation({**PRIVATE, "privacy": noiseless}).simulate()
    found = audited(run.folder, CANARIES)
    assert found.lines[0].value > 3
    assert all(line.accounted is None for line in found.lines)
    assert "Nothing was promised" in found.verdict
    assert read_audit(run.folder) == found


def test_an_unknown_part_is_named() -> None:
    """Beside those that there are."""
    done = CliRunner().invoke(app, ["audit", "runs/x", "--only", "gossip"], env=STARTED)
    assert done.exit_code == 2
    assert "mechanism, membership, inversion" in done.output
