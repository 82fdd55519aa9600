"""An epoch shows what a study asks for equally often, and takes no longer for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.cohort import Cohort
from client.learning.sampling import epoch, shown
from common.errors import Refusal
from common.sections import Steps

NAN = float("nan")
seeds = st.integers(0, 2**32)
people = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60)
labels = st.lists(st.sampled_from([0.0, 1.0, 2.0, NAN]), min_size=1, max_size=60)


def cohort_of(participants: list[str], label: list[float] | None = None) -> Cohort:
    n = len(participants)
    known = np.full(n, np.nan) if label is None else np.array(label)
    return Cohort(
        samples=np.zeros((n, 1), np.float32),
        participants=tuple(participants),
        scans=tuple(map(str, range(n))),
        labels={"stage": known.astype(np.float32)},
        measures=None,
        layout="table",
        findings=(),
        contents=tuple(map(str, range(n))),
        secrets=("",) * n,
    )


def places(cohort: Cohort, sampling: str, seed: int, indices: Any = None) -> Counter[int]:
    """How often each sample of the cohort is shown in one epoch."""
    indices = np.arange(len(cohort)) if indices is None else indices
    found = shown(cohort, indices, sampling, np.random.default_rng(seed))
    assert found.dtype == np.int64
    assert set(found.tolist()) <= set(indices.tolist())
    return Counter(found.tolist())


def even(counts: list[int]) -> bool:
    return max(counts) - min(counts) <= 1


@given(people, seeds)
def test_every_participant_has_as_many_places_as_any_other(held: list[str], seed: int) -> None:
    """A volunteer with a hundred volumes must not be a hundred people to the network."""
    often = places(cohort_of(held), "participants", seed)
    assert often.total() == len(held)  # an epoch is as long as ever: rates go by its steps
    assert even([sum(often[i] for i, p in enumerate(held) if p == who) for who in set(held)])


@given(people, seeds)
def test_a_participants_scans_come_in_turn(held: list[str], seed: int) -> None:
    """Whoever is shown three times and has three scans is shown each of them once."""
    often = places(cohort_of(held), "participants", seed)
    for who in set(held):
        assert even([often[i] for i, p in enumerate(held) if p == who])


@given(labels, seeds)
def test_every_class_has_as_many_places_as_any_other(label: list[float], seed: int) -> None:
    """One patient among nine controls teaches a network to say control."""
    often = places(cohort_of(["p"] * len(label), label), "classes:stage", seed)
    assert often.total() == len(label)
    classes = {value for value in label if value == value}  # noqa: PLR0124  NaN is not itself
    if classes:
        assert even([sum(often[i] for i, v in enumerate(label) if v == c) for c in classes])


@given(labels, seeds)
def test_samples_without_the_label_keep_their_own_places(label: list[float], seed: int) -> None:
    """Other targets, or none at all, are learnt from them: they must neither vanish nor crowd in."""
    often = places(cohort_of(["p"] * len(label), label), "classes:stage", seed)
    for index, value in enumerate(label):
        if np.isnan(value):
            assert often[index] == 1


def test_only_the_given_samples_are_shown() -> None:
    """Validation and test participants are in the same cohort."""
    cohort = cohort_of(["a"] * 8 + ["b"] * 2 + ["c"] * 5, [0.0] * 9 + [1.0] + [NAN] * 5)
    training = np.array([0, 1, 2, 3, 9, 10, 11])
    for sampling in ("scans", "participants", "classes:stage"):
        assert places(cohort, sampling, 1, training).total() == 7
    by_person = places(cohort, "participants", 1, training)
    assert sorted([sum(by_person[i] for i in range(4)), by_person[9],
                   by_person[10] + by_person[11]]) == [2, 2, 3]  # fmt: skip
    by_class = places(cohort, "classes:stage", 1, training)
    assert sorted([sum(by_class[i] for i in range(4)), by_class[9]]) == [2, 3]
    assert by_class[10] == by_class[11] == 1


@given(people, seeds)
def test_one_scan_a_person_is_what_every_scan_once_is(held: list[str], seed: int) -> None:
    """The limit: where nobody has more than others, nothing is drawn twice."""
    cohort = cohort_of([f"{who}{i}" for i, who in enumerate(held)])
    assert places(cohort, "participants", seed) == places(cohort, "scans", seed)


@pytest.mark.parametrize("sampling", ["scans", "participants", "classes:stage"])
def test_the_order_comes_from_the_generator_alone(sampling: str) -> None:
    """A round that is asked for again must be the same round; the next epoch must not."""
    cohort = cohort_of(["a"] * 30 + ["b"] * 9 + ["c"], [0.0] * 25 + [1.0] * 10 + [NAN] * 5)
    steps = Steps(batch_size=7, sampling=sampling)

    def drawn(generator: np.random.Generator) -> list[list[int]]:
        found = epoch(object(), cohort, np.arange(40), steps, generator)
        return [batch.tolist() for batch in found]

    one, same = np.random.default_rng(3), np.random.default_rng(3)
    first, second = drawn(one), drawn(one)
    assert [drawn(same), drawn(same)] == [first, second]
    assert first != second
    assert drawn(np.random.default_rng(4)) != first
    assert sum(map(len, first)) == 40
    assert even([len(batch) for batch in first])


@given(st.integers(1, 200), st.integers(2, 32), seeds)
def test_an_epoch_sees_every_sample_once(n: int, batch_size: int, seed: int) -> None:
    """Each scan counts alike in each epoch, in an order that the seed alone decides."""
    cohort, indices = cohort_of(["p"] * (3 * n)), np.arange(n) * 3
    steps = Steps(batch_size=batch_size)
    parts = epoch(object(), cohort, indices, steps, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == indices.tolist()
    again = epoch(object(), cohort, indices, steps, np.random.default_rng(seed))
    assert [part.tolist() for part in parts] == [part.tolist() for part in again]


def test_epochs_differ_in_order() -> None:
    """One generator over all epochs: the same batches each time would be a worse SGD."""
    generator, cohort = np.random.default_rng(0), cohort_of(["p"] * 50)
    first, second = (
        np.concatenate(epoch(object(), cohort, np.arange(50), Steps(), generator)) for _ in range(2)
    )
    assert not np.array_equal(first, second)


class Coupled:
    """A loss over pairs of a batch."""

    coupled = True


def test_a_coupled_loss_sees_whole_batches_and_each_epoch_leaves_others_out() -> None:
    """Pairs grow with the square of a batch: a smaller last one would be another loss."""
    generator, cohort = np.random.default_rng(0), cohort_of(["p"] * 50)
    left = []
    for _ in range(2):
        parts = epoch(Coupled(), cohort, np.arange(50), Steps(batch_size=8), generator)
        assert [len(part) for part in parts] == [8] * 6
        seen = np.concatenate(parts).tolist()
        assert len(set(seen)) == 48
        left.append(set(range(50)) - set(seen))
    assert left[0] != left[1]


def test_a_coupled_loss_without_one_whole_batch_is_no_data() -> None:
    """The site says so, instead of an update from nothing."""
    with pytest.raises(Refusal, match="7 training samples, a batch takes 8") as refusal:
        epoch(Coupled(), cohort_of(["p"] * 7), np.arange(7), Steps(), np.random.default_rng(0))
    assert refusal.value.code == "NO_DATA"
