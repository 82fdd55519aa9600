"""Who is trained on: nobody whose gradient would be hers alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.learning.support import learnt_from

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
