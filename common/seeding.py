"""Seeds: every random draw has one of its own, the same on every machine."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A seed for one purpose: the same parts, the same seed, on every machine.

    >>> seed_of(7, "alpha", 3) == seed_of(7, "alpha", 3) != seed_of(7, "alpha", 4)
    True
    """
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
