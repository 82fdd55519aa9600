"""A site tunes a model, stops in time, keeps it, and finds it again instead of training it anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from client.answer import Measured
from client.learning import ways
from client.learning.finetuning import Tuning
from client.learning.intervals import Judged, difference, z_of
from client.learning.prediction import losses
from client.learning.tuned_models import TunedModel, TunedModels
from common import metrics
from common.errors import DamagedError, Refusal
from common.network.building import arrays_of, build
from common.objectives.multitask import Multitask
from common.protocol.orders import Measurement, Order
from common.protocol.wire import open_arrays
from common.seeding import seed_of

TASK = {"name": "dementia", "target": "diagnosis", "epochs": 3, "learning_rates": [0.02]}
Make = Callable[..., Tuning]


@pytest.fixture
def tuning(federation: Any, tmp_path: Path) -> Make:
    """`tuning("scratch/full", epochs=9)`: one order at one site, with a folder of its own."""

    def make(way: str, *, folder: str = "models", k: int = 0, **more: Any) -> Tuning:
        if not made:
            made.append(federation({"sites": {"train": ["alpha"]}, "backbone.dropout": 0.2},
                                   participants={"alpha": 90}))  # fmt: skip
        methods = [way] if way.endswith("full") else [way, "scratch/full"]
        made[0].changes["finetuning"] = [{**TASK, "methods": methods, **more}]
        agent = made[0].agent("alpha")
        init, _, method = way.rpartition("/")
        order = Order(
            kind="finetune", study=agent.study.digest, run="ab" * 32, site="alpha",
            task="dementia", init=init, method=method, k=k, arrays="0" * 64,
        )  # fmt: skip
        arrays = arrays_of(build(agent.study, seed=3)) if init == "pretrained" else {}
        models = TunedModels(tmp_path / folder)
        return Tuning(agent.study, agent.site, agent.cohort, order, arrays, models)

    made: list[Any] = []
    return make


def kept(one: Tuning, repeat: int = 0) -> TunedModel:
    found = one.models.find(one.order, repeat)
    assert found is not None
    return found


def same(left: TunedModel, right: TunedModel) -> bool:
    return left.arrays.keys() == right.arrays.keys() and all(
        array.tobytes() == right.arrays[name].tobytes() for name, array in left.arrays.items()
    )


# Stopping in time.

EAGER = {"epochs": 60, "learning_rates": [0.2], "batch_size": 8}


@pytest.mark.parametrize("way", ["scratch/full", "pretrained/full", "pretrained/last-blocks"])
@pytest.mark.parametrize("patience", [1, 4])
def test_a_training_that_gets_worse_stops_and_goes_back_to_its_best(
    tuning: Make, way: str, patience: int
) -> None:
    """Forty patients are learnt by heart in a few passes; what comes after them is thrown away."""
    stopped = tuning(way, patience=patience, **EAGER)
    stopped.finetune()
    cell = kept(stopped).cell
    assert cell is not None
    found = [passage.validation_loss for passage in cell.history]
    best = int(np.argmin(found))
    assert cell.epochs == best + 1
    assert len(found) == best + 1 + patience < 60
    assert [passage.epoch for passage in cell.history] == list(range(1, len(found) + 1))
    # the same bits as if nobody had ever looked, nor trained on: dropout and order go on alike
    blind = tuning(way, folder="blind", **{**EAGER, "epochs": best + 1})
    blind.finetune()
    assert same(kept(stopped), kept(blind))
    assert (
        [p.loss for p in kept(blind).cell.history]
        == [  # type: ignore[union-attr]
            passage.loss for passage in cell.history[: best + 1]
        ]
    )


def test_the_kept_model_has_the_validation_loss_of_its_best_epoch(tuning: Make) -> None:
    """What stands in the history must be true of the arrays beside it."""
    one = tuning("scratch/full", patience=2, **EAGER)
    one.finetune()
    model, split = kept(one), one._split(0)
    assert model.cell is not None
    assert split is not None
    again = losses(
        one.network(model, 0), one.cohort, split.validation, torch.device("cpu"), seed=0,
        batch_size=8,
    ).mean()  # fmt: skip
    lowest = min(passage.validation_loss for passage in model.cell.history)  # type: ignore[type-var]
    assert again == pytest.approx(lowest, rel=1e-6)


def test_without_patience_training_goes_to_its_end(tuning: Make) -> None:
    """The study asked for so many passes, and validation costs time."""
    one = tuning("scratch/full", **{**EAGER, "epochs": 12})
    one.finetune()
    cell = kept(one).cell
    assert cell is not None
    assert (cell.epochs, len(cell.history)) == (12, 12)
    assert {passage.validation_loss for passage in cell.history} == {None}
    assert all(np.isfinite(passage.loss) for passage in cell.history)


def test_a_patient_training_that_still_gets_better_goes_to_its_end(tuning: Make) -> None:
    """Patience ends what has stopped falling, and nothing else."""
    calm = {"epochs": 4, "learning_rates": [1e-3], "patience": 3}
    one = tuning("scratch/full", **calm)
    one.finetune()
    cell = kept(one).cell
    assert cell is not None
    found = [passage.validation_loss for passage in cell.history]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert cell.epochs == 4


def test_a_network_that_stopped_is_told_of_the_epoch_it_went_back_to(
    tuning: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective whose temperature falls must predict at the one that its arrays were learnt at."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        Multitask, "begin", lambda self, epoch, of: told.append((epoch, of)), raising=False
    )
    one = tuning("scratch/full", patience=2, **EAGER)
    one.finetune()
    cell = kept(one).cell
    assert cell is not None
    trained = [(epoch, 60) for epoch in range(len(cell.history))]
    # validated, measured, and asked for a threshold
    assert told == [*trained, *[(cell.epochs, 60)] * 3]


def test_validation_chooses_among_the_settings(tuning: Make) -> None:
    """By the task's own metric, each setting at its own best epoch."""
    grid = {"learning_rates": [1e-6, 0.05], "weight_decays": [0.0, 0.1], "epochs": 6}
    one = tuning("scratch/full", patience=2, **grid)
    one.finetune()
    model = kept(one)
    assert [(cell.learning_rate, cell.weight_decay) for cell in model.grid] == [
        (1e-6, 0.0), (1e-6, 0.1), (0.05, 0.0), (0.05, 0.1)
    ]  # fmt: skip
    scores = [cell.score for cell in model.grid]
    assert model.metric == "auc"
    assert model.chosen == int(np.argmax(scores))  # type: ignore[arg-type]
    assert len(set(scores)) > 1


# What is kept.


@pytest.mark.parametrize(
    "way", ["scratch/full", "pretrained/lora", "pretrained/frozen", "linear", "scratch/frozen"]
)
def test_the_same_order_is_not_learnt_twice(
    tuning: Make, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that lost an answer asks again; a night of training is not spent again."""
    one = tuning(way)
    first = one.finetune()

    def never(*_: object, **__: object) -> Any:
        raise AssertionError("it is learnt already")

    for name in ("train", "fit"):
        monkeypatch.setattr(ways, name, never)
    assert one.finetune() == first


def test_a_damaged_model_is_trained_again_to_the_same_bits(tuning: Make, tmp_path: Path) -> None:
    """Half a file costs an hour and never a result."""
    one = tuning("scratch/full")
    first, model = one.finetune(), kept(one)
    [path] = (tmp_path / "models").rglob("k0-repeat0.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-50], b"", whole.replace(b"dementia", b"Dementia")[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError):  # a judge must not pass over it in silence
            one.models.find(one.order, 0)
        assert one.finetune() == first
        assert same(kept(one), model)


def test_a_model_of_other_arrays_is_not_mistaken_for_this_orders(tuning: Make) -> None:
    """The next run's backbone must not be judged by what the last one's was tuned to."""
    one = tuning("pretrained/full")
    one.finetune()
    first = kept(one)
    other = Tuning(
        one.study, one.site, one.cohort,
        one.order.model_copy(update={"arrays": "1" * 64}),
        arrays_of(build(one.study, seed=4)), one.models,
    )  # fmt: skip
    other.finetune()
    assert not same(kept(other), first)


def test_how_a_model_came_about_stands_beside_it(tuning: Make, tmp_path: Path) -> None:
    """A physicist asks in a year which rate it was: the file says, without any of our code."""
    tuning("scratch/full", patience=2, learning_rates=[0.01, 0.02]).finetune()
    with open_arrays(tmp_path / "models/tuned/dementia/scratch/full/k0-repeat0.safetensors") as f:
        about = json.loads(f.text("model"))
    assert about["metric"] == "auc"
    chosen = about["grid"][about["chosen"]]
    assert chosen["learning_rate"] in (0.01, 0.02)
    assert chosen["history"][0].keys() == {"epoch", "loss", "validation_loss"}


def test_judging_anew_measures_the_kept_model(tuning: Make) -> None:
    """Today's test participants, yesterday's model; without one there is nothing to judge."""
    one = tuning("scratch/full", then=["judge"])
    order = one.order.model_copy(update={"kind": "judge"})
    judge = Tuning(one.study, one.site, one.cohort, order, {}, one.models)
    with pytest.raises(Refusal, match="no tuned model of this kind") as refusal:
        judge.judge()
    assert refusal.value.code == "NO_DATA"
    tuned = one.finetune()
    again = judge.judge()
    assert {one.row.phase for one in again} == {"judge"}
    as_tuned = [replace(one, row=one.row.model_copy(update={"phase": "finetune"})) for one in again]
    assert as_tuned == tuned


# What lies between two methods.


def rival_of(one: Tuning, method: str, *against: str) -> Tuning:
    """The same site's next order, by a method of closed form."""
    told = {"init": "", "method": method, "against": against}
    return replace(one, order=one.order.model_copy(update=told))


def told_of(rows: list[Measured], metric: str) -> Measurement:
    [found] = [one.row for one in rows if one.row.metric == metric]
    return found


DRAWN = {"k": 20, "participants": [20], "draws": 3, "methods": ["scratch/full", "linear"]}


def test_methods_are_compared_person_by_person_over_all_draws(tuning: Make) -> None:
    """The mean over draws, and the mean of what lies between two models of the same draw."""
    one = tuning("scratch/full", **DRAWN)
    ours = one.finetune()
    other = rival_of(one, "linear", "scratch-full")
    rows = other.finetune()
    test = one._split(0).test  # type: ignore[union-attr]
    label = one.cohort.labels["diagnosis"][test]
    people = [one.cohort.participants[i] for i in test]
    said = {
        which: [tuned.predicted(kept(tuned, n), test, n) for n in range(3)]
        for which, tuned in (("scratch", one), ("linear", other))
    }
    target = one.study.targets["diagnosis"]
    linear, scratch = (Judged.of(target, label, said[which], people)
                       for which in ("linear", "scratch"))  # fmt: skip
    area = {which: np.mean([roc_auc_score(label, told) for told in said[which]]) for which in said}
    wanted = {
        "auc_over_draws": (area["linear"], linear.bounds("auc", z_of(0.95))),
        "auc_minus_scratch-full": (area["linear"] - area["scratch"],
                                   difference(linear, scratch, "auc", 0.95).bounds),
    }  # fmt: skip
    for metric, (value, bounds) in wanted.items():
        row = told_of(rows, metric)
        assert (row.value, row.ci_low, row.ci_high) == pytest.approx((value, *bounds), abs=1e-3)
        assert (row.method, row.k, row.repeat, row.task) == ("linear", 20, 0, "dementia")
        assert row.n_participants == len(set(people))
    assert told_of(ours, "auc_over_draws").method == "full"
    assert not [one for one in ours if "_minus_" in one.row.metric]  # nothing came before it


@pytest.mark.parametrize("draws", [1, 3])
def test_the_median_of_all_training_labels_stands_beside_a_number(tuning: Make, draws: int) -> None:
    """A model that does not beat it has learnt nothing; of the few drawn it would be one's label."""
    more = {"k": 5, "participants": [5], "draws": draws} if draws > 1 else {}
    one = tuning("linear", target="age", **more)
    rows = one.finetune()
    label = one.cohort.labels["age"]
    train, test = (one.cohort.indices(part, one.study.splits) for part in ("train", "test"))
    test = test[~np.isnan(label[test])]
    wanted = float(np.abs(np.nanmedian(label[train]) - label[test]).mean())
    name = "mae_over_draws" if draws > 1 else "mae"
    [beside] = [row.row for row in rows if (row.row.model, row.row.metric) ==
                ("training-median", name)]  # fmt: skip
    assert beside.value == pytest.approx(wanted, rel=5e-3)
    own = told_of([row for row in rows if row.row.model == "federated"], name).value
    apart = told_of(rows, "mae_minus_training-median")
    assert apart.value == pytest.approx((own or 0) - wanted, abs=0.02 * wanted)
    assert apart.ci_low is not None
    later = rival_of(one, "linear", "scratch-full").finetune()
    assert not [row for row in later if row.row.model == "training-median"]  # told once
    assert told_of(later, "mae_minus_training-median").value == apart.value


def test_a_median_of_few_people_is_nobodys_business(tuning: Make) -> None:
    """Nor has a class one: saying the same of everyone is chance there."""
    assert not [one for one in tuning("linear").finetune() if "median" in one.row.model]
    one = tuning("linear", target="age")
    policy = one.site.policy.model_copy(update={"minimum_support": 80})
    few = replace(one, site=one.site.model_copy(update={"policy": policy}))
    assert not [row for row in few.finetune() if "median" in row.row.model + row.row.metric]


def test_validation_people_choose_the_threshold_and_test_people_are_judged_by_it(
    tuning: Make,
) -> None:
    """A threshold chosen on those whom it is judged by would flatter every model."""
    one = tuning("linear")
    rows = one.finetune()
    split = one._split(0)
    assert split is not None
    label = one.cohort.labels["diagnosis"]
    model = kept(one)
    chosen = metrics.threshold(label[split.validation], one.predicted(model, split.validation, 0))
    said = one.predicted(model, split.test, 0) >= chosen
    wanted = balanced_accuracy_score(label[split.test], said)
    row = told_of(rows, "balanced_accuracy_chosen")
    assert row.value == pytest.approx(wanted, abs=1e-3)
    assert row.ci_low < row.value < row.ci_high
    assert wanted != roc_auc_score(label[split.test], one.predicted(model, split.test, 0))


def test_a_difference_has_the_people_of_the_rarest_class_behind_it(tuning: Make) -> None:
    """The gate asks every row for them; one that says more would leave from too few."""
    one = tuning("scratch/full", **DRAWN)
    plain = {measured.people for measured in one.finetune()}
    rows = rival_of(one, "linear", "scratch-full").finetune()
    assert {measured.people for measured in rows} == plain


def test_the_same_comparison_is_made_again_after_a_crash(tuning: Make) -> None:
    """A rival is not asked anew, nor trained: what it said is kept beside its models."""
    one = tuning("scratch/full", **DRAWN)
    one.finetune()
    other = rival_of(one, "linear", "scratch-full")
    assert other.finetune() == other.finetune()


def test_nothing_is_compared_with_what_was_said_of_others(
    tuning: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rival's damaged or outdated predictions cost a row, and never stand for today's people."""
    one = tuning("scratch/full", **DRAWN)
    one.finetune()
    other = rival_of(one, "linear", "scratch-full")
    test = one._split(0).test  # type: ignore[union-attr]
    assert set(one.models.predictions(one.order, test)) == {0, 1, 2}
    assert one.models.predictions(one.order, test[1:]) == {}
    [path] = (tmp_path / "models/tuned-predictions").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    rows = other.finetune()
    assert not [one for one in rows if "_minus_" in one.row.metric]
    assert "nothing is compared with scratch-full" in caplog.text


def test_a_rival_that_the_study_does_not_name_is_refused(tuning: Make) -> None:
    """An order's words become a path; only methods of the study's own lead anywhere."""
    one = tuning("scratch/full", **DRAWN)
    with pytest.raises(Refusal, match="no task 'dementia' by pretrained-lora") as refusal:
        rival_of(one, "linear", "pretrained-lora").finetune()
    assert refusal.value.code == "ORDER_MALFORMED"


# So many people, so many times.


def people_of(one: Tuning, repeat: int, part: str = "train") -> frozenset[str]:
    split = one._split(repeat)
    assert split is not None
    return frozenset(one.cohort.participants[i] for i in getattr(split, part))


def test_exactly_so_many_participants_are_learnt_from(tuning: Make) -> None:
    """`k = 12` in a table is a promise about people; those that choose are not more."""
    one = tuning("scratch/full", k=12, participants=[12, 20], draws=5)
    drawn = [people_of(one, repeat) for repeat in range(5)]
    assert {len(people) for people in drawn} == {12}
    assert len(set(drawn)) == 5  # another draw, other people
    assert all(len(people_of(one, repeat, "validation")) <= 12 for repeat in range(5))
    everyone = one.cohort.indices("train", one.study.splits)
    assert set.union(*map(set, drawn)) <= {one.cohort.participants[i] for i in everyone}
    whole = one.cohort.indices("test", one.study.splits)
    for repeat in range(5):  # all are judged by the same people
        assert people_of(one, repeat, "test") == {one.cohort.participants[i] for i in whole}


def test_repeats_of_one_draw_differ_in_chance_alone(tuning: Make) -> None:
    """Luck of the draw and luck of the weights are two things, and a median mixes them at will."""
    one = tuning("scratch/full", k=12, participants=[12], draws=2, repeats=2)
    rows = [measured.row for measured in one.finetune()]
    assert {(row.k, row.repeat) for row in rows} == {(12, n) for n in range(4)}
    drawn = [people_of(one, repeat) for repeat in range(4)]
    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert drawn[0] != drawn[2]
    models = [kept(one, repeat) for repeat in range(4)]
    assert not any(same(models[0], other) for other in models[1:])


def test_fewer_people_than_asked_is_no_data(tuning: Make) -> None:
    """A site of forty does not answer for eighty under their name."""
    one = tuning("scratch/full", k=80, participants=[80])
    with pytest.raises(Refusal, match="labelled train participants, 80 asked") as refusal:
        one.finetune()
    assert refusal.value.code == "NO_DATA"


def test_all_chance_of_a_repeat_comes_from_the_study(tuning: Make) -> None:
    """Two hospitals, or two nights, and the same seed: the same model."""
    first, second = tuning("scratch/full"), tuning("scratch/full", folder="again")
    first.finetune()
    torch.manual_seed(1)
    np.random.default_rng(1)
    second.finetune()
    assert same(kept(first), kept(second))
    wanted = seed_of(first.study.seed, "finetune", "alpha", "dementia", 0)
    assert first._way(0)._seed("finetune") == wanted
