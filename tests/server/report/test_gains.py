"""The first lines of a run say what a consortium gains, and no more than its intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.protocol.orders import Measurement
from common.study import Study, parse_study
from server.report.comparisons import comparisons
from server.report.gains import gains
from server.report.paired_tables import paired_tables

TABLES: dict[str, Any] = {
    "name": "trial",
    "data": {"kind": "t1w", "shape": [20, 24, 20], "spacing_mm": 8.0},
    "targets": {
        "sex": {"kind": "binary", "classes": ["female", "male"], "weight": 0.5},
        "age": {"kind": "regression", "unit": "years", "weight": 1.0},
        "diagnosis": {"kind": "binary", "classes": ["control", "ad"]},
    },
    "backbone": {"name": "sfcn", "channels": [4], "top": 4},
    "objective": {"name": "multitask"},
    "sites": {"train": ["amber", "birch"], "heldout": ["elm"]},
    "finetuning": [{"name": "dementia", "target": "diagnosis"}],
}


def row(metric: str, value: float | None, **more: Any) -> Measurement:
    ends = {} if value is None else {"ci_low": value - 0.5, "ci_high": value + 0.75}
    known = {"phase": "evaluate", "target": "age", "site": "elm", "role": "heldout"}
    known |= {"n_participants": 60, "n_scans": 72, "model": "federated"}
    return Measurement.model_validate({**known, "metric": metric, "value": value, **ends, **more})


def told(*rows: Measurement) -> list[str]:
    study: Study = parse_study(TABLES, Path("trial.toml"))
    return gains(study, comparisons(study, rows), paired_tables(study, rows), "95 %")


def judged(*apart: float, **more: Any) -> Sequence[Measurement]:
    """The federated network, and single sites so much worse."""
    rows = [row("mae", 5.0, **more)]
    for site, difference in zip(("amber", "birch"), apart, strict=True):
        rows.append(row("mae", 5.0 + difference, model=f"single-{site}", **more))
        p = 0.001 if abs(difference) > 0.75 else 0.4
        rows.append(row("mae_minus_federated", difference, model=f"single-{site}", p=p, **more))
    return rows


def tuned(site: str, value: float, way: str = "pretrained/full", rival: str = "scratch-full",
          k: int = 0) -> Measurement:  # fmt: skip
    init, _, method = way.rpartition("/")
    more = {"phase": "finetune", "task": "dementia", "target": "diagnosis", "site": site}
    metric = f"auc_minus_{rival}"
    return row(metric, value, role="train", init=init, method=method, k=k, **more)


def test_the_first_line_turns_differences_to_together_minus_alone() -> None:
    """A reader asks what joining brings: a smaller error is a negative number there."""
    line, count = told(*judged(2.0, 0.25))
    assert line.startswith("age at elm, MAE in years (95 %, 60 people): together 5.00")
    assert "alone 6.12 on average" in line
    assert "amber \N{MINUS SIGN}2.00 (\N{MINUS SIGN}2.75 to \N{MINUS SIGN}1.50)" in line
    assert "birch \N{MINUS SIGN}0.25 (\N{MINUS SIGN}1.00 to 0.25)" in line
    assert (
        "better than a site alone in 1 of 2 comparisons, worse in 0, and in the others not dist"
        in count
    )


def test_a_consortium_that_loses_is_told_so() -> None:
    """The line is no advertisement."""
    assert "better than a site alone in 0 of 2 comparisons, worse in 2" in told(*judged(-2, -1))[1]


def test_what_is_said_of_the_linear_model_is_said_beside() -> None:
    """A network that a pooled linear model beats must not look good for want of it."""
    [line, _] = told(*judged(2.0, 1.0), row("mae", 3.5, model="pooled-linear"))
    assert "pooled linear model 3.50 (3.00 to 4.25)" in line


def test_all_heldout_sites_together_come_before_any_one() -> None:
    """A site that happens to look best must not be the one that is shown."""
    line = told(*judged(2.0, 1.0), *judged(3.0, 1.0, site="all"))[0]
    assert "all held-out sites together" in line
    assert "amber \N{MINUS SIGN}3.00" in line


def test_tuning_is_told_over_all_sites_with_its_paired_interval() -> None:
    """Whether pretraining helped is a difference between ways, not two numbers side by side."""
    [line] = told(tuned("amber", 0.9), tuned("all", 0.1))
    assert line.startswith("dementia at all sites, AUC (95 %, 60 people): ")
    assert "pretrained full minus scratch full +0.100 (\N{MINUS SIGN}0.400 to 0.850)" in line


def test_a_site_that_withheld_its_numbers_does_not_stand_for_those_that_told() -> None:
    """One small hospital would silence the only one that has something to say."""
    withheld = tuned("amber", 0.1).model_copy(update={"value": None, "n_participants": 0})
    [line] = told(withheld, tuned("birch", 0.2))
    assert line.startswith("dementia at birch")


def test_pairs_are_turned_to_pretrained_minus_the_other() -> None:
    """The order in which ways were tuned must not decide the sign that a reader sees."""
    [line] = told(tuned("all", 0.1, "linear", "pretrained-full"))
    assert "pretrained full minus linear \N{MINUS SIGN}0.100 (\N{MINUS SIGN}0.850 to 0.400)" in line


def test_pairs_of_pretrained_ways_and_of_rivals_are_left_to_the_table() -> None:
    """They say nothing of what pretraining brings, and the line must stay short."""
    found = told(
        tuned("all", 0.1, "pretrained/frozen", "pretrained-full"),
        tuned("all", 0.2, "linear", "scratch-full"),
    )
    assert found == []


def test_nothing_is_said_of_what_was_withheld_or_not_reported() -> None:
    """Too few people stand behind it, and a sentence must not say how it went."""
    assert told() == []
    assert told(row("mae", None, n_participants=0, n_scans=0)) == []
    assert told(tuned("amber", 0.1).model_copy(update={"value": None, "n_participants": 0})) == []
