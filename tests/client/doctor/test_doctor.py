"""One page tells a sound site from an ill one, and never says too much."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.authority import approvals
from client.doctor import checkup, finding, gpu
from client.doctor.finding import Finding
from client.kit import SiteKit, open_kit
from client.link.listener import serve_link
from client.site import load_site
from tests.client.doctor.loopback import Door, port_of, signed, told

pytest_plugins = ("tests.client.doctor.fixtures",)


@pytest.fixture
def machine() -> gpu.Machine:
    """A machine without a GPU that has been asked already: torch takes seconds to start."""
    made = gpu.Machine(Path("/nowhere"), "no-such-program")
    made.torch = {"torch": "2.13.0+cpu", "cuda": None, "gpus": []}
    return made


@pytest.fixture
def sound(
    federation: Callable[..., Any], kits: Path, open_door: Callable[..., Door], tmp_path: Path
) -> Iterator[SimpleNamespace]:
    """A site where all is well, its agent running, in a folder that tells where it is."""
    home = tmp_path / "Klinikum-Musterstadt"
    shutil.copytree(kits / "alpha", home / "kit")
    made = federation()
    (home / "scans").mkdir()
    shutil.copy(made.sites / "alpha" / "table.csv", home / "scans")
    text = (made.sites / "alpha" / "site.toml").read_text()
    text = text.replace('"table.csv"', f'"{home}/scans/table.csv"')
    (home / "kit" / "agent" / "site.toml").write_text(text)
    (home / "kit" / "kit.toml").write_text(
        (home / "kit" / "kit.toml")
        .read_text()
        .replace("localhost:1", f"127.0.0.9:{port_of(open_door(host='127.0.0.9'))}")
    )
    opened = open_kit(home / "kit")
    short = Path(tempfile.mkdtemp(prefix="agent-")) / "agent.sock"  # sockets' paths are short
    site, study = load_site(opened.site_file), made.study
    approvals.approve(site, made.study_file, 1)
    listener = serve_link(iter, socket=short)
    yield SimpleNamespace(
        home=home, kit=opened, site=site, study=study, agent=listener.address, file=made.study_file
    )
    listener.stop(0)
    shutil.rmtree(short.parent)


@pytest.fixture
def page(sound: SimpleNamespace, machine: gpu.Machine) -> Callable[..., checkup.Consultation]:
    """All findings about the sound site, or what became of it."""

    def made(**changes: Any) -> checkup.Consultation:
        site = load_site(sound.kit.site_file)
        things = {"kit": sound.kit, "site": site, "study": sound.study, **changes}
        found = checkup.examine(**things, agent=sound.agent, machine=machine)
        return checkup.Consultation(about="alpha", findings=found)

    return made


def test_a_sound_site_is_called_sound(page: Callable[..., checkup.Consultation]) -> None:
    """A page that cries wolf is not read the second time."""
    consultation = page()
    troubled = {one.check: told(one) for one in consultation.findings if one.state != "good"}
    # whoever runs the tests may be root, and may write what the tests wrote
    personal = {"user", "data folder", "separation"}
    assert {name: text for name, text in troubled.items() if name not in personal} == {}
    assert checkup.exit_code([f for f in consultation.findings if f.check not in personal]) == 0
    assert [one.check for one in consultation.findings] == list(checkup.CHECKS)


def test_it_is_one_page(page: Callable[..., checkup.Consultation]) -> None:
    """The worst comes first, and all of it can be read without turning a page."""
    consultation = page(kit=None)
    lines = checkup.format_page(consultation).splitlines()
    assert len(lines) <= 66
    # a path is never broken: it is to be copied
    assert all(len(line) <= 100 or max(map(len, line.split())) > 60 for line in lines)
    order = [line.split()[0] for line in lines[3:] if line[:1].strip()]
    assert order == sorted(order, key=["bad", "note", "skipped", "good"].index)


PLANTED = ("Musterstadt", "127.0.0.9", "proxy.klinikum", "geheim", "Musterfrau", "/tmp/", "/home/")


def test_a_shared_page_tells_nothing_of_where_the_site_is(
    page: Callable[..., checkup.Consultation],
    sound: SimpleNamespace,
    open_door: Callable[..., Door],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is mailed to the coordinator by people who trust that it holds no path and no host."""
    monkeypatch.setenv("HTTPS_PROXY", "http://user:geheim@proxy.klinikum-musterstadt.example:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.9")
    approvals.pause(sound.site, "Frau Musterfrau is on holiday")
    (sound.home / "scans" / "table.csv").unlink()
    foreign = open_door(*signed(tmp_path, "Klinikum Musterstadt TLS inspection"), host="127.0.0.9")
    away = sound.kit.model_copy(update={"hub": f"127.0.0.9:{port_of(foreign)}"})
    ill = page(kit=away)
    monkeypatch.delenv("NO_PROXY")
    proxied = page()
    nothing = checkup.consult(sound.home / "no-kit", sound.home / "no-study.toml")
    for consultation in (ill, proxied, nothing):
        for text in (
            checkup.format_page(consultation, share=True),
            checkup.as_json(consultation, share=True),
        ):
            for word in (*PLANTED, str(sound.home), str(tmp_path)):
                assert word.casefold() not in text.casefold(), word
    own = checkup.format_page(ill)
    for word in (str(sound.home), "127.0.0.9", "Musterfrau", "Callosum consortium authority"):
        assert word in own
    assert "geheim" not in own + checkup.format_page(proxied)  # a password is on no page


def test_no_page_names_a_participant_or_a_scan(
    brains: Callable[..., Any], tmp_path: Path, machine: gpu.Machine
) -> None:
    """The page stays at the site, but on a desk that is not in the data's protection."""
    made = brains()
    shutil.copytree(made.sites / "amber", tmp_path / "amber")
    scans = sorted((tmp_path / "amber").rglob("*_T1w.nii*"))
    scans[0].write_bytes(b"no scan")
    scans[1].chmod(0)
    site = load_site(tmp_path / "amber" / "site.toml")
    found = checkup.examine(None, site, made.study, machine=machine)
    consultation = checkup.Consultation(about="amber", findings=found)
    people = {part for scan in scans for part in scan.parts if part.startswith("sub-")}
    assert people
    for text in (checkup.format_page(consultation), checkup.as_json(consultation)):
        assert not any(name in text for name in people | {"sub-"})


def test_one_broken_check_does_not_hide_the_others() -> None:
    """It happens on the one machine that nobody could test on; and its text may name people."""

    def broken() -> Finding:
        raise RuntimeError("sub-01 Musterfrau")

    found = checkup.examined("GPU", broken, {})
    assert found.state == "note"
    assert "RuntimeError, test_doctor.py, line" in found.found
    assert "sub-01" not in told(found)


def test_what_cannot_be_opened_is_a_finding(tmp_path: Path, kit: SiteKit) -> None:
    """Whoever runs the doctor has a broken site; a refusal to look would not help."""
    (kit.site_file).write_text('name = "alpha"\n')
    consultation = checkup.consult(kit.folder, tmp_path / "no.toml")
    bad = {one.check: told(one) for one in consultation.findings if one.state == "bad"}
    assert "role is missing" in bad["site file"]
    assert "no.toml does not exist" in bad["study"]
    assert {one.check for one in consultation.findings} > set(checkup.CHECKS)
    assert checkup.exit_code(consultation.findings) == 1


def test_without_anything_most_is_skipped_and_nothing_breaks(machine: gpu.Machine) -> None:
    """A study is optional, and so is a kit."""
    states = {one.check: one.state for one in checkup.examine(None, None, None, machine=machine)}
    assert set(states.values()) == {"good", "skipped"}
    assert states["TLS"] == states["approval"] == "skipped"


def test_a_trouble_without_a_remedy_cannot_be_told() -> None:
    """Every note and every fault says what to do, by construction."""
    for state in ("note", "bad"):
        with pytest.raises(ValueError, match="what is to be done"):
            Finding(state=state, found="it rains")
    with pytest.raises(ValueError, match="shared page"):
        finding.good("{street}", street="Musterstrasse")


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ((), 0),
        (("data folder",), 4),
        (("data folder", "cohort"), 4),
        (("cohort", "TLS"), 1),
        (("GPU",), 1),
    ],
)
def test_the_exit_code_tells_data_from_the_rest(bad: tuple[str, ...], code: int) -> None:
    """A script calls the data manager for 4 and the engineer for 1."""
    found = [Finding(state="bad", found="x", remedy="y", check=name) for name in bad]
    found.append(Finding(state="note", found="x", remedy="y", check="GPU"))
    assert checkup.exit_code(found) == code


def test_the_page_is_also_for_programs(page: Callable[..., checkup.Consultation]) -> None:
    """The same findings, checked by a monitoring system each morning."""
    content = json.loads(checkup.as_json(page()))
    assert [row["check"] for row in content["findings"]] == list(checkup.CHECKS)
    assert content["exit"] in (0, 1, 4)
