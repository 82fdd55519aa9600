"""Who is trained on: nobody whose gradient would be hers alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.learning.census import settle, sum_labels
from client.learning.support import alike_or_far_apart, learnt_from
from common.network.building import build

JOINT = {
    "objective": {"name": "joint", "unlabelled": {"name": "simclr", "width": 4}},
    "augmentation": [{"name": "noise"}],
    "sites": {"train": ["alpha"]},
}


@pytest.mark.parametrize("without", [0, 1, 4, 5, 9])
def test_too_few_people_without_a_label_are_not_learnt_from_apart(
    federation: Any, without: int
) -> None:
    """A decoder or projector that one unlabelled person trains carries her scan."""
    agent = federation(JOINT).agent("alpha")
    rows = agent.cohort.indices("train", agent.study.splits)
    labels = {name: values.copy() for name, values in agent.cohort.labels.items()}
    for values in labels.values():
        values[rows[:without]] = np.nan
    cohort = replace(agent.cohort, labels=labels)
    _, chosen = learnt_from(agent.study, cohort, minimum=5)
    kept = rows if without == 0 or without >= 5 else rows[without:]
    assert chosen.tolist() == kept.tolist()


@pytest.mark.parametrize("females", [0, 1, 9, 10])
def test_sums_are_of_no_class_that_few_people_have(federation: Any, females: int) -> None:
    """Sums over one woman's features are her features, however many men there are."""
    ridge = {
        "backbone": {"name": "linear"},
        "objective": {"name": "ridge", "targets": ["age", "sex"]},
        "pretraining": {"rounds": 0},
        "sites": {"train": ["alpha"]},
    }
    agent = federation(ridge).agent("alpha")
    training = agent.cohort.indices("train", agent.study.splits)
    sex = np.ones(len(agent.cohort), dtype=np.float32)
    sex[training[:females]] = 0
    cohort = replace(agent.cohort, labels={**agent.cohort.labels, "sex": sex})
    network = build(agent.study, seed=1)
    found = settle(agent.study, agent.site, cohort, network, 1, torch.device("cpu"))
    withheld = 0 < females < agent.site.policy.minimum_support
    assert bool(found.arrays["heads/gram_sex"].any()) != withheld
    assert found.behind["heads/gram_sex"] == (0 if withheld else len(training))
    assert found.behind["heads/gram_age"] == len(training)
    assert found.reveals > 1


def test_labels_of_few_people_are_not_added_up(federation: Any) -> None:
    """A sum of three ages and their number is their mean."""
    agent = federation({"sites": {"train": ["alpha"]}}).agent("alpha")
    age = np.full(len(agent.cohort), np.nan, dtype=np.float32)
    age[agent.cohort.indices("train", agent.study.splits)[:3]] = 40.0
    cohort = replace(agent.cohort, labels={**agent.cohort.labels, "age": age})
    found = sum_labels(agent.study, agent.site, cohort)
    assert not any(array.any() for array in found.arrays.values())
    assert set(found.behind.values()) == {0}


@pytest.mark.parametrize("without", [0, 1, 9])
def test_no_two_sums_differ_by_a_few_people(federation: Any, without: int) -> None:
    """Everyone's columns less those of people with an age are the columns of who has none."""
    ridge = {
        "backbone": {"name": "linear"},
        "objective": {"name": "ridge", "targets": ["age", "sex"]},
        "pretraining": {"rounds": 0},
        "sites": {"train": ["alpha"]},
    }
    agent = federation(ridge, participants={"alpha": 200}).agent("alpha")
    training = agent.cohort.indices("train", agent.study.splits)
    age = agent.cohort.labels["age"].copy()
    age[training[:without]] = np.nan
    cohort = replace(agent.cohort, labels={**agent.cohort.labels, "age": age})
    network = build(agent.study, seed=1)
    first, second = (
        settle(agent.study, agent.site, cohort, network, number, torch.device("cpu")).arrays
        for number in (0, 1)
    )
    counts = {float(first["backbone.standardise/n"][0])}
    counts |= {float(second[f"heads/n_{name}"]) for name in ("age", "sex")}
    assert counts == {float(len(training) - without)}


def test_groups_far_apart_or_of_nobody_stay_as_they_are(federation: Any) -> None:
    """A hospital where half have a diagnosis keeps the ages of all."""
    cohort = federation({"sites": {"train": ["alpha"]}}).agent("alpha").cohort
    everyone = np.arange(len(cohort))
    groups = {"": everyone, "age": everyone[:20], "sex": everyone[:0]}
    kept = alike_or_far_apart(cohort, groups, needed=20)
    assert all(np.array_equal(kept[name], groups[name]) for name in groups)
    closer = alike_or_far_apart(cohort, groups, needed=21)
    assert np.array_equal(closer[""], everyone[:20])
    assert len(closer["sex"]) == 0


def test_what_two_groups_share_is_far_from_each_of_them(federation: Any) -> None:
    """Sixty have no age, and all of them but one no sex either: the pair of sums is about her."""
    cohort = federation({"sites": {"train": ["alpha"]}}, participants={"alpha": 300})
    cohort = cohort.agent("alpha").cohort
    everyone = np.arange(len(cohort))
    groups = {"": everyone, "age": everyone[60:], "sex": np.r_[everyone[:1], everyone[121:]]}
    alone = alike_or_far_apart(cohort, groups, needed=50)
    assert all(np.array_equal(alone[name], groups[name]) for name in groups)
    kept = alike_or_far_apart(cohort, groups, needed=50, joint=[("age", "sex")])
    both = np.intersect1d(kept["age"], kept["sex"])
    for group in kept.values():
        assert not 0 < len(np.setxor1d(group, both)) < 50


def test_sums_of_several_labels_differ_from_others_by_many_or_by_nobody(federation: Any) -> None:
    """Those with an age less those with age and sex are those without a sex: one man, perhaps."""
    combat = {
        "backbone": {"name": "linear", "harmonisation": "combat", "covariates": ["age", "sex"]},
        "objective": {"name": "ridge", "targets": ["age"]},
        "pretraining": {"rounds": 0},
        "sites": {"train": ["alpha"]},
    }
    agent = federation(combat).agent("alpha")
    training = agent.cohort.indices("train", agent.study.splits)
    sex = agent.cohort.labels["sex"].copy()
    sex[training[3]] = np.nan
    cohort = replace(agent.cohort, labels={**agent.cohort.labels, "sex": sex})
    network = build(agent.study, seed=1)
    device = torch.device("cpu")
    harmonising, products = (
        settle(agent.study, agent.site, cohort, network, number, device) for number in (0, 2)
    )
    place = "backbone.standardise.seen/"
    assert harmonising.arrays[f"{place}n"] == products.arrays["heads/n_age"] == len(training) - 1
    assert harmonising.behind[f"{place}sum"] == len(training) - 1
