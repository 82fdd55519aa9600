"""Kits fit each other and the programs that read them, keep each other's secrets, and only grow."""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from client.cli import app as site_commands
from client.kit import expiring, open_kit
from client.site import load_site
from common.errors import FolderError, SettingError
from common.protocol.signing import read_private_key, read_public_keys
from common.runtime import durable
from deploy.kits import keys
from deploy.kits.consortium import consortium_template, load_consortium
from deploy.kits.hub_kit import open_hub
from deploy.kits.provision import (
    Outcome,
    provision,
    renew_server,
    revoke_site,
    rotate_coordinator,
    rotate_site,
)

NOW = datetime.now(UTC).replace(microsecond=0)
SITES = {"alpha": "train", "beta": "train", "omega": "heldout"}
TEXT = """
name = "dementia"
hub = "hub.example.org:443"
contact = "Jane Doe"

[days]
server = 400

[[sites]]
name = "alpha"
role = "train"

[[sites]]
name = "beta"
role = "heldout"
data = "features"
"""


def write(folder: Path, sites: dict[str, str] = SITES, **changes: Any) -> Path:
    """A consortium file beside the folder of kits."""
    members = [
        {"name": name, "role": role, "data": "features" if role == "heldout" else "t1w"}
        for name, role in sites.items()
    ]
    tables = {"name": "dementia", "hub": "hub.example.org:443", "contact": "Jane Doe, 030 123"}
    file = folder / "consortium.toml"
    file.write_text(tomli_w.dumps({**tables, **changes, "sites": members}))
    return file


def again(folder: Path, sites: dict[str, str] = SITES, **changes: Any) -> Outcome:
    return provision(write(folder, sites, **changes), folder / "kits", now=NOW)


@pytest.fixture
def kits(tmp_path: Path) -> Path:
    again(tmp_path)
    return tmp_path / "kits"


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Names of files that appeared, went, or were written."""
    return {name for name in before | after if before.get(name) != after.get(name)}


def kit_files(site: str) -> set[str]:
    return {
        *(f"{site}/{name}" for name in ("kit.toml", "README.md", "ca.crt", "coordinator.pem")),
        *(f"{site}/agent/{name}" for name in ("site.toml", "agent.key", "agent.crt")),
        f"{site}/agent/courier.crt",
        *(f"{site}/courier/{name}" for name in ("node.key", "node.pub", "courier.key")),
        f"{site}/courier/courier.crt",
        f"{site}/courier/agent.crt",
    }


def site_secrets(site: str) -> set[str]:
    return {f"{site}/agent/agent.key", f"{site}/courier/courier.key", f"{site}/courier/node.key"}


def ran(*command: str | Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def node_key(file: Path) -> Any:
    return load_ssh_private_key(file.read_bytes(), None)


def assert_complete(kits: Path, sites: dict[str, str]) -> None:
    """Everything is there, nothing else is, and all of it fits together."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    hub_files = ["hub.toml", "README.md", "ca.crt", "server.crt", "server.key", "coordinator.key"]
    wanted = {"ca/ca.key", "ca/ca.crt", "hub/coordinator.pem", *(f"hub/{f}" for f in hub_files)}
    for site in sites:
        wanted |= kit_files(site) | {f"hub/nodes/{site}.pub"}
    assert set(everything(kits)) == wanted
    hub = open_hub(kits / "hub")
    assert dict(hub.sites) == sites
    fitting(hub.server_certificate, hub.server_key)
    own = read_private_key(hub.coordinator_key).public_key()
    for name, role in sites.items():
        kit = open_kit(kits / name)
        assert (kit.name, kit.role, kit.hub) == (name, role, hub.address)
        assert (load_site(kit.site_file).name, load_site(kit.site_file).role) == (name, role)
        assert read_public_keys(kit.coordinator_keys) == [own]
        assert kit.ca.read_bytes() == hub.ca.read_bytes()
        assert hub.node_public_key(name).read_bytes() == kit.node_public_key.read_bytes()
        theirs = public_key_to_bytes(node_key(kit.node_key).public_key())
        assert try_load_public_key(hub.node_public_key(name)) == theirs
        for end in (kit.agent_tls, kit.courier_tls):
            fitting(end.certificate, end.key)
        assert kit.agent_tls.peer.read_bytes() == kit.courier_tls.certificate.read_bytes()
        assert kit.courier_tls.peer.read_bytes() == kit.agent_tls.certificate.read_bytes()
    ran("openssl", "verify", "-CAfile", kits / "ca" / "ca.crt", hub.server_certificate)


def fitting(certificate: Path, key: Path) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_kits_hold_what_they_should_and_it_fits_together(kits: Path) -> None:
    """One kit that lacks a file, or holds another's, costs a hospital a week."""
    assert_complete(kits, SITES)


def test_ssh_and_flower_read_the_node_keys(kits: Path) -> None:
    """They are what `ssh-keygen -t ecdsa -b 384` makes, which Flower's guides ask for."""
    from flwr.supernode.cli.flower_supernode import (
        _parse_args_run_supernode,
        _try_setup_client_authentication,
    )

    kit = open_kit(kits / "alpha")
    size, print_of_public, whose, kind = ran("ssh-keygen", "-lf", kit.node_public_key).split()
    assert (size, whose, kind) == ("384", "alpha", "(ECDSA)")
    assert print_of_public in ran("ssh-keygen", "-lf", kit.node_key)
    made = ran("ssh-keygen", "-y", "-f", kit.node_key).split()
    assert made[:2] == kit.node_public_key.read_text().split()[:2]
    asked = ["--auth-supernode-private-key", str(kit.node_key)]
    pair = _try_setup_client_authentication(_parse_args_run_supernode().parse_args(asked))
    assert pair is not None
    assert pair[1] == node_key(kit.node_key).public_key()


def shake_hands(
    certificate: Path, key: Path, client: ssl.SSLContext, host: str, ca: Path | None = None
) -> str | None:
    """A real handshake over loopback: the protocol's name; raises what the client sees."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    if ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(b"hello")
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,))
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=host) as secure,
            ):
                assert secure.recv(5) == b"hello"
                return secure.version()
        finally:
            thread.join()


@pytest.mark.parametrize("host", ["hub.example.org", "localhost", "127.0.0.1", "10.1.2.3"])
def test_a_site_trusts_the_hub_under_its_names(tmp_path: Path, host: str) -> None:
    """With the kit's authority alone, hostname checked, as strictly as Python can."""
    again(tmp_path, names=["10.1.2.3"])
    hub, kit = open_hub(tmp_path / "kits" / "hub"), open_kit(tmp_path / "kits" / "alpha")
    client = ssl.create_default_context(cafile=kit.ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    assert shake_hands(hub.server_certificate, hub.server_key, client, host) == "TLSv1.3"


@pytest.mark.parametrize("fault", ["another host", "another authority"])
def test_a_site_trusts_nobody_else(kits: Path, tmp_path: Path, fault: str) -> None:
    """Neither the hub under a name that is not its own, nor anyone under the hub's."""
    hub = open_hub(kits / "hub")
    if fault == "another host":
        client, host = ssl.create_default_context(cafile=hub.ca), "evil.example.org"
    else:
        provision(write(tmp_path), tmp_path / "others", now=NOW)
        client = ssl.create_default_context(cafile=tmp_path / "others" / "hub" / "ca.crt")
        host = "hub.example.org"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(hub.server_certificate, hub.server_key, client, host)


@pytest.mark.parametrize("other", [None, "beta"])
def test_agent_and_courier_know_each_other_and_nobody_else(kits: Path, other: str | None) -> None:
    """Each end is pinned: the same pair of another site is a stranger."""
    agent = open_kit(kits / "alpha").agent_tls
    courier = open_kit(kits / (other or "alpha")).courier_tls
    client = ssl.create_default_context(cafile=open_kit(kits / "alpha").courier_tls.peer)
    client.load_cert_chain(courier.certificate, courier.key)
    if other is None:
        assert shake_hands(agent.certificate, agent.key, client, "agent", agent.peer)
        return
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        shake_hands(agent.certificate, agent.key, client, "agent", agent.peer)


def private_scalars(content: bytes) -> list[tuple[bytes, bytes]]:
    """Every private key in a file: its numbers, and a stretch of its text."""
    found = []
    blocks = content.split(b"-----BEGIN ")[1:]
    for block in blocks:
        if not block.split(b"-----")[0].endswith(b"PRIVATE KEY"):
            continue
        load: Callable[..., Any] = load_pem_private_key
        if block.startswith(b"OPENSSH"):
            load = load_ssh_private_key
        key = load(b"-----BEGIN " + block, None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            raw = key.private_numbers().private_value.to_bytes(48, "big")
        else:
            assert isinstance(key, ed25519.Ed25519PrivateKey)
            raw = key.private_bytes_raw()
        found.append((raw, b"".join(block.split(b"-----")[1].split())))
    return found


def test_no_secret_is_in_a_folder_of_somebody_else(kits: Path) -> None:
    """Every file is read: each private key is in one place, whatever it is written as."""
    rotate_site(kits, "beta", now=NOW)
    rotate_coordinator(kits)
    secrets = {"ca/ca.key", "hub/server.key", "hub/coordinator.key", "hub/coordinator.next.key"}
    secrets |= {file for site in SITES for file in site_secrets(site)}
    contents = {name: content for name, (content, _) in everything(kits).items()}
    assert {name for name, content in contents.items() if private_scalars(content)} == secrets
    numbers = {name: private_scalars(contents[name]) for name in secrets}
    assert all(len(found) == 1 for found in numbers.values())
    assert len({found[0][0] for found in numbers.values()}) == len(secrets)
    for name, found in numbers.items():
        for raw, text in found:
            shapes = [raw, text, raw.hex().encode(), base64.b64encode(raw)[:-4]]
            for other, content in contents.items():
                flat = b"".join(content.split())
                assert other == name or not any(
                    shape in content or shape in flat for shape in shapes
                ), (name, other)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """A careless umask opens no secret, a strict one does not keep the courier from its kit."""
    old = os.umask(umask)
    try:
        again(tmp_path)
        rotate_site(tmp_path / "kits", "alpha", now=NOW)
        renew_server(tmp_path / "kits", now=NOW)
        rotate_coordinator(tmp_path / "kits")
        rotate_coordinator(tmp_path / "kits", finish=True)
        rotate_coordinator(tmp_path / "kits")
    finally:
        os.umask(old)
    closed = {"ca", "hub", "hub/nodes"}
    closed |= {f"{site}/{process}" for site in SITES for process in ("agent", "courier")}
    for path in (tmp_path / "kits").rglob("*"):
        mode, name = path.stat().st_mode & 0o777, str(path.relative_to(tmp_path / "kits"))
        if path.is_dir():
            assert mode == (0o700 if name in closed else 0o755), name
        else:
            assert mode == (0o600 if path.suffix == ".key" else 0o644), name


def test_a_secret_is_closed_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making a file and closing it is time enough to open it."""
    opened: dict[str, int] = {}
    really = os.open

    def watched(path: Any, *rest: Any, **more: Any) -> int:
        handle = really(path, *rest, **more)
        opened[Path(path).name] = os.fstat(handle).st_mode & 0o777
        return handle

    monkeypatch.setattr(durable.os, "open", watched)
    old = os.umask(0)
    try:
        again(tmp_path)
    finally:
        os.umask(old)
    secret = {name: mode for name, mode in opened.items() if ".key." in name}
    assert len(secret) == 3 + 3 * len(SITES)
    assert set(secret.values()) == {0o600}


def test_running_again_touches_nothing(kits: Path, tmp_path: Path) -> None:
    """Neither content nor time of any file; what is to be done is said again only if it is."""
    before = everything(kits)
    assert again(tmp_path) == Outcome()
    assert everything(kits) == before


def test_a_new_site_touches_no_other(kits: Path, tmp_path: Path) -> None:
    """The consortium grows without a letter to those who are in it."""
    before = everything(kits)
    outcome = again(tmp_path, {**SITES, "gamma": "train"})
    assert outcome.sites == ("gamma",)
    assert any("gamma" in line and "nobody else" in line for line in outcome.todo)
    new = kit_files("gamma") | {"hub/nodes/gamma.pub", "hub/hub.toml"}
    assert changed(before, everything(kits)) == new
    assert_complete(kits, {**SITES, "gamma": "train"})


def test_a_kit_that_was_sent_and_deleted_stays_as_it_is(kits: Path, tmp_path: Path) -> None:
    """Making it anew would lock out the site that has it; the authority may be in a drawer."""
    (kits / "alpha").rename(tmp_path / "sent")
    (kits / "ca").rename(tmp_path / "drawer")
    before = everything(kits)
    again(tmp_path, {**SITES, "gamma": "train"})
    assert not (kits / "alpha").exists()
    assert not (kits / "ca").exists()
    new = kit_files("gamma") | {"hub/nodes/gamma.pub", "hub/hub.toml"}
    assert changed(before, everything(kits)) == new


def test_a_rotated_site_has_new_keys_and_no_other_has(kits: Path, tmp_path: Path) -> None:
    """The way out when a key was seen; the site's own file is the site's."""
    (kits / "alpha" / "agent" / "site.toml").write_text("ours")
    before = everything(kits)
    outcome = rotate_site(kits, "alpha", now=NOW + timedelta(days=40))
    pair = {
        f"alpha/{process}/{name}.crt"
        for process in ("agent", "courier")
        for name in ("agent", "courier")
    }
    new = site_secrets("alpha") | pair | {"alpha/courier/node.pub", "hub/nodes/alpha.pub"}
    assert changed(before, everything(kits)) == new | {"alpha/kit.toml", "alpha/README.md"}
    assert open_kit(kits / "alpha").expires == (NOW + timedelta(days=40 + 1825)).date()
    assert any("agent/site.toml" in line for line in outcome.todo)
    (kits / "alpha" / "agent" / "site.toml").write_bytes(
        before["beta/agent/site.toml"][0].replace(b"beta", b"alpha")
    )
    assert_complete(kits, SITES)


def test_a_kit_made_anew_brings_no_site_file(kits: Path) -> None:
    """A hospital that copies the new kit over the old one keeps what it wrote."""
    shutil.rmtree(kits / "alpha")
    rotate_site(kits, "alpha", now=NOW)
    assert {file for file in everything(kits) if file.startswith("alpha/")} == kit_files(
        "alpha"
    ) - {"alpha/agent/site.toml"}


def test_a_revoked_site_stays_out_until_it_is_rotated(kits: Path, tmp_path: Path) -> None:
    """Running the usual command again must not let it in; letting it in means new keys."""
    old = (kits / "hub" / "nodes" / "beta.pub").read_bytes()
    before = everything(kits)
    outcome = revoke_site(kits, "beta")
    assert changed(before, everything(kits)) == {"hub/hub.toml", "hub/nodes/beta.pub"}
    assert not (kits / "hub" / "nodes" / "beta.pub").exists()
    assert any("--rotate beta" in line for line in outcome.todo)
    before = everything(kits)
    outcome = again(tmp_path)
    assert everything(kits) == before
    assert outcome.sites == ()
    assert any("beta is revoked" in line and "--rotate beta" in line for line in outcome.todo)
    assert set(open_hub(kits / "hub").sites) == {"alpha", "omega"}
    assert again(tmp_path, {"alpha": "train", "omega": "heldout"}).sites == ()
    rotate_site(kits, "beta", now=NOW)
    assert again(tmp_path).sites == ()
    assert (kits / "hub" / "nodes" / "beta.pub").read_bytes() != old
    assert_complete(kits, SITES)


def test_a_key_that_a_killed_revocation_left_is_removed(kits: Path, tmp_path: Path) -> None:
    """The mark is written first; what the mark says is then made true."""
    left = (kits / "hub" / "nodes" / "beta.pub").read_bytes()
    revoke_site(kits, "beta")
    (kits / "hub" / "nodes" / "beta.pub").write_bytes(left)
    again(tmp_path)
    assert not (kits / "hub" / "nodes" / "beta.pub").exists()


def test_renewing_the_server_changes_no_site(kits: Path) -> None:
    """Sites trust the authority; the hub's own certificate comes and goes."""
    hub, before = open_hub(kits / "hub"), everything(kits)
    later = NOW + timedelta(days=800)
    assert [one.name for one in expiring(kits / "hub", later)] == ["server.crt"]
    renew_server(kits, now=later)
    assert changed(before, everything(kits)) == {"hub/server.crt", "hub/server.key"}
    assert expiring(kits, later) == []
    fitting(hub.server_certificate, hub.server_key)
    ran("openssl", "verify", "-no_check_time", "-CAfile", hub.ca, hub.server_certificate)


def test_a_server_certificate_ends_with_its_authority(kits: Path) -> None:
    """Beyond that no site would trust it; after it none can be made."""
    renew_server(kits, now=NOW + timedelta(days=3600))
    late = expiring(kits / "hub", NOW + timedelta(days=3640))
    assert {(one.name, one.days_left) for one in late} == {("ca.crt", 10), ("server.crt", 10)}
    with pytest.raises(SettingError, match=r"ca\.crt ended on .* new folder"):
        renew_server(kits, now=NOW + timedelta(days=3651))


@pytest.mark.parametrize("fault", ["missing", "another"])
def test_renewing_needs_the_authoritys_own_key(kits: Path, fault: str) -> None:
    """Found out before the old key is gone."""
    before = everything(kits / "hub")
    (kits / "ca" / "ca.key").unlink()
    if fault == "another":
        keys.tls_key(kits / "ca" / "ca.key")
    with pytest.raises(SettingError, match=r"ca\.key is (needed|not the key)"):
        renew_server(kits, now=NOW)
    assert everything(kits / "hub") == before


def test_the_coordinators_key_changes_with_an_overlap(kits: Path, tmp_path: Path) -> None:
    """While sites are told, both keys are trusted and the old one signs."""
    hub, kit = open_hub(kits / "hub"), open_kit(kits / "alpha")
    old = read_private_key(hub.coordinator_key).public_key()
    outcome = rotate_coordinator(kits)
    assert any("alpha, beta, omega" in line for line in outcome.todo)
    both = read_public_keys(kit.coordinator_keys)
    assert both[0] == old
    assert len(both) == 2
    assert read_private_key(hub.coordinator_key).public_key() == old
    rotate_coordinator(kits)
    again(tmp_path, {**SITES, "gamma": "train"})
    assert read_public_keys(hub.coordinator_keys) == both
    assert read_public_keys(kits / "gamma" / "coordinator.pem") == both
    rotate_coordinator(kits, finish=True)
    assert read_private_key(hub.coordinator_key).public_key() == both[1]
    assert_complete(kits, {**SITES, "gamma": "train"})
    with pytest.raises(SettingError, match=r"nothing to finish: .* --rotate-coordinator"):
        rotate_coordinator(kits, finish=True)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that kills itself before its step-th sync or change of a name."""
    child = os.fork()
    if child == 0:
        left = step

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object, **more: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **more)

            return wrapped

        try:
            for name in ("fsync", "replace", "unlink", "mkdir", "chmod"):
                setattr(os, name, dying(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def completed_after_kills(
    work: Callable[[Path], object], folder: Path, stride: int, *, made: bool
) -> int:
    """Kill `work` at every stride-th of its steps, do it again, check the kits; the last step."""
    step = 1
    while True:
        here = folder / str(step)
        here.mkdir()
        if made:
            again(here, {"alpha": "train"})
        if not killed_at(step, partial(work, here)):
            return step
        work(here)
        assert_complete(here / "kits", {"alpha": "train"})
        step += stride


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_step_is_completed_by_running_again(tmp_path: Path, stride: int) -> None:
    """No half-written key, no leftover, no certificate of a key that is gone."""

    def work(folder: Path) -> None:
        again(folder, {"alpha": "train"})

    assert completed_after_kills(work, tmp_path, stride, made=False) > 60


def test_a_killed_renewal_is_completed_by_running_again(tmp_path: Path) -> None:
    """A certificate never stays beside the key of another."""

    def work(folder: Path) -> None:
        renew_server(folder / "kits", now=NOW)

    assert completed_after_kills(work, tmp_path, 1, made=True) > 6


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_rotation_is_completed_by_running_again(tmp_path: Path, stride: int) -> None:
    """The second run ends where an undisturbed one would."""

    def work(folder: Path) -> None:
        rotate_site(folder / "kits", "alpha", now=NOW)

    assert completed_after_kills(work, tmp_path, stride, made=True) > 30


@pytest.mark.parametrize("step", [4, 5, 8, 9, 12, 20, 28, 36])
def test_a_killed_rotation_is_completed_by_provisioning(tmp_path: Path, step: int) -> None:
    """Once the hub forgot the old key, whichever command is run next makes kit and hub agree."""
    again(tmp_path, {"alpha": "train"})
    site_file = tmp_path / "kits" / "alpha" / "agent" / "site.toml"
    site_file.write_text("# edited\n" + site_file.read_text())
    assert killed_at(step, partial(rotate_site, tmp_path / "kits", "alpha", now=NOW))
    again(tmp_path, {"alpha": "train"})
    assert_complete(tmp_path / "kits", {"alpha": "train"})
    assert site_file.read_text().startswith("# edited")


@pytest.mark.parametrize("step", range(1, 9))
def test_a_killed_renewal_is_completed_by_provisioning(tmp_path: Path, step: int) -> None:
    """A hub whose certificate is of another key would not start."""
    again(tmp_path, {"alpha": "train"})
    killed_at(step, partial(renew_server, tmp_path / "kits", now=NOW))
    again(tmp_path, {"alpha": "train"})
    assert_complete(tmp_path / "kits", {"alpha": "train"})


@pytest.mark.parametrize("step", range(1, 20))
def test_a_killed_change_of_the_coordinators_key_is_completed(tmp_path: Path, step: int) -> None:
    """Sites are never left with a set of keys that nobody can sign for."""
    again(tmp_path, {"alpha": "train"})
    kits = tmp_path / "kits"
    rotate_coordinator(kits)
    killed = killed_at(step, lambda: rotate_coordinator(kits, finish=True))
    if killed:
        signing = read_private_key(kits / "hub" / "coordinator.key").public_key()
        assert signing in read_public_keys(kits / "alpha" / "coordinator.pem")
        if len(read_public_keys(kits / "hub" / "coordinator.pem")) == 2:
            rotate_coordinator(kits, finish=True)
    assert_complete(kits, {"alpha": "train"})


def test_two_commands_do_not_work_on_one_folder(kits: Path, tmp_path: Path) -> None:
    """Two of them would make two keys for one site."""
    handle = os.open(kits, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # what two commands that only looked would share
    try:
        with pytest.raises(FolderError, match=r"another command is at work"):
            again(tmp_path)
    finally:
        os.close(handle)
    assert again(tmp_path) == Outcome()


@pytest.mark.parametrize("name", ["ca", "alpha", "hub/notes"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    """A typing mistake in --out must not mix keys into somebody's data."""
    (tmp_path / "kits" / name).mkdir(parents=True)
    with pytest.raises(FolderError, match=rf"{name} exists, but .*hub\.toml does not"):
        again(tmp_path)


@pytest.mark.parametrize("name", ["ca.crt", "coordinator.pem"])
def test_what_sites_rely_on_is_never_made_twice(kits: Path, tmp_path: Path, name: str) -> None:
    """A new authority or signing key would shut out every site that has its kit."""
    (kits / "hub" / name).unlink()
    before = everything(kits)
    with pytest.raises(FolderError, match=rf"{name} is missing; copy it back"):
        again(tmp_path)
    assert everything(kits) == before


FAULTS = {
    "another name": ({"name": "stroke"}, SITES, r'name is "stroke"; .* of dementia.*line 1'),
    "role": (
        {},
        {**SITES, "beta": "heldout"},
        r'sites\.1\.role is "heldout", its kit says "train"',
    ),
    "gone": ({}, {"alpha": "train"}, r"no longer has beta, omega; .* --revoke beta"),
    "moved": ({"hub": "b.example.org:443"}, SITES, r"certificate does not hold b\.example\.org"),
}


@pytest.mark.parametrize(("changes", "sites", "said"), FAULTS.values(), ids=FAULTS)
def test_a_contradiction_to_existing_kits_is_refused(
    kits: Path, tmp_path: Path, changes: dict[str, str], sites: dict[str, str], said: str
) -> None:
    """What sites already have in their hands cannot be changed from here; nothing is written."""
    before = everything(kits)
    with pytest.raises(SettingError, match=said):
        again(tmp_path, sites, **changes)
    assert everything(kits) == before


def test_the_hub_moves_in_steps_that_lock_nobody_out(kits: Path, tmp_path: Path) -> None:
    """First the certificate holds both names, then sites change theirs one by one."""
    outcome = again(tmp_path, names=["b.example.org"])
    assert any("does not hold b.example.org" in line for line in outcome.todo)
    renew_server(kits, now=NOW)
    outcome = again(tmp_path, hub="b.example.org:8443", names=["hub.example.org"])
    assert any('hub = "b.example.org:8443"' in line for line in outcome.todo)
    assert open_hub(kits / "hub").address == "b.example.org:8443"
    assert open_kit(kits / "alpha").hub == "hub.example.org:443"


def test_no_stranger_is_rotated_or_revoked(kits: Path) -> None:
    """A mistyped name is answered by those that exist, and by no file outside the kits."""
    for command in (rotate_site, revoke_site):
        with pytest.raises(
            SettingError, match=r'no site "\.\./x" in .*; there are alpha, beta, omega'
        ):
            command(kits, "../x")


CONSORTIUM_FAULTS = {
    "unknown key": ("contact", "contakt", ["contakt is not a known key", "contact?", "line 4"]),
    "in days": ("server = 400", "servr = 4", ["days.servr", "did you mean server?", "line 7"]),
    "no days left": ("400", "0", ["days.server is 0", "equal to 1", "line 7"]),
    "in a site": ('data = "f', 'dat = "f', ["sites.1.dat is not", "mean data?", "line 16"]),
    "kind": ('"features"', '"eeg"', ['sites.1.data is "eeg"', "t1w", "line 16"]),
    "site's name": ('"beta"', '"Be ta"', ['sites.1.name is "Be ta"', "pattern", "line 14"]),
    "twice": ('"beta"', '"alpha"', ['sites.1.name is "alpha"; another site has', "line 14"]),
    "of results": ('"beta"', '"pooled"', ['sites.1.name is "pooled"; results', "line 14"]),
    "of a folder": ('"beta"', '"hub"', ['sites.1.name is "hub"; the kits have', "line 14"]),
    "name": ('"dementia"', '"../x"', ['name is "../x"', "pattern", "line 2"]),
    "hub": (":443", "", ["hub is", "host:port is needed", "line 3"]),
    "host": ("hub.example.org", "hub example", ["DNS name or an IP", "line 3"]),
    "names": ("contact =", 'names = ["*.org"]\ncontact =', ['names.0 is "*.org"', "line 4"]),
    "nobody": (TEXT[TEXT.index("[[") :], "sites = []", ["sites is []", "at least 1"]),
    "nobody to call": ('"Jane Doe"', '""', ['contact is ""', "at least 1", "line 4"]),
}


@pytest.mark.parametrize(("old", "new", "said"), CONSORTIUM_FAULTS.values(), ids=CONSORTIUM_FAULTS)
def test_a_fault_in_a_consortium_file_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, said: list[str]
) -> None:
    """Before any key is made."""
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    if new == "sites = []":
        text = new + text
    (tmp_path / "consortium.toml").write_text(text)
    with pytest.raises(SettingError) as caught:
        provision(tmp_path / "consortium.toml", tmp_path / "kits")
    for words in said:
        assert words in str(caught.value)
    assert not (tmp_path / "kits").exists()


def test_the_template_works_as_it_is(tmp_path: Path) -> None:
    """Whoever edits only names and the address gets kits."""
    file = tmp_path / "consortium.toml"
    file.write_text(consortium_template("stroke"))
    assert load_consortium(file).name == "stroke"
    provision(file, tmp_path / "kits", now=NOW)
    roles = dict.fromkeys(["hospital-a", "hospital-b", "hospital-c"], "train")
    assert_complete(tmp_path / "kits", roles | {"hospital-d": "heldout"})


def test_the_page_of_a_kit_gives_commands_that_exist(kits: Path) -> None:
    """It is read where nobody can ask; every line of it is typed as it stands."""
    page = (kits / "alpha" / "README.md").read_text()
    lines = [
        line for block in page.split("```sh\n")[1:] for line in block.split("```")[0].split("\n")
    ]
    commands = typer.main.get_command(site_commands).commands
    given = [line.split() for line in lines if line]
    for program, command, *arguments in given:
        assert program == "callosum-site"
        commands[command].make_context(command, arguments)  # a usage error if it is none
    assert [words[1] for words in given] == [
        "check",
        "prepare",
        "approve",
        "serve",
        "node",
        "doctor",
    ]


def test_the_longest_names_fit_into_certificates(tmp_path: Path) -> None:
    """X.509 ends names at 64 characters, ours end at 63."""
    again(tmp_path, {"a" * 63: "train"}, name="c" * 63)
    assert_complete(tmp_path / "kits", {"a" * 63: "train"})


def test_a_kit_says_when_its_first_certificate_ends(tmp_path: Path) -> None:
    """The hub's does not count: it is renewed without the sites."""
    again(tmp_path, days={"ca": 300, "server": 10, "site": 200})
    kit = open_kit(tmp_path / "kits" / "alpha")
    assert kit.expires == (NOW + timedelta(days=200)).date()
    assert kit.expires.isoformat() in (kit.folder / "README.md").read_text()
    assert "Jane Doe, 030 123" in (kit.folder / "README.md").read_text()
    assert any(
        "server.crt ends in 10 days" in line
        for line in again(tmp_path, days={"ca": 300, "server": 10, "site": 200}).todo
    )
