"""The page's numbers on maps are means over sites by people, and a figure where classes are told."""

from __future__ import annotations

from typing import Any

import pytest

from common.protocol.orders import Measurement
from server.report.faithfulness import faithfulness


def row(metric: str, value: float | None, site: str = "amber", **more: Any) -> Measurement:
    known = {"phase": "explain", "task": "faces", "target": "state", "model": "federated"}
    known |= {"role": "train", "init": "pretrained", "method": "full", "k": 3}
    known |= {"n_participants": 10, "n_scans": 40}
    return Measurement.model_validate(
        {**known, "metric": metric, "value": value, "site": site, **more}
    )


def test_sites_count_by_their_people() -> None:
    """Ten people at one and thirty at another are forty, whoever draws how often."""
    rows = [row("said", 0.6), row("said", 0.8, "birch", n_participants=30)]
    rows += [row("said_without_05", 0.2), row("agreement", 0.5), row("said", None, "cedar")]
    (found,) = faithfulness(rows)
    ((way, people, told),) = found["lines"]
    assert (way, people) == ("pretrained/full", 3)
    assert told == [pytest.approx(0.75), 0.2, None, 0.5]
    assert "svg" in found["figure"].drawn


def test_the_figure_is_of_those_who_learnt_from_most() -> None:
    """Curves of every k would be a thicket."""
    rows = [row("said", 0.3, k=1), row("said", 0.9, k=8), row("said", 0.5, k=8, init="scratch")]
    (found,) = faithfulness(rows)
    assert [line[:2] for line in found["lines"]] == [
        ("pretrained/full", 1), ("pretrained/full", 8), ("scratch/full", 8)
    ]  # fmt: skip
    assert found["people"] == 8
    assert len(found["figure"].key) == 4


def test_a_regression_has_no_curve_and_other_rows_play_no_part() -> None:
    """It tells no classes apart; what was tuned is told elsewhere."""
    (found,) = faithfulness([row("agreement", 0.5), row("mae", 3.0, phase="finetune")])
    assert found["figure"] is None
    assert list(faithfulness([row("mae", 3.0, phase="finetune")])) == []


def test_what_every_site_withheld_is_no_task_and_twenty_ways_have_pens() -> None:
    """One site that sends rows without a value would keep everyone's page from being written."""
    assert list(faithfulness([row("said", None)])) == []
    (found,) = faithfulness([row("said", 0.5, method=f"way-{n}") for n in range(20)])
    assert len(found["lines"]) == 20
