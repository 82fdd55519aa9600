"""Learning curves and matrices hold what sites told, by how many were learnt from, or where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.protocol.orders import Measurement
from common.study import Study, parse_study
from server.report.calibration import calibrations
from server.report.comparisons import comparisons
from server.report.cross_site import matrices, matrices_of_heads
from server.report.learning_curves import learning_curves
from server.report.page import write_report
from server.report.paired_tables import paired_tables
from server.report.task_tables import task_tables
from server.results import write_results
from tests.server.report.made_up_run import finished, rows
from tests.server.report.test_gains import TABLES, row

STUDY: Study = parse_study(TABLES, Path("trial.toml"))


def told(value: float, k: int, site: str = "all", **more: Any) -> Measurement:
    known = {"phase": "finetune", "task": "dementia", "target": "diagnosis", "site": site, "k": k,
             "role": "train", "init": "pretrained", "method": "full"}  # fmt: skip
    return row(more.pop("metric", "auc_over_draws"), value, **{**known, **more})


def test_all_sites_are_one_curve_where_they_were_put_together() -> None:
    """Ten hospitals' curves over each other are a thicket."""
    found = [told(0.6 + k / 100, k, site) for k in (5, 10) for site in ("amber", "birch", "all")]
    [curve] = learning_curves(STUDY, found, "95 %")["dementia"]
    assert [line[:5] for line in curve.rows] == [
        ("all", "pretrained full", 5, "auc", 0.65),
        ("all", "pretrained full", 10, "auc", 0.7),
    ]


def test_without_them_each_site_has_its_own() -> None:
    """A single hospital that tuned is shown, too."""
    found = [told(0.6, k, site) for k in (5, 10) for site in ("amber", "birch")]
    assert len(learning_curves(STUDY, found, "95 %")["dementia"]) == 2


def test_a_mean_over_draws_is_told_and_not_the_median_of_them() -> None:
    """It has an interval over people; the range of draws is no interval, and is called what it is."""
    draws = [told(value, 5, metric="auc", repeat=n) for n, value in enumerate((0.5, 0.9, 0.6))]
    other = told(0.8, 10)
    [curve] = learning_curves(STUDY, [*draws, told(0.66, 5), other], "95 %")["dementia"]
    assert [line[4] for line in curve.rows] == [0.66, 0.8]
    assert "95 % intervals over test people" in curve.note
    [curve] = learning_curves(STUDY, [*draws, other], "95 %")["dementia"]
    assert curve.rows[0][4:7] == (0.6, 0.5, 0.9)
    assert "lowest and highest repeat" in curve.note


def test_the_median_beside_is_a_way_of_its_own() -> None:
    """Its rows come with the first way's answer, and must not be mixed into that way's values."""
    study = parse_study({**TABLES, "finetuning": [{"name": "own", "target": "age",
                                                   "methods": ["pretrained/full"]}]},
                        Path("trial.toml"))  # fmt: skip
    more = {"task": "own", "target": "age"}
    found = [told(3.0, 0, metric="mae", **more), told(9.0, 0, metric="mae", model="training-median",
                                                      **more)]  # fmt: skip
    found.append(told(-6.0, 0, metric="mae_minus_training-median", p=0.01, **more))
    [table] = task_tables(study, found)
    assert {method: cell.cell.value for (_, method), cell in table.cells.items()} == {
        "pretrained full": 3.0, "training median": 9.0
    }  # fmt: skip
    [paired] = paired_tables(study, found)
    assert [pair.title for pair in paired.lines] == ["pretrained full minus training median"]
    assert paired.winner(paired.lines[0], "all") == "pretrained full"
    curve = [told(value, k, metric="mae", model=model, **more)
             for k in (5, 10) for value, model in ((3.0, "federated"), (9.0, "training-median"))]  # fmt: skip
    [drawn] = learning_curves(study, curve, "95 %")["own"]
    assert len(drawn.rows) == 4


def test_one_number_of_people_is_no_curve() -> None:
    """A point would pretend to be one."""
    assert learning_curves(STUDY, [told(0.6, 5), told(0.6, 0)], "95 %") == {}


def test_protocols_stand_on_the_page_beside_the_tasks(tmp_path: Path) -> None:
    """They are no task of the study by name, and their curves are what they are run for."""
    run = finished(tmp_path / "run")
    found = [told(0.6, k, phase="protocol", task="sizes") for k in (100, 200)]
    write_results(run, [*rows(), *found])
    assert "sizes at all sites together: AUC by how many were learnt from" in (
        write_report(run).read_text()
    )


def test_a_matrix_has_each_model_at_each_judge() -> None:
    """Where it was trained down, where it is judged across; the site itself is among no judges."""
    found = [
        row("mae", place + number, model=model, site=site)
        for place, site in enumerate(("elm", "fir", "all"))
        for number, model in enumerate(("federated", "single-amber", "single-birch"))
    ]
    [one] = matrices(comparisons(STUDY, found))
    assert {line[:4] for line in one.rows} == {
        (model, site, "mae", float(place + number))
        for place, site in enumerate(("elm", "fir"))
        for number, model in enumerate(("all together", "amber", "birch"))
    }
    assert matrices(comparisons(STUDY, [one for one in found if one.site == "elm"])) == []


def head(tuned: str, judged: str, value: float | None, **more: Any) -> Measurement:
    ends = {} if value is None else {"ci_low": value - 0.1, "ci_high": value + 0.1}
    of = {"phase": "cross", "model": f"tuned-{tuned}", "metric": "auc", "method": "frozen", **ends}
    return told(value, 0, judged, **{**of, **more})  # type: ignore[arg-type]


def test_heads_are_a_matrix_of_where_they_were_tuned_and_judged() -> None:
    """Values with intervals; what stays at home on the diagonal; what has no value says why."""
    home = {"phase": "finetune", "model": "federated"}
    found = [
        head("amber", "birch", 0.8),
        head("birch", "amber", None, n_participants=40),  # of one class
        head("amber", "amber", 0.9, **home),
        head("birch", "birch", None, n_participants=0, **home),
        head("amber", "amber", 0.7, **{**home, "method": "full"}),  # of another way
    ]
    [one] = matrices_of_heads(STUDY, found)
    assert one.title == "dementia by pretrained frozen: AUC by where the head was tuned and judged"
    assert [line[:6] for line in one.rows] == [
        ("amber", "amber", "auc", 0.9, 0.8, 1.0),
        ("amber", "birch", "auc", 0.8, pytest.approx(0.7), pytest.approx(0.9)),
        ("birch", "amber", "auc", None, None, None),
        ("birch", "birch", "auc", None, None, None),
    ]
    for text in ("0.900 (0.800 to 1.000)", "0.800 (0.700 to 0.900)", ">undefined<", ">withheld<"):
        assert text in one.drawn
    assert matrices_of_heads(STUDY, found[2:]) == []  # nobody's was judged elsewhere


@pytest.mark.parametrize("metric", ["slope", "brier", "ece"])
def test_calibration_is_drawn_where_it_was_told(metric: str) -> None:
    """Of the federated model and its nearest rivals, at each site."""
    about = {"target": "age" if metric == "slope" else "sex"}
    found = [row(metric, 0.9, model=model, **about) for model in ("federated", "single-amber")]
    found += [row("mae" if metric == "slope" else "auc", 5.0, **about)]
    [one] = calibrations(STUDY, comparisons(STUDY, found))
    assert [line[1:4] for line in one.rows] == [("federated", metric, 0.9)]
