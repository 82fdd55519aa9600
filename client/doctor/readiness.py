"""The agent is to run with nothing in its way, and the site to be one that the study can have."""

from __future__ import annotations

import fcntl
import socket
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client import hours
from client.authority import approvals
from client.authority.books import REMEDY, account_of
from client.authority.consent import consent
from client.data.check import check
from client.doctor.finding import CannotTellError, Finding, bad, good, literal, note
from client.kit import SiteKit
from client.link.caller import TLS_NAME, unix_address
from client.site import Site
from common.errors import CallosumError, DataError, SettingError
from common.study import Study

_PATIENCE_S: Final = 5.0
_AGAINST: Final = ("refused with", "this study asks for more")
_START: Final = "start it: systemctl start callosum-agent, or callosum-site serve --kit KIT"


def agent(kit: SiteKit, address: str = "") -> Finding:
    """The agent's own word that it serves, by gRPC's health service."""
    at = address or unix_address(kit.socket)
    if at.startswith("unix:"):
        absent = _without_listener(Path(at.removeprefix("unix:")))
        if absent is not None:
            return absent
    try:
        with _channel(kit, at) as channel:
            asked = health_pb2.HealthCheckRequest()
            told = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=_PATIENCE_S)
    except grpc.RpcError as error:
        code = error.code().name if isinstance(error, grpc.Call) else "no code"
        remedy = "see the agent's log; " + _START
        return bad(f"the agent at {{agent}} does not answer ({code})", remedy, agent=at)
    if told.status != health_pb2.HealthCheckResponse.SERVING:
        return note("the agent at {agent} says that it does not serve yet", "see its log", agent=at)
    return good("the agent at {agent} says that it serves", agent=at)


def locks(site: Site, kit: SiteKit | None = None, address: str = "") -> Finding:
    """Only living processes hold locks; one that answers nobody would keep a new agent out."""
    ledger = _is_held(site.state / "ledger.lock")
    prepares = any(_is_held(path) for path in (site.state / "prepared").glob("*/lock"))
    on_socket = kit is not None and not address
    if ledger and on_socket and kit is not None and _without_listener(kit.socket) is not None:
        return bad(
            "a process holds the ledger, and no agent can be spoken to on the kit's socket",
            "find it with `fuser {state}/ledger.lock`: it is an agent that hangs or listens "
            "elsewhere; stop it before another is started",
            state=site.state,
        )
    holders = [
        *(["the agent holds the ledger"] if ledger else []),
        *(["a living process prepares scans"] if prepares else []),
    ]
    return good(" and ".join(holders) or "none is held; a lock ends with the process that holds it")


def pause(site: Site) -> Finding:
    """Whether the site has paused all work, and whether these are its hours."""
    paused = approvals.paused(site)
    if paused is not None:
        return note(
            "the site has paused all work: {reason}",
            "callosum-site resume --kit KIT, when it may go on",
            reason=f"since {paused.since or '?'}, {paused.reason or 'without a reason'}",
        )
    windows = site.policy.hours
    if not hours.open_at(windows, datetime.now().astimezone()):
        return note(
            f"outside the site's hours ({', '.join(windows)}): orders are refused until then",
            "nothing, if that is meant; policy.hours in {site_file} says when it works",
            site_file=site.file,
        )
    return good(f"not paused; hours: {', '.join(windows) or 'always'}")


def books(site: Site) -> Finding:
    """Whether the ledger is the one that the coordinator saw, and not a backup or a copy of it."""
    stop = account_of(site).stop
    if stop is None:
        return good("the books are not contradicted by what the coordinator last saw")
    return bad(
        f"every order is refused: the coordinator has seen other books ({literal(stop.why)})",
        f"{REMEDY}, which shows both counts first",
    )


def approved(site: Site, study: Study) -> Finding:
    """Whether orders of this very study would be taken."""
    if approvals.study_of(site, study.digest) is not None:
        return good(f"{study.name} is approved, digest {study.digest[:12]}")
    other = [one for one in approvals.approved(site) if one.name == study.name]
    changed = ", another version of it is" if other else ""
    return note(
        f"{study.name} (digest {study.digest[:12]}) is not approved{changed}",
        "read what it asks and approve it: callosum-site approve STUDY --kit KIT",
    )


def policy(site: Site, study: Study) -> Finding:
    """What the study will ask against what the site allows, before any data are read."""
    try:
        lines = [line.strip() for line in consent(site, study).lines]
    except SettingError as error:
        remedy = "correct {site_file}, or speak with the coordinator"
        names = {"reason": error, "site_file": site.file}
        return bad(f"the site can have no part in {study.name}: {{reason}}", remedy, **names)
    refused = [literal(line) for line in lines if line.startswith(_AGAINST)]
    if refused:
        return bad(
            f"{study.name}: {'; '.join(refused)}",
            "if you agree to it, change [policy] in {site_file}; otherwise tell the coordinator",
            site_file=site.file,
        )
    return good(f"nothing that {study.name} asks is against the site's policy")


def cohort(site: Site, study: Study) -> Finding:
    """Usable participants, by headers and tables, against the fewest that may take part."""
    details = "callosum-site check --kit KIT --study STUDY names every scan and row and its trouble"
    try:
        found = check(study, site)
    except DataError:  # its text may name people
        return bad(f"the data cannot be used for {study.name}", details)
    except (CallosumError, OSError):
        raise CannotTellError("the data cannot be looked through, see data folder") from None
    least = site.policy.minimum_cohort
    left_out = sum(finding.left_out for finding in found.findings)
    names = {"number": found.participants}
    if found.participants < least:
        text = f"too few participants are usable: {{number}}; policy.minimum_cohort is {least}"
        return bad(text, details, **names)
    labelled = [count.participants for count in found.targets.values()]
    if labelled and max(labelled) == 0:
        remedy = f"correct [targets] in site.toml; {details}"
        return note("no usable participant has a label, of {number}", remedy, **names)
    text = "enough participants are usable: {number}"
    if left_out > found.participants / 10:
        return note(f"{text}; many files or rows are left out", details, **names)
    return good(text, **names)


def _channel(kit: SiteKit, address: str) -> grpc.Channel:
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if address.startswith("unix:"):
        return grpc.insecure_channel(address, options)
    own = kit.courier_tls  # the one peer that the agent speaks with
    try:
        credentials = grpc.ssl_channel_credentials(
            own.peer.read_bytes(), own.key.read_bytes(), own.certificate.read_bytes()
        )
    except OSError:
        raise CannotTellError("by TCP the agent answers the courier's user alone") from None
    options = [*options, ("grpc.ssl_target_name_override", TLS_NAME)]
    return grpc.secure_channel(address, credentials, options)


def _without_listener(path: Path) -> Finding | None:
    """Why nobody listens on the socket, or None if somebody does."""
    names = {"agent": path}
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(_PATIENCE_S)
        try:
            stream.connect(str(path))
        except FileNotFoundError:
            return bad("the agent does not run: {agent} is not there", _START, **names)
        except ConnectionRefusedError:
            found = "the agent does not run; one that was killed left {agent} behind, harmless"
            return bad(found, _START, **names)
        except PermissionError:
            remedy = "run the doctor as the agent's user, or as one of its group"
            return note("this user may not speak to the agent at {agent}", remedy, **names)
        except OSError:
            return bad(
                "the agent does not run: {agent} is no socket that can be used", _START, **names
            )
    return None


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock; taken for an instant to see, as nothing else is sure."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
