"""What a person at the site allowed: studies by their digest, and a pause of everything.

    studies/<digest>.toml     the study's file as it was approved
    studies/<digest>.json     who approved it when; with it gone or revoked, the study is not
    paused                    there while the site has paused all work; holds the reason

The digest is of what the study asks, so a file that asks anything else must be approved again.
"""

from __future__ import annotations

import getpass
import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path

from client.authority.differencing import refuse_near_copy
from client.data.reader import participants_of
from client.data.splits import secret_of
from client.secure_sums.peers import number_of
from client.site import Site
from common.errors import FolderError, SettingError
from common.protocol.bounded_json import parsed
from common.runtime.durable import sync_folder, write_atomically
from common.study import Study, load_study

_log = getLogger("callosum.site")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One study that was approved at a site.

    by: user of the operating system; report_bytes: size of a training report's arrays; revoked:
    when, and "by" whom, if it was; peers: the number of the identities that it sums with in secret.
    """

    digest: str
    name: str
    approved: str
    by: str
    file: str
    report_bytes: int
    revoked: str = ""
    revoked_by: str = ""
    peers: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """All work is paused, since when and why."""

    since: str
    reason: str


def approve(site: Site, study_file: Path, report_bytes: int) -> Approval:
    """Keep the study's file as it is now, and the record that it was approved.

    `report_bytes` is the size of the arrays in one training report; orders whose report would be
    too large are refused by it, before anything is built.

    Raises
    ------
    SettingError
        If the study differs from one that was approved before by a few of the site's people.
    """
    text, study = study_file.read_bytes(), load_study(study_file)
    earlier = [other for other in _ever(site) if other.kind_name == study.kind_name]
    refuse_near_copy(
        study,
        earlier,
        lambda each: participants_of(each, site),
        secret_of(site),
        site.policy.minimum_support,
    )
    approval = Approval(
        digest=study.digest,
        name=study.name,
        approved=_now(),
        by=user_name(),
        file=str(study_file.resolve()),
        report_bytes=report_bytes,
        peers=number_of(site, study),
    )
    path = _folder(site) / f"{study.digest}.toml"
    write_atomically(path, text)
    if load_study(path).digest != study.digest:
        raise FolderError(f"{study_file} was changed while it was approved; read it again")
    _write(site, approval)
    return approval


def approved(site: Site) -> list[Approval]:
    """Every study that is approved now, oldest first."""
    found = [_read(path) for path in _folder(site).glob("*.json")]
    live = [approval for approval in found if approval is not None and not approval.revoked]
    return sorted(live, key=lambda approval: (approval.approved, approval.digest))


def study_of(site: Site, digest: str) -> Study | None:
    """The study that the site approved under this digest, or None."""
    if approval_of(site, digest) is None:
        return None
    path = _folder(site) / f"{digest}.toml"
    try:
        study = load_study(path)
    except SettingError as error:
        _log.error("the approved study %s cannot be read: %s", digest, error)
        return None
    if study.digest != digest:
        _log.error(
            "%s asks for something else than what was approved: its digest is %s now. It was "
            "edited, or this version of Callosum reads it otherwise; approve the study again",
            path,
            study.digest,
        )
        return None
    return study


def approval_of(site: Site, digest: str) -> Approval | None:
    """The record of this study's approval, if it is approved."""
    approval = _read(_folder(site) / f"{digest}.json")
    return approval if approval is not None and not approval.revoked else None


def _ever(site: Site) -> list[Study]:
    """Every study that was ever approved here: what is revoked was answered before."""
    found = []
    for path in sorted(_folder(site).glob("*.toml")):
        try:
            found.append(load_study(path))
        except SettingError as error:  # of a version that this one does not read
            _log.warning("%s is compared with nothing: %s", path, error)
    return found


def revoke(site: Site, study: str) -> Approval:
    """Take back the approval of a study, named by its name or the beginning of its digest.

    Raises
    ------
    SettingError
        If no approved study or several are meant.
    """
    live = approved(site)
    meant = [each for each in live if each.name == study or each.digest.startswith(study)]
    if len(meant) != 1:
        known = ", ".join(f"{each.name} ({each.digest[:12]})" for each in live) or "none"
        problem = "no approved study" if not meant else f"each of {len(meant)} approved studies"
        raise SettingError(f"{problem} is called {study}; approved: {known}")
    gone = replace(meant[0], revoked=_now(), revoked_by=user_name())
    _write(site, gone)
    return gone


def pause(site: Site, reason: str) -> None:
    """Refuse every order from now on, and let no answer out."""
    content = {"since": _now(), "reason": reason, "by": user_name()}
    write_atomically(site.state / "paused", json.dumps(content, indent=1).encode() + b"\n")


def resume(site: Site) -> bool:
    """End the pause; False if there was none."""
    path = site.state / "paused"
    if not path.exists():
        return False
    path.unlink()
    sync_folder(path.parent)
    return True


def paused(site: Site) -> Pause | None:
    """The pause, if there is one. Any file of that name is one: `touch` must do in a hurry."""
    path = site.state / "paused"
    if not os.path.lexists(path):
        return None
    try:
        content = parsed(path.read_bytes())
        return Pause(str(content["since"]), str(content["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Pause("", "")


def _folder(site: Site) -> Path:
    return site.state / "studies"


def _write(site: Site, approval: Approval) -> None:
    content = json.dumps(asdict(approval), indent=1).encode() + b"\n"
    write_atomically(_folder(site) / f"{approval.digest}.json", content)


def _read(path: Path) -> Approval | None:
    try:
        approval = Approval(**parsed(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        _log.error("%s is no record of an approval: %s", path, error)
        return None
    return approval if approval.digest == path.stem else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_name() -> str:
    """Whoever gives the command, as the operating system knows them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return f"user {os.getuid()}"
