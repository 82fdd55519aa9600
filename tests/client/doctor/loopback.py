"""Kits as a coordinator makes them, and a hub on loopback that answers as nginx before Flower does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from client.doctor.finding import Finding
from client.doctor.hub_connection import Line
from client.kit import SiteKit
from client.site import load_site
from deploy.kits import certificates

CONSORTIUM = {
    "name": "trial",
    "hub": "localhost:1",
    "names": ["127.0.0.9"],  # a host that no fixed text names
    "contact": "nobody",
    "sites": [{"name": "alpha", "role": "train", "data": "features"}],
}
ROOT = os.geteuid() == 0
NOBODY = 65534


class Door(ThreadingHTTPServer):
    """What a site sees of a hub, well or ill."""

    daemon_threads = True
    skew_s = 0.0  # of its clock
    fleet = 401  # what it answers to a node without a key
    shown = ""  # POST or GET: calls of control that are passed on
    largest = 1 << 30  # bytes that it takes
    rate = 0.0  # bytes a second that it reads; 0: all at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in a handshake is what these tests are about."""


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Door

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.server.skew_s)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if length > self.server.largest:
            self.close_connection = True
            self._say(413, "text/html")
            return
        while length:
            part = self.rfile.read(min(length, 16384))
            length -= len(part)
            if self.server.rate:
                time.sleep(len(part) / self.server.rate)
        fleet = self.path.startswith("/v1/fleet/")
        if fleet:
            self._say(self.server.fleet, "application/json" if self.server.fleet < 500 else "")
        else:
            self._say(200 if self.server.shown == "POST" else 404, "text/html")

    def do_GET(self) -> None:
        control = self.path.startswith("/v1/control/")
        shown = control and self.server.shown == "GET"
        self._say(405 if shown else 404, "application/json")

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""

    def _say(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


def line_to(kit: SiteKit, port: int, host: str = "localhost", patience_s: float = 5.0) -> Line:
    return Line(kit.model_copy(update={"hub": f"{host}:{port}"}), patience_s)


def port_of(door: Door) -> int:
    return int(door.server_address[1])


def signed(
    folder: Path,
    name: str,
    *,
    days: int = 100,
    now: datetime | None = None,
    names: tuple[str, ...] = ("localhost",),
    authority: tuple[Path, Path] | None = None,
) -> tuple[Path, Path]:
    """A hub's certificate and key; by an authority called `name` unless one is given."""
    at = now or datetime.now(UTC)
    if authority is None:
        ca_key = ec.generate_private_key(ec.SECP384R1())
        ca = certificates.authority(ca_key, name, now=at, days=3650)
        ca_certificate = x509.load_pem_x509_certificate(ca)
    else:
        ca_certificate = x509.load_pem_x509_certificate(authority[0].read_bytes())
        ca_key = load_pem_private_key(authority[1].read_bytes(), None)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = certificates.server(
        key, names, ca=ca_certificate, ca_key=ca_key, now=at, days=days
    )
    files = folder / "shown.crt", folder / "shown.key"
    files[0].write_bytes(certificate)
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


def told(found: Finding) -> str:
    """Both texts as the site reads them."""
    return " -> ".join(found.texts(share=False))


@contextmanager
def as_somebody() -> Iterator[None]:
    """As an ordinary user, who owns nothing that root made."""
    if ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)


def write_site(folder: Path, **tables: Any) -> Any:
    """A site of one small table, as its file says it."""
    (folder / "data").mkdir(parents=True)
    rows = [f"alpha-{i:03d},{i / 10},{i / 20},0,0,{20 + i},{i % 2}" for i in range(20)]
    header = "participant_id,thickness,volume,depth,curvature,age,sex"
    (folder / "data" / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    text = {
        "name": "alpha",
        "role": "train",
        "data": {"kind": "features", "table": "data/table.csv"},
        "targets": {"age": {"column": "age"}},
        "device": {"kind": "cpu"},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(text | tables))
    return load_site(folder / "site.toml")
