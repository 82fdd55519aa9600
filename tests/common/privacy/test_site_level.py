"""What a study that hides whole sites must have, and what its noise is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import SettingError
from common.explain import explain
from common.network.buildable import check_networks
from common.privacy.accounting import epsilon
from common.privacy.cost import cost_of
from common.privacy.plan import plan_for
from common.privacy.site_level import deviation
from common.study import Study, parse_study
from tests.conftest import FEATURES, overridden

SITES = [f"site-{n}" for n in range(8)]


def study_of(**changes: Any) -> Study:
    base = {
        "sites.train": SITES,
        "secure_sums": {"on": True},
        "privacy": {"unit": "site", "clip": 1.0, "noise": 1.0},
        "aggregation": {"normalisation": "groupnorm"},
    }
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_study(overridden(FEATURES, {**base, **dotted}), Path("study.toml"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"secure_sums": {"on": False}}, "set secure_sums.on = true"),
        ({"privacy__clipping": "layers"}, "privacy.clipping"),
        ({"privacy__noise": 0.0}, "no epsilon bounds"),
        ({"privacy__clip": 8.0}, "secure_sums.largest_update is 8"),
        ({"privacy__noise": 20.0}, "needs 73 at least"),
    ],
)
def test_what_would_not_hide_a_site_is_refused(changes: Any, told: str) -> None:
    """The coordinator sees single updates without secure sums; noise must fit the ring."""
    with pytest.raises(SettingError, match=told):
        study_of(**changes)


def test_statistics_of_layers_are_refused() -> None:
    """They are of any length, and a clip for weights would make them nonsense."""
    with pytest.raises(SettingError, match='"groupnorm" has no statistics'):
        check_networks(study_of(aggregation={"normalisation": "average"}))
    check_networks(study_of())


@pytest.mark.parametrize(("sites", "whole"), [(8, 5), (4, 2), (3, 1), (12, 5)])
def test_noise_is_whole_among_those_who_are_left(sites: int, whole: int) -> None:
    """In any sum that is to be had with one site's help, the others' noise is at least the study's."""
    study = study_of(
        sites__train=[f"site-{n}" for n in range(sites)],
        secure_sums={"on": True, "largest_update": 20.0},
    )
    assert deviation(study) == pytest.approx(1 / np.sqrt(whole))
    assert study.secure_sums.hidden_among(sites, 1) in (whole, 0)


def test_replacing_a_site_moves_two_clips() -> None:
    """So noise counts half; the cost tells nothing of how many people a site has."""
    study = study_of(
        privacy={"unit": "site", "noise": 3.0, "epsilon": 0.0},
        secure_sums={"on": True, "largest_update": 20.0},
    )
    assert cost_of(study, 50) == cost_of(study, 5000)
    assert (cost_of(study, 50).noise, cost_of(study, 50).rate, cost_of(study, 50).steps) == (
        1.5, 1.0, 1,
    )  # fmt: skip
    assert cost_of(study, 10**6).delta <= 1e-6


def test_a_plan_tells_the_noise_that_the_study_needs() -> None:
    """In the study's own measure: with just that, all rounds stay within the cap."""
    study = study_of(pretraining__rounds=20, privacy={"unit": "site", "epsilon": 5.0})
    needed = plan_for(study, 100).noise
    assert needed is not None
    enough = study_of(
        pretraining__rounds=20,
        privacy={"unit": "site", "epsilon": 5.0, "noise": needed},
        secure_sums={"on": True, "largest_update": 200.0},
    )
    plan = plan_for(enough, 100)
    assert plan.after(20) <= 5.0
    assert epsilon([plan.cost.model_copy(update={"steps": 21})], plan.cost.delta) > 5.0 * 0.99


def test_a_study_says_what_it_hides() -> None:
    """Who approves must not take it for a person's protection alone, nor for all that leaves."""
    told = explain(study_of())
    assert "privacy: of each site as a whole" in told
    assert "noised, summed: arrays of the network" in told
    assert "summed: numbers of scans" in told
    assert "not covered: numbers of scans, people and labels (census)" in told
    assert "no site is hidden" not in told
    bare = {"unit": "site", "noise": 0.0, "epsilon": 0.0}
    assert "no site is hidden" in explain(study_of(privacy=bare))
