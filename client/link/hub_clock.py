"""The hub's clock: Flower lets no node in whose clock is ahead, and says no more than 401.

What a node's key signs is the time, so a wrong clock makes a wrong signature. A key that the hub
does not know is refused otherwise (code 2004).
"""

from __future__ import annotations

import email.utils
import time
from typing import Final

import httpx

REFUSED: Final = "401 Unauthorized"
# flwr 1.41, superlink/routers/fleet/node_auth.py
MOST_AHEAD_S: Final = 5.0
MOST_BEHIND_S: Final = 305.0
_PATIENCE_S: Final = 5.0
_REMEDY: Final = "let this machine follow a time server (timedatectl set-ntp true)"


def clock_fault(hub: str) -> str:
    """Why Flower's hub at `hub` (host:port) refused this node's signature, as far as dates tell."""
    limits = f"at most {MOST_AHEAD_S:.0f} s ahead or {MOST_BEHIND_S:.0f} s behind is let in"
    try:
        ahead_s = _ahead_s(hub)
    except (OSError, KeyError, ValueError, httpx.HTTPError):
        return f"the hub refuses this node's signature, probably for its clock: {limits}; {_REMEDY}"
    way = "ahead of" if ahead_s > 0 else "behind"
    found = f"this machine's clock is {abs(ahead_s):.0f} s {way} the hub's"
    if abs(ahead_s) < 1:
        found = "this machine's clock is the hub's to the second"
    if ahead_s > MOST_AHEAD_S - 1 or ahead_s < 1 - MOST_BEHIND_S:
        return f"{found}; {limits}, so no order comes; {_REMEDY}"
    return f"the hub refuses this node's signature; {found}, so ask the coordinator for a new key"


def _ahead_s(hub: str) -> float:
    """Seconds by which the clock here is ahead, to half a second.

    The date is read from whoever answers: a wrong clock may make the right certificate invalid,
    and nothing is told here but a line for people.
    """
    with httpx.Client(verify=False, timeout=_PATIENCE_S) as client:  # noqa: S501  as said
        began = time.time()
        answer = client.get(f"https://{hub}/v1/fleet/")
        at = (began + time.time()) / 2
    told = email.utils.parsedate_to_datetime(answer.headers["date"])
    return at - (told.timestamp() + 0.5)  # a date has whole seconds; half of one has gone by
