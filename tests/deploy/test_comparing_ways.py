"""A whole federation compares the ways of a task: from the study file to the table and the page."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from server.report.page import write_report
from server.report.terminal import format_tables

TASK = {
    "name": "dementia", "target": "diagnosis", "repeats": 0,
    "methods": ["linear", "pretrained/frozen", "scratch/frozen"],
}  # fmt: skip
DRAWS = {
    "name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50, 100], "repeats": 6,
}  # fmt: skip


def told(run: Any) -> list[dict[str, str]]:
    with Path(run.folder, "results.csv").open() as stream:
        return [row for row in csv.DictReader(stream) if row["phase"] == "protocol"]


@pytest.mark.whole
def test_a_protocol_is_told_by_site_and_over_all_and_is_not_done_twice(federation: Any) -> None:
    """The same command again changes no byte, and asks no site."""
    made = federation(
        {
            "finetuning": [TASK], "protocols": [DRAWS], "sites": {"train": ["alpha", "beta"]},
            "splits": {"validation": 0.2, "test": 0.3},
        },
        participants={"alpha": 200, "beta": 150},
    )  # fmt: skip
    run = made.simulate()
    first = Path(run.folder, "results.csv").read_bytes()
    rows = told(run)
    assert {row["site"] for row in rows} == {"alpha", "beta", "all"}
    by_repeat = [row for row in rows if row["metric"] == "auc" and row["site"] == "alpha"]
    assert len(by_repeat) == 3 * 2 * 6
    assert {(row["k"], row["n_train"]) for row in by_repeat} == {("50", "50"), ("100", "100")}
    together = {row["metric"] for row in rows if row["site"] == "all"}
    assert together == {
        "auc_over_draws", "auc_minus_linear", "auc_minus_pretrained-frozen",
    }  # fmt: skip
    shown = format_tables(run)
    assert "protocol draws at alpha: median AUC of 6 repeats" in shown
    assert "protocol draws at all sites: mean AUC" in shown
    assert 'id="protocols"' in write_report(run).read_text()
    assert made.simulate().folder == run.folder
    assert Path(run.folder, "results.csv").read_bytes() == first
