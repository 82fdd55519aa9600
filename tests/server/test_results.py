"""One row for all held-out sites, from what each of them measured and rounded for itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common import metrics
from common.protocol.orders import Measurement, Report
from common.protocol.wire import spool
from common.sections import Target
from server.federation.rounds import validation
from server.results import TOGETHER, put_together, students, together

HEX = "0" * 64
STUDY = SimpleNamespace(evaluation=SimpleNamespace(confidence=0.95))


def row(site: str, value: float | None, scans: int = 40, **more: Any) -> Measurement:
    known = {"phase": "evaluate", "target": "age", "model": "federated", "role": "heldout"}
    known |= {"metric": "mae", "n_participants": scans - 10, "n_scans": scans}
    return Measurement.model_validate({**known, "site": site, "value": value, **more})


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """`run(rows)`: a run whose sites answered with these, each its own, about one model."""

    def write(*rows: Measurement) -> Any:
        for site in {row.site for row in rows}:
            theirs = tuple(each for each in rows if each.site == site)
            report = Report(order=HEX, site=site, kind="evaluate", measurements=theirs)
            spool(tmp_path / "evaluation" / rows[0].model / f"{site}.safetensors", report, {})
        return SimpleNamespace(folder=tmp_path, study=STUDY)

    return write


def test_errors_of_all_sites_are_those_of_all_their_scans(run: Any) -> None:
    """To the figures that left: a reader takes it for the mean over everybody, and so it is."""
    chance = np.random.default_rng(0)
    label, predicted = chance.normal(50, 18, 90), chance.normal(50, 18, 90)
    target, parts = Target(kind="regression"), np.split(np.arange(90), [25, 40])
    rows, wanted = [], metrics.exact(target, label, predicted)
    for site, part in zip(("elm", "oak", "yew"), parts, strict=True):
        own = metrics.exact(target, label[part], predicted[part])
        for metric, value in own.items():
            rows.append(row(site, metrics.figures(value), len(part), metric=metric))
    found = {each.metric: each for each in together(run(*rows))}
    assert found.keys() == {"mae", "rmse"}  # a correlation cannot be put together
    for metric, each in found.items():
        assert each.value == pytest.approx(wanted[metric], rel=5e-3)  # half a unit of three figures
        assert (each.site, each.n_scans, each.n_participants) == (TOGETHER, 90, 60)


def test_its_interval_is_made_of_theirs(run: Any) -> None:
    """Two sites of one width are together narrower by the root of two; without one there is none."""
    bounds = {"ci_low": 4.0, "ci_high": 6.0}
    [found] = together(run(row("elm", 5.0, **bounds), row("oak", 5.0, **bounds)))
    assert (found.ci_low, found.ci_high) == pytest.approx((5 - 2**-0.5, 5 + 2**-0.5))
    [found] = together(run(row("elm", 5.0, **bounds), row("oak", 5.0)))
    assert (found.value, found.ci_low, found.ci_high) == (5.0, None, None)


def apart(site: str, value: float, half: float, people: int, **more: Any) -> Measurement:
    """What lies between two models at a site."""
    known = {"metric": "auc_minus_federated", "ci_low": value - half, "ci_high": value + half}
    return row(site, value, people + 10, **{**known, **more})


def test_p_together_is_that_of_the_interval_together(run: Any) -> None:
    """Two sites that each nearly tell two models apart do so together."""
    [found] = together(run(*(apart(site, 0.1, 0.11, 60, p=0.075) for site in ("elm", "oak"))))
    wanted = 2 * stats.norm.sf(0.1 / (0.11 / 2**0.5 / stats.norm.ppf(0.975)))
    assert found.p == pytest.approx(wanted, rel=1e-6)
    assert found.p < 0.05
    assert found.ci_low > 0


@pytest.mark.parametrize(
    ("metric", "people", "p", "told"),
    [
        ("auc_minus_federated", 60, 0.2, True),
        ("auc_minus_federated", 60, None, False),  # no site has ten of each class
        ("auc_minus_federated", 20, 0.2, False),
        ("mae_minus_federated", 30, None, True),  # an error has no classes
        ("auc", 60, 0.2, False),  # no difference
    ],
)
def test_all_sites_together_need_as_many_people_as_one(
    run: Any, metric: str, people: int, p: float | None, *, told: bool
) -> None:
    """Of the classes the coordinator knows only that some site found ten of each."""
    rows = [apart(site, 0.1, 0.3, people, metric=metric, p=p) for site in ("elm", "oak")]
    [found] = together(run(*rows))
    assert (found.p is not None) == told


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 6, 9, 30, 199])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.999])
def test_students_quantile_is_scipys(degrees: int, confidence: float) -> None:
    """The server has no scipy; its interval must be the same."""
    wanted = stats.t.ppf((1 + confidence) / 2, degrees)
    assert students(degrees, confidence) == pytest.approx(wanted, rel=1e-9)


def test_from_five_sites_on_their_mean_stands_beside_it(run: Any) -> None:
    """SciPy's interval of a mean, a site being the unit, however many scans it has."""
    values = [4.0, 5.0, 5.5, 4.5, 9.0]
    rows = [row(f"s{n}", value, 40 + 50 * n) for n, value in enumerate(values)]
    found = {each.metric: each for each in together(run(*rows))}
    assert found.keys() == {"mae", "mae_over_sites"}
    mean = found["mae_over_sites"]
    wanted = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (mean.value, mean.ci_low, mean.ci_high) == pytest.approx((np.mean(values), *wanted))
    assert found["mae"].value != mean.value
    assert together(run(*rows[:4])) != []
    assert [each.metric for each in put_together([[one] for one in rows[:4]])] == ["mae"]


def test_a_site_that_withheld_its_number_counts_for_nothing(run: Any) -> None:
    """Neither as a zero nor in the n that is printed beside the value."""
    kept = run(row("elm", 4.0, 30), row("oak", 6.0, 90), row("yew", None, 0, n_participants=0))
    [found] = together(kept)
    assert (found.value, found.n_scans, found.n_participants) == (5.5, 120, 100)


def test_one_site_is_not_all_of_them(run: Any) -> None:
    """A row of all sites that repeats one of them would be counted as a second study of it."""
    assert together(run(row("elm", 4.0), row("oak", None, 0, n_participants=0))) == []


@pytest.mark.parametrize("model", ["federated+head", "site-linear", "site-mean"])
def test_models_that_differ_by_site_are_not_put_together(run: Any, model: str) -> None:
    """Each is fitted where it is judged: there is no such model for all sites at once."""
    assert together(run(row("elm", 4.0, model=model), row("oak", 6.0, model=model))) == []


def test_models_and_targets_are_kept_apart(run: Any) -> None:
    """The constant's error stands in the same report as the network's."""
    rows = [row(site, value, model=model, target=target) for site, shift in (("elm", 0), ("oak", 2))
            for model, target, value in (("federated", "age", 4.0 + shift),
                                         ("constant", "age", 14.0 + shift),
                                         ("federated", "iq", 24.0 + shift))]  # fmt: skip
    found = {(each.model, each.target): each.value for each in together(run(*rows))}
    assert found == {("federated", "age"): 5, ("constant", "age"): 15, ("federated", "iq"): 25}


@pytest.fixture
def tuned(tmp_path: Path) -> Any:
    """`tuned(rows)`: a run whose sites answered one fine-tuning order with these."""

    def write(*rows: Measurement) -> Any:
        for site in {row.site for row in rows}:
            theirs = tuple(each for each in rows if each.site == site)
            report = Report(order=HEX, site=site, kind="finetune", measurements=theirs)
            spool(tmp_path / f"finetuning/memory/linear/{site}.safetensors", report, {})
        return SimpleNamespace(folder=tmp_path, study=STUDY)

    return write


def of_task(site: str, value: float, people: int = 10, metric: str = "auc", **more: Any) -> Any:
    known = {"phase": "finetune", "task": "memory", "method": "linear", "role": "train"}
    known |= {"n_participants": people, "ci_low": value - 0.1, "ci_high": value + 0.1}
    return row(site, value, metric=metric, **{**known, **more})


def test_what_sites_tuned_is_put_together_by_their_people(tuned: Any) -> None:
    """The interval is about people: a site with three times as many counts three times."""
    metrics_of_draws = ("auc_over_draws", "auc_minus_scratch-full")
    rows = [of_task(site, value, people, metric)
            for site, value, people in (("amber", 0.4, 10), ("birch", 0.8, 30))
            for metric in metrics_of_draws]  # fmt: skip
    rows += [of_task(site, 0.9, repeat=n) for site in ("amber", "birch") for n in range(2)]
    found = {each.metric: each for each in together(tuned(*rows))}
    assert found.keys() == set(metrics_of_draws)  # draws of two sites have nothing in common
    for each in found.values():
        assert each.value == pytest.approx(0.7)
        half = 0.1 * (0.25**2 + 0.75**2) ** 0.5
        assert (each.ci_low, each.ci_high) == pytest.approx((0.7 - half, 0.7 + half))
        assert (each.site, each.n_participants, each.task) == (TOGETHER, 40, "memory")


def test_a_single_draw_is_put_together_as_it_is(tuned: Any) -> None:
    """Where nobody is drawn there is no mean over draws; the metric itself is the one."""
    [found] = together(tuned(of_task("amber", 0.4), of_task("birch", 0.8)))
    assert (found.metric, found.value) == ("auc", pytest.approx(0.6))


def test_a_rounds_validation_is_a_mean_by_scans_over_the_sites(federation: Any) -> None:
    """What stands in the record; numbers withheld, and of targets of a site's own, do not."""
    study = federation().study
    told = {"phase": "train", "role": "train"}
    reports = [
        Report(
            order=HEX, site=site, kind="train", round=1,
            measurements=(
                row(site, mae, scans, **told),
                row(site, mae, scans, **told, metric="r"),
                row(site, auc, scans, **told, metric="auc", target="sex"),
                row(site, 1.0, 10**6, **told, target="of-its-own"),
            ),
        )
        for site, mae, auc, scans in (("alpha", 4.0, None, 30), ("beta", 6.0, 0.75, 90))
    ]  # fmt: skip
    assert validation(study, reports) == {
        "age": {"n": 120, "mae": 5.5}, "sex": {"n": 90, "auc": 0.75}
    }  # fmt: skip
