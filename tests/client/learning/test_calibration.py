"""A judge that takes the mean of its scores off them, told by people without their labels."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from client.learning.calibration import calibrations, centred, far_apart
from common.errors import SettingError
from common.network.building import build

ASKED = {"evaluation.calibration": [12], "sites.heldout": ["omega"], "comparisons.pooled": False}


@pytest.fixture(scope="module")
def made(module_federation: Any) -> Any:
    return module_federation(ASKED)


def test_a_scanner_that_moves_all_scores_makes_nobody_ill(made: Any) -> None:
    """Everybody is said to be male until the site's own scores say where its middle is."""
    judge = made.agent("omega")
    sex, random = judge.cohort.labels["sex"], np.random.default_rng(0)
    said = expit(3.0 + np.where(sex > 0.5, 1.0, -1.0) + random.normal(0, 0.8, len(sex)))
    assert balanced_accuracy_score(sex, said > 0.5) == 0.5
    network = build(judge.study, seed=0)
    [one] = calibrations(judge.study, judge.site, judge.cohort, network, {"sex": said})
    assert (one.people, len(one.others)) == (12, 28)
    there = sex[one.others]
    assert balanced_accuracy_score(there, one.said["sex"] > 0.5) > 0.75
    ranked = [roc_auc_score(there, values) for values in (said[one.others], one.said["sex"])]
    assert ranked[0] == pytest.approx(ranked[1])  # inside a site ranks are what they were


def test_no_label_is_read(made: Any) -> None:
    """Calibration without labels must be just that: other labels, the same scores."""
    judge = made.agent("omega")
    said = np.linspace(0.1, 0.9, len(judge.cohort))
    network = build(judge.study, seed=0)
    turned = replace(judge.cohort, labels={n: 1 - v for n, v in judge.cohort.labels.items()})
    told = []
    for cohort in (judge.cohort, turned):
        [one] = calibrations(judge.study, judge.site, cohort, network, {"sex": said})
        told.append(one.said["sex"])
    np.testing.assert_array_equal(*told)


def test_scores_at_the_very_end_stay_finite() -> None:
    """A network that is sure of everybody has no log-odds of its own."""
    told = centred(np.array([0.0, 1.0, 1.0, 0.5]), np.arange(4))
    assert np.isfinite(told).all()
    assert (np.diff(told[[0, 3, 1]]) > 0).all()


@pytest.mark.whole
def test_results_name_the_calibrated_model_and_leave_numbers_alone(made: Any) -> None:
    """Whoever reads the table sees that the site's own scans were looked at."""
    run = made.simulate()
    with (run.folder / "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] == "federated+unlabelled-12"]
    assert {row["target"] for row in rows} == {"sex"}
    assert {"auc", "balanced_accuracy", "brier"} <= {row["metric"] for row in rows}
    assert {row["n_participants"] for row in rows} == {"28"}


def test_a_study_of_numbers_alone_has_nothing_to_centre(federation: Any) -> None:
    """It would be judged twice, and be the same."""
    with pytest.raises(SettingError, match="nothing of the study can be calibrated"):
        _ = federation({**ASKED, "objective.targets": ["age"]}).study


def test_numbers_of_people_lie_far_apart() -> None:
    """Two that differ by one person would tell of her."""
    assert far_apart([30, 12, 13], 10) == [12, 30]
