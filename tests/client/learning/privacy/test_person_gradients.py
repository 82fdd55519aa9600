"""Gradients of single people: for every backbone and objective what a naive loop gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from client.learning.privacy import training
from client.learning.training import lay_out
from common import catalogue
from common.objectives.joint import Joint
from common.objectives.lcm import Lcm
from common.objectives.mae import Mae
from common.objectives.multitask import Multitask
from common.objectives.simmim import Simmim
from common.privacy.by_layer import of_layers
from common.privacy.person_gradients import NotByPersonError, of_one
from common.privacy.settings import Privacy
from tests.client.learning.privacy.people import ALONE, CPU, TARGETS, around, cohort_of, released
from tests.common.backbones.test_families import CPU_SIZES
from tests.common.backbones.test_families import made as made_volume

SCANS = (1, 3, 1, 2, 1, 2)  # three people of one, two of two, one of three
OTHERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "linear": ((7,), {}),
    "mlp": ((7,), {"hidden": (16, 8)}),
    "bnt": ((10, 10), {"heads": 2, "feed_forward": 12, "clusters": 4}),
    "lcm": ((10, 10), {"width": 8, "depth": 2, "heads": 2, "feed_forward": 12}),
}
MATRIX = {"mlp": ((6, 6), {"hidden": (16, 8)}), "linear": ((6, 6), {})}
VARIANTS = {"deeplight": {"variant": "3d"}, "vit": {**CPU_SIZES["vit"], "readout": "class"}}


def backbone_of(name: str, *, small: Mapping[str, Any] = OTHERS, **keys: Any) -> tuple[Any, Any]:
    """A backbone of the catalogue without batch statistics, and the shape of its samples."""
    if name in CPU_SIZES:
        large = name in ("minit", "densenet", "resnet")  # as small as they bear
        shape = (17, 18, 17) if large else (9, 12, 8)
        return made_volume(name, shape, "groupnorm", **keys), shape
    shape, own = small[name]
    kind = catalogue.load("backbones", name)
    torch.manual_seed(0)
    backbone = kind(kind.Settings(name=name, **own), shape, "groupnorm")
    backbone.shape = shape
    return backbone, shape


def naive(network: Any, cohort: Any, clip: float) -> dict[str, torch.Tensor]:
    """The sum of clipped gradients: one scan after another, one person after another, in float64.

    Of each of her terms the mean over those of her scans that count.
    """
    network.train()
    total = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in network.named_parameters()}
    for person in sorted(set(cohort.participants)):
        mine = [i for i, whose in enumerate(cohort.participants) if whose == person]
        losses: dict[str, list[torch.Tensor]] = {}
        for i in mine:
            labels = {name: torch.from_numpy(v[[i]]) for name, v in cohort.labels.items()}
            terms = network.terms(torch.from_numpy(cohort.samples[[i]]).double(), labels)
            for name, term in terms.items():
                if term.counted.item():
                    losses.setdefault(name, []).append(term.values[0])
        network.zero_grad()
        if losses:
            weighted = [network.weights[t] * sum(v) / len(v) for t, v in losses.items()]
            sum(weighted).backward()  # type: ignore[union-attr]
        grads = {n: p.grad.double() for n, p in network.named_parameters() if p.grad is not None}
        length = sum(float(g.square().sum()) for g in grads.values()) ** 0.5
        for name, gradient in grads.items():
            total[name] += gradient * min(1.0, clip / length) if length else 0
    return total


def check(monkeypatch: Any, network: Any, shape: tuple[int, ...], way: str) -> None:
    cohort = cohort_of(shape, SCANS)
    lay_out(network.double(), CPU)  # in float32 a voxel may win a maximum by rounding alone
    free = naive(network, cohort, float("inf"))
    # some are cut down and some are not
    clip = 0.9 * float(sum(g.square().sum() for g in free.values())) ** 0.5 / len(SCANS)
    wanted = naive(network, cohort, clip)
    privacy = ALONE.model_copy(update={"clip": clip, "scans_per_person": 0})
    alone: list[int] = []

    def noted(*given: Any) -> Any:
        alone.append(1)
        return of_one(*given)

    monkeypatch.setattr(training, "of_one", noted)
    (found,) = released(monkeypatch, network, cohort, privacy, way=way)
    assert len(alone) == (6 if way == "alone" else 1)  # whoever has as many scans as nobody else
    assert set(found) == {n for n, p in network.named_parameters() if p.requires_grad}
    length = float(sum(g.square().sum() for g in wanted.values())) ** 0.5
    off = 0.0
    for name, gradient in found.items():
        off += float((gradient.double() * len(SCANS) - wanted[name]).square().sum())
    assert length > 0
    assert off**0.5 <= 1e-5 * length


CASES = [*CPU_SIZES, *OTHERS]


@pytest.mark.parametrize("name", CASES)
def test_one_at_a_time_a_step_is_the_naive_loops_for_every_backbone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks lose arrays of masked autoencoders and LSTMs without a word; here none is lost."""
    backbone, shape = backbone_of(name)
    check(monkeypatch, around(backbone), shape, "alone")


# torch has no LSTM for several people in float64; `way_of` gives it one person at a time
@pytest.mark.parametrize("name", [name for name in CASES if name != "deeplight"])
def test_at_once_a_step_is_the_naive_loops_for_every_backbone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another way to the same numbers, people with several scans among them."""
    backbone, shape = backbone_of(name)
    check(monkeypatch, around(backbone), shape, "many")


def test_float32_kernels_give_the_same_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has other kernels for float32 than for float64, and one misread strides of a slice."""
    backbone, shape = backbone_of("sfcn")
    network = around(backbone)
    cohort = cohort_of(shape, [1, 1, 1])
    (alone,) = released(monkeypatch, network, cohort, ALONE)
    (layers,) = released(monkeypatch, network, cohort, ALONE, way="layers")
    whole = max(float(gradient.abs().max()) for gradient in alone.values())
    for name, gradient in layers.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5 * whole)


BY_LAYER = ["sfcn", "densenet", "resnet", "linear", "mlp", "bnt"]


@pytest.mark.parametrize("name", BY_LAYER)
def test_by_layer_a_step_is_the_naive_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths of gradients that were never made, and their sum."""
    backbone, shape = backbone_of(name)
    check(monkeypatch, around(backbone), shape, "layers")


@pytest.mark.parametrize("name", [name for name in CASES if name not in BY_LAYER])
def test_what_is_no_known_layer_is_refused_and_never_half_done(name: str) -> None:
    """Tokens, positions and LSTMs have a gradient of the whole batch, which nobody has cut down."""
    backbone, shape = backbone_of(name)
    x = torch.randn(3, 1, *shape)
    labels = {target: torch.zeros(3, 1) for target in TARGETS}
    with pytest.raises(NotByPersonError, match="known layers|not the samples"):
        of_layers(around(backbone), x, labels)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("way", ["alone", "many"])
def test_variants_of_backbones_are_the_naive_loops_too(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class token and a network of volumes go other ways through the same class."""
    backbone, shape = backbone_of(name, **VARIANTS[name])
    check(monkeypatch, around(backbone), shape, way)


@pytest.mark.parametrize("name", MATRIX)
def test_tables_of_connectomes_edges_are_the_naive_loops_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same networks read a matrix's upper half."""
    backbone, shape = backbone_of(name, small=MATRIX)
    check(monkeypatch, around(backbone), shape, "layers")


def objective_of(name: str, backbone: Any) -> Any:
    if name == "mae":
        return Mae(Mae.Settings(name="mae", width=16, depth=1), backbone, TARGETS)
    if name == "simmim":
        return Simmim(Simmim.Settings(name="simmim", cube=4, width=8), backbone, TARGETS)
    return Lcm(Lcm.Settings(name="lcm"), backbone, TARGETS)


@pytest.mark.parametrize("way", ["alone", "many"])
@pytest.mark.parametrize(
    ("objective", "backbone"),
    [
        ("mae", "vit"), ("mae", "nit"), ("simmim", "sfcn"), ("simmim", "swin"),
        ("lcm", "lcm"),
    ],
)  # fmt: skip
def test_objectives_without_heads_are_the_naive_loops(
    objective: str, backbone: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What calls another method than `forward`, or learns without labels, is private as well."""
    monkeypatch.setattr(torch, "rand", alike)
    made, shape = backbone_of(backbone)
    network = around(made, objective_of(objective, made))
    check(monkeypatch, network, shape, way)


@pytest.mark.parametrize("of", ["unlabelled", "all"])
@pytest.mark.parametrize(("part", "backbone"), [("simmim", "sfcn"), ("mae", "vit")])
def test_who_has_labels_and_who_has_none_are_private_together(
    of: str, part: str, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which terms a person enters hangs on her own labels alone."""
    monkeypatch.setattr(torch, "rand", alike)
    made, shape = backbone_of(backbone)
    unlabelled = {"name": part, **({"width": 16, "depth": 1} if part == "mae" else {"cube": 4})}
    settings = Joint.Settings(name="joint", unlabelled=unlabelled, of=of)  # type: ignore[arg-type]
    check(monkeypatch, around(made, Joint(settings, made, TARGETS)), shape, "alone")


_drawn = np.random.default_rng(0).permutation(4096) / 4096


def alike(size: Any, *, device: Any = None) -> torch.Tensor:
    """Masks that are the same for each sample, whatever stands beside it."""
    return torch.tensor(_drawn[: size[-1]], dtype=torch.float32).expand(tuple(size))


def test_a_person_without_any_label_pulls_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """She is drawn like others, and counts in what is divided by."""
    backbone, shape = backbone_of("mlp")
    network = around(backbone)
    both = cohort_of(shape, (1, 1), missing=False)
    for label in both.labels.values():
        label[0] = float("nan")
    (found,) = released(monkeypatch, network, both, ALONE)
    (alone,) = released(monkeypatch, network, both.subset([1]), ALONE)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, alone[name] / 2, rtol=1e-5, atol=1e-8)


def test_a_private_mean_is_over_a_persons_own_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all who have the label, her pull would tell how many others have it."""
    backbone, shape = backbone_of("mlp")
    network = around(backbone, Multitask(Multitask.Settings(name="multitask"), backbone, TARGETS))
    people = cohort_of(shape, (1, 1, 1), missing=False)
    (before,) = released(monkeypatch, network, people, Privacy(**ALONE.model_dump()))
    people.labels["sex"][1:] = float("nan")
    (after,) = released(monkeypatch, network, people, ALONE)
    people.labels["sex"][0] = float("nan")
    (without,) = released(monkeypatch, network, people, ALONE)
    hers = after["heads.sex.bias"] - without["heads.sex.bias"]
    assert without["heads.sex.bias"].abs().max() == 0
    people = cohort_of(shape, (1, 1, 1), missing=False).subset([0])
    (alone,) = released(monkeypatch, network, people, ALONE)
    torch.testing.assert_close(hers * 3, alone["heads.sex.bias"], rtol=1e-5, atol=1e-8)
    assert before["heads.sex.bias"].abs().max() > 0
