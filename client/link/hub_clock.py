"""The hub's clock: Flower lets no node in whose clock is ahead, and tells neither side why.

What a node's key signs is the time, so a wrong clock makes a wrong signature.
"""

from __future__ import annotations

import email.utils
import time
from typing import Final

import httpx

# flwr 1.41, superlink/routers/fleet/node_auth.py
MOST_AHEAD_S: Final = 5.0
MOST_BEHIND_S: Final = 305.0
LIMITS: Final = f"at most {MOST_AHEAD_S:.0f} s ahead or {MOST_BEHIND_S:.0f} s behind is let in"
_PATIENCE_S: Final = 5.0
_REMEDY: Final = "let this machine follow a time server (timedatectl set-ntp true)"

LIKELY: Final = (
    f"the hub refuses this node's signature, probably for this machine's clock: {LIMITS}; {_REMEDY}"
)


def clock_fault(hub: str) -> str | None:
    """Why Flower's hub at `hub` (host:port) must refuse this node; None if its clock is unknown."""
    try:
        ahead_s = _ahead_s(hub)
    except (OSError, KeyError, ValueError, TypeError, httpx.HTTPError):
        return None
    if 1 - MOST_BEHIND_S < ahead_s < MOST_AHEAD_S - 1:  # the date is sure to a second
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead_s):.0f} s {way} the hub's; {LIMITS}, so no order "
        f"comes; {_REMEDY}"
    )


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
