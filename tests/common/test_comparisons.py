"""Which models a study may train beside the federated one, and which ways may begin from them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from common.comparisons import brings_arrays
from common.errors import SettingError
from common.explain import explain

AGE = {"comparisons": {"single_site": True, "pooled": True, "targets": {"age-only": ["age"]}}}
TASK = {"name": "dementia", "target": "diagnosis"}


def study(federation: Callable[..., Any], *methods: str, **changes: Any) -> Any:
    task = {**TASK, "methods": list(methods)}
    return federation({**deepcopy(AGE), "finetuning": [task], **changes}).study


def test_a_way_may_begin_from_every_model_that_a_run_trains(federation: Any) -> None:
    """The paper's question is which pretraining helps; each answer is a way of its own."""
    ways = ("pretrained/full", "pooled/full", "single-site/frozen", "age-only/lora")
    made = study(federation, *ways)
    assert made.models >= {"federated", "pooled", "single-alpha", "single-beta", "age-only"}
    assert set(made.learnt_by("age-only")) == {"age"}
    assert set(made.learnt_by("single-alpha")) == set(made.learnt_by("federated")) == {"age", "sex"}
    assert "age-only, which learns age alone" in explain(made)


def test_what_a_model_of_some_targets_learns_is_part_of_what_is_approved(federation: Any) -> None:
    """A site must not find itself in the rounds of a model that it never read of."""
    made = federation(deepcopy(AGE))
    digests = {made.study.digest}
    for targets in ({}, {"age-only": ["sex"]}, {"young": ["age"]}):
        made.changes["comparisons"] = {"targets": targets}
        digests.add(made.study.digest)
    made.changes.update(finetuning=[TASK | {"methods": ["linear"]}], sites={
        "train": ["alpha"], "heldout": ["omega"],
    })  # fmt: skip
    for more in ({}, {"at": "heldout"}, {"each_class": True}):
        made.changes["protocols"] = [
            {"name": "few", "task": "dementia", "scheme": "subjects", "sizes": [2], **more}
        ]
        digests.add(made.study.digest)
    assert len(digests) == 7


def test_only_starts_from_nothing_bring_no_arrays() -> None:
    """A site must know from the order alone whether it is to wait for a network."""
    starts = ("", "scratch", "pretrained", "pooled", "single-site", "age-only")
    assert [brings_arrays(start) for start in starts] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("way", "changes", "told"),
    [
        ("sex-only/full", {}, 'begins a way with "sex-only"; known are .*, age-only'),
        ("pooled/full", {"comparisons.pooled": False}, "comparisons.pooled must be true"),
        ("single-site/full", {"comparisons.single_site": False}, "comparisons.single_site must"),
        ("pooled/full", {"sites": {"train": ["alpha"]}}, "one site trains, whose model is"),
        ("pooled/full", {"aggregation.normalisation": "silobn"}, "silobn"),
        ("age-only/full", {"pretraining.sampling": "classes:sex"}, "does not learn sex"),
    ],
)  # fmt: skip
def test_a_way_from_a_model_that_no_run_trains_is_refused(
    federation: Any, way: str, changes: dict[str, Any], told: str
) -> None:
    """Else hours of training would end in a table with an empty line."""
    with pytest.raises(SettingError, match=told):
        study(federation, way, **changes)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ({"age-only": ["size"]}, "names size; pretraining targets are age, sex"),
        ({"age-only": ["diagnosis"]}, "names diagnosis; pretraining targets are age, sex"),
        ({"age-only": ["age", "age"]}, "lists something twice"),
        ({"both": ["sex", "age"]}, "that is the federated model itself"),
        ({"none": []}, "at least 1 item"),
        *(({name: ["age"]}, "means something else") for name in (
            "federated", "pretrained", "scratch", "pooled", "linear", "closed", "single-alpha",
            "single-site", "site-own", "training-age", "tuned-alpha", "age-linear", "age-mean",
        )),
        ({"a" * 32: ["age"]}, "pattern"),
        ({"../up": ["age"]}, "pattern"),
    ],
)  # fmt: skip
def test_models_of_some_targets_have_a_name_and_targets_of_their_own(
    federation: Any, targets: Any, told: str
) -> None:
    """The name becomes a folder and a word in results; the targets must make another model."""
    with pytest.raises(SettingError, match=told):
        study(federation, "scratch/full", **{"comparisons.targets": targets})


def test_models_of_some_targets_need_rounds_and_labels(federation: Any) -> None:
    """Sums settle each target by itself, and a mask learns no target at all."""
    ridge = {
        "backbone": {"name": "linear"}, "objective": {"name": "ridge", "targets": ["age", "sex"]},
        "pretraining": {"rounds": 0},
    }  # fmt: skip
    with pytest.raises(SettingError, match=r"pretraining\.rounds is 0"):
        study(federation, "scratch/frozen", **ridge)


def test_two_ways_that_results_would_call_alike_are_refused(federation: Any) -> None:
    """`a-b/c` and `a/b-c` would both be the rival `a-b-c`."""
    with pytest.raises(SettingError, match="would call age-only-last-blocks"):
        study(
            federation, "age/only-last-blocks", "age-only/last-blocks",
            **{"comparisons.targets": {"age-only": ["age"], "age": ["age"]}},
        )  # fmt: skip


def test_heads_are_judged_elsewhere_only_where_they_are_sent_and_shared(federation: Any) -> None:
    """A head on a site's own backbone would need that backbone, which is no one else's."""

    made = federation(deepcopy(AGE))

    def cross(then: list[str], *ways: str) -> Any:
        made.changes["finetuning"] = [{**TASK, "methods": list(ways), "then": then}]
        return made.study

    assert cross(["send", "cross"], "single-site/frozen", "age-only/frozen").finetuning
    with pytest.raises(SettingError, match="then has cross, and not send"):
        cross(["cross"], "linear")
    for way in ("single-site/frozen", "pretrained/full"):
        with pytest.raises(SettingError, match="no way ends in a head on what all sites have"):
            cross(["send", "cross"], way)
