"""Updates are bounded by what the others foretell, and no honest site is refused for its size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.network.plan import Plan, Rule
from common.protocol.orders import Report
from common.sections import Pretraining
from server.federation.update_norms import Moved, overlong

PLAN: Plan = {
    name: Rule(shape=(4, 25), dtype="float32", group="shared", role=role, kept=False)
    for name, role in (("weight", "parameter"), ("running_var", "statistic"))
}
STILL = Moved(10.0, 10.0)


class Agreed:
    """As much of a study as matters here."""

    def __init__(self, **pretraining) -> None:
        self.pretraining = Pretraining(batch_size=10, **pretraining)


FREE = Agreed(optimiser="sgd", gradient_clip=0.0)  # nothing is known of a step
LENGTHS = Moved(1.0, 10.0)


def judged(updates: dict[str, tuple[float, int]], study=FREE, lengths=LENGTHS) -> list[str]:
    """Who is refused, of updates given as (norm, scans)."""
    reports = {
        site: Report(order="0" * 64, site=site, kind="train", support={"shared": scans})
        for site, (_, scans) in updates.items()
    }
    moved = {site: Moved(norm, 1.0) for site, (norm, _) in updates.items()}
    return overlong(study, PLAN, reports, moved, lengths)


def test_norms_are_those_of_the_differences_by_role() -> None:
    """Arrays that never travel have no part in it."""
    random = np.random.default_rng(0)
    plan = {
        **PLAN,
        "own": Rule(shape=(2,), dtype="float32", group="site", role="parameter", kept=True),
    }
    before = {name: random.normal(size=(4, 25)) for name in PLAN}
    after = {name: random.normal(size=(4, 25)) for name in PLAN}
    moved = Moved.to(plan, after, before)
    assert moved.parameters == pytest.approx(np.linalg.norm(after["weight"] - before["weight"]))
    assert moved.statistics == pytest.approx(
        np.linalg.norm(after["running_var"] - before["running_var"])
    )
    assert Moved.to(plan, after).parameters == pytest.approx(np.linalg.norm(after["weight"]))


@pytest.mark.parametrize("others", [1, 2, 3, 10])
def test_an_update_of_many_times_the_others_is_refused(others: int) -> None:
    """However many there are; with one other the shorter decides."""
    honest = {f"site-{n}": (2.0 + n / 10, 100) for n in range(others)}
    assert judged({**honest, "bad": (40.0, 100)}) == ["bad"]
    assert judged({**honest, "bad": (3.3e38, 100)}) == ["bad"]
    assert judged({**honest, "well": (15.0, 100)}) == []


def test_nobody_is_measured_by_itself() -> None:
    """A single site has no others; what it may send at all is checked on arrival."""
    assert judged({"alone": (1e9, 100)}) == []


@pytest.mark.parametrize("few", [10, 50, 1000])
@pytest.mark.parametrize("growth", [0.5, 1.0])
def test_a_site_of_more_scans_may_move_further(few: int, growth: float) -> None:
    """From a walk at random (the root of the steps) to one that always goes on (their number)."""
    scans = {"small": few, "smaller": few // 2, "large": 1000 * few}
    updates = {site: (0.01 * n**growth, n) for site, n in scans.items()}
    assert judged(updates) == []
    too_far = {**updates, "large": (300 * updates["large"][0] * 1000 ** (1 - growth), 1000 * few)}
    assert judged(too_far) == ["large"]


def test_a_site_of_few_scans_is_measured_by_the_whole_of_the_others() -> None:
    """Its first steps are the longest; a bound per step would refuse it beside a large one."""
    assert judged({"one": (1.0, 10), "large": (3.0, 100_000), "larger": (4.0, 200_000)}) == []


@pytest.mark.parametrize("still", [0.0, 1e-30])
@pytest.mark.parametrize(
    ("study", "norm"),
    [
        (Agreed(learning_rate=0.01), 0.1 * 10),  # Adam: 10 steps of a hundredth in 100 numbers
        (Agreed(optimiser="sgd", learning_rate=0.1, gradient_clip=1.0), 10.0),
        (FREE, 0.9),
    ],
)
def test_a_site_that_moves_nothing_shuts_nobody_out(study, norm: float, still: float) -> None:
    """Of two sites the shorter decides, and ten times nothing is nothing."""
    assert judged({"honest": (norm, 100), "still": (still, 100)}, study) == []
    assert judged({"honest": (1e4, 100), "still": (still, 100)}, study) == ["honest"]


def test_statistics_are_measured_apart() -> None:
    """A variance of 1e17 beside weights that hardly moved is no update to average."""
    reports = {
        site: Report(order="0" * 64, site=site, kind="train", support={"shared": 100})
        for site in ("a", "b", "c")
    }
    moved = {"a": Moved(1.0, 5.0), "b": Moved(1.0, 9000.0), "c": Moved(1.0, 1e17)}
    assert overlong(FREE, PLAN, reports, moved, STILL) == ["c"]
    assert math.isfinite(moved["c"].statistics)
