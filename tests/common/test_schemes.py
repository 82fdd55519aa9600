"""What a study may say of its protocols, and what it is told where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from client.learning.linear import STRENGTHS
from common.errors import SettingError
from common.schemes import SETTINGS, Protocol, seed_of_repeat

TASK = {
    "name": "dementia", "target": "diagnosis", "learning_rates": [1e-3, 1e-2, 3e-2],
    "weight_decays": [0.0, 1e-3, 1e-2],
}  # fmt: skip
DRAWS = {"name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50, 100]}


def study(federation: Callable[..., Any], *protocols: Any, **task: Any) -> Any:
    changes = {"finetuning": [{**TASK, **task}], "protocols": list(protocols)}
    return federation({**changes, "sites": {"train": ["alpha"]}}).study


def test_every_way_has_as_many_settings_as_the_linear_model_has_penalties() -> None:
    """The paper's comparison is fair because each of its three models tries nine."""
    assert len(STRENGTHS) == SETTINGS == 9


def test_a_grid_of_another_number_is_refused_with_both_numbers(federation: Any) -> None:
    """One rate for the network against nine penalties is no comparison."""
    with pytest.raises(SettingError, match=r"1 learning_rates and 3 .* 3 settings for pretrained/"):
        study(federation, DRAWS, learning_rates=[1e-3])


def test_ways_without_a_network_need_no_grid(federation: Any) -> None:
    """Linear models and frozen features have penalties."""
    ways = ["linear", "pretrained/frozen"]
    assert study(federation, DRAWS, methods=ways, learning_rates=[1e-3]).protocols


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "stroke"}, 'protocols.0.task is "stroke"; the study\'s tasks are dementia'),
        ({"name": "dementia"}, 'name is "dementia" as an earlier task or protocol is'),
        ({"sizes": [50, 50]}, "sizes lists something twice"),
        ({"sizes": [9]}, "sizes has 9; resampled takes 10"),
        ({"scheme": "fractions", "sizes": [101]}, "sizes has 101; fractions takes 1 to 100"),
        ({"scheme": "folds"}, "folds learn from all"),
        ({"scheme": "folds", "sizes": [], "repeats": 300}, "1,500 trainings; at most 1,000"),
        ({"sizes": []}, "sizes"),
        ({"repeats": 0}, "repeats"),
        ({"scheme": "resample"}, "resampled"),
        ({"each_class": True}, "each_class is true; resampled counts no people by class"),
        ({"at": "heldout"}, r"at is \"heldout\", and sites\.heldout is \[\]"),
        ({"at": "elsewhere"}, "train"),
    ],
)
def test_what_cannot_be_is_named(federation: Any, changes: Any, told: str) -> None:
    """One clear error, before anything is learnt."""
    with pytest.raises(SettingError, match=told):
        study(federation, {**DRAWS, **changes})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": ["single-site/frozen"]}, "has no model of its own, and gets nobody else's"),
        ({"aggregation.normalisation": "silobn"}, "whose statistics are each training site's own"),
        ({"target": "age", "each_class": True}, "age is a number, without classes"),
        ({"backbone": {"name": "linear", "harmonisation": "combat"}}, "own location and scale"),
    ],
)
def test_what_no_held_out_site_can_learn_is_named(federation: Any, changes: Any, told: str) -> None:
    """It gets a whole network, and nothing that is some training site's own."""
    more = dict(changes)
    shots = {
        "name": "shots", "task": "dementia", "scheme": "subjects", "sizes": [5], "at": "heldout",
        "each_class": more.pop("each_class", False),
    }  # fmt: skip
    task = {**TASK, **{key: more.pop(key) for key in ("methods", "target") if key in more}}
    sites = {"sites": {"train": ["alpha", "beta"], "heldout": ["omega"]}}
    single = {"comparisons": {"single_site": True, "pooled": False}}
    with pytest.raises(SettingError, match=told):
        _ = federation(
            {"finetuning": [task], "protocols": [shots], **sites, **single, **more}
        ).study


def protocol(**more: Any) -> Protocol:
    return Protocol.model_validate({**DRAWS, **more})


def test_shares_are_of_one_order_and_folds_of_one_parting() -> None:
    """Nested, and each person in one fold: both need the same draw."""
    shares = protocol(scheme="fractions", sizes=[10, 50])
    assert seed_of_repeat(7, "alpha", shares, 10, 3) == seed_of_repeat(7, "alpha", shares, 50, 3)
    folds = protocol(scheme="folds", sizes=[], folds=4)
    seeds = [seed_of_repeat(7, "alpha", folds, 0, number) for number in range(8)]
    assert len(set(seeds)) == 2
    assert seeds[0] == seeds[3] != seeds[4]


def test_no_two_repeats_share_a_seed() -> None:
    """Nor two sizes, sites or protocols."""
    seeds = {
        seed_of_repeat(7, site, protocol(name=name), size, repeat)
        for site in ("alpha", "beta")
        for name in ("draws", "more")
        for size in (50, 100)
        for repeat in range(50)
    }
    assert len(seeds) == 400
