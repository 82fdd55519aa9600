"""Only what the coordinator signed is an order, for as long as it was meant, byte for byte."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refusal, SettingError
from common.protocol.orders import PROTOCOL, Order
from common.protocol.signing import (
    CLOCK_TOLERANCE_S,
    Sealed,
    read_envelope,
    read_private_key,
    read_public_keys,
    seal,
    unseal,
)

HEX = "0" * 64
ORDER = Order(kind="train", study=HEX, run=HEX, site="alpha", round=3, arrays=HEX)
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
TRUSTED = [KEY.public_key()]
NOW, LIFETIME_S = 1_790_000_000.0, 3600.0
CODE = "c0" * 32
SEALED = seal(ORDER, KEY, now=NOW, lifetime_s=LIFETIME_S, code=CODE)
# part of the protocol: were it to change, every site would have to change with it
CONTEXT = b"callosum order 1\0"


def signed(text: str, key: Ed25519PrivateKey = KEY, context: bytes = CONTEXT) -> Sealed:
    return Sealed(text, key.sign(context + text.encode()).hex())


def code_of(sealed: Sealed, *, now: float = NOW, keys: Any = TRUSTED) -> str:
    """The code of the refusal, or nothing; any other exception fails the test."""
    try:
        unseal(sealed, keys, now=now)
    except Refusal as refusal:
        return refusal.code
    return ""


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(SEALED.text), **fields})


def test_a_signed_order_is_what_was_sealed() -> None:
    """The envelope says who asks for what, until when, and with which code."""
    envelope = unseal(SEALED, TRUSTED, now=NOW)
    assert envelope.order == ORDER
    assert (envelope.issued, envelope.expires) == (NOW, NOW + LIFETIME_S)
    assert envelope.code == CODE
    assert envelope == read_envelope(SEALED.text)


def test_the_signature_is_over_context_and_text() -> None:
    """A site written elsewhere must be able to check it from this one line."""
    KEY.public_key().verify(bytes.fromhex(SEALED.signature), CONTEXT + SEALED.text.encode())


def test_asking_again_is_the_same_order_in_another_envelope() -> None:
    """The id stands for the content; the ledger spends once for an id, the nonce is used once."""
    envelopes = [
        unseal(seal(ORDER, KEY, now=NOW + i, lifetime_s=9.0, code=CODE), TRUSTED, now=NOW)
        for i in range(50)
    ]
    assert {envelope.order.id for envelope in envelopes} == {ORDER.id}
    assert len({envelope.nonce for envelope in envelopes}) == 50


def test_an_order_that_nobody_signed_is_said_to_be_so() -> None:
    """The local engine signs nothing; such an order must never work at a hospital."""
    assert code_of(seal(ORDER, None, now=NOW, lifetime_s=1.0, code=CODE)) == "UNSIGNED"
    assert code_of(Sealed(SEALED.text, "")) == "UNSIGNED"


def test_another_key_is_not_trusted() -> None:
    """Another consortium's coordinator, or one whose key was withdrawn."""
    stranger = seal(ORDER, OTHER, now=NOW, lifetime_s=LIFETIME_S, code=CODE)
    assert code_of(stranger) == "SIGNATURE"
    assert code_of(stranger, keys=[OTHER.public_key()]) == ""
    assert code_of(SEALED, keys=[]) == "SIGNATURE"


def test_either_key_is_trusted_while_an_old_one_gives_way() -> None:
    """Sites are updated before, the coordinator in between; no study waits for it."""
    both = [OTHER.public_key(), *TRUSTED]
    for key in (KEY, OTHER):
        assert code_of(seal(ORDER, key, now=NOW, lifetime_s=1.0, code=CODE), keys=both) == ""
    third = Ed25519PrivateKey.generate()
    assert code_of(seal(ORDER, third, now=NOW, lifetime_s=1.0, code=CODE), keys=both) == "SIGNATURE"


@given(place=st.integers(0, len(SEALED.text) - 1), bit=st.integers(0, 15))
def test_one_flipped_bit_of_the_text_breaks_the_signature(place: int, bit: int) -> None:
    """Whoever carries an order may not even turn a round 3 into a round 7."""
    text = list(SEALED.text)
    text[place] = chr(ord(text[place]) ^ 1 << bit)
    assert code_of(Sealed("".join(text), SEALED.signature)) == "SIGNATURE"


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_flipped_bit_of_the_signature_breaks_it(place: int, bit: int) -> None:
    """There is one signature to a text and a key, and no way to make a second from the first."""
    flipped = bytearray.fromhex(SEALED.signature)
    flipped[place] ^= 1 << bit
    assert code_of(Sealed(SEALED.text, flipped.hex())) == "SIGNATURE"


@given(st.text(max_size=140))
def test_any_text_in_place_of_the_signature_is_refused(signature: str) -> None:
    """It comes from the network; only hexadecimal digits of the right length can be one."""
    assert code_of(Sealed(SEALED.text, signature)) == ("SIGNATURE" if signature else "UNSIGNED")


@pytest.mark.parametrize("text", ["", SEALED.text[:-1], SEALED.text + " ", " " + SEALED.text])
def test_a_text_of_another_length_is_not_what_was_signed(text: str) -> None:
    """A reader of JSON would not mind a space; the signature does."""
    assert code_of(Sealed(text, SEALED.signature)) == "SIGNATURE"


@pytest.mark.parametrize("context", [b"", b"callosum order 1", b"callosum order 2\0", b"x\0"])
def test_a_signature_for_something_else_does_not_fit(context: bytes) -> None:
    """The coordinator's key may sign other things one day; none of them is an order."""
    assert code_of(signed(SEALED.text, context=context)) == "SIGNATURE"
    assert code_of(signed(SEALED.text)) == ""


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_signed_text_that_is_no_order_is_malformed(text: str) -> None:
    """A coordinator of another version signs what this site cannot read."""
    assert code_of(signed(text)) == "ORDER_MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        changed(nonce="0" * 31), changed(nonce="G" * 32), changed(code="0" * 63), changed(code=3),
        changed(issued=None), changed(expires="soon"), changed(more=1), changed(order={}),
        changed(order={**json.loads(SEALED.text)["order"], "protocol": PROTOCOL - 1}),
        changed(order={**json.loads(SEALED.text)["order"], "protocol": PROTOCOL + 1}),
        changed(issued=math.nan), changed(expires=math.inf), "[" * 100_000, "{" * 100_000,
        json.dumps(ORDER.model_dump(mode="json")),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_signed_envelope_of_another_form_is_malformed(text: str) -> None:
    """Also one that would hold for ever, and an order without any envelope."""
    assert code_of(signed(text)) == "ORDER_MALFORMED"


END = NOW + LIFETIME_S
EARLIEST, LATEST = NOW - CLOCK_TOLERANCE_S, END + CLOCK_TOLERANCE_S


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (NOW, ""), (END, ""), (EARLIEST, ""), (LATEST, ""),
        (math.nextafter(EARLIEST, 0.0), "EXPIRED"), (math.nextafter(LATEST, math.inf), "EXPIRED"),
        (0.0, "EXPIRED"), (NOW + 1e9, "EXPIRED"), (math.nan, "EXPIRED"),
    ],
)  # fmt: skip
def test_an_order_holds_from_its_issue_to_its_end_and_for_clocks_a_little_off(
    now: float, code: str
) -> None:
    """Five minutes either way; beyond that an old order could be sent again, or one kept back."""
    assert CLOCK_TOLERANCE_S == 300.0
    assert code_of(SEALED, now=now) == code


@pytest.mark.parametrize(
    ("now", "told"), [(NOW - 340, "340 s before its issue"), (END + 400, "400 s past its end")]
)
def test_the_sites_log_says_how_far_its_clock_is_off(now: float, told: str) -> None:
    """Whoever reads EXPIRED needs to know whether it is minutes or years."""
    with pytest.raises(Refusal) as refused:
        unseal(SEALED, TRUSTED, now=now)
    assert told in refused.value.detail


def test_the_checks_come_in_their_documented_order() -> None:
    """Nothing that a stranger wrote is read, and the code says the first thing to mend."""
    late = END + 1e6
    assert code_of(Sealed("garbage", ""), now=late) == "UNSIGNED"
    assert code_of(Sealed(SEALED.text, ""), now=late) == "UNSIGNED"
    assert code_of(Sealed("garbage", SEALED.signature), now=late) == "SIGNATURE"
    assert code_of(signed(SEALED.text, OTHER), now=late) == "SIGNATURE"
    assert code_of(signed(changed(nonce="x")), now=late) == "ORDER_MALFORMED"
    assert code_of(SEALED, now=late) == "EXPIRED"


def public(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private(key: Any, password: bytes = b"") -> bytes:
    locked = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)


def raw(keys: Any) -> list[bytes]:
    return [key.public_bytes_raw() for key in keys]


CURVE, RSA = ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)
ED448 = ed448.Ed448PrivateKey.generate()


@pytest.mark.parametrize("between", [b"", b"\n", b"\r\n", b"# the new key, from May on\n"])
def test_one_file_holds_one_key_or_two(tmp_path: Path, between: bytes) -> None:
    """In the order of the file; what stands between the blocks does not matter."""
    path = tmp_path / "coordinator.pem"
    path.write_bytes(public(KEY))
    assert raw(read_public_keys(path)) == raw([KEY.public_key()])
    path.write_bytes(public(KEY) + between + public(OTHER) + b"\n\n")
    assert raw(read_public_keys(path)) == raw([KEY.public_key(), OTHER.public_key()])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\n", b"no key", b"\xff\xfe\x00", private(KEY), public(CURVE), public(RSA),
        public(ED448), public(KEY) + public(CURVE), public(RSA) + public(KEY),
        public(KEY).replace(b"MC", b"M!"), public(KEY)[30:],
        public(KEY) + public(OTHER)[:60],
    ],
    ids=["empty", "blank", "text", "noise", "private", "curve", "rsa", "ed448", "and a curve",
         "rsa first", "damaged", "half", "one and a half"],
)  # fmt: skip
def test_other_public_keys_are_a_setting_error(tmp_path: Path, content: bytes) -> None:
    """A site that trusts nobody, or somebody by mistake, must say so before it serves."""
    path = tmp_path / "coordinator.pem"
    path.write_bytes(content)
    with pytest.raises(SettingError, match="coordinator.pem"):
        read_public_keys(path)


def test_the_signing_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The orders that it signs are those that its public half checks."""
    path = tmp_path / "coordinator.key"
    path.write_bytes(private(KEY))
    assert code_of(seal(ORDER, read_private_key(path), now=NOW, lifetime_s=1.0, code=CODE)) == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"no key", public(KEY), private(CURVE), private(RSA), private(ED448),
     private(KEY, b"secret"), private(KEY)[:-40]],
    ids=["empty", "text", "public", "curve", "rsa", "ed448", "locked", "cut"],
)  # fmt: skip
def test_another_signing_key_is_a_setting_error(tmp_path: Path, content: bytes) -> None:
    """It names the file, and nothing of what the file holds."""
    path = tmp_path / "coordinator.key"
    path.write_bytes(content)
    with pytest.raises(SettingError, match="coordinator.key") as caught:
        read_private_key(path)
    assert content.decode().strip()[28:60] not in str(caught.value) or len(content) < 40


@pytest.mark.parametrize("read", [read_private_key, read_public_keys])
def test_a_key_file_that_is_not_there_is_a_setting_error(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    """Also a folder in its place."""
    for path in (tmp_path / "nothing.pem", tmp_path):
        with pytest.raises(SettingError, match="cannot be read"):
            read(path)
