"""Books that grew never contradict each other; books that were set back, copied or forged do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.protocol.books import apart, fallen
from common.protocol.orders import Books

STATES = ("a" * 32, "b" * 32)
HASHES = ("c" * 64, "d" * 64)
SEEN = Books(state=STATES[0], exposures=8, receipt=52, hash=HASHES[0])


def told(least: int = 1) -> st.SearchStrategy[Books]:
    """Few values, so that equal ones meet."""
    return st.builds(
        Books,
        state=st.sampled_from(STATES),
        exposures=st.integers(0, 3),
        receipt=st.integers(least, 4),
        hash=st.sampled_from(HASHES),
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=8))
def test_books_that_only_grow_never_contradict_each_other(steps: list[tuple[int, int]]) -> None:
    """An honest site must never need a person, in whatever order its reports arrive."""
    books = [SEEN]
    for more, receipts in steps:
        last = books[-1]
        grown = {"exposures": last.exposures + more, "receipt": last.receipt + receipts}
        books.append(last.model_copy(update={**grown, "hash": f"{grown['receipt']:064d}"}))
    for i, earlier in enumerate(books):
        for later in books[i:]:
            assert fallen(earlier, later) == ""
            assert apart(later, earlier) == apart(earlier, later) == ""
            assert earlier == later or fallen(later, earlier)


@given(told(0), told(), told())
def test_growing_is_an_order(a: Books, b: Books, c: Books) -> None:
    """Only the last that was seen is sent to a site: it must stand for all that came before."""
    assert fallen(b, b) == ""
    if not fallen(b, c) and not fallen(c, b):
        assert b.model_copy(update={"hash": c.hash}) == c
    if not fallen(a, b) and not fallen(b, c):
        assert fallen(a, c) == "" or (a.receipt == 0 and a.state == c.state)


@given(told(), told())
def test_whether_two_contradict_does_not_hang_on_which_came_first(one: Books, other: Books) -> None:
    """Two runs hear of one site at once."""
    assert bool(apart(one, other)) == bool(apart(other, one))
    if fallen(one, other) and fallen(other, one):
        assert apart(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exposures": 6, "receipt": 40}, "6 exposures after 8"),
        ({"exposures": 7, "receipt": 60}, "7 exposures after 8"),
        ({"receipt": 51}, "receipt 51 after 52"),
        ({"hash": HASHES[1]}, "two receipts with number 52"),
        ({"exposures": 9}, "two receipts with number 52"),
        ({"state": STATES[1], "receipt": 90, "exposures": 90}, "state folder bbbbbbbb after"),
    ],
)
def test_every_kind_of_fall_is_said_in_words(change: dict[str, Any], words: str) -> None:
    """The person who decides reads them."""
    later = SEEN.model_copy(update=change)
    assert words in (apart if later.receipt == SEEN.receipt else fallen)(SEEN, later)


def test_an_ended_history_never_goes_on_and_its_count_never_falls() -> None:
    """What a person ended at the coordinator, a person at the site must have ended, too."""
    ended = SEEN.model_copy(update={"receipt": 0})
    assert "a person has ended" in fallen(ended, SEEN.model_copy(update={"receipt": 99}))
    other = Books(state=STATES[1], exposures=8, receipt=1, hash=HASHES[1])
    assert fallen(ended, other) == apart(other, ended) == ""
    assert fallen(ended, other.model_copy(update={"exposures": 7})) == "7 exposures after 8"


@pytest.mark.parametrize(
    "change",
    [{"state": ""}, {"state": "../x"}, {"exposures": -1}, {"receipt": 2**60}, {"hash": ""}],
)
def test_books_of_another_form_are_none(change: dict[str, Any]) -> None:
    """They stand in a signed envelope, in a file and on a screen."""
    with pytest.raises(ValidationError):
        Books.model_validate(SEEN.model_dump() | change)
