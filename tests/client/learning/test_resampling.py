"""Draws of a protocol: people are parted before images are drawn, and nobody judges what saw her."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from client.data.cohort import Cohort
from client.learning.resampling import (
    Draw,
    People,
    secret_number,
    shuffled,
    tells_apart,
)
from client.learning.ways import Split
from common.errors import Refusal
from common.schemes import Protocol
from common.sections import Splits, Target

SPLITS = Splits(validation=0.2, test=0.3)
BINARY = Target(kind="binary", classes=("control", "ad"))


def protocol(**more: Any) -> Protocol:
    table = {"name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50], **more}
    return Protocol.model_validate(table)


def cohort(people: int = 70, *, scans: int = 2, unknown: int = 0, secret: str = "ours") -> Cohort:
    """Every person has `scans` scans; the last `unknown` people have no label."""
    whose = np.repeat(np.arange(people), scans)
    label = (whose % 2).astype(np.float32)
    label[whose >= people - unknown] = np.nan
    return Cohort(
        samples=np.zeros((len(whose), 1), dtype=np.float32),
        layout="table",
        participants=tuple(f"sub-{n:03d}" for n in whose),
        scans=tuple(f"scan-{n:03d}" for n in range(len(whose))),
        labels={"diagnosis": label},
        measures=None,
        findings=(),
        contents=tuple(str(n) for n in range(len(whose))),
        secrets=(secret,) * len(whose),
    )


def people_of(one: Cohort, *, seen: bool = True) -> People:
    return People.labelled(one, "diagnosis", SPLITS, seen=seen)


def drawn(one: Cohort, size: int = 50, seed: int = 0, **more: Any) -> Split:
    number, people = more.pop("number", 0), people_of(one, seen=more.pop("seen", True))
    draw = Draw(
        protocol=protocol(**more), people=people, size=size, number=number, seed=seed,
        labels=one.labels["diagnosis"], secret=secret_number(one),
    )  # fmt: skip
    return draw.split()


def named(one: Cohort, indices: Any) -> set[str]:
    return {one.participants[index] for index in indices}


@pytest.mark.parametrize("pool", ["drawn", "fixed"])
def test_a_person_is_in_one_part_of_a_repeat(pool: str) -> None:
    """Images are drawn with replacement: were they parted first, twins would judge each other."""
    one = cohort()
    for seed in range(20):
        split = drawn(one, seed=seed, pool=pool)
        parts = [named(one, part) for part in (split.train, split.validation, split.test)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


@pytest.mark.parametrize("pool", ["drawn", "fixed"])
def test_nobody_judges_whom_the_backbone_was_trained_on(pool: str) -> None:
    """Her label was not used in pretraining, but her scan was, and it is no longer unseen."""
    one = cohort()
    seen = named(one, one.indices("train", SPLITS))
    for seed in range(20):
        split = drawn(one, seed=seed, pool=pool)
        assert not seen & (named(one, split.test) | named(one, split.validation))


def test_sizes_are_the_papers() -> None:
    """n images learn, n/5 choose and n/5 judge, drawn with replacement."""
    split = drawn(cohort(), size=200)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [200, 40, 40]
    assert len(np.unique(split.train)) < 200


def test_a_fixed_pool_is_the_studys_test_split_each_time() -> None:
    """What is judged on the same people may be compared person by person."""
    one = cohort()
    wanted = one.indices("test", SPLITS)
    for seed in range(3):
        assert np.array_equal(drawn(one, seed=seed, pool="fixed").test, wanted)


def test_those_whom_nobody_trained_on_change_places_from_repeat_to_repeat() -> None:
    """One split drawn a hundred times would tell of one split."""
    one = cohort()
    judges = {frozenset(named(one, drawn(one, seed=seed).test)) for seed in range(10)}
    assert len(judges) == 10
    everyone = set().union(*judges)
    chooses = named(one, one.indices("validation", SPLITS))
    assert everyone & chooses  # whoever chose in one repeat judges in another


SCHEMES: dict[str, dict[str, Any]] = {
    "resampled": {},
    "fixed": {"pool": "fixed"},
    "subjects": {"scheme": "subjects", "sizes": [5]},
    "fractions": {"scheme": "fractions", "sizes": [50]},
    "folds": {"scheme": "folds", "sizes": []},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_every_scheme_a_person_has_one_part_and_nobody_judges_unseen_scans_twice(
    scheme: str,
) -> None:
    """Whoever learnt, chose or was pretrained on, and then judged, would flatter every way."""
    one = cohort()
    seen = named(one, one.indices("train", SPLITS))
    for seed in range(5):
        split = drawn(one, seed=seed, number=seed, size=5 if scheme == "subjects" else 50,
                      **SCHEMES[scheme])  # fmt: skip
        learn, choose, judge = (
            named(one, part) for part in (split.train, split.validation, split.test)
        )
        assert not learn & (choose | judge)
        assert not choose & judge
        assert not seen & (judge | choose)


@pytest.mark.parametrize("size", [1, 5, 20])
def test_subjects_are_so_many_people_with_all_of_their_images(size: int) -> None:
    """DeepLight's question is how many people, each with hundreds of volumes, are enough."""
    one = cohort(scans=3)
    split = drawn(one, size=size, scheme="subjects", sizes=[size])
    assert len(named(one, split.train)) == size
    assert len(split.train) == 3 * size
    assert len(named(one, split.validation)) == min(size, len(named(one, split.validation)))


def test_as_many_people_judge_as_the_protocol_says_and_the_same_each_time() -> None:
    """A hundred fixed people: repeats then differ in who learnt alone."""
    one = cohort(200)
    asked = {"scheme": "subjects", "sizes": [3], "judges": 30}
    judges = [named(one, drawn(one, size=3, seed=seed, **asked).test) for seed in range(4)]
    assert all(found == judges[0] for found in judges)
    assert len(judges[0]) == 30
    with pytest.raises(Refusal, match="NO_DATA"):
        drawn(one, size=3, **{**asked, "judges": 190})


def test_more_people_than_there_are_is_a_refusal() -> None:
    """A draw of all would be called by another number."""
    with pytest.raises(Refusal, match="NO_DATA"):
        drawn(cohort(), size=69, scheme="subjects", sizes=[69])


def test_smaller_shares_are_inside_larger_ones() -> None:
    """A curve over shares then shows what more people add, and not who they are."""
    one = cohort()
    shares = [10, 25, 50, 100]
    asked = {"scheme": "fractions", "sizes": shares}
    found = [named(one, drawn(one, size=share, **asked).train) for share in shares]
    assert all(small < large for small, large in itertools.pairwise(found))
    assert found[-1] == named(one, one.indices("train", SPLITS))


def test_each_unseen_person_judges_in_one_fold_and_chooses_in_another() -> None:
    """Five folds: everybody judges once, and never who chose the epoch that is judged."""
    one = cohort()
    splits = [drawn(one, number=number, scheme="folds", sizes=[]) for number in range(5)]
    unseen = named(one, np.concatenate([one.indices(p, SPLITS) for p in ("validation", "test")]))
    judges = [named(one, split.test) for split in splits]
    assert set().union(*judges) == unseen
    assert sum(map(len, judges)) == len(unseen)
    assert [named(one, split.validation) for split in splits] == [*judges[1:], judges[0]]
    assert named(one, splits[0].train) >= named(one, one.indices("train", SPLITS))


def test_who_has_no_label_is_in_no_part() -> None:
    """A draw of her would say nothing, and her place is another's."""
    one = cohort(unknown=20)
    split = drawn(one, size=300)
    label = one.labels["diagnosis"]
    assert not np.isnan(label[np.concatenate([split.train, split.validation, split.test])]).any()


def test_too_few_people_are_a_refusal() -> None:
    """Nothing is drawn from nobody."""
    one = cohort()
    everyone = one.indices("train", SPLITS)
    with pytest.raises(Refusal, match="NO_DATA"):
        drawn(one.subset(everyone))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_part_of_one_class_says_nothing(part: str) -> None:
    """Nine settings that validation cannot tell apart are not chosen among."""
    one = cohort()
    split, label = drawn(one), one.labels["diagnosis"]
    assert tells_apart(BINARY, label, split)
    parts = {name: getattr(split, name) for name in ("train", "validation", "test")}
    parts[part] = parts[part][label[parts[part]] == 0]
    assert not tells_apart(BINARY, label, Split(**parts))


def test_shuffled_labels_go_from_person_to_person_whole() -> None:
    """Two scans of one person that disagree would be another task; counts stay as they were."""
    one = cohort(unknown=5)
    label, people = one.labels["diagnosis"], people_of(one)
    dealt = shuffled(label, people, np.random.default_rng(0))
    assert np.array_equal(np.isnan(dealt), np.isnan(label))
    assert np.nansum(dealt) == np.nansum(label)
    assert all(len(set(dealt[people.of == who])) == 1 for who in people.of[people.everyone])
    assert (dealt != label)[people.everyone].mean() > 0.3


def test_draws_hang_on_the_sites_secret() -> None:
    """A coordinator who knows names could otherwise compute who judged, and solve for one of them."""
    assert secret_number(cohort(secret="ours")) != secret_number(cohort(secret="theirs"))


def test_where_nobody_was_trained_on_every_person_judges_in_one_fold() -> None:
    """A site that is held out loses none of its people to a training that it had no part in."""
    one = cohort()
    folds = [
        drawn(one, size=0, scheme="folds", sizes=[], folds=5, number=number, seen=False)
        for number in range(5)
    ]
    judged = [named(one, fold.test) for fold in folds]
    assert set().union(*judged) == set(one.participants)
    assert sum(map(len, judged)) == 70
    for fold in folds:
        assert len(named(one, fold.train)) == 42
        assert not named(one, fold.train) & (named(one, fold.test) | named(one, fold.validation))


@pytest.mark.parametrize("seed", range(5))
def test_so_many_people_of_each_class_learn(seed: int) -> None:
    """One patient and one control: of two people drawn from all, half of the time both are one."""
    one = cohort()
    for size in (1, 3):
        split = drawn(one, size=size, seed=seed, scheme="subjects", sizes=[size], each_class=True)
        for part in (split.train, split.validation):
            for own in (0, 1):
                of = part[one.labels["diagnosis"][part] == own]
                assert len(named(one, of)) == size
                assert len(of) == 2 * size  # both of her scans
        assert np.array_equal(split.test, one.indices("test", SPLITS))


def test_a_person_of_two_classes_is_drawn_for_one_of_them() -> None:
    """A functional run shows everybody in every state: she is one of those whom size counts."""
    one = cohort()
    one.labels["diagnosis"][:] = np.arange(len(one)) % 2  # one scan of each class a person
    split = drawn(one, size=2, scheme="subjects", sizes=[2], each_class=True)
    assert len(named(one, split.train)) == 4


def test_too_few_of_a_class_are_named() -> None:
    """Or a comparison of ten and ten would be one of ten and three."""
    one = cohort()
    with pytest.raises(Refusal, match=r"labelled training participants of class 0, 40 asked"):
        drawn(one, size=40, scheme="subjects", sizes=[40], each_class=True)
