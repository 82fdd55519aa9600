"""A site's kit is read strictly, and its certificates are watched before they end."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from client.kit import Expiring, certificate_end, expiring, open_kit, split_address
from common.errors import SettingError
from deploy.kits.certificates import pinned
from deploy.kits.keys import tls_key

TEXT = """
name = "alpha"
role = "train"
consortium = "dementia"
hub = "hub.example.org:443"
expires = 2030-01-31
"""
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)

FAULTS = {
    "no name": ('name = "alpha"\n', "", ["name is missing"]),
    "unknown key": ("expires", "expiry", ["expiry is not a known key", "expires?", "line 6"]),
    "role": ('"train"', '"judge"', ['role is "judge"', "line 3"]),
    "no port": (":443", "", ['hub is "hub.example.org"', "host:port is needed", "line 5"]),
    "port": (":443", ":70000", ["host:port is needed", "line 5"]),
    "scheme": ('"hub.', '"https://hub.', ["hub is", "host:port is needed", "line 5"]),
    "host": ("hub.example", "hub_example", ["DNS name or an IP address", "line 5"]),
    "number": ("hub.example.org", "10.0.0.300", ["DNS name or an IP address", "line 5"]),
    "day": ("2030-01-31", '"2030-01-31"', ["expires is", "valid date", "line 6"]),
    "folder": ("expires", 'folder = "x"\nexpires', ["folder is not a known key", "line 6"]),
}


@pytest.mark.parametrize(("old", "new", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_kit_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, said: list[str]
) -> None:
    """Whoever opens a kit that was edited must see what to put back."""
    assert TEXT.count(old) == 1
    (tmp_path / "kit.toml").write_text(TEXT.replace(old, new))
    with pytest.raises(SettingError) as caught:
        open_kit(tmp_path)
    for words in said:
        assert words in str(caught.value)


def test_a_kit_knows_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons work in other folders than the one that --kit was typed in."""
    (tmp_path / "kit.toml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    kit = open_kit(Path())
    assert (kit.name, kit.role, kit.consortium) == ("alpha", "train", "dementia")
    assert (kit.hub, kit.expires) == ("hub.example.org:443", date(2030, 1, 31))
    assert kit.ca == tmp_path / "ca.crt"
    assert kit.coordinator_keys == tmp_path / "coordinator.pem"
    assert kit.site_file == tmp_path / "agent" / "site.toml"
    assert kit.node_key == tmp_path / "courier" / "node.key"
    assert kit.socket == tmp_path / "run" / "agent.sock"
    assert kit.agent_tls.peer == tmp_path / "agent" / "courier.crt"
    assert kit.courier_tls.peer == tmp_path / "courier" / "agent.crt"


def test_a_folder_without_a_kit_is_named(tmp_path: Path) -> None:
    """The commonest mistake is the folder above, or below."""
    with pytest.raises(SettingError, match=r"kit\.toml does not exist"):
        open_kit(tmp_path)


@pytest.mark.parametrize(
    "address",
    ["", ":443", "a:", "a:0", "a:65536", "a:+1", "a:\u0661", "a b:1", "-a:1", "a..b:1", "::1:443",
     "[hub]:443", "fe80::1%eth0:1", "[fe80::1%eth0]:1", "münchen.de:1", "a/b:1", "a:1\n", "*.a:1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address: str) -> None:
    """It would be found out at the hospital, by a connection that never comes."""
    with pytest.raises(ValueError, match=r"is needed"):
        split_address(address)


def certificate(folder: Path, name: str, days: float) -> Path:
    """A certificate that ends `days` after NOW."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    made = NOW - timedelta(days=1) + timedelta(days=days)
    key = tls_key(file.with_suffix(".key"))
    file.write_bytes(pinned(key, "alpha", "agent", now=made, days=1))
    return file


def test_certificates_are_warned_about_thirty_days_ahead(tmp_path: Path) -> None:
    """Soonest first, each with what to do; those that hold longer are not mentioned."""
    certificate(tmp_path, "ca.crt", 31)
    certificate(tmp_path / "agent", "agent.crt", 29.5)
    certificate(tmp_path / "courier", "courier.crt", -2)
    found = expiring(tmp_path, NOW)
    assert [(one.name, one.days_left) for one in found] == [("courier.crt", -2), ("agent.crt", 29)]
    assert "courier.crt ended 2 days ago" in str(found[0])
    assert "agent.crt ends in 29 days" in str(found[1])
    assert "ask the coordinator" in str(found[1])
    assert [one.name for one in expiring(tmp_path, NOW, days=60)][-1] == "ca.crt"
    assert expiring([tmp_path / "ca.crt"], NOW + timedelta(days=1)) == []
    assert [
        one.days_left for one in expiring([tmp_path / "ca.crt"], NOW + timedelta(days=1.1))
    ] == [29]


def test_a_copy_of_a_certificate_is_no_second_finding(tmp_path: Path) -> None:
    """Agent and courier hold each other's; one line too many and people stop reading."""
    file = certificate(tmp_path / "agent", "agent.crt", 3)
    (tmp_path / "courier").mkdir()
    (tmp_path / "courier" / "agent.crt").write_bytes(file.read_bytes())
    assert len(expiring(tmp_path, NOW)) == 1


def test_a_day_is_one_day(tmp_path: Path) -> None:
    """The last day reads as 0, the first without a certificate as ended."""
    file = certificate(tmp_path, "agent.crt", 0.5)
    assert [one.days_left for one in expiring([file], NOW)] == [0]
    assert "ended 1 day ago" in str(Expiring(name="x", file=file, days_left=-1, remedy=""))
    assert certificate_end(file) == NOW + timedelta(days=0.5)


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    """A file that was cut short on a stick must not count as one that holds."""
    (tmp_path / "ca.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nMII")
    with pytest.raises(SettingError, match=r"ca\.crt cannot be read as a certificate"):
        expiring(tmp_path, NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_other_process_folder_may_be_closed(tmp_path: Path) -> None:
    """The agent's user cannot look into the courier's folder, and still learns about its own."""
    certificate(tmp_path, "ca.crt", 3)
    certificate(tmp_path / "courier", "courier.crt", 3)
    (tmp_path / "courier").chmod(0o700)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        names = []
        try:
            os.chdir(tmp_path)  # the folders above it are not for others either
            os.setuid(65534)
            names = [one.name for one in expiring(Path(), NOW)]
        finally:
            os._exit(0 if names == ["ca.crt"] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_kit_is_opened_without_torch_or_flower() -> None:
    """The courier reads its kit in a process that has neither data nor a network to train."""
    heavy = "{'torch', 'flwr', 'grpc', 'deploy', 'server'}"
    code = f"import client.kit, sys; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
