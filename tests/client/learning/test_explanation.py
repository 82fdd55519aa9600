"""Maps are means over people, of each class apart where relevance is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.cohort import Cohort
from client.learning.explanation import maps_of
from common.errors import Refusal, SettingError
from common.network.buildable import check_networks
from common.network.tuning import build_for, task_of
from common.study import Study, parse_study

STATES = ("rest", "faces", "places")
CPU = torch.device("cpu")


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


def maps(cohort: Cohort, study: Study) -> tuple[Any, int]:
    """Of a head that reads the first column for faces, and nothing else."""
    task = task_of(study, study.finetuning[0])
    network = build_for(study, task, seed=0)
    for parameter in network.parameters():
        parameter.data.zero_()
    network.heads["state"].weight.data[1, 0] = 2.0
    return maps_of(network, cohort, np.arange(len(cohort.participants)), task, CPU)


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
        "backbone": {"name": "sfcn", "channels": [2, 4], "top": 4},
    }
    with pytest.raises(SettingError, match=r'finetuning\.0\.methods.*BatchNorm3d.*"gradients"'):
        check_networks(study_of(**brain))
    check_networks(study_of("gradients", **brain))
    check_networks(study_of())
