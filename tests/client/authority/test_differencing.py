"""Two answers that differ by a few people tell about those few: the second is not given."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.authority.differencing import FILE, Censuses, groups, refuse_near_copy
from client.data.splits import Split, split_of
from common.errors import FolderError, Refusal, SettingError
from common.sections import Splits
from common.study import Study, parse_study

MINIMUM = 5
NAMES = [f"sub-{number:02d}" for number in range(40)]
people = st.frozensets(st.sampled_from(NAMES))
shares = st.sampled_from([0.0, 0.1, 0.15, 0.16, 0.2, 0.25, 0.4])
splits_of = st.builds(
    Splits, salt=st.sampled_from("ab"), validation=shares, test=shares,
    share=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]),
)  # fmt: skip
quick = settings(deadline=None, max_examples=100)

STUDY = parse_study(
    {
        "name": "tiny",
        "data": {"kind": "features", "columns": ["a", "b"]},
        "targets": {"age": {"kind": "regression"}},
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["alpha"]},
    },
    Path("study.toml"),
)


def study_of(splits: Splits, name: str = "tiny") -> Study:
    return STUDY.model_copy(update={"splits": splits, "name": name})


def refused(
    ours: Splits, theirs: Splits, who: frozenset[str], before: frozenset[str], least: int = MINIMUM
) -> bool:
    """Whether a study is refused after another one was approved, each with its own people."""
    new, old = study_of(ours, "new"), study_of(theirs, "old")
    of = {"new": who, "old": before}
    try:
        refuse_near_copy(new, [old], lambda study: of[study.name], "secret", least)
    except SettingError:
        return True
    return False


# Studies.


@given(people, splits_of)
@quick
def test_everyone_is_in_one_group_beside_that_of_all(who: frozenset[str], splits: Splits) -> None:
    """Whoever was in none would be compared with nobody."""
    found = groups(who, splits, "secret")
    assert found.keys() == {"all", "train", "validation", "test", "spared"}
    assert found.pop("all") == who
    assert sorted(name for group in found.values() for name in group) == sorted(who)


@given(people, people, splits_of, splits_of)
@quick
def test_a_study_is_refused_just_when_some_group_differs_by_a_few(
    who: frozenset[str], before: frozenset[str], ours: Splits, theirs: Splits
) -> None:
    """Counted here one by one: in a split or in all, between one person and the site's minimum."""

    def moved(split: str | None) -> int:
        place = [
            {name for name in there if split in (None, split_of(name, splits, "secret"))}
            for there, splits in ((who, ours), (before, theirs))
        ]
        return sum((name in place[0]) != (name in place[1]) for name in NAMES)

    few = any(0 < moved(split) < MINIMUM for split in (None, *get_args(Split)))
    assert refused(ours, theirs, who, before) == few
    assert refused(theirs, ours, before, who) == few  # whichever was first


@given(people, splits_of)
@quick
def test_the_same_people_in_the_same_places_may_be_asked_again(
    who: frozenset[str], splits: Splits
) -> None:
    """Another network on the same splits is the usual next study; it singles out nobody."""
    assert not refused(splits, splits, who, who)


def test_bounds_that_differ_by_a_hair_single_one_out() -> None:
    """What a coordinator would do who knows how one participant is called."""
    everyone = frozenset(NAMES)
    moved = {}
    for thousandths in range(1, 400):
        splits = Splits(validation=0.15 + thousandths / 1000)
        pair = (groups(everyone, each, "secret")["train"] for each in (Splits(), splits))
        moved[thousandths] = len(frozenset.symmetric_difference(*pair))
        assert refused(splits, Splits(), everyone, everyone) == (0 < moved[thousandths] < MINIMUM)
    assert {0, 1, MINIMUM} <= set(moved.values())


def test_a_refusal_says_which_studies_and_how_many(federation: Any) -> None:
    """Somebody at the site must tell the coordinator what to change."""
    everyone = frozenset(NAMES)
    near = study_of(Splits(validation=0.175), "near")
    with pytest.raises(SettingError) as caught:
        refuse_near_copy(near, [STUDY], lambda _: everyone, "secret", 40)
    text = str(caught.value)
    for words in ("near and tiny", STUDY.digest[:12], "policy.minimum_support", "[splits]"):
        assert words in text, words
    assert not any(name in text for name in NAMES)


def test_every_earlier_study_is_compared_with(federation: Any) -> None:
    """The last one may be far away, and the one before it a hair beside."""
    everyone = frozenset(NAMES)
    far, near = study_of(Splits(), "far"), study_of(Splits(), "near")
    of = {"new": everyone, "near": frozenset(NAMES[1:]), "far": frozenset()}
    for earlier in ([near, far], [far, near]):
        with pytest.raises(SettingError, match="new and near"):
            refuse_near_copy(
                study_of(Splits(), "new"), earlier, lambda study: of[study.name], "secret", MINIMUM
            )


# Censuses.


@contextmanager
def books() -> Iterator[Censuses]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield Censuses(folder / FILE)
    shutil.rmtree(folder)


def admitted(censuses: Censuses, who: frozenset[str], least: int = MINIMUM) -> bool:
    try:
        censuses.admit(who, least)
    except Refusal as refusal:
        assert refusal.code == "COHORT_TOO_SMALL"
        return False
    return True


@given(st.lists(people, min_size=1, max_size=6))
@quick
def test_no_two_censuses_that_left_differ_by_a_few(asked: list[frozenset[str]]) -> None:
    """Not only of neighbours: the first and the tenth are as good a pair as any."""
    left: list[frozenset[str]] = []
    with books() as censuses:
        for who in asked:
            near = any(0 < len(who ^ earlier) < MINIMUM for earlier in left)
            # whom an earlier census held exactly is counted again; nothing new is told
            assert admitted(censuses, who) == (who in left or not near)
            if who in left or not near:
                left.append(who)
    assert all(len(a ^ b) == 0 or len(a ^ b) >= MINIMUM for a in left for b in left)


def test_a_census_that_is_withheld_leaves_nothing_to_compare_with(tmp_path: Path) -> None:
    """Otherwise a site that grows by ones would in the end be compared with what never left."""
    censuses = Censuses(tmp_path / FILE)
    censuses.admit(frozenset(NAMES[:20]), MINIMUM)
    before = censuses.path.read_bytes()
    assert not admitted(censuses, frozenset(NAMES[:24]))
    assert admitted(censuses, frozenset(NAMES[:20]))
    assert censuses.path.read_bytes() == before
    assert admitted(censuses, frozenset(NAMES[:25]))
    assert censuses.path.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.integers(0, 7), min_size=1, max_size=10))
@quick
def test_a_site_that_only_grows_is_always_answered_for(growth: list[int]) -> None:
    """Newcomers wait until enough have come; a hospital admits somebody every day."""
    here = 10
    with books() as censuses:
        counted: frozenset[str] = frozenset()
        for more in growth:
            here += more
            who = frozenset(f"p{number}" for number in range(here))
            after = censuses.without_newcomers(who, MINIMUM)
            assert counted <= after <= who
            assert len(who - after) < MINIMUM  # nobody waits behind more
            assert admitted(censuses, after)
            counted = after


@given(st.lists(people, max_size=4), people)
@quick
def test_newcomers_wait_and_nobody_else(before: list[frozenset[str]], who: frozenset[str]) -> None:
    """Who was counted once is left out of no later census of theirs."""
    with books() as censuses:
        left = [each for each in before if admitted(censuses, each)]
        found = censuses.without_newcomers(who, MINIMUM)
    assert found <= who
    assert found == who or (found in left and len(who - found) < MINIMUM)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[{"time": 1}]', b"\xff", b"[" * 100_000])
def test_damaged_books_are_said_and_not_begun_anew(tmp_path: Path, content: bytes) -> None:
    """An empty book would let the near copy of a census out."""
    censuses = Censuses(tmp_path / FILE)
    censuses.path.write_bytes(content)
    for act in (censuses.admit, censuses.without_newcomers):
        with pytest.raises(FolderError, match=r"censuses\.json cannot be read.*backup"):
            act(frozenset(NAMES), MINIMUM)
    assert censuses.path.read_bytes() == content
