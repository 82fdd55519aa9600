"""`callosum study plan` says what a run will cost, and what a budget buys, before anyone trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.errors import SettingError
from common.privacy.accounting import epsilon
from common.privacy.cost import cost_of
from common.privacy.plan import plan_for
from server import cli as server_cli
from server import privacy_plan

PRIVATE = {"privacy": {"unit": "participant", "people_per_step": 8, "noise": 1.5, "epsilon": 3.0}}
CENSUS = {
    "alpha": {"role": "train", "refused": "", "participants": {"scans": 120}},
    "beta": {"role": "train", "refused": "PAUSED", "participants": {}},
    "gamma": {"role": "train", "refused": "", "participants": {"scans": 40}},
    "omega": {"role": "heldout", "refused": "", "participants": {"scans": 90}},
}


@pytest.fixture
def made(federation: Any) -> Any:
    return federation({**PRIVATE, "pretraining.rounds": 10})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the command prints, on a screen that is wide enough."""
    screen = Console(record=True, width=200)
    monkeypatch.setattr(server_cli, "console", screen)

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(server_cli.study_app, ["plan", *map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, screen.export_text() + done.output

    return run


def test_a_census_gives_the_people_of_those_that_train():
    """Whoever declined, judges, or holds nothing has no privacy to plan."""
    assert privacy_plan.people_of(None, CENSUS) == {"alpha": 120, "gamma": 40}


def test_the_plan_names_each_sites_epsilon_and_who_would_decline(made, shown):
    """The small site pays most: it is the one that leaves in the middle of a run."""
    study = made.study
    code, text = shown(made.study_file, "--people", 400, "--people", 40)
    assert code == 0
    large, small = plan_for(study, 400), plan_for(study, 40)
    assert small.after(10) > large.after(10)
    cost = cost_of(study, small.learners)
    ten = cost.model_copy(update={"steps": 10 * cost.steps})
    assert small.after(10) == epsilon([ten], cost.delta) > 3.0
    for plan in (large, small):
        for words in (
            f"{plan.people} people",
            f"of {plan.people}",
            f"{plan.after(10):.3g}",
            f"{plan.noise:.4g}",
        ):
            assert words in text
    declined = f"40 people would decline with BUDGET_EXHAUSTED after {small.affordable} of 10"
    assert declined in " ".join(text.split())
    assert "a round counts with 3 of 3 sites" in " ".join(text.split())


def test_another_cap_is_planned_for_by_hand(made, shown):
    """What would epsilon 1 ask for, before the study file says so."""
    _, text = shown(made.study_file, "--people", 400, "--epsilon", 1)
    assert f"{plan_for(made.study, 400, 1.0).noise:.4g}" in text
    _, text = shown(made.study_file, "--people", 400, "--epsilon", 0)
    assert "no cap" in text


def test_many_sites_have_a_line_each_and_the_dearest_a_column(made, monkeypatch):
    """A consortium of hundreds must still be read on one screen."""
    monkeypatch.setattr(privacy_plan, "_SHOWN", 2)
    found = privacy_plan.plans(made.study, {f"s{n}": n for n in (20, 80, 30)}, None, Path("s"))
    rows = list(privacy_plan.rows(found))
    assert [bool(row[3]) for row in rows] == [True, False, True]  # the tighter epsilon
    columns, lines = privacy_plan.rounds(found)
    assert columns == ("after orders", "s20", "s30")
    assert {len(line) for line in lines} == {3}


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({"privacy": {}}, ["--people", 40], 'privacy.unit is "none"'),
        ({}, [], "nobody is given"),
        ({}, ["--people", 1], "a site of 1 people is given; at least 2"),
        ({}, ["--people", -5], "at least 2 are needed"),
        ({}, ["--people", 40, "--epsilon", "nan"], "--epsilon is nan"),
        ({}, ["--people", 40, "--epsilon", "inf"], "--epsilon is inf"),
    ],
)
def test_what_cannot_be_planned_is_said(made, shown, changes, words, said):
    """One sentence with the remedy, not a table of nothing."""
    made.changes.update(changes)
    with pytest.raises(SettingError, match=said):
        shown(made.study_file, *words)
