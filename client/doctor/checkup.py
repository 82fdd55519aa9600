"""`callosum-site doctor`: one page on whether a site can take part, and what to do where it cannot.

Every check is a small function that asks for what it needs by the names of its arguments. None
stops another: what a check cannot tell is skipped, and a check that breaks says so.

The page holds no participant and no scan. It may name folders and hosts, because it stays at the
site; with `share` each of these gives way to a general word, and the page may be mailed.
"""

from __future__ import annotations

import inspect
import json
import textwrap
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Final, TypeVar

from client.doctor import bandwidth, capacity, folders, gpu, hub, installation, readiness
from client.doctor.demand import Demand
from client.doctor.finding import CannotTellError, Finding, State, bad, note, skipped
from client.doctor.gpu import Machine
from client.doctor.hub_connection import Line
from client.kit import SiteKit, open_kit
from client.site import Site, load_site
from common.errors import DataError, SettingError
from common.study import Study, load_study

CHECKS: Final[Mapping[str, Callable[..., Finding]]] = {
    "user": folders.user,
    "GPU": gpu.seen,
    "GPU access": gpu.reachable,
    "torch": gpu.computes,
    "device": gpu.chosen,
    "shared memory": capacity.shared_memory,
    "memory": capacity.memory,
    "disk": capacity.disk,
    "temporary files": capacity.temporary,
    "state folder": folders.state,
    "data folder": folders.data,
    "cohort": readiness.cohort,
    "hub": hub.reached,
    "proxy": hub.proxies,
    "TLS": hub.trusted,
    "clock": hub.clock,
    "fleet": hub.fleet,
    "exposure": hub.hidden,
    "line": bandwidth.line_speed,
    "kit": installation.files,
    "separation": installation.apart,
    "keys": installation.keys,
    "certificates": installation.certificates,
    "site file": installation.same,
    "versions": installation.versions,
    "code": installation.code,
    "agent": readiness.agent,
    "locks": readiness.locks,
    "pause": readiness.pause,
    "books": readiness.books,
    "approval": readiness.approved,
    "policy": readiness.policy,
}

_ABOUT_DATA: Final = frozenset({"data folder", "cohort"})
_GRAVITY: Final[tuple[State, ...]] = ("bad", "note", "skipped", "good")
_GIVE: Final = {
    "kit": "no kit was opened: --kit KIT",
    "line": "no kit was opened: --kit KIT",
    "site": "no site file was read",
    "study": "no study was given: --study STUDY",
}
_WIDTH: Final = 100
_INDENT: Final = 24
_ROOT: Final = Path(__file__).parents[2]
Opened = TypeVar("Opened")
_log = getLogger("callosum.doctor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Consultation:
    """All findings, and whom they are about, in words that may leave the site."""

    about: str
    findings: tuple[Finding, ...]


def consult(kit_folder: Path, study_file: Path | None = None, *, agent: str = "") -> Consultation:
    """Open what there is and examine it; what cannot be opened is a finding like any other.

    agent: the agent's address, ``host:port`` or ``unix:/path``; empty takes the kit's socket.
    """
    faults: list[Finding] = []
    opened = _opened("kit", lambda: open_kit(kit_folder), faults)
    file = opened.site_file if opened else kit_folder / "agent" / "site.toml"
    site = _opened("site file", lambda: load_site(file), faults)
    study = _opened("study", lambda: load_study(study_file), faults) if study_file else None
    found = examine(opened, site, study, agent=agent)
    told = {fault.check for fault in faults}
    about = f"{opened.name} ({opened.role}) of {opened.consortium}" if opened else "a site"
    about += f", study {study.name}" if study else ""
    rest = tuple(finding for finding in found if finding.check not in told)
    return Consultation(about=about, findings=(*faults, *rest))


def examine(
    kit: SiteKit | None,
    site: Site | None,
    study: Study | None,
    *,
    agent: str = "",
    machine: Machine | None = None,
) -> tuple[Finding, ...]:
    """Every check in turn, on whatever is there.

    agent: the agent's address if it is not the kit's socket; machine: one that was asked before.
    """
    things = {
        "kit": kit,
        "site": site,
        "study": study,
        "demand": Demand(study) if study else None,
        "machine": machine or Machine(),
        "line": Line(kit) if kit else None,
        "address": agent,
    }
    return tuple(examined(name, check, things) for name, check in CHECKS.items())


def examined(name: str, check: Callable[..., Finding], things: Mapping[str, Any]) -> Finding:
    """One check's finding, whatever becomes of the check."""
    asked = inspect.signature(check).parameters
    for need, parameter in asked.items():
        if things.get(need) is None and parameter.default is parameter.empty:
            return replace(skipped(_GIVE[need]), check=name)
    try:
        found = check(**{need: things[need] for need in asked})
    except CannotTellError as error:
        found = skipped(str(error))
    except Exception as error:  # noqa: BLE001  one broken check must not hide the others
        _log.debug("%s", name, exc_info=error)  # its text may name people
        found = note(
            f"the check itself failed ({type(error).__name__}, {_place(error)})",
            "tell the developers this line; the other checks are not touched by it",
        )
    return replace(found, check=name)


def exit_code(findings: Sequence[Finding]) -> int:
    """0: nothing is bad; 4: only the data are; 1: something else is."""
    ill = {finding.check for finding in findings if finding.state == "bad"}
    if not ill:
        return 0
    return DataError.exit_code if ill <= _ABOUT_DATA else 1


def format_page(consultation: Consultation, *, share: bool = False) -> str:
    """The page as plain text, 100 columns wide, the worst first."""
    findings = consultation.findings
    states = Counter(finding.state for finding in findings)
    summary = ", ".join(f"{states[state]} {state}" for state in _GRAVITY if states[state])
    lines = [f"{consultation.about}, {_now()}", summary, ""]
    for finding in sorted(findings, key=lambda one: _GRAVITY.index(one.state)):
        found, remedy = finding.texts(share=share)
        lines += _wrapped(f"{finding.state:<8}{finding.check:<16}", found)
        if remedy:
            lines += _wrapped(" " * _INDENT, f"do: {remedy}")
    return "\n".join(lines)


def as_json(consultation: Consultation, *, share: bool = False) -> str:
    """The same for other programs."""
    rows = [
        {"check": finding.check, "state": finding.state, "found": found, "remedy": remedy}
        for finding in consultation.findings
        for found, remedy in (finding.texts(share=share),)
    ]
    content = {
        "about": consultation.about,
        "time": _now(),
        "exit": exit_code(consultation.findings),
        "findings": rows,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _opened(check: str, read: Callable[[], Opened], faults: list[Finding]) -> Opened | None:
    """What `read` gives, or None and a finding."""
    try:
        return read()
    except SettingError as error:
        found = bad(f"the {check} cannot be used: {{reason}}", "correct it as said", reason=error)
        faults.append(replace(found, check=check))
        return None


def _wrapped(lead: str, text: str) -> list[str]:
    """`text` behind `lead`, broken into lines that stand under each other."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _place(error: Exception) -> str:
    """File and line of ours where an error arose; never its text."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or frames
    return f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
