"""Tokens let two sites' scans be counted, and tell nothing else to whoever has no scan."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.protocol.tokens import KEY, PEOPLE, PERSONS, SCANS, fault_in, tokens_of

CONTENTS = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30)


def made(contents: list[str], salt: str = "s", key: str = "") -> dict[str, Any]:
    return dict(tokens_of(contents, [f"of-{content}" for content in contents], salt, key))


def test_a_token_is_the_beginning_of_an_hmac_over_salt_and_content() -> None:
    """Said in the guide, so that a site's own people can make one and look for it."""
    digest = hmac.new(b"key", b"salt\0content", hashlib.sha256).digest()
    [token] = tokens_of(["content"], ["someone"], "salt", "key")[SCANS]
    assert int(token) == int.from_bytes(digest[:7], "big")


@given(CONTENTS, CONTENTS)
def test_what_two_sites_share_is_what_their_tokens_share(
    ours: list[str], theirs: list[str]
) -> None:
    """Neither more, or honest judges are refused; nor less, or leaks get through."""
    shared = np.isin(made(ours)[SCANS], made(theirs)[SCANS]).sum()
    assert shared == len(set(ours) & set(theirs))


@given(CONTENTS)
def test_another_chain_or_another_key_gives_other_tokens(contents: list[str]) -> None:
    """A folder of one consortium says nothing about the people of another."""
    ours = made(contents)[SCANS]
    for other in (made(contents, salt="t"), made(contents, key="k")):
        assert not np.isin(ours, other[SCANS]).any()


@given(CONTENTS)
def test_names_of_people_change_no_token_and_order_changes_nothing(contents: list[str]) -> None:
    """Labels such as sub-0001 could be guessed, and are another person's at each hospital."""
    renamed = tokens_of(contents, [f"x{content}" for content in contents], "s", "")
    turned = made(contents[::-1])
    for name, array in made(contents).items():
        np.testing.assert_array_equal(array, renamed[name])
        np.testing.assert_array_equal(array, turned[name])


def test_a_persons_identifier_has_a_token_of_its_own() -> None:
    """Another scan of the same person at another hospital: no scan is shared, the person is."""
    ours = tokens_of(["a"], ["x"], "s", "key", ["9434765919"])
    theirs = tokens_of(["b"], ["y"], "s", "key", ["9434765919", "1"])
    assert ours[PERSONS].tolist()[0] in theirs[PERSONS].tolist()
    assert PERSONS not in SOUND
    assert fault_in(theirs, 1, 2) == "1 owners are not its 2 people"
    assert fault_in(ours, 1, 1) == ""
    content = tokens_of(["9434765919"], ["x"], "s", "key")
    assert content[SCANS].tolist() != ours[PERSONS].tolist()


def test_owners_are_numbers_and_tell_who_has_several_scans() -> None:
    """Overlap is told in people, too; which people they are is not told."""
    found = tokens_of(["a", "b", "c"], ["mary", "john", "mary"], "s", "")
    number = dict(zip(found[SCANS].tolist(), found[PEOPLE].tolist(), strict=True))
    a, b, c = (int(tokens_of([one], ["x"], "s", "")[SCANS][0]) for one in "abc")
    assert number[a] == number[c] != number[b]
    assert sorted(set(number.values())) == [0, 1]


@given(CONTENTS)
def test_what_a_site_makes_is_sound(contents: list[str]) -> None:
    """The check at the coordinator must not refuse an honest site."""
    assert fault_in(made(contents), len(contents), len(set(contents))) == ""


SOUND = made(["a", "b", "c"])
FAULTS: dict[str, dict[str, Any]] = {
    "missing": {SCANS: SOUND[SCANS]},
    "mistyped": {**SOUND, SCANS: SOUND[SCANS].astype(np.float64)},
    "misshapen": {**SOUND, PEOPLE: SOUND[PEOPLE][:2]},
    "none": {**SOUND, SCANS: SOUND[SCANS][:0], PEOPLE: SOUND[PEOPLE][:0]},
    "twice": {**SOUND, SCANS: SOUND[SCANS][[0, 0, 1]]},
    "turned": {**SOUND, SCANS: SOUND[SCANS][::-1]},
    "negative": {**SOUND, SCANS: SOUND[SCANS] - SOUND[SCANS][0] - 1},
    "too wide": {**SOUND, SCANS: SOUND[SCANS] | 1 << 60},
    "a key of two": {**SOUND, KEY: SOUND[SCANS][:2]},
    "a negative key": {**SOUND, KEY: -SOUND[KEY]},
    "persons twice": {**SOUND, PERSONS: SOUND[SCANS][[0, 0]]},
    "no persons": {**SOUND, PERSONS: SOUND[SCANS][:0]},
    "more persons than people": {**SOUND, PERSONS: np.arange(4)},
    "owners from nowhere": {**SOUND, PEOPLE: np.array([0, 1, 7], dtype=np.int32)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_no_site_makes_is_refused(fault: str) -> None:
    """What the coordinator compares came from outside."""
    assert fault_in(FAULTS[fault], 3, 3)


def test_more_scans_or_people_than_the_census_counts_are_refused() -> None:
    """A site must not claim others' scans beyond what it said it holds."""
    assert "of 2" in fault_in(SOUND, 2, 3)
    assert "not its 2 people" in fault_in(SOUND, 3, 2)


def test_a_site_that_leaves_people_out_is_refused() -> None:
    """A judge that names no token of those who trained would be found to share none."""
    some = {**SOUND, SCANS: SOUND[SCANS][:2], PEOPLE: SOUND[PEOPLE][:2]}
    assert "2 owners are not its 3 people" in fault_in(some, 3, 3)
