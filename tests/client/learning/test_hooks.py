"""What an objective may ask of the loop: where training stands, a word after each step, no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.data.cohort import Cohort
from client.learning.prediction import losses, predict
from client.learning.training import Recipe, train
from common.errors import QuorumError, SettingError
from common.network.building import arrays_of
from common.objectives.multitask import Multitask
from common.seams import SHARED, Terms
from common.sections import Steps, Target

CPU = torch.device("cpu")


def cohort_of(n: int = 20, shape: tuple[int, ...] = (3,)) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    random = np.random.default_rng(0)
    return Cohort(
        samples=random.normal(size=(n, *shape)).astype(np.float32),
        participants=names,
        scans=names,
        labels={"age": random.normal(size=n).astype(np.float32)},
        measures=None,
        layout="other",
        findings=(),
        contents=names,
        secrets=("",) * len(names),
    )


class Distance(nn.Module):
    """Half the squared distance of (B, F) features from a centre that is learnt."""

    weights: ClassVar[dict[str, float]] = {"distance": 1.0}
    target_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.centre = nn.Parameter(torch.ones(backbone.features))  # type: ignore[arg-type]
        self.register_buffer("bank", torch.zeros(2))

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
        values = (self.backbone(x) - self.centre).square().sum(1) / 2
        return {"distance": Terms(values=values, counted=torch.ones(len(x), dtype=torch.bool))}

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        return {"age": self.backbone(x).sum(1)}


class Wide(nn.Module):
    """(B, 3) to (B, 4)."""

    features = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def recipe(**more: Any) -> Recipe:
    known = {"rate": 0.01, "weight_decay": 0.0, "epochs": 3, "of": 3, "seed": 1}
    return Recipe(**{"steps": Steps(batch_size=6), **known, **more})


def trained(network: Any, cohort: Cohort | None = None, **more: Any) -> Any:
    cohort = cohort or cohort_of()
    return train(network, cohort, np.arange(len(cohort)), recipe(**more), CPU)


# Where training stands.


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What every network is told from here on, in the order in which it is told."""
    found: list[tuple[int, int]] = []

    def begin(self: Any, epoch: int, of: int) -> None:
        found.append((epoch, of))

    monkeypatch.setattr(Multitask, "begin", begin, raising=False)
    return found


def test_an_objective_is_told_which_epoch_of_how_many_begins(told: list[Any]) -> None:
    """A temperature that falls, or layers that thaw, go by the whole training."""
    settings, age = Multitask.Settings(name="multitask"), Target(kind="regression")
    network: Any = Multitask(settings, Wide(), {"age": age})
    network.target_names = ("age",)
    trained(network, epochs=3, of=7, first=2)
    assert told == [(2, 7), (3, 7), (4, 7)]


def test_rounds_count_epochs_on_and_judges_are_told_the_end(
    federation: Any, told: list[Any]
) -> None:
    """Round 2 is not the beginning again; a network is judged as what it is after all rounds."""
    made = federation({
        "sites": {"train": ["alpha"], "heldout": ["omega"]},
        "pretraining": {"rounds": 2, "local_epochs": 3, "batch_size": 16},
        "evaluation.head": False,
    })  # fmt: skip
    made.simulate()
    assert told == [
        (0, 6),  # a round begins by judging the network as it came
        (0, 6), (1, 6), (2, 6),
        (3, 6),
        (3, 6), (4, 6), (5, 6),
        (6, 6),  # at omega
    ]  # fmt: skip


def test_a_task_of_a_sites_own_counts_its_own_epochs(
    federation: Any, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning begins at 0 of its own passes, whatever pretraining has behind it."""
    monkeypatch.setattr(Multitask, "finetunes", True, raising=False)
    task = {"name": "dementia", "target": "diagnosis", "epochs": 2, "learning_rates": [0.01]}

    def told_by(*methods: str) -> list[tuple[int, int]]:
        told.clear()
        made.changes["finetuning"] = [{**task, "methods": list(methods)}]
        made.simulate("-".join(methods).replace("/", "-"))
        return told[2:]  # one round of one pass: judged, trained

    made = federation({"sites": {"train": ["alpha"]}, "pretraining.rounds": 1})
    tuned = [(0, 2), (1, 2), (2, 2)]  # the last: validation chooses among finished trainings
    again = [(2, 2)] * 2  # the kept model measures test participants, by validation's threshold
    assert told_by("pretrained/full") == tuned + again
    assert told_by("scratch/full") == tuned + again
    # features of the network at the end of pretraining: fitted, then predicted from
    assert set(told_by("pretrained/frozen")) == {(1, 1)}
    assert set(told_by("scratch/frozen")) == {(0, 1)}  # nobody has trained that one


# A word after each step.


class Moving(Distance):
    """A slow copy of the centre, moved after each step: what a teacher network is."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.register_buffer("teacher", torch.ones(4))
        self.centres: list[Tensor] = []
        self.recording: list[bool] = []

    def after_step(self) -> None:
        self.recording.append(torch.is_grad_enabled())
        self.centres.append(self.centre.detach().clone())
        self.teacher.mul_(0.9).add_(self.centre, alpha=0.1)


def test_an_objective_has_its_word_once_after_every_step() -> None:
    """A teacher that moved twice a step, or with the batch's number, would be another method."""
    network = Moving(Wide())
    trained(network, epochs=3)
    assert len(network.centres) == 3 * 4  # of 20 samples by six
    assert network.recording == [False] * 12
    path = [torch.ones(4), *network.centres]
    assert all(not torch.equal(a, b) for a, b in pairwise(path))
    teacher = torch.ones(4)
    for centre in network.centres:
        teacher = 0.9 * teacher + 0.1 * centre
    torch.testing.assert_close(network.teacher, teacher)


def test_where_nothing_is_learnt_no_word_is_asked() -> None:
    """Judging must leave the teacher as it is, or a metric would depend on what was looked at."""
    network, cohort = Moving(Wide()), cohort_of()
    before = arrays_of(network)
    losses(network, cohort, np.arange(20), CPU, seed=1, batch_size=6)
    predict(network, cohort, np.arange(20), CPU)
    assert network.centres == []
    after = arrays_of(network)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


# Terms look on, and change nothing.


def writes(self: Any) -> None:
    self.bank += 1


def fills(self: Any) -> None:
    self.bank[0] = 7.0


def replaces(self: Any) -> None:
    self.bank = self.bank + 1


def registers(self: Any) -> None:
    self.register_buffer("queue", torch.zeros(1))


def writes_below(self: Any) -> None:
    self.backbone.layer[0].counter.add_(1)


@pytest.mark.parametrize("change", [writes, fills, replaces, registers, writes_below])
def test_terms_that_change_a_buffer_are_refused(change: Callable[[Any], None]) -> None:
    """They are also asked where nothing may be learnt: validation would leak into the model."""

    class Leaking(Distance):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            change(self)
            return super().terms(x, labels)

    backbone = Wide()
    backbone.layer[0].register_buffer("counter", torch.zeros(()))
    name = {registers: "queue", writes_below: "backbone.layer.0.counter"}.get(change, "bank")
    with pytest.raises(SettingError, match=rf"Leaking\.terms changed the buffer {name}; that is"):
        trained(Leaking(backbone))


def test_statistics_of_normalisation_may_move_in_terms() -> None:
    """The control: they do so in every network, and rest where nothing is learnt."""
    network = Distance(Wide())
    before = arrays_of(network)["backbone.layer.1.running_mean"]
    trained(network)
    assert not np.array_equal(arrays_of(network)["backbone.layer.1.running_mean"], before)


def test_begin_and_after_step_may_change_buffers() -> None:
    """The other control: that is the place for it."""

    class Counting(Distance):
        def begin(self, epoch: int, of: int) -> None:
            self.bank[0] = epoch

        def after_step(self) -> None:
            self.bank[1] += 1

    network = Counting(Wide())
    trained(network)
    assert network.bank.tolist() == [2.0, 12.0]


def test_a_site_says_that_its_study_is_at_fault(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own log has the reason; to the coordinator goes a code."""
    plain = Multitask.terms

    def terms(self: Any, x: Tensor, labels: Any) -> Any:
        self.backbone.standardise.mean += 1
        return plain(self, x, labels)

    monkeypatch.setattr(Multitask, "terms", terms)
    made = federation({"sites": {"train": ["alpha"]}})
    with pytest.raises(QuorumError, match="alpha: SITE_FAILED"):
        made.simulate()


# What the loop hands over.


def test_terms_see_labels_of_their_own_targets_alone() -> None:
    """A diagnosis that only one site agreed to use is not the shared network's business."""
    seen: set[tuple[str, ...]] = set()

    class Nosy(Distance):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            seen.add(tuple(labels))
            return super().terms(x, labels)

    cohort = cohort_of()
    labels = {**cohort.labels, "diagnosis": np.ones(20, np.float32)}
    cohort = replace(cohort, labels=labels)
    network = Nosy(Wide())
    trained(network, cohort)
    losses(network, cohort, np.arange(20), CPU, seed=1, batch_size=6)
    assert seen == {()}
    seen.clear()
    network.target_names = ("age", "of another study")  # type: ignore[misc]
    trained(network, cohort)
    losses(network, cohort, np.arange(20), CPU, seed=1, batch_size=6)
    assert seen == {("age",)}


class Slices(nn.Module):
    """A 2D network over the slices of a volume: (B, X, Y, Z) to (B, 5)."""

    features = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 5, 3, padding=1)
        self.up = nn.ConvTranspose2d(5, 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        slices = x.flatten(0, 1).unsqueeze(1)
        maps = self.up(torch.relu(self.second(torch.relu(self.first(slices)))))
        return maps.mean((2, 3)).unflatten(0, x.shape[:2]).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_network_of_slices_trains_on_volumes(optimiser: Any) -> None:
    """Kernels have four axes there and samples three: each tensor is laid out by its own."""
    cohort, network = cohort_of(shape=(4, 6, 5)), Distance(Slices())
    before = arrays_of(network)
    steps = Steps(batch_size=6, optimiser=optimiser)
    first = trained(network, cohort, steps=steps)
    after = arrays_of(network)
    for name, array in after.items():
        assert np.isfinite(array).all()
        assert name == "bank" or not np.array_equal(array, before[name]), name
    again = trained(network, cohort, steps=steps, moments=first.moments)
    assert again.tally.mean() < first.tally.mean()
    assert predict(network, cohort, np.arange(20), CPU)["age"].shape == (20,)


def test_terms_are_counted_by_sample_and_by_person() -> None:
    """Support is what entered a loss: whoever was never counted must not weigh."""

    class Some(Distance):
        def terms(self, x: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Terms]:
            values = super().terms(x, labels)["distance"].values
            return {"distance": Terms(values=values, counted=labels["age"] > 0)}

    network, cohort = Some(Wide()), cohort_of()
    network.target_names = ("age",)  # type: ignore[misc]
    people = tuple(f"p{i // 3}" for i in range(20))
    cohort = replace(cohort, participants=people)
    positive = np.flatnonzero(cohort.labels["age"] > 0)
    assert 0 < len(positive) < 20
    tally = trained(network, cohort, epochs=2, of=2).tally
    assert tally.entered().tolist() == positive.tolist()
    assert tally.counts("loss")["loss/distance"][1] == 2 * len(positive)
    assert tally.participants("loss") == {"loss/distance": len({people[i] for i in positive})}
