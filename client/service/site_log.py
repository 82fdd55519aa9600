"""What an agent tells the people at its site: a log of their own, and how it stands at the start.

The log may name paths and participants. It stays here; what leaves is in the receipts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from client.authority import approvals
from client.authority.books import REMEDY
from client.authority.ledger import Ledger
from client.kit import SiteKit, expiring
from client.site import Site
from common.runtime.command import Shown
from common.runtime.durable import storage_checked

_LARGEST_LOG: Final = 10 << 20  # bytes, and as many again in each of the older files
_OLDER: Final = 5
_log = logging.getLogger("callosum.site")


def write_log(path: Path) -> None:
    """Write this process' messages to `path`, rotated, and to standard error."""
    with storage_checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(path, maxBytes=_LARGEST_LOG, backupCount=_OLDER)
    everything = logging.getLogger("callosum")
    for handler in (file, logging.StreamHandler()):
        handler.setFormatter(Shown("%(asctime)s %(levelname)s %(message)s"))
        everything.addHandler(handler)
    everything.propagate = False
    everything.setLevel(logging.INFO)
    _log.setLevel(logging.INFO)  # the command line sets it higher, for sites in one process


def announce(kit: SiteKit, site: Site, ledger: Ledger, *, at: str, metrics: str | None) -> None:
    """Say who starts here, what it allows, and what needs attention."""
    for line in _standing(kit, site, ledger):
        _log.info("%s", line)
    _log.info("listening at %s, metrics %s", at, f"at {metrics}" if metrics else "nowhere")
    warn(kit, site)


def warn(kit: SiteKit, site: Site) -> None:
    """Say what somebody here must see to: certificates that end, a role that nobody expects."""
    for finding in expiring(kit.folder):
        _log.warning("%s", finding)
    if kit.role != site.role:
        _log.warning(
            'role is "%s" (%s), the coordinator expects "%s"; the site decides, and orders that '
            "do not fit are refused",
            site.role,
            site.file,
            kit.role,
        )


def _standing(kit: SiteKit, site: Site, ledger: Ledger) -> Iterator[str]:
    policy, spent = site.policy, ledger.exposures()
    yield f"agent of {site.name} ({site.role}) in {kit.consortium}, state in {site.state}"
    names = [f"{each.name} ({each.digest[:12]})" for each in approvals.approved(site)]
    yield f"approved: {', '.join(names) or 'no study yet; callosum-site approve STUDY'}"
    most = f" of {policy.most_exposures}" if policy.most_exposures else ""
    yield (
        f"policy: {', '.join(policy.orders)}; at least {policy.minimum_cohort} participants; "
        f"reports of {policy.largest_report_mb:g} MB at most; "
        f"hours {', '.join(policy.hours) or 'always'}; {spent}{most} exposures spent"
    )
    pause = approvals.paused(site)
    if pause is not None:
        yield f"PAUSED since {pause.since}: {pause.reason}; callosum-site resume ends it"
    stop = ledger.stopped()
    if stop is not None:
        yield f"STOPPED since {stop.time}: {stop.why}; {REMEDY}"
