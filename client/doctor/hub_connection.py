"""The way from a site to its hub as Flower's node takes it: through the same proxies, by TLS.

Nothing that is sent here is secret, so an answer may be read although nobody vouches for its
sender: that is how an interceptor is named, and how a wrong clock is told from a wrong certificate.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptography import x509

from client.doctor.finding import CannotTellError
from client.kit import SiteKit, split_address

PROTOBUF: Final = "application/protobuf"
_PATIENCE_S: Final = 5.0
# codes of OpenSSL's verification
_EXPIRED: Final = 10
_NOT_YET: Final = 9
_NAMES: Final = (62, 64)
_AUTHORITIES: Final = (2, 7, 18, 19, 20, 21)

Fault = Literal["", "expired", "not yet", "name", "authority", "other", "no TLS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """What TLS with the hub came to; the certificate is what was shown, vouched for or not."""

    fault: Fault
    certificate: x509.Certificate | None
    version: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of whoever is there; `seconds` from the first byte sent to its first byte."""

    status: int
    headers: Mapping[str, str]
    seconds: float
    at: float  # local time, in the middle of asking

    @property
    def is_json(self) -> bool:
        """Whether it is Flower's; nginx's own answers are HTML or empty."""
        return self.headers.get("content-type", "").startswith("application/json")


class Line:
    """One kit's line to its hub; questions about TLS are put once."""

    def __init__(self, kit: SiteKit, patience_s: float = _PATIENCE_S) -> None:
        self.kit, self._patience_s = kit, patience_s
        self.host, self.port = split_address(kit.hub)

    @property
    def proxy(self) -> str:
        """The proxy that this process's environment prescribes for the hub; empty for none."""
        proxies = getproxies()
        found = proxies.get("https") or proxies.get("all") or ""
        return "" if proxy_bypass(f"{self.host}:{self.port}") else found

    @cached_property
    def reached(self) -> float | OSError:
        """Seconds until a connection stands, or why none does; tried once."""
        began = time.monotonic()
        try:
            self._connect().close()
        except OSError as error:
            return error
        return time.monotonic() - began

    @cached_property
    def handshake(self) -> Handshake:
        """TLS as the node demands it, and what went wrong with it."""
        self.require_reached()
        context = ssl.create_default_context(cafile=str(self.kit.ca))
        try:
            with self._secured(context) as stream:
                shown = stream.getpeercert(binary_form=True)
                version = stream.version() or ""
            certificate = x509.load_der_x509_certificate(shown) if shown else None
            return Handshake(fault="", certificate=certificate, version=version)
        except ssl.SSLCertVerificationError as error:
            number = error.verify_code
            return Handshake(fault=_fault(number), certificate=self._shown(), number=number)
        except (ssl.SSLError, OSError):
            return Handshake(fault="no TLS", certificate=None)

    def ask(self, method: str, path: str, body: bytes = b"", *, trust: bool = True) -> Answer:
        """One question and its answer, without `trust` from whoever answers.

        Raises
        ------
        OSError, http.client.HTTPException
            If there is no answer.
        """
        with self.open(trust=trust) as connection:
            return connection.asked(method, path, body)

    def open(self, patience_s: float = 0.0, *, trust: bool = True) -> Connection:
        """A connection for several questions."""
        context = ssl.create_default_context(cafile=str(self.kit.ca)) if trust else _trustful()
        connection = Connection(self.host, self.port)
        stream = self._secured(context)
        stream.settimeout(patience_s or self._patience_s)
        connection.sock = stream
        return connection

    def require_reached(self) -> None:
        """Nothing can be told of a hub that is not reached."""
        if isinstance(self.reached, OSError):
            raise CannotTellError("the hub is not reached, see hub")

    def require_trusted(self) -> None:
        """Nothing can be told of the hub if somebody else answers in its place."""
        if self.handshake.fault:
            raise CannotTellError("who answers is not the hub for certain, see TLS")

    def _shown(self) -> x509.Certificate | None:
        try:
            with self._secured(_trustful()) as stream:
                shown = stream.getpeercert(binary_form=True)
            return x509.load_der_x509_certificate(shown) if shown else None
        except (OSError, ValueError):
            return None

    def _secured(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        plain = self._connect()
        try:
            return context.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def _connect(self) -> socket.socket:
        if not self.proxy:
            return socket.create_connection((self.host, self.port), timeout=self._patience_s)
        parts = urlsplit(self.proxy if "://" in self.proxy else f"http://{self.proxy}")
        if parts.scheme != "http" or not parts.hostname:
            raise OSError("only an http:// proxy can be gone through")
        tunnel = http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=self._patience_s
        )
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
        secret = {"Proxy-Authorization": f"Basic {b64encode(user).decode()}"}
        tunnel.set_tunnel(self.host, self.port, secret if parts.username else {})
        tunnel.connect()
        found: socket.socket = tunnel.sock
        return found


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a socket that is there already."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Never again: whoever hung up has answered by that."""
        raise http.client.NotConnected

    def asked(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One question and its answer."""
        headers = {"Content-Type": PROTOBUF, "Accept": PROTOBUF} if method == "POST" else {}
        began, at = time.monotonic(), time.time()
        with suppress(ConnectionError, ssl.SSLError):  # a refusal may come before all is sent
            self.request(method, path, body or None, headers)
        reply = self.getresponse()
        seconds = time.monotonic() - began
        found = {name.lower(): value for name, value in reply.getheaders()}
        reply.read()
        return Answer(status=reply.status, headers=found, seconds=seconds, at=at + seconds / 2)


def _fault(number: int) -> Fault:
    if number in _NAMES:
        return "name"
    if number in _AUTHORITIES:
        return "authority"
    faults: dict[int, Fault] = {_EXPIRED: "expired", _NOT_YET: "not yet"}
    return faults.get(number, "other")


def _trustful() -> ssl.SSLContext:
    """TLS without asking who it is: for reading a certificate or a date, never for a secret."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
