"""What a loader does to samples depends on the seed and on nothing else, and only to train on."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from client.data.cohort import Cohort
from client.data.loading import Batch, Loader, batches, split_evenly
from client.learning.prediction import losses, predict
from client.learning.training import Recipe, train
from common.augmentations.noise import Noise
from common.augmentations.shift import Shift
from common.network.building import build
from common.seams import SHARED, Terms
from common.sections import Steps

CPU = torch.device("cpu")
SHIFTED = Shift(Shift.Settings(name="shift", voxels=2), (6, 5, 4))
NOISY = Noise(Noise.Settings(name="noise", deviation=0.5), (6, 5, 4))


def cohort_of(n: int = 23) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    samples = np.random.default_rng(0).normal(size=(n, 6, 5, 4)).astype(np.float16)
    samples.flags.writeable = False  # as they are mapped from disk
    return Cohort(
        samples=samples,
        participants=names,
        scans=names,
        labels={},
        measures=None,
        layout="volume",
        findings=(),
        contents=names,
        secrets=("",) * len(names),
    )


def read(cohort: Cohort, loader: Loader, batch_size: int = 4) -> list[np.ndarray]:
    order = split_evenly(np.random.default_rng(1).permutation(len(cohort)), batch_size)
    return [batch.x.numpy() for batch in batches(cohort, order, CPU, loader)]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return [x.tobytes() for x in left] == [x.tobytes() for x in right]


@pytest.mark.parametrize("threads", [2, 3, 8, 40])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    """A hospital that buys another machine must not train another model."""
    cohort = cohort_of()
    wanted = read(cohort, Loader((SHIFTED, NOISY), seed=5, threads=1))
    assert len(wanted) == 6
    for _ in range(3):
        found = read(cohort, Loader((SHIFTED, NOISY), seed=5, threads=threads))
        assert same(found, wanted)


def test_another_seed_is_another_augmentation() -> None:
    """Else every round would show the same noise, and noise that is known is no noise."""
    cohort = cohort_of()
    wanted = read(cohort, Loader((SHIFTED, NOISY), seed=5))
    assert same(read(cohort, Loader((SHIFTED, NOISY), seed=5)), wanted)
    assert not same(read(cohort, Loader((SHIFTED, NOISY), seed=6)), wanted)


def test_every_sample_has_chance_of_its_own() -> None:
    """One draw for a batch would teach that all patients of a day lie alike."""
    cohort = cohort_of()
    plain = np.concatenate(read(cohort, Loader()))
    added = np.concatenate(read(cohort, Loader((NOISY,), seed=5))) - plain
    alike = np.corrcoef(added.reshape(len(cohort), -1))
    assert np.abs(alike - np.eye(len(cohort))).max() < 0.5  # of 120 voxels; 1 is the same draw


def test_augmentations_follow_each_other_in_the_studys_order() -> None:
    """Noise that is then shifted leaves borders of 0; shifted, then noisy, it does not."""
    cohort = cohort_of()
    noise_last = np.concatenate(read(cohort, Loader((SHIFTED, NOISY), seed=5)))
    shift_last = np.concatenate(read(cohort, Loader((NOISY, SHIFTED), seed=5)))
    assert (shift_last == 0).mean() > 0.2
    assert (noise_last == 0).mean() < 0.01


def test_samples_on_disk_stay_what_they_are() -> None:
    """They are mapped from a file that every later study reads."""
    cohort = cohort_of()
    before = cohort.samples.tobytes()
    read(cohort, Loader((SHIFTED, NOISY), seed=5))
    assert cohort.samples.tobytes() == before


def test_an_augmentation_that_fails_ends_the_training() -> None:
    """In a thread it would otherwise be a sample that is silently not there."""

    def fails(sample: Any, generator: np.random.Generator) -> Any:
        raise ZeroDivisionError("in a thread")

    with pytest.raises(ZeroDivisionError, match="in a thread"):
        read(cohort_of(), Loader((fails,), threads=3))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_every_view_of_a_sample_is_augmented_by_itself(threads: int) -> None:
    """Equal views would be told apart from other samples without looking; and threads choose none."""
    cohort = cohort_of()
    loader = Loader((SHIFTED, NOISY), seed=5, threads=threads, views=3)
    found = read(cohort, loader)
    assert found[0].shape == (4, 3, 6, 5, 4)
    assert same(found, read(cohort, Loader((SHIFTED, NOISY), seed=5, views=3)))
    assert not same(found, read(cohort, Loader((SHIFTED, NOISY), seed=6, views=3)))
    plain = np.concatenate(read(cohort, Loader()))
    looks = np.concatenate(read(cohort, Loader((NOISY,), seed=5, views=3)))
    added = (looks - plain[:, None]).reshape(len(cohort) * 3, -1)
    assert np.abs(np.corrcoef(added) - np.eye(len(added))).max() < 0.5  # 1 is the same draw


def test_views_of_a_sample_are_views_of_that_sample() -> None:
    """Without augmentation each is the sample itself: views and samples have not changed places."""
    cohort = cohort_of()
    plain, looks = read(cohort, Loader()), read(cohort, Loader(views=2))
    for one, both in zip(plain, looks, strict=True):
        np.testing.assert_array_equal(both, np.stack([one, one], axis=1))


class Twins(nn.Module):
    """Half the squared distance between the two views of a sample, seen by a shared layer."""

    views: ClassVar[int] = 2
    weights: ClassVar[dict[str, float]] = {"distance": 1.0}
    target_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 3)
        self.seen: list[torch.Tensor] = []

    def owner(self, name: str) -> str:
        return SHARED

    def terms(self, x: torch.Tensor, labels: Any) -> dict[str, Terms]:
        self.seen.append(x)
        one, other = self.backbone(x).unbind(1)
        values = (one - other).square().sum(1) / 2
        return {"distance": Terms(values=values, counted=torch.ones(len(x), dtype=torch.bool))}

    def predict(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        assert x.dim() == 2
        return {"level": self.backbone(x).mean(1)}


def test_an_objective_that_compares_views_is_given_them() -> None:
    """In training anew in every epoch; in validation the same each time, or no epoch compares."""
    network, cohort = Twins(), federation_cohort(8)
    loader = Loader((Noise(Noise.Settings(name="noise"), (4,)),), seed=3, threads=2)
    recipe = Recipe(
        steps=Steps(), rate=0.01, weight_decay=0.0, epochs=2, of=2, seed=1, loader=loader
    )
    train(network, cohort, np.arange(8), recipe, CPU)
    assert [tuple(x.shape) for x in network.seen] == [(8, 2, 4)] * 2
    assert len({float(view.sum()) for x in network.seen for view in x.flatten(0, 1)}) == 2 * 8 * 2
    network.seen.clear()
    found = [
        losses(network, cohort, np.arange(8), CPU, seed=seed, batch_size=8, loader=loader)
        for seed in (1, 1, 2)
    ]
    first, again, other = (tally.mean() for tally in found)
    assert first == again != other
    assert first > 0  # views that are equal would be 0 apart
    assert predict(network, cohort, np.arange(8), CPU)["level"].shape == (8,)


class Watched(Noise):
    """Noise that counts the samples it is added to, by what it was given."""

    seen: ClassVar[Counter[bytes]] = Counter()
    drawn: ClassVar[set[float]] = set()

    def __call__(self, sample: Any, generator: np.random.Generator) -> Any:
        found = super().__call__(sample, generator)
        type(self).seen[np.asarray(sample).tobytes()] += 1
        type(self).drawn.add(float(found.sum()))
        return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr("common.augmentations.noise.Noise", Watched)
    monkeypatch.setattr(Watched, "seen", Counter())
    monkeypatch.setattr(Watched, "drawn", set())
    return Watched


TASK = {
    "name": "dementia",
    "target": "diagnosis",
    "methods": ["pretrained/full", "pretrained/frozen", "linear"],
    "epochs": 3,
    "learning_rates": [0.01, 0.02],
}


def test_what_is_trained_on_is_augmented_and_nothing_else(federation: Any, watched: Any) -> None:
    """A prediction from a noisy scan would be another one each time, and an honest metric of none."""
    made = federation({
        "sites": {"train": ["alpha"], "heldout": ["omega"]},
        "objective.targets": ["age"],
        "pretraining": {"rounds": 2, "local_epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "augmentation": [{"name": "noise", "deviation": 0.2}],
        "finetuning": [TASK],
    })  # fmt: skip
    made.simulate()
    cohort = made.agent("alpha").cohort
    training = cohort.indices("train", made.study.splits)
    # two rounds of two passes, and two settings of three passes for the one method that trains
    wanted = {np.asarray(cohort.samples[i]).tobytes(): 4 + 6 for i in training}
    assert watched.seen == wanted
    # never twice the same noise, but in the grid: its settings are compared on the same looks
    assert len(watched.drawn) == (4 + 3) * len(training)


def test_the_same_study_is_augmented_alike_whatever_the_threads(federation: Any) -> None:
    """The claim about bits above, through a whole run and its site file."""
    made = federation({
        "sites": {"train": ["alpha"]},
        "augmentation": [{"name": "noise", "deviation": 0.2}, {"name": "scale"}],
    })  # fmt: skip
    found = []
    site = made.sites / "alpha" / "site.toml"
    for threads in (1, 4):
        text = site.read_text().replace("threads = 1", f"threads = 1\nloaders = {threads}")
        site.write_text(text) if threads > 1 else None
        found.append(made.simulate(f"run-{threads}").federated.final.read_bytes())
    assert "loaders = 4" in site.read_text()
    assert found[0] == found[1]
    made.changes["augmentation"] = []
    assert made.simulate("plain").federated.final.read_bytes() != found[0]


def test_every_epoch_is_augmented_anew(federation: Any, watched: Any) -> None:
    """Also where one training has many: the second look at a scan must be another look."""
    study = federation().study
    cohort = federation_cohort(8)
    network = build(study, seed=1)
    loader = Loader((watched(Noise.Settings(name="noise"), (4,)),), seed=3, threads=2)
    for _ in range(2):  # the same training twice: the same looks
        recipe = Recipe(
            steps=Steps(), rate=0.01, weight_decay=0.0, epochs=5, of=5, seed=1, loader=loader
        )
        train(network, cohort, np.arange(8), recipe, CPU)
    assert set(watched.seen.values()) == {10}
    assert len(watched.drawn) == 40


def federation_cohort(n: int) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    return Cohort(
        samples=np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32),
        participants=names,
        scans=names,
        labels={name: np.ones(n, np.float32) for name in ("age", "sex")},
        measures=None,
        layout="table",
        findings=(),
        contents=names,
        secrets=("",) * len(names),
    )


def test_a_batch_is_wide_before_it_is_augmented() -> None:
    """Noise added in half precision would be a multiple of a thousandth."""
    kinds = set()

    def note(sample: Any, generator: np.random.Generator) -> Any:
        kinds.add(sample.dtype)
        return sample

    batch: Batch = next(iter(batches(cohort_of(), [np.arange(4)], CPU, Loader((note,)))))
    assert kinds == {np.dtype(np.float32)}
    assert batch.x.dtype == torch.float32
