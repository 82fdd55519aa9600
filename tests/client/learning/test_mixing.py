"""Mixed samples are what MixUp and CutMix say, and so are their losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.data.cohort import Cohort
from client.learning import training
from client.learning.mixing import Mixture, mixed
from client.learning.training import Recipe, train
from common.backbones.mlp import Mlp
from common.network.building import arrays_of
from common.objectives.multitask import Multitask
from common.sections import Steps, Target

CPU = torch.device("cpu")
NAN = float("nan")
TARGETS = {
    "age": Target(kind="regression", centre=50, scale=10),
    "sex": Target(kind="binary", classes=("female", "male")),
    "state": Target(kind="categorical", classes=("a", "b", "c")),
}


def draws(number: int, shape: tuple[int, ...] = (6, 5, 4), **steps: float) -> list[Mixture]:
    """Mixtures of one batch, whose samples are full of the numbers 0, 1, 2 and 3."""
    x = torch.arange(4.0).reshape(4, *(1 for _ in shape)).expand(4, *shape)
    random = np.random.default_rng(0)
    found = [mixed(x, Steps(**steps), random) for _ in range(number)]  # type: ignore[arg-type]
    return [one for one in found if one is not None]


def network_of() -> Any:
    torch.manual_seed(0)
    backbone = Mlp(Mlp.Settings(name="mlp", hidden=(6,), dropout=0.0), (4,), "groupnorm")
    network: Any = Multitask(Multitask.Settings(name="multitask"), backbone, TARGETS)
    network.target_names = tuple(TARGETS)
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight)
    return network


def cohort_of(n: int, **labels: list[float]) -> Cohort:
    names = tuple(f"p{i}" for i in range(n))
    known = {name: np.asarray(values, np.float32) for name, values in labels.items()}
    return Cohort(
        samples=np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32),
        participants=names,
        scans=names,
        labels={name: known.get(name, np.full(n, NAN, np.float32)) for name in TARGETS},
        measures=None,
        layout="table",
        findings=(),
        contents=names,
        secrets=("",) * n,
    )


def trained(network: Any, cohort: Cohort, epochs: int = 2, **steps: Any) -> Any:
    recipe = Recipe(
        steps=Steps(batch_size=4, **steps), rate=0.01, weight_decay=0.0, epochs=epochs, of=epochs,
        seed=3,
    )  # fmt: skip
    return train(network, cohort, np.arange(len(cohort)), recipe, CPU)


def test_nothing_is_mixed_unless_a_study_asks() -> None:
    """And then nothing is drawn for it either."""
    random = np.random.default_rng(0)
    assert mixed(torch.ones(2, 3), Steps(), random) is None
    assert random.random() == np.random.default_rng(0).random()


def test_mixup_is_a_weighted_mean_with_a_partner() -> None:
    """x = share x_i + (1 - share) x_j, one share a batch, each sample once a partner."""
    for one in draws(20, mixup=0.4):
        wanted = one.share * torch.arange(4.0) + (1 - one.share) * one.partners
        torch.testing.assert_close(one.x[:, 0, 0, 0], wanted)
        torch.testing.assert_close(one.x.std((1, 2, 3)), torch.zeros(4))
        assert sorted(one.partners.tolist()) == [0, 1, 2, 3]  # of the batch, so of the site


def test_shares_are_drawn_from_the_beta_distribution() -> None:
    """Its variance is 1 / (4 (2 a + 1)): small strengths leave most batches nearly as they are."""
    for strength in (0.2, 1.0, 5.0):
        shares = [one.share for one in draws(4000, mixup=strength)]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * strength + 1)), rel=0.1)


def test_cutmix_puts_a_box_of_the_partner_in_and_counts_its_true_volume() -> None:
    """At the border a box is cut off: the share that was drawn is not what is there."""
    boxes = set()
    for one in draws(200, cutmix=1.0):
        for i, partner in enumerate(one.partners.tolist()):
            theirs = one.x[i] == partner
            if partner == i:
                continue
            assert (one.x[i][~theirs] == i).all()
            assert 1 - theirs.float().mean().item() == pytest.approx(one.share, abs=1e-6)
            if theirs.any():
                places = theirs.nonzero()
                sides = places.amax(0) - places.amin(0) + 1
                assert theirs.sum() == sides.prod()  # a full box
                boxes.add(tuple(places.amin(0).tolist()))
    assert len(boxes) > 20


class Always(np.random.Generator):
    """Chance that draws the same share each time."""

    def beta(self, *_: Any) -> float:  # type: ignore[override]
        return 0.7


def test_a_box_of_which_nothing_is_cut_off_has_the_share_that_was_drawn() -> None:
    """Sides go by the third root in a volume, where a picture's go by the square root."""
    x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 20, 20, 20)
    side = 2 * (int(20 * 0.3 ** (1 / 3)) // 2)
    random = Always(np.random.PCG64(0))
    shares = [mixed(x, Steps(cutmix=1.0), random).share for _ in range(300)]  # type: ignore[union-attr]
    assert min(shares) == pytest.approx(1 - side**3 / 20**3)
    assert max(shares) > 0.9  # in a corner


def test_of_mixup_and_cutmix_each_batch_has_one_by_chance() -> None:
    """Half and half, as where both are used together."""
    found = draws(400, mixup=1.0, cutmix=1.0)
    whole = sum(bool((one.x == one.x.round()).all()) for one in found)
    assert 160 < whole < 240


def test_the_loss_is_mixed_as_the_samples_are_and_counts_where_both_labels_are_known() -> None:
    """share l(x, y_i) + (1 - share) l(x, y_j); a missing label on either side leaves it out."""
    network = network_of()
    x = torch.randn(4, 4)
    labels = {
        "age": torch.tensor([40.0, NAN, 60.0, 55.0]),
        "sex": torch.tensor([0.0, 1.0, 1.0, 1.0]),
        "state": torch.full((4,), NAN),
    }
    partners, share = torch.tensor([1, 2, 3, 0]), 0.3
    terms = Mixture(x, partners, share).terms(network, labels)
    outputs = network(x)
    logits, sex = outputs["sex"][:, 0], labels["sex"]
    soft = functional.binary_cross_entropy_with_logits(
        logits, share * sex + (1 - share) * sex[partners], reduction="none"
    )
    torch.testing.assert_close(terms["sex"].values, soft)
    assert terms["sex"].counted.all()
    assert terms["age"].counted.tolist() == [False, False, True, True]
    age = outputs["age"][:, 0]
    mine, theirs = (functional.huber_loss(age[2], torch.tensor(y)) for y in (1.0, 0.5))
    torch.testing.assert_close(terms["age"].values[2], share * mine + (1 - share) * theirs)
    assert not terms["state"].counted.any()
    sum(term.values.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_training_on_mixed_samples_is_seeded_and_another_training() -> None:
    """Interrupted or not, the same study gives the same bits."""
    cohort = cohort_of(12, age=list(np.linspace(30, 70, 12)))

    def bits(**steps: Any) -> list[bytes]:
        network = network_of()
        trained(network, cohort, **steps)
        return [array.tobytes() for array in arrays_of(network).values()]

    assert bits(mixup=0.4, cutmix=1.0) == bits(mixup=0.4, cutmix=1.0)
    assert len({tuple(bits(**one)) for one in ({}, {"mixup": 0.4}, {"cutmix": 1.0})}) == 3


def test_mixing_leaves_the_order_of_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has chance of its own: with and without it, a comparison shows the same batches."""
    seen: list[list[float]] = []
    plain = training.mixed

    def noted(x: torch.Tensor, steps: Steps, generator: np.random.Generator) -> Any:
        seen.append(x[:, 0].tolist())
        return plain(x, steps, generator)

    monkeypatch.setattr(training, "mixed", noted)
    cohort = cohort_of(12, age=list(np.linspace(30, 70, 12)))
    trained(network_of(), cohort)
    trained(network_of(), cohort, mixup=0.4)
    assert seen[:6] == seen[6:]


def test_whoever_was_mixed_into_a_sample_that_counted_has_entered() -> None:
    """Support is people whose data moved the weights, on either side of a mixture."""
    cohort = cohort_of(8, age=[40.0, 50, 60, 70, NAN, NAN, NAN, NAN])
    mixture = Mixture(torch.zeros(4, 4), torch.tensor([1, 0, 3, 2]), 0.5)
    batch = torch.tensor([0, 3, 5, 5])  # sampling by classes may show one scan twice
    terms = {
        "age": training.Terms(values=torch.ones(4), counted=torch.tensor([True] + [False] * 3))
    }
    tally = training.Tally(cohort)
    tally.add(terms, *mixture.both(batch))
    assert tally.entered().tolist() == [0, 3]
    assert tally.counts("loss") == {"loss/age": (1.0, 1.0)}  # one mixed sample, two people
    assert tally.participants("loss") == {"loss/age": 2}


@pytest.mark.whole
def test_a_whole_study_with_every_option_repeats_to_the_bit(federation: Any) -> None:
    """Rounds, early stopping and heads of a site's own go through the same loop."""
    options = {
        "mixup": 0.4, "cutmix": 1.0, "sharpness": 0.05, "weight_averaging": 0.9, "warmup": 0.1,
    }  # fmt: skip
    task = {
        "name": "dementia", "target": "diagnosis", "methods": ["pretrained/full"], "epochs": 3,
        "patience": 2, "learning_rates": [0.01],
    }  # fmt: skip
    made = federation({
        "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
        "targets.age": {"kind": "regression", "low": 0.0, "high": 120.0},
        "objective": {"name": "multitask", "soft_labels": {"age": {"low": 0.0, "high": 120.0}}},
        "pretraining": {"rounds": 2, "batch_size": 8, "learning_rate": 0.01, **options},
        "finetuning": [{**task, **options}],
    })  # fmt: skip
    found = [made.simulate(name) for name in ("one", "other")]
    assert len({run.federated.final.read_bytes() for run in found}) == 1
    rows = [(run.folder / "results.csv").read_text() for run in found]
    assert rows[0] == rows[1]
    assert ",diagnosis," in rows[0]
    assert "omega" in rows[0]
