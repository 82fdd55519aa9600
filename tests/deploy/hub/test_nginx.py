"""The hub's door to the network: Debian's nginx before a server that notes whatever reaches it."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fastapi import FastAPI, Request, Response

from common.errors import SettingError
from deploy.kits import certificates
from deploy.nginx.proxy import TEMPLATE, render_nginx

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

FLEET = "/v1/fleet/pull-messages"
CONTROL = "/v1/control/list-runs"
PRIVATE = (
    *("/", "/health", "/docs", "/redoc", "/openapi.json", "/metrics", "/v1", "/v1/", "/v1/fleet"),
    *("/v1/fleet/", CONTROL, "/v1/runtime/pull-task", "/favicon.ico"),
)
DISGUISES = (
    "//v1/control/list-runs",
    "/v1//control/list-runs",
    "/./v1/control/list-runs",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/./../control/list-runs",
    "/v1/fleet//../../control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/%2E%2E/control/list-runs",
    "/v1/fleet/.%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "/v1/fleet%2f..%2fcontrol%2flist-runs",
    "/v1/fleet/%2e%2e%2fcontrol%2flist-runs",
    "/v1/fleet/%252e%252e/control/list-runs",
    "/v1/fleet/..;/control/list-runs",
    "/v1/fleet;/../control/list-runs",
    "/v1/fleet/..\\control\\list-runs",
    "/v1/fleet/..%5ccontrol/list-runs",
    "/v1/fleet/%c0%ae%c0%ae/control/list-runs",
    "/v1/control/../fleet/pull-messages",  # harmless once normalised, and not as it is
    "/v1/control/%2e%2e/fleet/pull-messages",
    "/%76%31/control/list-runs",
    "/v1/%66leet/pull-messages",
    "/V1/FLEET/pull-messages",
    "/v1/fleet/Pull-Messages",
    "/v1/fleet//pull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?next=/v1/control/list-runs",
    "/v1/fleet/pull-messages#/v1/control/list-runs",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull-messages%0d%0aX-Other:%20yes",
    "/v1/fleet/pull-messages%20HTTP/1.1",
    "/v1/fleet-other/pull-messages",
    "https://127.0.0.1/v1/control/list-runs",
    "v1/control/list-runs",
    "*",
)


@dataclass
class Upstream:
    """A real HTTPS server in SuperLink's place that notes what reaches it."""

    port: int
    seen: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Door:
    """A running nginx, its kit, and what stands behind it."""

    port: int
    kit: Path
    folder: Path
    upstream: Upstream

    def send(self, text: bytes, *, whole: bool = True) -> bytes:
        """Answer to exactly these bytes, over TLS that trusts the kit's authority."""
        context = ssl.create_default_context(cafile=str(self.kit / "ca.crt"))
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(text)
            answer = b""
            try:
                while part := link.recv(1 << 16):
                    answer += part
                    if not whole:
                        break
            except (ssl.SSLError, ConnectionError):
                pass  # the answer came; how the connection went is not asked
            return answer

    def post(self, path: str, body: bytes = b"", method: str = "POST", more: str = "") -> int:
        """Status of one request."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: hub.example.org\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n{more}\r\n"
        )
        return status(self.send(head.encode("latin-1") + body))


@dataclass(frozen=True)
class Hub:
    """As much of a hub's kit as the file needs."""

    folder: Path
    port: int
    address: str


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_kit(folder: Path) -> Path:
    """An authority and a server certificate, made as provisioning makes them."""
    folder.mkdir()
    now, ca_key, key = datetime.now(UTC), *(generate_private_key(SECP384R1()) for _ in range(2))
    ca = certificates.authority(ca_key, "tiny", now=now, days=2)
    names = ("hub.example.org", *certificates.LOOPBACK)
    issuer = x509.load_pem_x509_certificate(ca)
    (folder / "ca.crt").write_bytes(ca)
    (folder / "server.crt").write_bytes(
        certificates.server(key, names, ca=issuer, ca_key=ca_key, now=now, days=2)
    )
    (folder / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return folder


def record(upstream: Upstream, kit: Path) -> uvicorn.Server:
    """Serve in a thread; every request is noted as it came."""
    app = FastAPI(openapi_url=None)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])
    async def note(request: Request) -> Response:
        body = await request.body()
        upstream.seen.append(
            {
                "method": request.method,
                "path": request.scope["raw_path"].decode(),
                "query": request.scope["query_string"].decode(),
                "headers": dict(request.headers),
                "client": request.client.host if request.client else "",
                "size": len(body),
                "digest": hashlib.sha256(body).hexdigest(),
            }
        )
        return Response(body[:10], media_type="application/x-protobuf")

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=upstream.port,
            ssl_certfile=kit / "server.crt",
            ssl_keyfile=kit / "server.key",
            log_level="error",
        )
    )
    threading.Thread(target=server.run, daemon=True).start()
    return server


def until(reached: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run_nginx(folder: Path, kit: Path, port: int, behind: int) -> subprocess.Popen[bytes]:
    """Start nginx with the hub's file alone; its temporary folders are closed to its workers."""
    hub = Hub(folder=kit, port=behind, address=f"hub.example.org:{port}")
    folder.mkdir(mode=0o700)
    (folder / "callosum-hub.conf").write_text(
        render_nginx(hub, f"127.0.0.1:{port}", str(folder / "access.log"))
    )
    temporary = "".join(
        f"{name}_temp_path {folder}/temporary-{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n{temporary}include {folder}/callosum-hub.conf;\n}}\n"
    )
    command = [str(NGINX), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr + (folder / "error.log").read_text()
    assert "[warn]" not in checked.stderr
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    kit, upstream, port = write_kit(folder / "kit"), Upstream(free_port()), free_port()
    server = record(upstream, kit)
    nginx = run_nginx(folder / "nginx", kit, port, upstream.port)
    try:
        until(lambda: server.started and answers(port), "nginx or its upstream does not start")
        yield Door(port=port, kit=kit, folder=folder / "nginx", upstream=upstream)
    finally:
        nginx.terminate()
        nginx.wait(10)
        server.should_exit = True


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> None:
    if "door" in request.fixturenames:
        request.getfixturevalue("door").upstream.seen.clear()


def test_every_call_of_a_node_passes(door: Door) -> None:
    """The list is the installed Flower's own: an upgrade that names a call otherwise is noticed."""
    from flwr.superlink.routers.fleet.router import router

    paths = [route.path for route in router.routes]
    assert FLEET in paths
    assert [door.post(path, b"body") for path in paths] == [200] * len(paths)
    assert [request["path"] for request in door.upstream.seen] == paths


def test_nothing_else_that_superlink_serves_passes(door: Door) -> None:
    """Flower's control API has no password: whoever reaches it runs code at every site."""
    from flwr.supercore.routers.runtime.router import router as runtime
    from flwr.superlink.routers.control.router import router as control

    paths = [*PRIVATE, *(route.path for route in (*control.routes, *runtime.routes))]
    assert {door.post(path, b"body") for path in paths} == {404}
    assert door.upstream.seen == []


@pytest.mark.parametrize("path", DISGUISES)
def test_a_disguised_path_does_not_pass(door: Door, path: str) -> None:
    """The two ends need not agree on dots, slashes, case and percents: none get through."""
    assert door.post(path) in (400, 404)
    assert door.upstream.seen == []


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "post"]
)
def test_only_posting_passes(door: Door, method: str) -> None:
    """Nodes do nothing else."""
    assert door.post(FLEET, method=method) in (400, 404, 405)
    assert door.upstream.seen == []


def test_a_second_request_on_the_line_is_judged_like_the_first(door: Door) -> None:
    """A request in another's shadow is the classic way past a proxy."""
    first = f"POST {FLEET} HTTP/1.1\r\nHost: hub\r\nContent-Length: 4\r\n\r\nbody"
    second = (
        f"POST {CONTROL} HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    answer = door.send((first + second).encode())
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 404") == 1
    assert [request["path"] for request in door.upstream.seen] == [FLEET]


@pytest.mark.parametrize(
    "lengths",
    [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 60\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: +4\r\n",
    ],
)
def test_a_request_of_doubtful_length_is_refused(door: Door, lengths: str) -> None:
    """Where two ends see the border between requests differently, one can be smuggled."""
    inner = f"0\r\n\r\nPOST {CONTROL} HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n\r\n"
    head = f"POST {FLEET} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n{lengths}\r\n"
    assert status(door.send((head + inner).encode())) in (400, 501)
    assert door.upstream.seen == []


def test_the_host_header_decides_nothing(door: Door) -> None:
    """No name opens another door, and none reaches what stands behind."""
    for host in ("127.0.0.1", f"127.0.0.1:{door.upstream.port}", "evil.example", "localhost"):
        for path, wanted in ((FLEET, 200), (CONTROL, 404)):
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            assert status(door.send(head.encode())) == wanted
    assert {request["headers"]["host"] for request in door.upstream.seen} == {"127.0.0.1"}


def test_a_caller_cannot_claim_to_be_another(door: Door) -> None:
    """Flower's server believes X-Forwarded-For from this machine; its log must not be forged."""
    door.post(FLEET, more="X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: http\r\n")
    headers = door.upstream.seen[0]["headers"]
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"


def test_what_a_node_signs_its_calls_with_arrives(door: Door) -> None:
    """Node authentication rests on three headers."""
    sent = {"flwr-public-key": "a2V5", "flwr-timestamp": "now", "flwr-signature": "c2lnbg=="}
    door.post(FLEET, more="".join(f"{name}: {value}\r\n" for name, value in sent.items()))
    assert sent.items() <= door.upstream.seen[0]["headers"].items()


def test_a_large_object_passes_whole_and_never_touches_the_disk(door: Door) -> None:
    """Weights are nobody's business on the proxy's disk; its folders are closed to its workers."""
    body = bytes(range(256)) * (5 * 4096 + 256)  # 5 MiB and 64 KiB
    assert door.post("/v1/fleet/push-object", body) == 200
    assert door.upstream.seen[0]["digest"] == hashlib.sha256(body).hexdigest()
    assert [path for path in door.folder.glob("temporary-*/**/*") if path.is_file()] == []


def test_a_body_beyond_all_that_flower_sends_is_refused(door: Door) -> None:
    """Nobody fills the hub's memory from outside."""
    head = f"POST {FLEET} HTTP/1.1\r\nHost: hub\r\nContent-Length: {17 << 20}\r\n\r\n"
    assert status(door.send(head.encode(), whole=False)) == 413  # it waits for the rest
    assert door.upstream.seen == []


def test_the_log_names_the_call_and_neither_query_nor_body(door: Door) -> None:
    """An access log is kept for years."""
    door.post(FLEET, b"a-body-to-look-for")
    door.post(f"{FLEET}?a-query-to-look-for")
    log = door.folder / "access.log"
    until(lambda: f'"POST {FLEET}" 404' in log.read_text(), "the request is not logged")
    assert f'"POST {FLEET}" 200' in log.read_text()
    assert "to-look-for" not in log.read_text()


def test_the_answer_names_no_version(door: Door) -> None:
    """A version is a list of known holes."""
    answer = door.send(b"POST / HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n").lower()
    assert b"nginx/" not in answer
    assert b"uvicorn" not in answer


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_plain_http_and_old_tls_are_refused(door: Door) -> None:
    """Below TLS 1.2 nothing is said."""
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain:
        plain.sendall(f"POST {FLEET} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        assert status(plain.recv(1 << 16)) == 400
    context = ssl.create_default_context(cafile=str(door.kit / "ca.crt"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol|version"),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    assert door.upstream.seen == []


def test_a_stranger_on_superlinks_port_is_not_spoken_to(door: Door, tmp_path: Path) -> None:
    """Whoever takes the port while SuperLink is down learns nothing and answers nobody.

    502 is what a node takes for "later": so it is also what it gets while nothing runs there.
    """
    stranger, port = Upstream(free_port()), free_port()
    server = record(stranger, write_kit(tmp_path / "stranger"))
    nginx = run_nginx(tmp_path / "nginx", door.kit, port, stranger.port)
    try:
        until(lambda: server.started and answers(port), "nginx does not start")
        here = Door(port, door.kit, tmp_path / "nginx", stranger)
        assert here.post(FLEET, b"body") == 502
        server.should_exit = True
        until(lambda: not answers(stranger.port), "the stranger does not go")
        assert here.post(FLEET, b"body") == 502
    finally:
        nginx.terminate()
        nginx.wait(10)
    assert stranger.seen == []


@pytest.mark.slow
def test_half_sent_requests_hold_the_door_for_seconds_alone(door: Door) -> None:
    """510 of them stopped all rounds: Debian's nginx has 768 connections, and each call takes two."""
    context = ssl.create_default_context(cafile=str(door.kit / "ca.crt"))
    held: list[ssl.SSLSocket] = []
    try:
        for _ in range(510):  # `events {}` gives 512
            plain = socket.create_connection(("127.0.0.1", door.port), timeout=10)
            try:
                held.append(context.wrap_socket(plain, server_hostname="localhost"))
                held[-1].sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: hub")
            except OSError:  # no more connections: that is what they wanted
                plain.close()
        full = time.monotonic()
        while _status_or_none(door) != 200:
            assert time.monotonic() - full < 9, "half-sent requests still hold every connection"
            time.sleep(0.2)
    finally:
        for link in held:
            link.close()


@pytest.mark.slow
def test_half_sent_bodies_of_one_address_leave_room_for_others(door: Door) -> None:
    """Whole headers and no body: nginx counts them, so one address gets 64 and no more."""
    context = ssl.create_default_context(cafile=str(door.kit / "ca.crt"))
    head = f"POST {FLEET} HTTP/1.1\r\nHost: hub\r\nContent-Length: 1000\r\n\r\nx".encode()
    held, turned_away = [], 0
    try:
        for _ in range(100):
            plain = socket.create_connection(("127.0.0.1", door.port), timeout=10)
            held.append(context.wrap_socket(plain, server_hostname="localhost"))
            held[-1].sendall(head)
        for link in held:
            link.settimeout(0.5)
            try:
                turned_away += status(link.recv(1 << 16)) == 503
            except TimeoutError:
                continue
        assert turned_away >= 30
    finally:
        for link in held:
            link.close()


def _status_or_none(door: Door) -> int | None:
    try:
        return door.post(FLEET, b"body")
    except OSError:
        return None


def test_the_file_is_filled_in_for_a_hub(tmp_path: Path) -> None:
    """The port that sites know is the one that is listened on, unless somebody says otherwise."""
    hub = Hub(folder=tmp_path, port=9095, address="hub.example.org:443")
    text = render_nginx(hub)
    assert "listen 0.0.0.0:443 ssl" in text
    assert f'"{tmp_path}/server.key"' in text
    assert "https://127.0.0.1:9095" in text
    assert "${" not in text
    assert "listen [::]:9443 ssl" in render_nginx(hub, "[::]:9443")


def test_every_value_of_the_template_is_documented_in_it() -> None:
    """Whoever fills it in by hand reads only this file."""
    text = TEMPLATE.read_text()
    names = {part.partition("}")[0] for part in text.split("${")[1:]}
    assert all(f"#   {name} " in text for name in names)
    assert names == {"CALLOSUM_LISTEN", "CALLOSUM_KIT", "CALLOSUM_PORT", "CALLOSUM_LOG"}


@pytest.mark.parametrize(
    ("folder", "listen"),
    [('/kit"; root /; #', ""), ("/kit$uri", ""), ("/kit", "9443; root /"), ("/kit", "hub:")],
)
def test_a_value_that_would_change_the_file_is_refused(folder: str, listen: str) -> None:
    """A folder's name must not become a directive."""
    with pytest.raises(SettingError, match="nginx"):
        render_nginx(Hub(Path(folder), 9095, "hub:443"), listen)
