"""Each way in which a hub, or the line to it, can be ill is told apart."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from cryptography import x509

from client.doctor import bandwidth, checkup, hub
from client.doctor.demand import Demand
from client.doctor.finding import CannotTellError
from client.doctor.hub_connection import Line
from client.kit import SiteKit
from tests.client.doctor.loopback import Door, line_to, port_of, signed, told

pytest_plugins = ("tests.client.doctor.fixtures",)


def test_a_hub_that_is_well(kit: SiteKit, open_door: Callable[..., Door]) -> None:
    """Each question about the hub, answered by a hub as it should be."""
    line = line_to(kit, port_of(open_door()))
    for check in (hub.reached, hub.proxies, hub.trusted, hub.clock, hub.fleet, hub.hidden):
        assert check(line).state == "good", told(check(line))
    assert "by the consortium's authority" in hub.trusted(line).found


def test_an_interceptor_is_named(
    kit: SiteKit, open_door: Callable[..., Door], tmp_path: Path
) -> None:
    """Hospitals' proxies open TLS; their people need the name of what to exempt."""
    files = signed(tmp_path, "Klinikum Inspection")
    subject = x509.load_pem_x509_certificate(files[0].read_bytes()).issuer
    line = line_to(kit, port_of(open_door(*files)))
    found = hub.trusted(line)
    assert found.state == "bad"
    assert "opens the connection" in found.found
    assert subject.rfc4514_string().split(",")[0].split("=")[1] in told(found)
    for check in (hub.fleet, hub.hidden, bandwidth.line_speed):
        with pytest.raises(CannotTellError, match="not the hub for certain"):
            check(line)
    assert hub.clock(line).state == "good"  # read from whoever answers


def test_kits_that_were_made_anew_are_told_from_interception(
    kit: SiteKit, open_door: Callable[..., Door], tmp_path: Path
) -> None:
    """A site with last year's kit looked healthy for three weeks elsewhere."""
    line = line_to(kit, port_of(open_door(*signed(tmp_path, "trial"))))
    found = hub.trusted(line)
    assert found.state == "bad"
    assert "the kits were made anew" in found.found
    assert "current kit" in found.remedy


@pytest.mark.parametrize(
    ("begun", "days", "state", "words"),
    [
        (100, 90, "bad", "ended"),
        (100, 110, "note", "ends in 9 days"),
        (-30, 100, "bad", "holds from"),
    ],
)
def test_the_hubs_certificate_is_timed(
    kits: Path,
    kit: SiteKit,
    open_door: Callable[..., Door],
    tmp_path: Path,
    begun: int,
    days: int,
    state: str,
    words: str,
) -> None:
    """Ended, about to end, or not begun, by this machine's clock; each has its own remedy."""
    ca = kits / "ca" / "ca.crt", kits / "ca" / "ca.key"
    now = datetime.now(UTC) - timedelta(days=begun)
    files = signed(tmp_path, "", days=days, now=now, authority=ca)
    found = hub.trusted(line_to(kit, port_of(open_door(*files))))
    assert (found.state, words in found.found) == (state, True), told(found)


def test_a_certificate_for_another_name_is_told(
    kits: Path, kit: SiteKit, open_door: Callable[..., Door], tmp_path: Path
) -> None:
    """As when the address in kit.toml is an alias that the certificate lacks."""
    ca = kits / "ca" / "ca.crt", kits / "ca" / "ca.key"
    files = signed(tmp_path, "", names=("hub.example.org",), authority=ca)
    found = hub.trusted(line_to(kit, port_of(open_door(*files))))
    assert found.state == "bad"
    assert "not for localhost" in told(found)


@pytest.mark.parametrize(
    ("skew_s", "state", "words"),
    [
        (-20, "bad", "20 s ahead of"),  # ours ahead of the hub's: Flower lets no node in
        (-4, "note", "4 s ahead of"),
        (200, "note", "200 s behind"),
        (400, "bad", "400 s behind"),
        (0, "good", "within"),
    ],
)
def test_the_clock_is_held_against_the_hubs(
    kit: SiteKit, open_door: Callable[..., Door], skew_s: float, state: str, words: str
) -> None:
    """Five seconds ahead and Flower refuses the node's signature without a word why."""
    found = hub.clock(line_to(kit, port_of(open_door(skew_s=skew_s))))
    assert found.state == state
    number = words.split(maxsplit=1)[0]
    if number.isdigit():  # a date has whole seconds
        near = [str(int(number) + one) + words[len(number) :] for one in (-1, 0, 1)]
        assert any(text in found.found for text in near), found.found
    else:
        assert words in found.found


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (401, "good", "asks for their key"),
        (502, "bad", "Flower behind it is not"),
        (404, "bad", "not passed on"),
        (200, "bad", "without a key"),
        (418, "note", "418"),
    ],
)
def test_what_nodes_need_is_passed_on(
    kit: SiteKit, open_door: Callable[..., Door], status: int, state: str, words: str
) -> None:
    """nginx may be well while Flower behind it is not, and the other way round."""
    found = hub.fleet(line_to(kit, port_of(open_door(fleet=status))))
    assert (found.state, words in found.found) == (state, True), told(found)


@pytest.mark.parametrize("shown", ["POST", "GET"])
def test_an_exposed_hub_is_told_on(
    kit: SiteKit, open_door: Callable[..., Door], shown: str
) -> None:
    """Flower's control asks nobody for a password."""
    found = hub.hidden(line_to(kit, port_of(open_door(shown=shown))))
    assert found.state == "bad"
    assert "/v1/control/list-runs" in found.found


def test_offline_every_check_ends_soon(kit: SiteKit) -> None:
    """A doctor that hangs is no better than what it looks at."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # bound, and nobody listens
        line = line_to(kit, port)
        found = hub.reached(line)
        assert found.state == "bad"
        assert "refuses connections" in told(found)
        for check in (hub.trusted, hub.clock, hub.fleet, hub.hidden, bandwidth.line_speed):
            with pytest.raises(CannotTellError, match="not reached"):
                check(line)


def test_a_silent_port_ends_soon(kit: SiteKit) -> None:
    """A firewall that lets the connection stand and passes nothing on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line = line_to(kit, silent.getsockname()[1], patience_s=0.2)
        began = time.monotonic()
        found = hub.trusted(line)
        assert time.monotonic() - began < 2
    assert found.state == "bad"
    assert "does not speak TLS" in told(found)


def test_an_unknown_name_is_told_as_such(kit: SiteKit) -> None:
    """A name that DNS does not know is another department's business than a closed port."""
    found = hub.reached(line_to(kit, 443, host="hub.invalid"))
    assert found.state == "bad"
    assert "DNS" in found.remedy


class Tunnel(StreamRequestHandler):
    """A proxy that lets CONNECT through, and remembers who asked for what."""

    def handle(self) -> None:
        request = self.rfile.readline().decode()
        headers = dict(
            line.decode().strip().split(": ", 1) for line in iter(self.rfile.readline, b"\r\n")
        )
        host, port = request.split()[1].split(":")
        self.server.seen.append((host, headers.get("Proxy-Authorization", "")))
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._pump, args=(far, self.connection), daemon=True)
            back.start()
            self._pump(self.connection, far)
            back.join(5)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def tunnel() -> Iterator[Any]:
    ThreadingTCPServer.daemon_threads = True
    with ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_the_hub_is_asked_through_the_proxy_that_the_node_would_take(
    kit: SiteKit,
    open_door: Callable[..., Door],
    tunnel: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is measured on another way than the node's says nothing about the node."""
    proxy = f"http://user:geheim@127.0.0.1:{tunnel.server_address[1]}"
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    line = line_to(kit, port_of(open_door()))
    assert hub.reached(line).state == hub.trusted(line).state == hub.fleet(line).state == "good"
    host, authorization = tunnel.seen[0]
    assert host == "localhost"
    assert b64decode(authorization.split()[1]) == b"user:geheim"
    found = hub.proxies(line)
    assert found.state == "note"
    assert f"127.0.0.1:{tunnel.server_address[1]}" in told(found)
    assert "geheim" not in told(found) + told(hub.reached(line))
    monkeypatch.setenv("no_proxy", "localhost")
    assert hub.proxies(line).state == "good"


def test_a_proxy_of_the_kind_that_no_node_can_take_is_told(
    kit: SiteKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node and courier except their own loopback; of SOCKS they know nothing."""
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    assert hub.proxies(line_to(kit, 443)).state == "good"
    monkeypatch.setenv("all_proxy", "socks5://proxy.example:1080")
    monkeypatch.setenv("no_proxy", "")
    assert hub.proxies(line_to(kit, 443)).state == "bad"


def test_the_line_is_measured_by_sending(
    kit: SiteKit, open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of known speed is measured as such, within what sleeping in small steps costs."""
    monkeypatch.setattr(bandwidth, "_ALL_S", 0.8)
    monkeypatch.setattr(bandwidth, "_ONE_S", 0.3)
    speed = bandwidth.measured(line_to(kit, port_of(open_door(rate=2e6))))
    assert 0.4 * 16 < speed.mbit_s < 1.1 * 16
    assert speed.seconds < 2


def test_a_round_is_predicted_from_the_studys_own_bytes(
    kit: SiteKit,
    open_door: Callable[..., Door],
    federation: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Minutes are what a hospital can compare with its night; they follow from bytes and speed."""
    monkeypatch.setattr(bandwidth, "_ALL_S", 0.0)
    demand = Demand(federation({"backbone.hidden": [2000, 2000]}).study)
    numbers = 4 * 2000 + 2000 + 2000 * 2000 + 2000 + 2 * (2000 + 1)
    assert 4 * numbers <= demand.sent_bytes < demand.received_bytes < 1.01 * 4 * numbers
    speed = bandwidth.Speed(n_bytes=1_000_000, seconds=8.0)
    assert speed.mbit_s == 1.0
    assert speed.minutes(demand.sent_bytes) == pytest.approx(numbers * 32 / 1e6 / 60, rel=0.01)
    found = bandwidth._predicted("", speed, demand)
    assert "4.3 minutes" in found.found
    slow = bandwidth._predicted("", bandwidth.Speed(n_bytes=1000, seconds=8.0), demand)
    assert slow.state == "bad"
    assert "the coordinator waits 60 minutes" in slow.found
    whole = bandwidth.line_speed(line_to(kit, port_of(open_door())), demand)
    assert whole.state == "good"
    assert "down is not measured" in whole.found


def test_a_limit_on_uploads_is_told(
    kit: SiteKit, open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx takes 1 MB unless told otherwise; Flower sends 5, so no update would ever arrive."""
    found = bandwidth.line_speed(line_to(kit, port_of(open_door(largest=1 << 20))))
    assert found.state == "bad"
    assert "client_max_body_size" in found.remedy


def is_up(line: Line) -> bool:
    return checkup.examined("fleet", hub.fleet, {"line": line}).state == "good"


@pytest.mark.slow
def test_a_real_superlink_behind_nginx_is_well(kits: Path, kit: SiteKit, tmp_path: Path) -> None:
    """Flower and nginx answer as the hub of these tests does."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(nginx).exists():
        pytest.skip("nginx is not installed")
    from deploy.kits.hub_kit import open_hub
    from deploy.nginx.proxy import render_nginx

    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            ports.append(probe.getsockname()[1])
    front, back = ports
    own = open_hub(kits / "hub").model_copy(update={"port": back})
    folders_ = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ {folders_}\n{render_nginx(own, f'127.0.0.1:{front}', str(tmp_path / 'log'))}\n}}"
    )
    environment = os.environ | {
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    superlink = [
        str(Path(sys.executable).parent / "flower-superlink"),
        *("--ssl-certfile", str(own.server_certificate), "--ssl-keyfile", str(own.server_key)),
        *("--ssl-ca-certfile", str(own.ca), "--enable-supernode-auth"),
        *("--isolation", "process", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(back)),
    ]
    with (tmp_path / "out").open("wb") as out:
        started = [
            subprocess.Popen(superlink, env=environment, stdout=out, stderr=out),
            subprocess.Popen([nginx, "-p", tmp_path, "-c", "nginx.conf"], stdout=out, stderr=out),
        ]
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not is_up(line_to(kit, front)):
            time.sleep(0.2)
        line = line_to(kit, front)
        for check in (
            hub.reached,
            hub.trusted,
            hub.clock,
            hub.fleet,
            hub.hidden,
            bandwidth.line_speed,
        ):
            assert check(line).state == "good", told(check(line))
        # SuperLink itself, as a careless coordinator would put it on the network
        assert hub.hidden(line_to(kit, back)).state == "bad"
        assert hub.fleet(line_to(kit, back)).state == "good"
        started[0].kill()
        started[0].wait()
        assert "Flower behind it is not" in hub.fleet(line_to(kit, front)).found
    finally:
        for process in started:
            process.kill()
            process.wait()
