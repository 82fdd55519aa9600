"""A share of `make fuzz` that takes seconds, and that the fuzzer finds what is there to be found."""

from __future__ import annotations

import time
from random import Random
from typing import Any

import pytest

from common.errors import SettingError
from tests.fuzz import border
from tests.fuzz.__main__ import all_borders, counts
from tests.fuzz.border import Border, tried

BORDERS = all_borders()


@pytest.mark.parametrize("name", BORDERS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given here
def test_what_makes_no_sense_is_an_error_of_ours(name: str) -> None:
    """Whoever sends it, and whatever rots: a sentence and a code, never a traceback."""
    number = counts(BORDERS, 1500)[name]
    assert [found for n in range(number) if (found := tried(BORDERS[name], 2, n))] == []


@pytest.mark.parametrize("name", BORDERS)
def test_the_same_seed_makes_the_same_input(name: str) -> None:
    """A finding that cannot be repeated cannot be mended."""
    one, other = (BORDERS[name].make(Random(f"1/{name}/7")) for _ in range(2))
    assert str(one) == str(other)


def reading(read: Any) -> Border:
    return Border(name="x", share=1, make=lambda random: random.random(), read=read)


def test_what_no_input_may_do_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that sees nothing would be the best news of all."""

    def fails(_: Any) -> None:
        raise KeyError("x")

    def declines(_: Any) -> None:
        raise SettingError("x")

    def hangs(_: Any) -> None:
        while True:
            pass

    def hangs_in_c(_: Any) -> None:
        began = time.process_time()
        while time.process_time() - began < 0.2:
            sum(range(100_000))

    assert tried(reading(declines), 1, 1) is None
    assert tried(reading(fails), 1, 1).what == "KeyError: 'x'"
    monkeypatch.setattr(border, "LONGEST_S", 0.05)
    assert "more than 0.05 s" in tried(reading(hangs), 1, 1).what
    assert "more than 0.05 s" in tried(reading(hangs_in_c), 1, 1).what
    monkeypatch.setattr(border, "LONGEST_S", 2.0)
    peaks = iter([0, border.MOST_BYTES + 1])
    monkeypatch.setattr(border, "_peak", lambda: next(peaks))
    assert tried(reading(lambda _: None), 1, 1).what == "too much memory"
