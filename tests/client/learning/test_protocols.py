"""A site's answer to an order of a protocol: every repeat, kept, measured and compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from client.answer import Answer, Measured
from client.authority.egress import inspect
from client.learning import repeat_workers
from client.learning.kept_repeats import KeptRepeats
from client.learning.protocols import Repeats
from client.learning.ways import Way
from client.site import Policy
from common import metrics
from common.errors import Refusal
from common.network.building import arrays_of, build
from common.protocol.orders import Order, Report

TASK = {
    "name": "dementia", "target": "diagnosis", "epochs": 1, "batch_size": 32, "repeats": 0,
    "methods": ["linear", "pretrained/frozen", "scratch/full"],
    "learning_rates": [1e-3, 1e-2, 3e-2], "weight_decays": [0.0, 1e-3, 1e-2],
}  # fmt: skip
DRAWS = {"name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50], "repeats": 8}
Make = Callable[..., Repeats]


@pytest.fixture
def repeats(federation: Any, tmp_path: Path) -> Make:
    """`repeats("linear", pool="fixed")`: one order at one site, with a folder of its own."""
    made: list[Any] = []

    def make(
        way: str, *, folder: str = "run", against: Any = (), size: int = 50, **more: Any
    ) -> Repeats:
        if not made:
            sites = {"sites": {"train": ["alpha"]}, "splits": {"validation": 0.2, "test": 0.3}}
            made.append(federation(sites, participants={"alpha": 200}))
        made[0].changes.update(finetuning=[TASK], protocols=[{**DRAWS, **more}])
        agent = made[0].agent("alpha")
        init, _, method = way.rpartition("/")
        order = Order(
            kind="protocol", study=agent.study.digest, run="ab" * 32, site="alpha", task="draws",
            init=init, method=method, k=size, against=against, arrays="0" * 64,
        )  # fmt: skip
        device = agent.site.device.model_copy(update={"workers": 1})
        return Repeats(
            study=agent.study, site=agent.site.model_copy(update={"device": device}),
            cohort=agent.cohort, order=order, folder=tmp_path / folder,
            arrays=arrays_of(build(agent.study, seed=3)) if init == "pretrained" else {},
        )  # fmt: skip

    return make


def told(rows: list[Measured], metric: str) -> list[Measured]:
    return [one for one in rows if one.row.metric == metric]


def only(rows: list[Measured], metric: str) -> Any:
    [one] = told(rows, metric)
    return one.row


def aucs(one: Repeats) -> list[float]:
    """From what was kept, by scikit-learn."""
    label, found = one.cohort.labels["diagnosis"], []
    for number in range(one.protocol.total):
        kept = KeptRepeats(one.folder).find(one.order, number)
        assert kept is not None
        found.append(roc_auc_score(label[kept.test], kept.predicted))
    return found


# What is told.


def test_each_repeat_is_a_row_with_its_draw_and_n(repeats: Make) -> None:
    """A reader of results.csv can tell which draw a number is of, and from how many it was learnt."""
    one = repeats("linear")
    rows = [measured.row for measured in told(one.measured(), "auc")]
    assert [row.repeat for row in rows] == list(range(8))
    assert {row.n_train for row in rows} == {50}
    assert len({row.seed for row in rows}) == 8
    assert {(row.phase, row.task, row.k) for row in rows} == {("protocol", "draws", 50)}
    assert [row.value for row in rows] == [metrics.figures(auc) for auc in aucs(one)]
    assert all(row.n_participants <= 10 for row in rows)  # distinct people among ten images


def test_all_repeats_are_told_by_their_median_and_their_mean(repeats: Make) -> None:
    """The paper's number, and the one that an interval belongs to."""
    one = repeats("linear")
    rows, found = one.measured(), aucs(one)
    assert only(rows, "auc_median").value == metrics.figures(float(np.median(found)))
    mean = only(rows, "auc_over_draws")
    assert mean.value == metrics.figures(float(np.mean(found)))
    assert mean.ci_low < mean.value < mean.ci_high <= 1.0
    assert only(rows, "repeats").value == 8.0


def test_two_ways_are_compared_repeat_by_repeat_on_the_same_images(repeats: Make) -> None:
    """Another draw for each way would hide what a few draws can show."""
    first = repeats("linear")
    first.measured()
    second = repeats("pretrained/frozen", against=["linear"])
    rows = second.measured()
    apart = np.array(aucs(second)) - np.array(aucs(first))
    assert only(rows, "auc_minus_linear").value == metrics.figures(float(apart.mean()))
    flipped = only(rows, "auc_minus_linear_sign_flip")
    assert 0 < flipped.p <= 1.0
    assert 0.0 <= only(rows, "auc_minus_linear_within_repeats").value <= 1.0


def test_a_difference_has_no_p_value_of_few_people(repeats: Make) -> None:
    """A verdict needs fifty people and ten of each class, whatever the number of repeats."""
    small = repeats("linear")
    everyone = [i for i, name in enumerate(small.cohort.participants) if int(name[-3:]) < 90]
    cut = small.cohort.subset(everyone)
    replace(small, cohort=cut).measured()
    rival = replace(repeats("pretrained/frozen", against=["linear"]), cohort=cut)
    found = only(rival.measured(), "auc_minus_linear")
    assert found.n_participants < 50
    assert found.p is None
    assert found.ci_low is not None


def test_a_fixed_pool_is_judged_by_people_and_not_by_repeats(repeats: Make) -> None:
    """The same people judge each time: more repeats make nobody surer about new people."""
    few, many = (
        repeats("linear", pool="fixed", repeats=4),
        repeats("linear", pool="fixed", repeats=16),
    )
    widths = []
    for one in (few, many):
        mean = only(one.measured(), "auc_over_draws")
        widths.append(mean.ci_high - mean.ci_low)
    assert widths[1] > widths[0] / 1.5


def test_one_class_draws_are_undefined_and_counted(repeats: Make) -> None:
    """Ten images of three patients often hold none of them: such a repeat is no zero, nor left out."""
    one = repeats("linear", repeats=30)
    label = one.cohort.labels["diagnosis"].copy()
    ill = np.flatnonzero(label == 1)
    label[ill[20:]] = np.nan
    cohort = replace(one.cohort, labels={**one.cohort.labels, "diagnosis": label})
    rows = replace(one, cohort=cohort).measured()
    undefined = [row for row in told(rows, "auc") if row.row.value is None]
    assert 0 < len(undefined) < 30
    assert all(row.row.n_scans for row in undefined)
    assert only(rows, "repeats").value == 30 - len(undefined)


@pytest.mark.parametrize("pool", ["drawn", "fixed"])
def test_a_network_that_diverged_says_nothing_and_is_counted(
    repeats: Make, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN can be sorted, and an area under its curve is a number; it is nobody's."""
    told_by = Way.predicted
    monkeypatch.setattr(
        Way, "predicted", lambda way, *of: told_by(way, *of) * (np.nan if way.again == 2 else 1.0)
    )
    calm = repeats("pretrained/frozen", pool=pool)
    calm.measured()
    rows = repeats("linear", pool=pool, against=["pretrained-frozen"]).measured()
    assert [one.row.repeat for one in told(rows, "auc") if one.row.value is None] == [2]
    assert only(rows, "repeats").value == 7.0
    assert np.isfinite(only(rows, "auc_minus_pretrained-frozen").value)


def test_a_repeat_of_few_people_keeps_its_number_and_all_of_them_tell_theirs(
    repeats: Make,
) -> None:
    """Ten images are of fewer than ten patients: the gate takes the value, not the summary."""
    one = repeats("linear")
    answer = Answer(measured=tuple(one.measured()))
    report = Report(order=one.order.id, site="alpha", kind="protocol")
    policy = Policy(minimum_support=10)
    rows = inspect(one.order, policy, report, answer, {}).measurements
    of_repeats = [row for row in rows if row.metric == "auc"]
    assert all(row.value is None and row.n_participants == 0 for row in of_repeats)
    [median] = [row for row in rows if row.metric == "auc_median"]
    assert median.value is not None
    assert median.n_participants >= 20


# The other schemes.

SCHEMES: dict[str, dict[str, Any]] = {
    "subjects": {"scheme": "subjects", "sizes": [40], "size": 40},
    "fractions": {"scheme": "fractions", "sizes": [50], "size": 50},
    "folds": {"scheme": "folds", "sizes": [], "size": 0, "repeats": 4},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_tells_its_repeats_and_their_mean(repeats: Make, scheme: str) -> None:
    """One table for all of them: who is drawn differs, and what is told does not."""
    one = repeats("linear", **SCHEMES[scheme])
    rows = one.measured()
    assert len(told(rows, "auc")) == one.protocol.total
    mean = only(rows, "auc_over_draws")
    assert mean.value == metrics.figures(float(np.mean(aucs(one))))
    assert 0.5 < mean.ci_low < mean.value
    people = [row.row.n_participants for row in told(rows, "auc")]
    assert min(people) >= 10
    assert len({row.row.n_train for row in told(rows, "auc")}) <= 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shuffled_labels_give_chance_in_every_scheme(repeats: Make, scheme: str) -> None:
    """A protocol that finds something in labels dealt out anew finds it everywhere."""
    one = repeats("linear", shuffled=True, **SCHEMES[scheme])
    found = only(one.measured(), "auc_over_draws")
    assert found.ci_low <= 0.5 <= found.ci_high


# Shuffled labels.


@pytest.mark.parametrize("pool", ["drawn", "fixed"])
@pytest.mark.parametrize("way", ["linear", "pretrained/frozen"])
def test_shuffled_labels_give_chance_in_an_interval_that_covers_it(
    repeats: Make, way: str, pool: str
) -> None:
    """If anything of who judges reached who learns, this would be above a half."""
    one = repeats(way, pool=pool, shuffled=True, repeats=12, sizes=[100], size=100)
    found = only(one.measured(), "auc_over_draws")
    assert found.ci_low <= 0.5 <= found.ci_high
    honest = only(repeats(way, pool=pool, repeats=12, sizes=[100], size=100, folder="own").measured(),
                  "auc_over_draws")  # fmt: skip
    assert honest.ci_low > 0.5  # the interval is no mere admission of ignorance


# Resuming.


def test_what_is_kept_is_not_done_again(repeats: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night's repeats are not spent twice because an answer was lost."""
    one = repeats("linear")
    first = one.measured()

    def never(*_: object) -> Any:
        raise AssertionError("it is done already")

    monkeypatch.setattr(Way, "learn", never)
    assert one.measured() == first


def test_a_killed_site_goes_on_behind_its_last_repeat_to_the_same_bits(
    repeats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted or not: the same rows, and no repeat is learnt twice."""
    undisturbed = repeats("scratch/full", repeats=4, folder="whole").measured()
    learnt, learn = [], Way.learn

    def dying(way: Way, split: Any) -> Any:
        if len(learnt) == 2:
            raise KeyboardInterrupt
        learnt.append(way.again)
        return learn(way, split)

    one = repeats("scratch/full", repeats=4)
    monkeypatch.setattr(Way, "learn", dying)
    with pytest.raises(KeyboardInterrupt):
        one.measured()
    monkeypatch.setattr(
        Way, "learn", lambda way, split: (learnt.append(way.again), learn(way, split))[1]
    )
    assert one.measured() == undisturbed
    assert learnt == [0, 1, 2, 3]


def test_a_damaged_repeat_is_done_again(repeats: Make) -> None:
    """Half a file costs a repeat and never a result."""
    one = repeats("linear")
    first = one.measured()
    path = next(one.folder.rglob("repeat3.safetensors"))
    path.write_bytes(path.read_bytes()[:-20])
    assert one.measured() == first


def test_what_another_order_kept_is_not_taken(repeats: Make) -> None:
    """Of another run's arrays, the same way and repeat is another number."""
    one = repeats("linear")
    one.measured()
    other = replace(one, order=one.order.model_copy(update={"arrays": "1" * 64}))
    assert other._find(0) is None


def test_frozen_features_are_made_once_for_all_repeats(
    repeats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred passes over all scans would give the same features a hundred times."""
    made: list[int] = []
    of = Way.made_features
    monkeypatch.setattr(
        Way,
        "made_features",
        lambda way: (made.append(1) if way.features is None else None, of(way))[1],
    )
    repeats("pretrained/frozen").measured()
    assert len(made) == 1


# In several processes.


@pytest.mark.whole
def test_the_number_of_processes_changes_no_bit(
    repeats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hospital that moves to a larger machine, or shares a smaller one, finds the same figures."""
    monkeypatch.setattr("client.learning.repeat_workers._START_S", -1e9)
    rows = {}
    for workers in (1, 2):
        one = repeats("scratch/full", repeats=4, folder=f"by{workers}")
        device = one.site.device.model_copy(update={"workers": workers})
        one = replace(one, site=one.site.model_copy(update={"device": device}))
        rows[workers] = one.measured()
        assert len(list(one.folder.rglob("repeat*.safetensors"))) == 4
    assert rows[1] == rows[2]
    kept = [
        {
            path.name: path.read_bytes()
            for path in (one.folder.parent / f"by{n}").rglob("*.safetensors")
        }
        for n in (1, 2)
    ]
    assert kept[0] == kept[1]


def test_no_more_processes_are_started_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty cores and a network of ten GB: the machine must not be brought down by its number."""
    monkeypatch.setattr(repeat_workers.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(repeat_workers.os, "sched_getaffinity", lambda _: set(range(30)))
    monkeypatch.setattr(repeat_workers, "peak_bytes", lambda: 10 << 30)
    for free, wanted in ((64 << 30, 6), (1 << 30, 1), (1 << 50, 30)):
        monkeypatch.setattr(repeat_workers, "free_bytes", lambda free=free: free)
        assert repeat_workers.workers_of("auto") == wanted
    monkeypatch.undo()
    assert repeat_workers.free_bytes() > repeat_workers.peak_bytes() > 0


@pytest.mark.whole
def test_a_process_that_dies_costs_no_repeat(
    repeats: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out in one of many: what it had before it is done here."""
    monkeypatch.setattr("client.learning.repeat_workers._START_S", -1e9)
    calm = repeats("linear", folder="calm").measured()
    one = repeats("linear")
    device = one.site.device.model_copy(update={"workers": 2})
    one = replace(one, site=one.site.model_copy(update={"device": device}))
    monkeypatch.setattr("client.learning.repeat_workers._work", _dies)
    assert one.measured() == calm


def _dies(number: int) -> None:
    os._exit(9)


# What nobody asked for.


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"k": 60},
        {"init": "pretrained", "method": "full"},
        {"against": ("nobody",)},
    ],
)
def test_an_order_that_the_study_does_not_hold_is_refused(repeats: Make, changes: Any) -> None:
    """A site learns what it approved."""
    one = repeats("linear")
    asked = replace(one, order=one.order.model_copy(update=changes))
    with pytest.raises(Refusal, match="ORDER_MALFORMED"):
        asked.measured()
