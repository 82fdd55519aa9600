"""Orders under the coordinator's signature: who asks, from when until when, and with which code.

An order's id is a digest of its content, so that asking again is the same order; what differs from
one asking to the next (time, a number used once, what the coordinator last saw of the site's books)
is in the envelope around it. The Ed25519 signature covers the envelope's text byte for byte.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import Field, ValidationError

from common.errors import Refusal, SettingError
from common.protocol.orders import Books, Hex, Order
from common.settings import Table

# hospital clocks that nobody watches are minutes off, not hours; of those that are ahead, Flower
# lets in none that is so by more than 5 s (client/link/hub_clock.py)
CLOCK_TOLERANCE_S: Final = 300.0
LONGEST_ORDER: Final = 1 << 18  # characters; a lineage of a thousand sites has 64 thousand
_CONTEXT: Final = b"callosum order 1\0"  # a signature made for something else never fits
_DOCUMENT: Final = b"callosum document 1\0"
_END: Final = b"-----END PUBLIC KEY-----"


class Envelope(Table):
    """What is signed."""

    order: Order
    issued: float = Field(description="Unix time in seconds.")
    expires: float = Field(description="Unix time in seconds.")
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] = Field(description="Used once.")
    code: Hex = Field(description="Digest of the source that both ends must share.")
    seen: Books | None = Field(
        description="The site's books as the coordinator last saw them; None before it saw any."
    )


class Sealed(NamedTuple):
    """An envelope's text and its signature in hex; empty where nobody signs (the local engine)."""

    text: str
    signature: str


def seal(
    order: Order,
    key: Ed25519PrivateKey | None,
    *,
    code: str,
    now: float,
    lifetime_s: float,
    seen: Books | None = None,
) -> Sealed:
    """Put `order` into an envelope that holds from `now` for `lifetime_s`, and sign it.

    `code` is the digest of the source that both ends must share for the order's study; `seen` are
    the site's books as they were last seen.
    """
    text = Envelope(
        order=order,
        issued=now,
        expires=now + lifetime_s,
        nonce=secrets.token_hex(16),
        code=code,
        seen=seen,
    ).model_dump_json()
    return Sealed(text, key.sign(_CONTEXT + text.encode()).hex() if key is not None else "")


def unseal(sealed: Sealed, keys: Sequence[Ed25519PublicKey], *, now: float) -> Envelope:
    """Check who signed and when; return what was signed.

    Raises
    ------
    Refusal
        UNSIGNED, SIGNATURE, ORDER_MALFORMED or EXPIRED, in this order of checks.
    """
    if not sealed.signature:
        raise Refusal("UNSIGNED")
    if not any(_signed_by(key, sealed) for key in keys):
        raise Refusal("SIGNATURE")
    envelope = read_envelope(sealed.text)
    tolerance = CLOCK_TOLERANCE_S
    if not envelope.issued - tolerance <= now <= envelope.expires + tolerance:
        early_s, late_s = envelope.issued - now, now - envelope.expires
        off = f"{early_s:.0f} s before its issue" if early_s > 0 else f"{late_s:.0f} s past its end"
        raise Refusal("EXPIRED", f"this machine's clock is {off}; compare clocks")
    return envelope


def read_envelope(text: str) -> Envelope:
    """An envelope from its text, whoever signed it, or `Refusal("ORDER_MALFORMED")`."""
    if len(text) > LONGEST_ORDER:  # nobody has signed it yet, and reading it takes memory
        raise Refusal("ORDER_MALFORMED", f"it has {len(text):,} characters")
    try:
        return Envelope.model_validate_json(text)
    except ValidationError as error:
        # never its text, which repeats what was wrong once for each fault
        kind = error.errors(include_url=False, include_input=False, include_context=False)[0][
            "type"
        ]
        detail = f"{error.error_count()} faults, the first: {kind}"
        raise Refusal("ORDER_MALFORMED", detail) from None


def sign_document(text: bytes, key: Ed25519PrivateKey) -> str:
    """The coordinator's signature, in hex, of a text that is to be shown to others."""
    return key.sign(_DOCUMENT + text).hex()


def signed_document(text: bytes, signature: str, key: Ed25519PublicKey) -> bool:
    """Whether `key` signed just this text as a document; a signature of an order never is one."""
    try:
        key.verify(bytes.fromhex(signature), _DOCUMENT + text)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The coordinator's signing key from a PEM file."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path} cannot be read as a private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path} holds another kind of key; an Ed25519 key is needed")
    return key


def read_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """The coordinator's public keys from a PEM file; two while an old key gives way to a new."""
    try:
        *parts, rest = path.read_bytes().split(_END)
        blocks = [part + _END for part in parts]
        keys = [load_pem_public_key(block.strip()) for block in blocks]
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SettingError(f"{path} cannot be read as public keys: {error}") from None
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) != len(keys) or b"-----BEGIN" in rest:
        raise SettingError(f"{path} must hold Ed25519 public keys and nothing else")
    return found


def _signed_by(key: Ed25519PublicKey, sealed: Sealed) -> bool:
    try:
        key.verify(bytes.fromhex(sealed.signature), _CONTEXT + sealed.text.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
