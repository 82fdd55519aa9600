"""Judging and fine-tuning are honest about people: apart in splits, counted once, never seen before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from client.answer import Measured
from client.data.cohort import Cohort
from client.learning import evaluation, finetuning, linear
from client.learning.evaluation import Judge, _cross_fitted, _folds
from client.learning.finetuning import Tuning
from client.learning.measurement import difference, measure
from client.learning.prediction import predict
from client.learning.tuned_models import TunedModels
from client.site import Site
from common import metrics
from common.errors import Refusal
from common.kinds.features import Features
from common.network.building import arrays_of, build
from common.protocol.orders import Measurement, Order
from common.study import Study, parse_study

HEX = "0" * 64


def study_of(**changes: Any) -> Study:
    tables = {
        "name": "tiny",
        "data": {"kind": "features", "columns": ["a", "b", "c"]},
        "targets": {
            "age": {"kind": "regression", "unit": "years", "centre": 50, "scale": 10},
            "sex": {"kind": "binary", "classes": ["female", "male"]},
            "ill": {"kind": "binary", "classes": ["control", "patient"]},
        },
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"], "heldout": ["there"]},
        "finetuning": [
            {"name": "illness", "target": "ill", "epochs": 1, "learning_rates": [1e-6, 0.3]}
        ],
        "evaluation": {"bootstrap": 100, "head": False},
        **changes,
    }
    return parse_study(tables, Path("study.toml"))


STUDY = study_of()


@pytest.fixture(autouse=True)
def _few_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two instead of nine: what is tested here does not depend on how many there are."""
    monkeypatch.setattr(linear, "STRENGTHS", (0.01, 1.0))


def site_of(name: str = "there", role: Any = "heldout") -> Site:
    data = Features.Site(kind="features", table="t.csv")
    return Site(name=name, role=role, data=data)


def cohort_of(people: int = 40, scans: int = 3, seed: int = 0) -> Cohort:
    """Every participant has up to `scans` scans; labels belong to her, features nearly so."""
    chance = np.random.default_rng(seed)
    times = chance.integers(1, scans + 1, people)
    person = np.repeat(np.arange(people), times)
    traits = chance.normal(size=(people, 3))
    samples = (traits[person] + chance.normal(0, 0.2, (len(person), 3))).astype(np.float32)
    labels = {
        "age": 50 + 10 * traits[:, 0] + chance.normal(0, 5, people),
        "sex": (traits[:, 1] + chance.normal(0, 0.5, people) > 0).astype(float),
        "ill": (traits[:, 2] + chance.normal(0, 0.5, people) > 0).astype(float),
    }
    return Cohort(
        samples=samples,
        participants=tuple(f"p{i:03d}" for i in person),
        scans=tuple(f"p{i:03d}/{k}" for k, i in enumerate(person)),
        labels={name: values[person].astype(np.float32) for name, values in labels.items()},
        measures=None,
        layout="table",
        findings=(),
        contents=tuple(str(k) for k in range(len(person))),
        secrets=("",) * len(person),
    )


def order_of(kind: Any = "evaluate", **keys: Any) -> Order:
    site = "there" if kind == "evaluate" else "here"
    return Order(kind=kind, study=STUDY.digest, run=HEX, site=site, arrays=HEX, **keys)


def judged(folder: Path, cohort: Cohort, study: Study = STUDY, **keys: Any) -> list[Measurement]:
    network = build(study, seed=1)
    answer = Judge(study, site_of(), cohort, order_of(**keys), folder).network(network)
    return [measured.row for measured in answer.measured]


def tuning(folder: Path, cohort: Cohort, way: str, study: Study = STUDY, **keys: Any) -> Tuning:
    """One way to learn a task at the training site, from the network drawn with seed 0."""
    init, _, method = way.rpartition("/")
    order = order_of("finetune", **{"task": "illness", "init": init, "method": method, **keys})
    arrays = arrays_of(build(study, seed=0)) if init == "pretrained" else {}
    return Tuning(study, site_of("here", "train"), cohort, order, arrays, TunedModels(folder))


def unit_of(value: float) -> float:
    """One unit of the third figure."""
    return float(10 ** (np.floor(np.log10(abs(value))) - 2)) if value else 0.0


def one(rows: list[Measurement], **names: str) -> Measurement:
    found = [row for row in rows if all(getattr(row, k) == v for k, v in names.items())]
    assert len(found) == 1, names
    return found[0]


# Splits and folds.


def test_no_participant_is_in_two_splits_of_a_task(tmp_path: Path) -> None:
    """A second scan of a training participant in the test split would be half the answer."""
    cohort = cohort_of(60)
    split = tuning(tmp_path, cohort, "linear")._split(0)
    assert split is not None
    sides = [
        {cohort.participants[i] for i in part}
        for part in (split.train, split.validation, split.test)
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert set.union(*sides) == set(cohort.participants)


def test_folds_keep_a_participant_together_and_spread_labels_evenly() -> None:
    """Each head is fitted without the people it predicts, on labels of the whole range."""
    cohort = cohort_of(50)
    labelled = np.arange(len(cohort))
    fold = _folds(STUDY, site_of(), cohort, labelled, cohort.labels["age"])
    of: dict[str, set[int]] = {}
    for index, number in zip(labelled, fold, strict=True):
        of.setdefault(cohort.participants[index], set()).add(int(number))
    assert {len(numbers) for numbers in of.values()} == {1}
    sizes = [sum(numbers == {k} for numbers in of.values()) for k in range(5)]
    assert sizes == [10] * 5
    means = [cohort.labels["age"][fold == k].mean() for k in range(5)]
    assert np.ptp(means) < 6


def test_a_cross_fitted_head_never_sees_whom_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its fit nor in the choice of its penalty, with any of her scans."""
    cohort = cohort_of(40)
    people = np.array(cohort.participants)
    seen: set[str] = set()
    predicted: set[str] = set()
    whole_choose, whole_fit = evaluation.choose, evaluation.fit

    def choose(target: Any, features: Any, label: Any, folds: Any) -> float:
        seen.clear()
        for rest, held in folds:
            assert not set(people[rest]) & set(people[held])
            seen.update(people[rest], people[held])
        return whole_choose(target, features, label, folds)

    class Watched:
        def __init__(self, model: Any) -> None:
            self.model = model

        def predict(self, features: Any, indices: Any) -> Any:
            assert not seen & set(people[indices])
            assert not predicted & set(people[indices])
            predicted.update(people[indices])
            return self.model.predict(features, indices)

    def fit(target: Any, features: Any, label: Any, indices: Any, c: float) -> Any:
        seen.update(people[indices])
        return Watched(whole_fit(target, features, label, indices, c))

    monkeypatch.setattr(evaluation, "choose", choose)
    monkeypatch.setattr(evaluation, "fit", fit)
    features = np.asarray(cohort.samples, dtype=np.float64)
    everyone = np.arange(len(cohort))
    found = _cross_fitted(STUDY, site_of(), cohort, "age", STUDY.targets["age"], features, everyone)
    assert found is not None
    assert predicted == set(cohort.participants)


def test_a_cross_fitted_head_gains_nothing_from_names(tmp_path: Path) -> None:
    """Features that only tell people apart predict no better than the mean: nothing leaks."""
    cohort = cohort_of(60, scans=4)
    _, person = np.unique(cohort.participants, return_inverse=True)
    features = np.eye(person.max() + 1)[person]
    everyone = np.arange(len(cohort))
    found = _cross_fitted(STUDY, site_of(), cohort, "age", STUDY.targets["age"], features, everyone)
    assert found is not None
    label = cohort.labels["age"]
    assert np.abs(found - label).mean() > 0.95 * np.abs(label.mean() - label).mean()


# Fine-tuning.


WAYS = ["linear", "pretrained/frozen", "pretrained/full", "scratch/full"]


@pytest.mark.parametrize("way", WAYS)
def test_finetuning_refuses_one_class(tmp_path: Path, way: str) -> None:
    """A hospital without patients has no task to learn; the code says so, nothing crashes."""
    cohort = cohort_of(60)
    cohort = dataclasses.replace(
        cohort, labels={**cohort.labels, "ill": np.zeros(len(cohort), np.float32)}
    )
    with pytest.raises(Refusal, match="one class of ill") as caught:
        tuning(tmp_path, cohort, way).finetune()
    assert caught.value.code == "NO_DATA"


@pytest.mark.parametrize("way", WAYS)
def test_finetuning_measures_the_test_participants_only(tmp_path: Path, way: str) -> None:
    """The n of its rows is the n of people that no choice has looked at."""
    cohort = cohort_of(60)
    rows = [measured.row for measured in tuning(tmp_path, cohort, way).finetune()]
    test = cohort.indices("test", STUDY.splits)
    people = {cohort.participants[i] for i in test}
    told = {*metrics.names(STUDY.targets["ill"]), "balanced_accuracy_chosen"}
    assert {row.metric for row in rows} == told
    assert {(row.n_participants, row.n_scans) for row in rows} == {(len(people), len(test))}
    init, _, method = way.rpartition("/")
    named = {(row.task, row.init, row.method, row.role) for row in rows}
    assert named == {("illness", init, method, "train")}


@pytest.mark.parametrize("way", WAYS)
def test_test_labels_move_the_score_and_nothing_else(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were they read in training or choice, the predictions would change with them."""
    cohort = cohort_of(60)
    told: list[Any] = []

    def listen(*values: Any) -> list[Measured]:
        told.append(values[6])
        return []

    monkeypatch.setattr(finetuning, "measure", listen)
    tuning(tmp_path / "first", cohort, way).finetune()
    test = cohort.indices("test", STUDY.splits)
    cohort.labels["ill"][test] = 1 - cohort.labels["ill"][test]
    tuning(tmp_path / "second", cohort, way).finetune()  # nothing kept of the first is at hand
    assert np.array_equal(told[0], told[1])


@pytest.mark.parametrize(
    ("way", "keys"),
    [
        ("pretrained/frozen", {"task": "other"}),
        ("pretrained/frozen", {"task": ""}),
        ("linear", {}),
        ("scratch/frozen", {}),
        ("pretrained/full", {}),
        ("pretrained/frozen", {"k": 5}),
    ],
)
def test_a_task_that_the_study_lacks_is_refused(
    tmp_path: Path, way: str, keys: dict[str, Any]
) -> None:
    """A site learns what was agreed, not what an order asks."""
    study = study_of(
        finetuning=[{"name": "illness", "target": "ill", "methods": ["pretrained/frozen"]}]
    )
    with pytest.raises(Refusal, match="the study has no task") as caught:
        tuning(tmp_path, cohort_of(), way, study, **keys).finetune()
    assert caught.value.code == "ORDER_MALFORMED"


# Judging.


def test_rows_count_people_and_scans_apart(tmp_path: Path) -> None:
    """Sixty scans of twenty people are twenty people, wherever an n is printed."""
    cohort = cohort_of(40)
    cohort.labels["sex"][:7] = np.nan
    rows = judged(tmp_path, cohort)
    known = ~np.isnan(cohort.labels["sex"])
    wanted = {"age": (40, len(cohort)), "ill": (40, len(cohort)),
              "sex": (len({p for p, k in zip(cohort.participants, known, strict=True) if k}),
                      int(known.sum()))}  # fmt: skip
    assert {row.target for row in rows} == set(wanted)
    for row in rows:
        assert (row.n_participants, row.n_scans) == wanted[row.target]
        assert row.n_participants < row.n_scans
        assert (row.site, row.role, row.phase) == ("there", "heldout", "evaluate")


def test_intervals_hold_their_value_and_are_of_people(tmp_path: Path) -> None:
    """Copies of scans leave every interval as wide as it was."""
    cohort = cohort_of(40, scans=1)
    twice = cohort.subset(np.tile(np.arange(len(cohort)), 3))
    once, copied = judged(tmp_path, cohort), judged(tmp_path / "b", twice)
    for row in [row for row in once if row.model == "federated" and row.metric != "ece"]:
        assert row.ci_low is not None, row
        assert row.ci_low <= row.value <= row.ci_high
        other = one(copied, model="federated", target=row.target, metric=row.metric)
        assert (other.value, other.ci_low, other.ci_high) == pytest.approx(
            (row.value, row.ci_low, row.ci_high), rel=1e-6
        )


def test_a_site_fits_heads_of_its_own_for_every_target_of_the_study(tmp_path: Path) -> None:
    """What training sites learn for themselves is asked of the backbone elsewhere, too."""
    study = study_of(evaluation={"bootstrap": 100, "head": True})
    cohort = cohort_of(40)
    rows = judged(tmp_path, cohort, study)
    with_head = {row.target for row in rows if row.model == "federated+head"}
    assert with_head == {"age", "sex", "ill"}
    assert {row.target for row in rows if row.model == "site-linear"} == {"age", "sex", "ill"}
    assert {row.target for row in rows if row.model == "federated"} == {"age", "sex"}
    assert one(rows, model="federated+head", target="ill", metric="auc").value > 0.7
    cohort.labels["ill"][:] = np.nan
    without = judged(tmp_path / "b", cohort, study)
    assert {row.target for row in without} == {"age", "sex"}


def test_baselines_are_left_out_where_a_study_has_them_from_elsewhere(tmp_path: Path) -> None:
    """They are the same beside every network: a protocol of many studies judges them once."""
    cohort = cohort_of(40)
    study = study_of(evaluation={"bootstrap": 100, "head": True, "baselines": False})
    rows = judged(tmp_path, cohort, study)
    assert {row.model for row in rows} == {"federated", "federated+head"}


def test_one_class_has_no_primary_metric_and_says_so(tmp_path: Path) -> None:
    """A ward of women has no AUC, and no other number in its place; yet its people are counted."""
    cohort = cohort_of(40)
    cohort.labels["sex"][:] = 0.0
    rows = [row for row in judged(tmp_path, cohort) if row.target == "sex"]
    row = one(rows, model="federated", metric="auc")
    assert (row.value, row.ci_low, row.ci_high) == (None, None, None)
    assert (row.n_participants, row.n_scans) == (40, len(cohort))
    assert "balanced_accuracy" not in {row.metric for row in rows}
    assert all(row.value is None for row in rows)
    # and a difference of two numbers that are not there is none
    order = order_of(model="single-here", against=("federated",))
    answer = Judge(STUDY, site_of(), cohort, order, tmp_path).network(build(STUDY, seed=2))
    told = {measured.row.metric for measured in answer.measured}
    assert "auc_minus_federated" not in told
    assert "mae_minus_federated" in told


def test_models_that_know_nothing_are_what_a_hand_computes(tmp_path: Path) -> None:
    """A network that does not beat these has learnt nothing about this site."""
    cohort = cohort_of(30)
    rows = judged(tmp_path, cohort)
    label = cohort.labels["age"].astype(float)
    people = np.array(cohort.participants)
    centre = STUDY.targets["age"].centre
    assert centre == 50
    mae, rmse = np.abs(label - centre).mean(), np.sqrt(((label - centre) ** 2).mean())
    assert one(rows, model="constant", metric="mae").value == metrics.figures(mae)
    assert one(rows, model="constant", metric="rmse").value == metrics.figures(rmse)
    others = np.array([label[people != name].mean() for name in people])
    own = np.abs(label - others).mean()
    assert one(rows, model="site-mean", metric="mae").value == metrics.figures(own)
    constant = [row.metric for row in rows if row.model in ("constant", "site-mean")]
    assert "r" not in constant  # a constant has none; leaving people out would show r = -1
    assert not [row for row in rows if row.model == "constant" and row.target == "sex"]


def test_no_order_chooses_the_constant() -> None:
    """A mean absolute error has a kink at each label: 126 constants told all of forty ages."""
    assert "constants" not in Order.model_fields
    with pytest.raises(ValidationError, match="constants"):
        order_of(constants={"age": 47.5})


def test_every_number_leaves_in_three_figures(tmp_path: Path) -> None:
    """Whatever model it is of: exact numbers are equations about labels."""
    study = study_of(evaluation={"bootstrap": 100, "head": True})
    cohort = cohort_of(40)
    rows = judged(tmp_path, cohort, study)
    order = order_of(model="single-here", against=("federated",))
    answer = Judge(study, site_of(), cohort, order, tmp_path).network(build(study, seed=2))
    rows += [measured.row for measured in answer.measured]
    assert {row.model for row in rows} > {"federated+head", "site-linear", "constant", "site-mean"}
    assert [row for row in rows if row.metric.endswith("_minus_federated")]
    for row in rows:
        for value in (row.value, row.ci_low, row.ci_high):
            assert value is None or value == metrics.figures(value), row


def test_the_rarest_class_is_told_beside_each_number(tmp_path: Path) -> None:
    """The gate cannot see labels; by what is told here a ward with two patients keeps its AUC."""
    cohort = cohort_of(40)
    patients = ["p003", "p017"]
    ill = np.isin(cohort.participants, patients)
    cohort.labels["ill"][:] = ill
    cohort.labels["age"][:5] = np.nan
    labelled, everyone = ~np.isnan(cohort.labels["age"]), np.arange(len(cohort))
    keys = (STUDY, site_of(), cohort, order_of())
    score = np.random.default_rng(0).random(len(cohort))
    found = measure(*keys, "ill", everyone, score)
    assert {measured.people for measured in found} == {2}
    assert {measured.row.n_participants for measured in found} == {40}
    assert {each.people for each in difference(*keys, "ill", everyone, [score], [-score], "x")} == {
        2
    }
    aged = np.flatnonzero(labelled)
    holders = len({cohort.participants[i] for i in aged})
    assert {each.people for each in measure(*keys, "age", aged, score[aged])} == {holders}


def test_two_people_have_errors_and_neither_intervals_nor_a_correlation() -> None:
    """However many scans they have: an interval of two people is the span of their two errors."""
    cohort = cohort_of(2, scans=4)
    age, everyone = cohort.labels["age"].astype(float), np.arange(len(cohort))
    predicted = age + np.random.default_rng(0).normal(0, 5, len(age))
    keys = (STUDY, site_of(), cohort, order_of(), "age", everyone)
    rows = {each.row.metric: each.row for each in measure(*keys, predicted)}
    assert set(rows) == {"mae", "rmse"}
    (apart,) = difference(*keys, [predicted], [age], "federated")
    for row in (*rows.values(), apart.row):
        assert row.value is not None
        assert row.ci_low is row.ci_high is None
        assert (row.n_participants, row.n_scans) == (2, len(age))


@pytest.mark.parametrize(
    ("target", "people", "ill", "tested"),
    [("age", 49, 0, False), ("age", 50, 0, True), ("sex", 50, 9, False), ("sex", 50, 10, True)],
)
def test_a_difference_has_a_p_value_from_fifty_people_and_ten_of_a_class_on(
    target: str, people: int, ill: int, *, tested: bool
) -> None:
    """Below, intervals are wide and p-values coarse: a verdict would be luck. Scans do not help."""
    cohort = cohort_of(people, scans=3)
    first = {person: place for place, person in enumerate(dict.fromkeys(cohort.participants))}
    number = np.array([first[person] for person in cohort.participants])
    cohort.labels["sex"][:] = number < ill
    chance, everyone = np.random.default_rng(0), np.arange(len(cohort))
    keys = (STUDY, site_of(), cohort, order_of(), target, everyone)
    ours, theirs = chance.random((2, len(cohort)))
    [apart] = difference(*keys, [ours], [theirs], "federated")
    assert (apart.row.p is not None) == tested
    assert apart.row.ci_low < apart.row.value < apart.row.ci_high


def test_without_others_a_site_has_no_mean_of_its_own(tmp_path: Path) -> None:
    """Three scans of one person: nothing is left when she is left out."""
    cohort = cohort_of(1, scans=1).subset(np.zeros(3, dtype=np.int64))
    assert not [row for row in judged(tmp_path, cohort) if row.model == "site-mean"]


def test_a_difference_has_the_sign_of_the_worse_and_holds_its_value(tmp_path: Path) -> None:
    """`mae_minus_federated` above zero: this model errs more than the federated one."""
    cohort = cohort_of(40)
    age, everyone = cohort.labels["age"].astype(float), np.arange(len(cohort))
    chance = np.random.default_rng(0)
    good, bad = age + chance.normal(0, 2, len(age)), age + chance.normal(0, 12, len(age))
    keys = (STUDY, site_of(), cohort, order_of(model="single-here"), "age", everyone)
    (worse,) = difference(*keys, [bad], [good], "federated")
    (better,) = difference(*keys, [good], [bad], "federated")
    worse, better = worse.row, better.row
    assert worse.metric == "mae_minus_federated"
    assert worse.model == "single-here"
    wanted = np.abs(bad - age).mean() - np.abs(good - age).mean()
    assert worse.value == metrics.figures(wanted)
    assert 0 < worse.ci_low < worse.value < worse.ci_high
    assert (better.value, better.ci_low, better.ci_high) == pytest.approx(
        (-worse.value, -worse.ci_high, -worse.ci_low)
    )


def test_a_difference_is_paired(tmp_path: Path) -> None:
    """The same people on both sides: what is hard for both models cancels out."""
    cohort = cohort_of(40, scans=1)
    age, everyone = cohort.labels["age"].astype(float), np.arange(len(cohort))
    shared = np.abs(np.random.default_rng(0).normal(0, 10, len(age)))
    keys = (STUDY, site_of(), cohort, order_of(), "age", everyone)
    (paired,) = difference(*keys, [age + shared + 1], [age + shared], "federated")
    row = paired.row
    alone = one([each.row for each in measure(*keys, age + shared)], metric="mae")
    assert (row.value, row.ci_low, row.ci_high) == pytest.approx((1, 1, 1))
    assert alone.ci_high - alone.ci_low > 1


def test_scores_that_saturate_are_ranked_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 the sigmoid of 17 and more is 1: an AUC of .63 was told as .50 in such a place."""
    cohort = cohort_of(60, scans=1)
    ill = cohort.labels["sex"] > 0
    logits = np.random.default_rng(0).normal(22 + ill, 1.5).astype(np.float32)
    assert logits.min() > 17
    truth = metrics.exact(STUDY.targets["sex"], cohort.labels["sex"], logits)["auc"]
    assert 0.6 < truth < 0.8
    network = build(STUDY, seed=1)
    place = {row.tobytes(): number for number, row in enumerate(cohort.samples)}

    def saturated(x: torch.Tensor) -> dict[str, torch.Tensor]:
        told = [logits[place[row.numpy().tobytes()]] for row in x]
        return {"sex": torch.tensor(told)[:, None]}

    monkeypatch.setattr(network, "forward", saturated)
    answer = Judge(STUDY, site_of(), cohort, order_of(), tmp_path).network(network)
    rows = [measured.row for measured in answer.measured]
    told = one(rows, target="sex", model="federated", metric="auc")
    assert told.value == pytest.approx(truth, abs=0.01)
    same = Judge(STUDY, site_of(), cohort, order_of(against=("federated",)), tmp_path)
    again = [measured.row for measured in same.network(network).measured]
    assert one(again, target="sex", metric="auc_minus_federated").value == 0  # kept as it was


def test_the_next_model_is_compared_with_what_the_first_predicted_here(tmp_path: Path) -> None:
    """Predictions never leave the site, so the comparison is made where they are."""
    cohort = cohort_of(40)
    first = judged(tmp_path, cohort)
    network = build(STUDY, seed=2)
    order = order_of(model="single-here", against=("federated", "absent"))
    answer = Judge(STUDY, site_of(), cohort, order, tmp_path).network(network)
    rows = [measured.row for measured in answer.measured]
    for target in ("age", "sex"):
        metric = metrics.primary(STUDY.targets[target])
        row = one(rows, target=target, metric=f"{metric}_minus_federated")
        own = one(rows, target=target, metric=metric, model="single-here").value
        theirs = one(first, target=target, metric=metric, model="federated").value
        # of each of the three numbers half a unit of its third figure may have been rounded off
        slack = sum(unit_of(value) for value in (own, theirs, row.value)) / 2
        assert abs(row.value - (own - theirs)) <= slack * (1 + 1e-9)
        assert row.ci_low <= row.value <= row.ci_high
    assert not [row for row in rows if row.metric.endswith("_minus_absent")]


def test_judging_twice_gives_the_same_rows(tmp_path: Path) -> None:
    """Folds and resamplings are drawn from the study's seed, the site and the target alone."""
    cohort = cohort_of(40)
    assert judged(tmp_path / "a", cohort) == judged(tmp_path / "b", cohort)
    other = judged(tmp_path / "c", cohort, study_of(seed=9))
    assert judged(tmp_path / "a", cohort) != other


def test_judging_tells_measurements_and_nothing_else(tmp_path: Path) -> None:
    """Sums by bin of a score were forty people's rows; a row of results.csv is what is asked."""
    cohort = cohort_of(40)
    answer = Judge(STUDY, site_of(), cohort, order_of(), tmp_path).network(build(STUDY, seed=1))
    assert (answer.counts, answer.support, answer.participants, answer.arrays) == ({}, {}, {}, {})
    assert answer.measured


def test_rounded_measurements_are_those_of_all_labelled_scans(tmp_path: Path) -> None:
    """What is put together over sites by its scans must be this site's whole."""
    cohort = cohort_of(40)
    cohort.labels["age"][:7] = np.nan
    network = build(STUDY, seed=1)
    rows = judged(tmp_path, cohort)
    predicted = predict(network, cohort, np.arange(len(cohort)), torch.device("cpu"))
    for target in ("age", "sex"):
        known = ~np.isnan(cohort.labels[target])
        wanted = metrics.exact(
            STUDY.targets[target], cohort.labels[target][known], predicted[target][known]
        )
        for metric, value in wanted.items():
            row = one(rows, model="federated", target=target, metric=metric)
            assert (row.value, row.n_scans) == (metrics.figures(value), int(known.sum()))


class Moved:
    """A cohort of people whose model thinks everybody likely, the ill more than the others."""

    cohort = cohort_of(people=60, scans=2)
    ill = cohort.labels["ill"].astype(np.float64)
    labelled = np.arange(len(cohort))
    likely = 0.8 + 0.1 * ill + 0.001 * np.arange(len(ill)) / len(ill)


def test_a_threshold_that_others_chose_mends_scores_that_are_all_too_high() -> None:
    """At one half everybody is ill; a site's other people say from where."""
    rows = evaluation._measured(
        STUDY, site_of(), Moved.cohort, order_of(), "ill", Moved.labelled, Moved.likely
    )
    told = {one.row.metric: one.row.value for one in rows}
    assert told["balanced_accuracy"] == 0.5
    assert told["balanced_accuracy" + metrics.CHOSEN] == 1.0


def test_nobody_has_a_say_in_her_own_threshold() -> None:
    """With her own fold's labels turned round, what is said of her stays as it was."""
    cohort, chance = Moved.cohort, np.random.default_rng(0)
    scores = chance.random(len(cohort))
    found = (STUDY, site_of(), cohort, "ill", Moved.labelled)
    fold = _folds(STUDY, site_of(), cohort, Moved.labelled, cohort.labels["ill"])
    said = evaluation._by_chosen_thresholds(*found, scores)
    changed = 0
    for number in range(5):
        label = np.where(fold == number, 1 - cohort.labels["ill"], cohort.labels["ill"])
        turned = dataclasses.replace(cohort, labels={**cohort.labels, "ill": label})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluation, "_folds", lambda *_: fold)
            other = evaluation._by_chosen_thresholds(
                STUDY, site_of(), turned, "ill", Moved.labelled, scores
            )
        assert said is not None
        assert other is not None
        assert (said[fold == number] == other[fold == number]).all()
        changed += int((said != other).sum())
    assert changed, "the others' labels decide"


def test_a_threshold_needs_people_to_choose_it() -> None:
    """Two a fold; and of one class none is better than another."""
    few = cohort_of(people=9, scans=1)
    found = (STUDY, site_of(), few, "ill", np.arange(9))
    assert evaluation._by_chosen_thresholds(*found, np.linspace(0, 1, 9)) is None
    alike = dataclasses.replace(
        Moved.cohort, labels={**Moved.cohort.labels, "ill": np.ones(len(Moved.cohort))}
    )
    found = (STUDY, site_of(), alike, "ill", Moved.labelled)
    assert evaluation._by_chosen_thresholds(*found, Moved.likely) is None
