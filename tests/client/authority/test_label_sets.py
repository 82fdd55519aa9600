"""Two studies whose bounds differ by a hair use the same people's labels, or many others'."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.authority.label_sets import (
    FILE,
    Groups,
    LabelSets,
    everything,
    owner_of,
    settled,
    with_settled_labels,
)
from client.data.cohort import Cohort
from common.errors import FolderError
from common.study import Study

MINIMUM = 5
PEOPLE = [f"{number:020d}" for number in range(30)]
items = st.builds("{}{}".format, st.sampled_from(PEOPLE), st.sampled_from(["a", "b"]))
parts = st.fixed_dictionaries(
    {"train": st.frozensets(items, max_size=40), "test": st.frozensets(items, max_size=12)}
).map(lambda found: {"train": found["train"], "test": found["test"] - found["train"]})
quick = settings(deadline=None, max_examples=200)


def owners(found: frozenset[str]) -> set[str]:
    return {owner_of(item) for item in found}


def may_stand_together(ours: frozenset[str], theirs: frozenset[str]) -> bool:
    apart = len(owners(ours ^ theirs))
    few = min(len(owners(ours)), len(owners(theirs))) < MINIMUM
    return few or apart == 0 or apart >= MINIMUM


@given(st.lists(parts, max_size=5))
@quick
def test_no_two_sets_that_were_in_use_differ_by_a_few(asked: list[Groups]) -> None:
    """In a split, or in all: the first and the tenth are as good a pair as any."""
    used: list[Groups] = []
    for groups in asked:
        found = settled(groups, used, MINIMUM)
        assert all(found[part] <= groups[part] for part in groups)
        for earlier in used:
            for part in groups:
                assert may_stand_together(found[part], earlier[part])
            assert may_stand_together(everything(found), everything(earlier))
        used.append(found)


def test_who_is_new_waits_and_who_is_gone_takes_others_along() -> None:
    """A hospital labels somebody every day; now and then somebody takes her consent back."""
    first = {"train": frozenset(f"{name}a" for name in PEOPLE[:20])}
    more = {"train": first["train"] | {f"{PEOPLE[20]}a", f"{PEOPLE[3]}b"}}
    assert settled(more, [first], MINIMUM) == first
    many = {"train": frozenset(f"{name}a" for name in PEOPLE[:25])}
    assert settled(many, [first], MINIMUM) == many
    fewer = {"train": first["train"] - {f"{PEOPLE[7]}a"}}
    left = settled(fewer, [first], MINIMUM)["train"]
    assert len(owners(first["train"]) - owners(left)) == MINIMUM


@contextmanager
def books() -> Iterator[LabelSets]:
    with tempfile.TemporaryDirectory() as folder:
        yield LabelSets(Path(folder) / FILE)


def test_sets_outlive_the_process_and_are_told_apart_by_their_column() -> None:
    """Another column's labels are other people's, whatever the target is called."""
    ours = {"train": frozenset(f"{name}a" for name in PEOPLE[:20])}
    near = {"train": frozenset(f"{name}a" for name in PEOPLE[:21])}
    with books() as sets:
        assert sets.settle("column age", ours, MINIMUM) == ours["train"]
        assert LabelSets(sets.path).settle("column age", near, MINIMUM) == ours["train"]
        assert sets.settle("column sex", near, MINIMUM) == near["train"]
        written = sets.path.read_bytes()
        sets.settle("column age", ours, MINIMUM)
        assert sets.path.read_bytes() == written
        assert sets.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": [3]}', b"\xff", b"[" * 100_000])
def test_damaged_books_are_said_and_not_begun_anew(content: bytes) -> None:
    """An empty book would let the near copy through."""
    with books() as sets:
        sets.path.write_bytes(content)
        with pytest.raises(FolderError, match=r"labels\.json cannot be read.*backup"):
            sets.settle("column age", {"train": frozenset()}, MINIMUM)
        assert sets.path.read_bytes() == content


def cut(made: Any, study: Study, cohort: Cohort) -> tuple[Cohort, list[str]]:
    told: list[str] = []
    agent = made.agent("alpha")
    policy = agent.site.policy.model_copy(update={"minimum_support": MINIMUM})
    site = agent.site.model_copy(update={"policy": policy})
    return with_settled_labels(study, site, cohort, told.append), told


def test_a_bound_that_leaves_one_person_out_tells_nothing_of_her(federation: Any) -> None:
    """An upper bound just below the oldest: what both studies tell differs by nobody, or many."""
    made = federation()
    cohort = made.agent("alpha").cohort
    wide, _ = cut(made, made.study, cohort)
    np.testing.assert_array_equal(wide.labels["age"], cohort.labels["age"])
    oldest = int(np.argmax(cohort.labels["age"]))
    narrow = dict(cohort.labels)
    narrow["age"] = cohort.labels["age"].copy()
    narrow["age"][oldest] = np.nan
    second = made.study.model_copy(update={"name": "second"})
    found, told = cut(made, second, replace(cohort, labels=narrow))
    lost = np.isnan(found.labels["age"]) & ~np.isnan(cohort.labels["age"])
    assert lost[oldest]
    assert lost.sum() >= MINIMUM
    np.testing.assert_array_equal(found.labels["sex"], cohort.labels["sex"])
    assert "second goes without age of" in told[0]
    again, told = cut(made, made.study, cohort)
    np.testing.assert_array_equal(again.labels["age"], cohort.labels["age"])
    assert not told
