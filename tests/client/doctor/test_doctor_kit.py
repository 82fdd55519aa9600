"""Kits, keys, agents and policies that would keep a site from taking part are told beforehand."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from client.authority import approvals
from client.doctor import installation, readiness
from client.doctor.finding import CannotTellError
from client.kit import SiteKit, open_kit
from client.link.listener import serve_link
from client.site import load_site
from deploy.kits.consortium import consortium_template
from deploy.kits.provision import provision
from tests.client.doctor.loopback import CONSORTIUM, NOBODY, ROOT, as_somebody, told, write_site

pytest_plugins = ("tests.client.doctor.fixtures",)


def test_a_kit_as_it_was_sent_is_whole(kit: SiteKit) -> None:
    """Fresh from the coordinator."""
    for check in (installation.files, installation.keys, installation.certificates):
        assert check(kit).state == "good", told(check(kit))


@pytest.mark.parametrize("name", ["agent/agent.key", "courier/node.key", "courier"])
def test_a_key_that_others_may_read_is_told(kit: SiteKit, name: str) -> None:
    """cp and unzip forget modes."""
    path = kit.folder / name
    path.chmod(path.stat().st_mode | 0o044)
    found = installation.files(kit)
    assert found.state == "bad"
    assert name in found.found
    assert "chmod 600" in found.remedy


def test_a_missing_file_is_named_and_a_missing_process_is_not(kit: SiteKit) -> None:
    """Agent and courier may be on two machines, each with its own folder only."""
    kit.agent_tls.key.unlink()
    assert "agent/agent.key" in installation.files(kit).found
    shutil.rmtree(kit.folder / "agent")
    assert installation.files(kit).state == "good"
    shutil.rmtree(kit.folder / "courier")
    assert installation.files(kit).state == "bad"


SPOILT: dict[str, tuple[str, str, str]] = {
    "another node key": ("courier/node.key", "{other}/courier/node.key", "not the key of"),
    "no key at all": ("courier/node.key", "", "no OpenSSH key"),
    "another agent key": ("agent/agent.key", "{other}/agent/agent.key", "agent.key is not"),
    "another pin": ("courier/agent.crt", "{other}/agent/agent.crt", "is not what agent/agent.crt"),
    "no coordinator": ("coordinator.pem", "", "no order can be checked"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_halves_that_do_not_fit_are_told(kit: SiteKit, tmp_path: Path, name: str) -> None:
    """Files of two kits mixed: each looks right alone."""
    spoilt, source, words = SPOILT[name]
    text = tomli_w.dumps(CONSORTIUM)
    (tmp_path / "consortium.toml").write_text(text)
    provision(tmp_path / "consortium.toml", tmp_path / "others")
    other = source.format(other=tmp_path / "others" / "alpha")
    (kit.folder / spoilt).write_bytes(Path(other).read_bytes() if other else b"")
    found = installation.keys(kit)
    assert found.state == "bad"
    assert words in told(found)


@pytest.mark.parametrize(("ago", "state"), [(0, "good"), (1805, "note"), (1900, "bad")])
def test_certificates_of_the_kit_are_timed(tmp_path: Path, ago: int, state: str) -> None:
    """A site's own pair holds for five years; a month before its end somebody must know."""
    (tmp_path / "consortium.toml").write_text(consortium_template())
    now = datetime.now(UTC) - timedelta(days=ago)
    provision(tmp_path / "consortium.toml", tmp_path / "kits", now=now)
    found = installation.certificates(open_kit(tmp_path / "kits" / "hospital-a"))
    assert found.state == state, told(found)


def test_agent_and_courier_of_one_user_are_told(open_folder: Path, kits: Path) -> None:
    """Two processes that one user may read are one process to whoever breaks in."""
    shutil.copytree(kits / "alpha", open_folder / "kit")
    kit = open_kit(open_folder / "kit")
    if ROOT:
        with pytest.raises(CannotTellError, match="root"):
            installation.apart(kit)
        for path in (open_folder / "kit").rglob("*"):
            os.chown(path, NOBODY, NOBODY)
    with as_somebody():
        assert installation.apart(kit).state == "note"
    kit.node_key.chmod(0)
    with as_somebody():
        assert installation.apart(kit).state == "good"


def test_kit_and_site_file_are_about_one_site(kit: SiteKit, tmp_path: Path) -> None:
    """A held-out site that says it trains would be refused by everyone, much later."""
    assert installation.same(kit, write_site(tmp_path / "a")).state == "good"
    assert installation.same(kit, write_site(tmp_path / "b", role="heldout")).state == "bad"


def test_versions_are_held_against_what_is_required() -> None:
    """A reinstalled torch of another version changes every bit of the weights."""
    found = installation.versions()
    assert found.state == "good", told(found)
    assert "torch 2.13.0" in found.found
    from packaging.requirements import Requirement

    assert installation._skewed(Requirement("torch==2.12.0")).startswith("torch is 2.13.0")
    assert "absent" in installation._skewed(Requirement("no-such-thing>=1"))
    assert installation._skewed(Requirement('no-such-thing; extra == "dev"')) == ""


def test_an_agent_is_asked_whether_it_serves(kit: SiteKit, socket_file: Path) -> None:
    """Not there, alive, or dead with its socket left behind: three answers."""
    address = f"unix:{socket_file}"
    assert "is not there" in readiness.agent(kit, address).found
    listener = serve_link(iter, socket=socket_file)
    assert readiness.agent(kit, address).state == "good"
    listener.stop(0)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_file))
    assert socket_file.exists()
    found = readiness.agent(kit, address)
    assert found.state == "bad"
    assert "killed left" in found.found


def test_an_agent_behind_tcp_answers_the_couriers_certificate(kit: SiteKit) -> None:
    """As in containers; whoever may not read the courier's key cannot tell."""
    listener = serve_link(iter, listen="127.0.0.1:0", tls=kit.agent_tls)
    try:
        assert readiness.agent(kit, listener.address).state == "good"
        kit.courier_tls.key.unlink()
        with pytest.raises(CannotTellError, match="courier's user"):
            readiness.agent(kit, listener.address)
    finally:
        listener.stop(0)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "a") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_ledger_that_is_held_without_an_agent_is_told(kit: SiteKit, tmp_path: Path) -> None:
    """An agent that hangs would keep every new one out, and nobody would know why (F3)."""
    site = write_site(tmp_path / "site")
    site.state.mkdir()
    lock = site.state / "ledger.lock"
    lock.touch()  # a file that is left behind is no lock
    assert readiness.locks(site, kit).state == "good"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdin
        assert holder.stdout.readline() == b"held\n"
        found = readiness.locks(site, kit)
        assert found.state == "bad"
        assert "fuser" in found.remedy
        assert readiness.locks(site, kit, "127.0.0.1:1").state == "good"  # it answers elsewhere
        holder.stdin.close()
        holder.wait()
    assert readiness.locks(site, kit).state == "good"


def test_a_pause_and_the_sites_hours_are_told(tmp_path: Path) -> None:
    """Paused before a holiday, forgotten after it."""
    site = write_site(tmp_path / "site")
    assert readiness.pause(site).state == "good"
    approvals.pause(site, "new scanner")
    assert "new scanner" in told(readiness.pause(site))
    approvals.resume(site)
    yesterday = (datetime.now().astimezone() - timedelta(days=1)).strftime("%a")
    closed = write_site(tmp_path / "other", policy={"hours": [f"{yesterday} 00:00-00:01"]})
    assert "outside the site's hours" in readiness.pause(closed).found


def test_whether_the_study_is_approved_is_told(federation: Callable[..., Any]) -> None:
    """The very study: a changed one is another."""
    made = federation()
    site = load_site(made.sites / "alpha" / "site.toml")
    assert readiness.approved(site, made.study).state == "note"
    approvals.approve(site, made.study_file, 1)
    assert readiness.approved(site, made.study).state == "good"
    made.changes["seed"] = 8
    assert "another version" in readiness.approved(site, made.study).found


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"orders": ["census"]}, "refused with POLICY"),
        ({"largest_report_mb": 1e-6}, "REPORT_TOO_LARGE"),
        ({"most_exposures": 1}, "this study asks for more"),
    ],
)
def test_what_the_policy_would_refuse_is_told_beforehand(
    federation: Callable[..., Any], policy: dict[str, Any], words: str
) -> None:
    """A refusal on Friday night is found on Monday."""
    made = federation(site={"policy": policy})
    found = readiness.policy(load_site(made.sites / "alpha" / "site.toml"), made.study)
    assert found.state == "bad"
    assert words in found.found


def test_a_site_with_no_part_in_the_study_is_told(federation: Callable[..., Any]) -> None:
    """The wrong study file, or a role that does not fit."""
    made = federation()
    site = load_site(made.sites / "alpha" / "site.toml")
    made.changes["sites.train"] = ["beta", "gamma"]
    assert "can have no part" in readiness.policy(site, made.study).found


def test_a_cohort_too_small_is_told_beforehand(federation: Callable[..., Any]) -> None:
    """By headers and tables alone, as `callosum-site check` does."""
    made = federation(participants={"alpha": 9})
    small = load_site(made.sites / "alpha" / "site.toml")
    large = load_site(made.sites / "beta" / "site.toml")
    found = readiness.cohort(small, made.study)
    assert found.state == "bad"
    assert "too few participants are usable: 9; policy.minimum_cohort is 10" in told(found)
    assert "9" not in found.texts(share=True)[0].partition(";")[0]
    assert readiness.cohort(large, made.study).state == "good"
    (made.sites / "alpha" / "table.csv").unlink()
    assert readiness.cohort(small, made.study).state == "bad"
