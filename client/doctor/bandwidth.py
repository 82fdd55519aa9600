"""How fast the line to the hub is, by sending, and how long a study's arrays take on it.

What can be measured without a node's key is the way up: the hub reads a whole call before it
refuses it. Nothing large comes down without a key, so the way down is not measured, but taken to
be as fast; hospitals' lines are seldom slower down than up.
"""

from __future__ import annotations

import http.client
import os
import time
from dataclasses import dataclass
from typing import Final

from client.doctor.demand import Demand
from client.doctor.finding import Finding, bad, good, note, size
from client.doctor.hub_connection import Line

PROBE: Final = "/v1/fleet/pull-object"  # without a key it is refused and does nothing
_FIRST: Final = 64 << 10
_LARGEST: Final = 4 << 20  # Flower sends arrays in parts of 5 MiB
_MOST: Final = 32 << 20  # bytes of one measurement
_PATIENCE_S: Final = 20.0  # for one call; a line of 30 kbit/s takes that long for the first
_ALL_S: Final = 4.0
_ONE_S: Final = 1.5
_LONG_MIN: Final = 15.0  # of transfer in a round; twenty rounds are then five hours of waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Bytes that were sent and confirmed by an answer, in how many seconds."""

    n_bytes: int
    seconds: float

    @property
    def mbit_s(self) -> float:
        """Millions of bits a second, waiting for each answer included, as Flower has to."""
        return 8 * self.n_bytes / self.seconds / 1e6

    def minutes(self, n_bytes: float) -> float:
        """How long `n_bytes` would take."""
        return n_bytes * self.seconds / self.n_bytes / 60


class TooLargeError(Exception):
    """Somebody on the way takes no calls of this many bytes."""


def line_speed(line: Line, demand: Demand | None = None) -> Finding:
    """Measure for a few seconds; tell the minutes of transfer in each round of the study."""
    line.require_trusted()
    try:
        speed = measured(line)
    except TooLargeError as error:
        return bad(
            f"calls of {size(error.args[0])} are refused on the way (413); Flower sends 5 MiB",
            "tell the coordinator: client_max_body_size of nginx; or a proxy here limits uploads",
        )
    except (OSError, http.client.HTTPException):
        return note(
            "the line broke off while it was measured",
            "try again; if it stays so, ask your network's people about this line and its VPN",
        )
    found = (
        f"{speed.mbit_s:.1f} Mbit/s up ({size(speed.n_bytes)} in {speed.seconds:.2f} s; down is "
        "not measured)"
    )
    return good(found) if demand is None else _predicted(found, speed, demand)


def measured(line: Line) -> Speed:
    """Send calls, each as large as the one before lets expect to take 1.5 s, for up to 4 s."""
    began, length, speeds = time.monotonic(), _FIRST, list[Speed]()
    with line.open(_PATIENCE_S) as connection:
        connection.asked("POST", PROBE)  # the first answer on a connection is late
        while not speeds or (
            time.monotonic() - began < _ALL_S and sum(one.n_bytes for one in speeds) < _MOST
        ):
            answer = connection.asked("POST", PROBE, proto(os.urandom(length)))
            if answer.status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise TooLargeError(length)
            speeds.append(Speed(n_bytes=length, seconds=answer.seconds))
            length = min(_LARGEST, max(_FIRST, int(length * _ONE_S / answer.seconds)))
    # small calls tell how far away the hub is, not how much passes
    largest = max(one.n_bytes for one in speeds)
    counted = [one for one in speeds if 2 * one.n_bytes >= largest]
    return Speed(
        n_bytes=sum(one.n_bytes for one in counted), seconds=sum(one.seconds for one in counted)
    )


def proto(content: bytes) -> bytes:
    """A call that Flower reads to its end: protobuf, with `content` in a field that it ignores.

    >>> proto(b"ab").hex()
    'c23e026162'
    """
    if not content:
        return b""
    length, left = bytearray(), len(content)
    while left > 0x7F:
        length.append(left & 0x7F | 0x80)
        left >>= 7
    length.append(left)
    return b"\xc2\x3e" + bytes(length) + content  # field 1000, wire type 2


def _predicted(found: str, speed: Speed, demand: Demand) -> Finding:
    """With the minutes that a round's arrays take, against how long the coordinator waits."""
    up, down = demand.sent_bytes, demand.received_bytes
    minutes = speed.minutes(up + down)
    waits = demand.study.sites.time_limit_s / 60
    took = f"{minutes:.1f} minutes" if minutes >= 1 else "under a minute"
    text = f"{found}; {demand.study.name}: {size(down)} come and {size(up)} go in each round: "
    text += f"{took} if down is as fast, beside training"
    slower = "ask for a faster line, or the coordinator for a smaller network"
    if minutes > waits:
        remedy = f"{slower}, or for sites.time_limit_s above {60 * minutes:.0f}"
        return bad(f"{text}; the coordinator waits {waits:.0f} minutes for a sign", remedy)
    if minutes > _LONG_MIN:
        return note(text, slower)
    return good(text)
