"""Draws of a protocol: people are parted before images are drawn, and nobody judges what saw her."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.data.cohort import Cohort
from client.learning.resampling import (
    People,
    secret_number,
    shuffled,
    split_of_repeat,
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


def people_of(one: Cohort) -> People:
    return People.labelled(one, "diagnosis", SPLITS)


def drawn(one: Cohort, size: int = 50, seed: int = 0, **more: Any) -> Split:
    generator = np.random.default_rng(seed)
    return split_of_repeat(protocol(**more), people_of(one), size, generator)


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
