"""Shares of a secret: any `threshold` of them give it back, fewer say nothing (Shamir 1979).

They travel through the coordinator, each sealed for the one site that may read it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.secure_sums.masks import derived

SECRET: Final = 32  # bytes, of a secret and of a share of it
_HALF: Final = 16  # what PyCryptodome shares at a time, over GF(2**128)
_NONCE: Final = 12
SEALED: Final = _NONCE + 2 * SECRET + 16  # bytes, of two shares under seal


def split(secret: bytes, threshold: int, number: int) -> list[bytes]:
    """So many shares, of which `threshold` are needed; the first belongs to place 1.

    >>> shares = split(bytes(range(32)), 2, 3)
    >>> joined({1: shares[0], 3: shares[2]}) == bytes(range(32))
    True
    """
    halves = [
        [
            share
            for _, share in Shamir.split(
                threshold, number, secret[start : start + _HALF], ssss=False
            )
        ]
        for start in (0, _HALF)
    ]
    return [one + other for one, other in zip(*halves, strict=True)]


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from the shares of as many places as its threshold asks for, and no more."""
    return b"".join(
        Shamir.combine(
            [(place, share[start : start + _HALF]) for place, share in shares.items()], ssss=False
        )
        for start in (0, _HALF)
    )


def agreed(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """The secret that two keys have in common; `ValueError` for a key that has none."""
    return own.exchange(X25519PublicKey.from_public_bytes(theirs))


def sealed(key: bytes, about: bytes, shares: bytes) -> bytes:
    """Two shares under the key of two sites; what they are `about` can be no other thing."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, shares, about)


def opened(key: bytes, about: bytes, text: bytes) -> bytes | None:
    """The same back; None if it is not what was sealed, or about something else."""
    try:
        return AESGCM(key).decrypt(text[:_NONCE], text[_NONCE:], about)
    except InvalidTag:
        return None


def line_between(own: X25519PrivateKey, theirs: bytes, roster: bytes) -> bytes:
    """The key that two sites seal shares with, among those of one roster."""
    return derived(agreed(own, theirs), "shares", salt=roster)
