"""Maps are means over people, of each class apart where relevance is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.cohort import Cohort
from client.learning.explanation import (
    Explained,
    explained,
    explained_person,
    integrated_gradients,
)
from common import metrics
from common.errors import Refusal, SettingError
from common.network.buildable import check_networks
from common.network.tuning import build_for, task_of
from common.sections import Target
from common.study import Study, parse_study

STATES = ("rest", "faces", "places")
CPU = torch.device("cpu")
TARGET = Target(kind="categorical", classes=STATES)


def study_of(maps: str = "relevance", **changes: Any) -> Study:
    """Three states of two columns, learnt without a hidden layer."""
    tables = {
        "name": "states",
        "data": {"kind": "features", "columns": ["a", "b"]},
        "targets": {
            "age": {"kind": "regression", "unit": "years", "centre": 50, "scale": 10},
            "state": {"kind": "categorical", "classes": list(STATES)},
        },
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"], "heldout": ["there"]},
        "finetuning": [
            {"name": "states", "target": "state", "then": ["explain"], "maps": maps,
             "methods": ["scratch/full"]}
        ],
        **changes,
    }  # fmt: skip
    return parse_study(tables, Path("study.toml"))


def cohort_of(states: list[float]) -> Cohort:
    """Anna has two scans of her own, everyone else one; columns tell the state and the person."""
    people = ("anna", *(f"p{number}" for number in range(len(states) - 1)))
    people = ("anna", *people[: len(states) - 1])
    samples = np.array([[1.0 + state, 10.0 * n] for n, state in enumerate(states)], np.float32)
    return Cohort(
        samples=samples, participants=people, scans=tuple(f"s{n}" for n in range(len(states))),
        labels={"state": np.array(states, np.float32)}, measures=None, layout="table",
        findings=(), contents=tuple(map(str, range(len(states)))), secrets=("",) * len(states),
    )  # fmt: skip


def told(cohort: Cohort, study: Study, seed: int = 0) -> Explained:
    """Of a head that reads the first column for faces, and nothing else."""
    task = task_of(study, study.finetuning[0])
    network = build_for(study, task, seed=0)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.heads["state"].weight.data[1, 0] = 2.0
    return explained(network, cohort, np.arange(len(cohort.participants)), task, CPU, seed)


def maps(cohort: Cohort, study: Study) -> tuple[Any, int]:
    found = told(cohort, study)
    return found.maps, found.people


def test_every_class_has_a_map_of_its_own_samples() -> None:
    """A mean over states that point opposite ways would show neither."""
    found, people = maps(cohort_of([0, 0, 1, 2]), study_of())
    assert found.shape == (3, 2)
    # anna's two scans of rest count once; columns say 1 + state, the head reads them twice
    np.testing.assert_allclose(found[:, 0], [2.0, 4.0, 6.0], rtol=1e-3)
    np.testing.assert_array_equal(found[:, 1], 0.0)
    assert people == 1


def test_the_map_of_the_fewest_decides_whether_any_leaves() -> None:
    """One person in one of many maps is shown by it."""
    found, people = maps(cohort_of([0, 0, 1, 1, 1, 2, 2]), study_of())
    assert people == 1  # anna alone rests
    assert np.isfinite(found).all()


def test_a_class_that_nobody_has_is_said() -> None:
    """An empty map looks like a region that does not matter."""
    with pytest.raises(Refusal, match="has places") as refused:
        maps(cohort_of([0, 0, 1, 1]), study_of())
    assert refused.value.code == "NO_DATA"


def test_gradients_make_one_map_over_everyone_labelled() -> None:
    """As before there was another way; whoever has no label is in no map."""
    found, people = maps(cohort_of([0, 0, 1, 2, np.nan]), study_of("gradients"))
    assert found.shape == (2,)
    assert people == 3


def test_a_network_without_rules_is_refused_with_the_study() -> None:
    """Before any site has trained for hours."""
    brain = {
        "data": {"kind": "t1w", "shape": [32, 32, 32], "spacing_mm": 6.0},
        "backbone": {"name": "resnet", "widths": [2, 2, 4, 4]},
    }
    with pytest.raises(SettingError, match=r'finetuning\.0\.methods.*for add, done.*"gradients"'):
        check_networks(study_of(**brain))
    check_networks(study_of("gradients", **brain))
    check_networks(study_of())


def test_numbers_of_every_sample_come_with_the_maps() -> None:
    """In the order of the samples, which is that of the classes, whoever they are of."""
    found = told(cohort_of([2, 0, 1, 0, np.nan]), study_of())
    assert found.samples.tolist() == [1, 3, 2, 0]
    assert set(found.told) == set(metrics.of_maps(TARGET, by_relevance=True))
    assert all(values.shape == (4,) for values in found.told.values())
    # the head says faces of everyone, the more the larger the first column is
    chances = np.exp([2.0, 2.0, 4.0, 6.0]) / (np.exp([2.0, 2.0, 4.0, 6.0]) + 2)
    np.testing.assert_allclose(found.told[metrics.SAID], chances, rtol=1e-5)
    np.testing.assert_allclose(found.told[metrics.without(1)], 1 / 3, rtol=1e-5)


def test_what_is_drawn_at_random_is_drawn_again_alike() -> None:
    """A run that resumes sends the same numbers."""
    cohort, study = cohort_of([0, 1, 2, 0]), study_of()
    one, again, other = told(cohort, study, 1), told(cohort, study, 1), told(cohort, study, 2)
    name = metrics.without(1) + metrics.AT_RANDOM
    np.testing.assert_array_equal(one.told[name], again.told[name])
    assert (one.told[name] != other.told[name]).any()


def test_integrated_gradients_sum_to_what_was_gained() -> None:
    """Completeness, within what sixteen steps of a curve leave out."""
    study = study_of("gradients")
    network = build_for(study, task_of(study, study.finetuning[0]), seed=0).eval()
    network.heads["state"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    said, before = network.predict(x)["state"], network.predict(torch.zeros_like(x))["state"]
    gained = (said - before).gather(1, said.argmax(1, keepdim=True))[:, 0].detach()
    found = integrated_gradients(network, x, "state")
    torch.testing.assert_close(found.sum(1), gained, rtol=1e-2, atol=1e-3)


def test_a_persons_own_maps_are_of_her_samples_alone() -> None:
    """Anna's two scans of rest, and nobody else's; of what she never did there is none."""
    study, cohort = study_of(), cohort_of([0, 0, 1, 2])
    task = task_of(study, study.finetuning[0])
    network = build_for(study, task, seed=0)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.heads["state"].weight.data[1, 0] = 2.0
    ((group, volume),) = explained_person(network, cohort, "anna", task, CPU)
    assert group == "rest"
    np.testing.assert_allclose(volume, [2.0, 0.0], rtol=1e-3)
    assert list(explained_person(network, cohort, "nobody", task, CPU)) == []
