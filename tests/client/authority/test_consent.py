"""What a hospital reads before it approves: how many numbers a protocol tells about its people."""

from __future__ import annotations

from typing import Any

import pytest

from client.authority.consent import consent
from client.site import load_site
from common.explain import explain

TASK = {
    "name": "dementia", "target": "diagnosis", "repeats": 0,
    "methods": ["linear", "pretrained/frozen"],
}  # fmt: skip
DRAWS = {"name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50, 100, 200]}


@pytest.fixture
def made(federation: Any) -> Any:
    changes = {"finetuning": [TASK], "protocols": [DRAWS], "sites": {"train": ["alpha"]}}
    return federation(changes)


def lines(made: Any, **policy: Any) -> str:
    site = load_site(made.sites / "alpha" / "site.toml")
    strict = site.model_copy(update={"policy": site.policy.model_copy(update=policy)})
    return "\n".join(consent(strict, made.study).lines)


def test_a_hospital_reads_how_many_draws_of_its_people_are_measured(made: Any) -> None:
    """Many numbers about overlapping groups are more than one: that is agreed to, or not."""
    text = lines(made)
    assert "leaves after the protocol draws, for each of 2 ways and 3 sizes" in text
    assert "6 orders, 600 draws in all" in text
    assert "training orders in one run: 8 (2 rounds, 6 of protocols)" in text
    assert "fine-tuning" not in text  # its task is learnt in the protocol alone


def test_a_policy_without_protocols_is_said_to_refuse_them(made: Any) -> None:
    """Before a night of other work, and not after it."""
    assert "refused with POLICY: protocol" in lines(
        made, orders=("census", "overlap", "settle", "train")
    )


def test_a_study_is_explained_with_its_protocols(made: Any) -> None:
    """What `callosum study check` prints for the coordinator."""
    text = explain(made.study)
    assert "protocol draws: each training site compares linear, pretrained/frozen" in text
    assert "100 times from 50, 100, 200 images" in text
    assert "fine-tuning dementia" not in text


def test_a_hospital_reads_what_of_a_private_round_is_not_noised(federation: Any) -> None:
    """Losses of whom it trains on stay; all that epsilon does not bound is listed."""
    private = {
        "sites": {"train": ["alpha"]}, "privacy": {"unit": "participant"},
        "aggregation": {"normalisation": "groupnorm"},
    }  # fmt: skip
    text = lines(federation(private))
    assert "the sums that validation losses and validation metrics are made of" in text
    assert "noised: arrays of the network" in text
    assert "not covered: metrics and losses of validation participants" in text


def test_a_judge_reads_that_it_would_learn_from_its_own_people(federation: Any) -> None:
    """Whoever agreed to judge has not agreed to that; and these orders count, too."""
    shots = {
        "name": "shots", "task": "dementia", "scheme": "subjects", "sizes": [5, 10],
        "at": "heldout", "repeats": 20,
    }  # fmt: skip
    sites = {"train": ["alpha"], "heldout": ["omega"]}
    made = federation({"finetuning": [TASK], "protocols": [DRAWS, shots], "sites": sites})
    judge = load_site(made.sites / "omega" / "site.toml")
    text = "\n".join(consent(judge, made.study).lines)
    assert "this site, which judges, learns from some of its own people, for itself alone" in text
    assert "4 orders, 80 draws in all" in text
    assert "training orders in one run: 4 (4 of protocols)" in text
    assert "protocol draws" not in text
    assert "protocol shots" not in lines(made)
    strict = judge.policy.model_copy(update={"orders": ("census", "overlap", "evaluate")})
    strictly = consent(judge.model_copy(update={"policy": strict}), made.study).lines
    assert "refused with POLICY: protocol (policy.orders)" in strictly
    assert "protocol shots: each held-out site compares" in explain(made.study)
