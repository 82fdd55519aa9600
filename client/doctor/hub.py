"""The hub is to be there, to be itself, to keep the same time, and to show only what it may."""

from __future__ import annotations

import email.utils
import http.client
import os
import socket
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from client.doctor.bandwidth import PROBE
from client.doctor.finding import CannotTellError, Finding, bad, good, note
from client.doctor.hub_connection import Answer, Line
from client.kit import WARNING_DAYS, SiteKit
from client.link.hub_clock import LIMITS, MOST_AHEAD_S, MOST_BEHIND_S

_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_WORTH_TELLING_S: Final = 2.0
# none of these changes anything, should it be answered
_HIDDEN: Final = (
    ("POST", "/v1/control/list-runs"),
    ("GET", "/v1/control/list-runs"),
    ("GET", "/v1/runtime/acquire-task"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
)
_SUPERLINK_GONE: Final = (502, 503, 504)


def reached(line: Line) -> Finding:
    """A connection to the hub's address."""
    through = " through the proxy {proxy}" if line.proxy else ""
    names = {"host": line.kit.hub, "proxy": _without_password(line.proxy)}
    if isinstance(line.reached, OSError):
        found, remedy = _unreached(line.reached, through)
        return bad(found, remedy, **names)
    return good(f"{{host}} answers{through} within {line.reached * 1000:.0f} ms", **names)


def proxies(line: Line) -> Finding:
    """Proxies of the environment: the node takes them, on its way to the hub alone."""
    given = [name for name in _PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    if not given:
        return good("the environment of this command names none (a service may have another)")
    names, proxy = ", ".join(given), _without_password(line.proxy)
    remedy = (
        "set NO_PROXY to {host} in the node's environment, and allow a "
        "direct way to {host} in the firewall; or leave it so if the proxy is meant"
    )
    if "socks" in line.proxy:
        found = f"{names}: {{proxy}} is a SOCKS proxy, which the node cannot take"
        return bad(found, remedy, host=line.host, proxy=proxy)
    if line.proxy:
        found = f"{names}: the node goes to the hub through {{proxy}}"
        return note(found, remedy, host=line.host, proxy=proxy)
    return good(f"{names} set; NO_PROXY lets the node go to the hub directly")


def trusted(line: Line) -> Finding:
    """The hub's certificate: by the consortium's authority, for this name, and not about to end."""
    shaken = line.handshake
    if shaken.fault:
        return _distrusted(line)
    if shaken.certificate is None:
        raise CannotTellError("the hub shows no certificate")
    days = (shaken.certificate.not_valid_after_utc - datetime.now(UTC)).days
    found = f"{shaken.version}, by the consortium's authority; the certificate ends in {days} days"
    if days < WARNING_DAYS:
        remedy = "tell the coordinator: callosum provision --out KITS --renew-server"
        return note(found, remedy)
    return good(found)


def clock(line: Line) -> Finding:
    """The clock here against the hub's, from the date in an answer."""
    line.require_reached()
    if line.handshake.fault == "no TLS":
        raise CannotTellError("the hub does not speak TLS, see TLS")
    try:
        answer = line.ask("GET", "/v1/fleet/", trust=False)
        told = email.utils.parsedate_to_datetime(answer.headers["date"])
    except (OSError, http.client.HTTPException, KeyError, ValueError):
        raise CannotTellError("the hub's answer holds no date") from None
    # a date has whole seconds; on average half of one has gone by
    ahead = answer.at - (told.timestamp() + 0.5)
    doubt = 0.5 + answer.seconds / 2
    way = "ahead of" if ahead > 0 else "behind"
    found = f"this clock is {abs(ahead):.0f} s {way} the hub's"
    remedy = (
        "let this machine follow a time server (timedatectl set-ntp true; chronyc tracking); if "
        "it does, tell the coordinator that the hub's clock is off"
    )
    if ahead - doubt > MOST_AHEAD_S or -ahead - doubt > MOST_BEHIND_S:
        return bad(f"{found}; {LIMITS}", remedy)
    if abs(ahead) - doubt > _WORTH_TELLING_S:
        return note(found, remedy)
    return good(f"within {max(abs(ahead), doubt):.1f} s of the hub's")


def fleet(line: Line) -> Finding:
    """What nodes need: the hub's proxy passes their calls on, and Flower asks for their key."""
    line.require_trusted()
    answer = _answered(line, "POST", PROBE)
    status = None if answer is None else answer.status
    tell = "tell the coordinator"
    if status == http.HTTPStatus.UNAUTHORIZED:
        return good("the hub passes nodes' calls on, and asks for their key")
    if status in _SUPERLINK_GONE:
        remedy = f"{tell}: is `callosum hub` running? (it may be starting; try again in a minute)"
        return bad(f"nginx is there, Flower behind it is not ({status})", remedy)
    if status in (http.HTTPStatus.FORBIDDEN, http.HTTPStatus.NOT_FOUND):
        remedy = f"{tell}: nginx must pass /v1/fleet/ on; and is the hub's address in kit.toml so?"
        return bad(f"nodes' calls are not passed on ({status})", remedy)
    if status is not None and status < http.HTTPStatus.BAD_REQUEST:
        remedy = f"{tell}: the hub must be started by `callosum hub`, which registers nodes"
        return bad(f"the hub takes calls of nodes without a key ({status})", remedy)
    said = "hangs up" if status is None else f"answers {status}"
    return note(f"a call without a key {said}; 401 is usual", f"{tell} if no round begins")


def hidden(line: Line) -> Finding:
    """What must not be seen from a site: whoever reaches Flower's control could steer the hub."""
    line.require_trusted()
    shown = dict.fromkeys(path for method, path in _HIDDEN if _is_shown(line, method, path))
    if shown:
        return bad(
            f"the hub shows {', '.join(shown)} to this site, and so to anyone",
            "tell the coordinator today: only /v1/fleet/ may be passed on (deploy/nginx); sites "
            "are safe, since their orders are signed, but anyone can stop or watch runs",
        )
    return good("control, runtime and documentation of the hub are not to be seen from here")


def _unreached(error: OSError, through: str) -> tuple[str, str]:
    firewall = "ask your network's people to let this machine out to {host} by TCP; no way in is "
    firewall += "needed"
    if isinstance(error, socket.gaierror):
        remedy = "correct hub in kit.toml, or this machine's DNS: getent hosts NAME"
        return "the name of {host} is not known here", remedy
    if isinstance(error, ConnectionRefusedError):
        return f"{{host}} refuses connections{through}", "ask the coordinator: is nginx running?"
    if isinstance(error, TimeoutError):
        return f"{{host}} does not answer{through}: a firewall, most likely", firewall
    if through:
        remedy = "ask your network's people to let the proxy pass CONNECT to {host}"
        return f"{{host}} is not reached{through}", remedy
    what = os.strerror(error.errno) if error.errno else type(error).__name__
    return f"{{host}} is not reached ({what})", firewall


def _distrusted(line: Line) -> Finding:
    shaken, certificate = line.handshake, line.handshake.certificate
    renew = "tell the coordinator: callosum provision --out KITS --renew-server"
    if shaken.fault == "expired" and certificate is not None:
        return bad(f"the hub's certificate ended {_day(certificate.not_valid_after_utc)}", renew)
    if shaken.fault == "not yet" and certificate is not None:
        begins = _day(certificate.not_valid_before_utc)
        return bad(f"the hub's certificate holds from {begins}", "is this clock right? see clock")
    if shaken.fault == "name":
        remedy = "correct hub in kit.toml, or tell the coordinator: names in consortium.toml"
        return bad("the hub's certificate is not for {host}", remedy, host=line.host)
    if shaken.fault == "authority" and certificate is not None:
        return _foreign(line.kit, certificate)
    if shaken.fault == "no TLS":
        remedy = "correct hub in kit.toml; does a proxy or portal answer in the hub's place?"
        return bad("{host} does not speak TLS", remedy, host=line.kit.hub)
    remedy = "ask the coordinator for a current kit; name this number"
    return bad(f"the hub's certificate is refused (OpenSSL {shaken.number})", remedy)


def _foreign(kit: SiteKit, certificate: x509.Certificate) -> Finding:
    """Signed by another: the consortium's former or next authority, or somebody in between."""
    own = x509.load_pem_x509_certificate(kit.ca.read_bytes())
    if certificate.issuer == own.subject:
        return bad(
            "the hub's certificate is by an authority of the same name as {ca} and another key: "
            "the kits were made anew",
            "ask the coordinator for this site's current kit",
            ca=kit.ca,
        )
    return bad(
        "somebody between here and the hub opens the connection: the certificate is by {issuer}, "
        "not by the consortium's authority",
        "ask your network's people to exempt {host} from TLS inspection; nothing was sent but this",
        issuer=_issuer(certificate),
        host=kit.hub,
    )


def _issuer(certificate: x509.Certificate) -> str:
    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME):
        found = certificate.issuer.get_attributes_for_oid(kind)
        if found:
            return f'"{found[0].value!s}"'
    return "an authority without a name"


def _is_shown(line: Line, method: str, path: str) -> bool:
    answer = _answered(line, method, path)
    if answer is None:
        return False
    # 404 and 403 are nginx's; Flower itself says in JSON what is wrong with a call
    closed = answer.status in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.FORBIDDEN)
    return answer.status < http.HTTPStatus.MULTIPLE_CHOICES or (answer.is_json and not closed)


def _answered(line: Line, method: str, path: str) -> Answer | None:
    """The answer; None if the other end hangs up or stays silent."""
    try:
        return line.ask(method, path)
    except (OSError, http.client.HTTPException):
        return None


def _without_password(proxy: str) -> str:
    """The proxy's address without the user and password that it may hold."""
    scheme, separator, rest = proxy.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
