"""Masks: as many uniform numbers as there are, from 32 bytes that two sites, or one, know.

A mask is AES-256 in counter mode under a key for each array. What it is for is part of the key: of
two sites that were given different arrays to train, or different words about the round, the masks
are different and do not cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common.secure_sums.ring import add

BLOCK: Final = 1 << 20  # numbers that are masked at a time: they stay in the processor's cache
_ZEROS: Final = bytes(8 * BLOCK)


def derived(secret: bytes, purpose: str, about: bytes = b"", salt: bytes = b"") -> bytes:
    """32 bytes of their own from a secret: for one `purpose`, `about` one thing."""
    info = b"callosum secure sums 1\0" + purpose.encode() + b"\0" + about
    return HKDF(SHA256(), 32, salt, info).derive(secret)


class Mask:
    """The mask of one array, drawn piece after piece."""

    def __init__(self, seed: bytes, array: str, dtype: np.dtype[Any]) -> None:
        key = derived(seed, "array", array.encode())
        self._cipher: CipherContext = Cipher(
            algorithms.AES256(key), modes.CTR(bytes(16))
        ).encryptor()
        self._dtype = dtype
        self._buffer = bytearray()

    def next(self, count: int) -> NDArray[Any]:
        """The next numbers, valid until the following call; at most a block of them."""
        size = count * self._dtype.itemsize
        if len(self._buffer) < size + 16:  # the cipher asks for room for one block of its own
            self._buffer = bytearray(size + 16)
        self._cipher.update_into(memoryview(_ZEROS)[:size], self._buffer)
        return np.frombuffer(self._buffer, self._dtype, count)


class Masks:
    """The masks of one array that several seeds make, put on piece after piece.

    Those of `seeds` that are marked True are taken off.
    """

    def __init__(
        self, seeds: Sequence[tuple[bytes, bool]], array: str, dtype: np.dtype[Any]
    ) -> None:
        self._masks = [(Mask(seed, array, dtype), minus) for seed, minus in seeds]

    def put_on(self, numbers: NDArray[Any]) -> None:
        """Add the masks of the next numbers to a flat array in place."""
        for start in range(0, numbers.size, BLOCK):
            part = numbers[start : start + BLOCK]
            for mask, minus in self._masks:
                add(part, mask.next(part.size), minus=minus)
