"""Masks are uniform, the same for the same purpose, and cancel out in no other."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chisquare

from common.errors import Refusal
from common.secure_sums.masks import BLOCK, Masks
from common.secure_sums.rosters import Keys, commitment, own_seed, pair_seed
from common.secure_sums.shares import joined, line_between, opened, sealed, split


def mask(seed: bytes, array: str = "a", size: int = 1000, dtype: type = np.int32) -> np.ndarray:
    numbers = np.zeros(size, dtype)
    Masks([(seed, False)], array, numbers.dtype).put_on(numbers)
    return numbers


def test_masked_numbers_are_uniform_whatever_is_under_them():
    """What the coordinator stores of a site is as likely under any update: chi-square by byte."""
    for under in (0, 1, -(2**31), 2**31 - 1):
        numbers = np.full(1 << 18, under, np.int32)
        Masks([(os.urandom(32), False)], "a", numbers.dtype).put_on(numbers)
        for byte in range(4):
            counts = np.bincount(numbers.view(np.uint8)[byte::4], minlength=256)
            assert chisquare(counts).pvalue > 1e-6


def test_a_mask_is_the_same_in_any_pieces_and_for_each_array_another():
    """Both ends draw it block by block, of whatever size; arrays of one shape must not share one."""
    seed = bytes(32)
    whole = mask(seed, size=3 * BLOCK + 17)
    pieces = np.zeros_like(whole)
    masks = Masks([(seed, False)], "a", pieces.dtype)
    for start, end in ((0, 5), (5, BLOCK + 6), (BLOCK + 6, len(whole))):
        masks.put_on(pieces[start:end])
    assert (whole == pieces).all()
    assert (mask(seed, "a") != mask(seed, "b")).mean() > 0.99
    # an odd number of bytes must not shift what follows
    assert len(np.unique(whole[-1000:])) > 990


def test_what_two_sites_share_cancels_and_only_for_the_same_purpose():
    """Other arrays, another roster, another round: then the masks stay, and the sum tells nothing."""
    one, other = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    publics = [key.public_key().public_bytes_raw() for key in (one, other)]
    mine = pair_seed(one, publics[1], b"roster", b"about")
    assert mine == pair_seed(other, publics[0], b"roster", b"about")
    for theirs in (
        pair_seed(other, publics[0], b"roster", b"other arrays"),
        pair_seed(other, publics[0], b"other keys", b"about"),
        own_seed(b"roster" * 6, b"roster", b"about"),
    ):
        assert (mask(mine) != mask(theirs)).mean() > 0.99


def test_shares_give_a_secret_to_enough_and_nothing_to_fewer():
    """Any six of eight; of five every other secret is as likely: the sixth decides."""
    secret = os.urandom(32)
    shares = dict(enumerate(split(secret, 6, 8), start=1))
    assert joined({place: shares[place] for place in (8, 2, 3, 5, 6, 7)}) == secret
    five = {place: shares[place] for place in (1, 2, 3, 4, 5)}
    made = {joined({**five, 6: os.urandom(32)}) for _ in range(50)}
    assert len(made) == 50
    assert secret not in made


def test_sealed_shares_are_for_one_site_about_one_thing():
    """A coordinator who passes them to another site, or for another slot, passes nothing."""
    one, other, third = (X25519PrivateKey.generate() for _ in range(3))
    line = line_between(one, other.public_key().public_bytes_raw(), b"roster")
    text = sealed(line, b"slot", b"x" * 64)
    there = line_between(other, one.public_key().public_bytes_raw(), b"roster")
    assert opened(there, b"slot", text) == b"x" * 64
    assert opened(there, b"another slot", text) is None
    assert opened(there, b"slot", text[:-1] + b"?") is None
    for key, roster in ((third, b"roster"), (other, b"another roster")):
        wrong = line_between(key, one.public_key().public_bytes_raw(), roster)
        assert opened(wrong, b"slot", text) is None


def keys_of(identity: Ed25519PrivateKey, **changes: bytes) -> Keys:
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    return Keys(
        site="alpha",
        identity=identity.public_key().public_bytes_raw(),
        channel=changes.get("channel", public),
        masks=(changes.get("mask", public),),
        commitments=(commitment(bytes(32)),),
    )


def test_keys_hold_under_their_own_signature_for_their_own_run_alone():
    """What was signed for another run, or by somebody else, is no key of this site's."""
    identity = Ed25519PrivateKey.generate()
    keys = keys_of(identity).signed(identity, b"this run")
    keys.check(b"this run")
    with pytest.raises(Refusal, match="PEERS"):
        keys.check(b"another run")
    with pytest.raises(Refusal, match="PEERS"):
        keys_of(identity).signed(Ed25519PrivateKey.generate(), b"this run").check(b"this run")


@pytest.mark.parametrize("which", ["channel", "mask"])
def test_a_point_that_agrees_with_nobody_is_no_key(which):
    """One site with a key of zeros would end every other's part, at the first mask."""
    identity = Ed25519PrivateKey.generate()
    keys = keys_of(identity, **{which: bytes(32)}).signed(identity, b"run")
    with pytest.raises(Refusal, match="PEERS"):
        keys.check(b"run")
