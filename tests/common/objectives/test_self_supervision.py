"""What is learnt without labels: masks, views, and both beside labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from common import catalogue
from common.network.building import plan_of
from common.seams import LABELS, SHARED, SITE, TERM
from common.sections import Target
from tests.common.backbones.test_families import CPU_SIZES, SHAPE, made

AGE = {"age": Target(kind="regression", centre=50.0, scale=18.0)}
MASKED = [("mae", "vit"), ("mae", "nit"), *(("simmim", n) for n in ("sfcn", "densenet", "resnet", "swin"))]  # fmt: skip


def objective(name: str, backbone: str, known: Any = None, **keys: Any) -> Any:
    kind = catalogue.load("objectives", name)
    small = {"mae": {"width": 16, "depth": 1}, "simmim": {"cube": 4, "width": 8}}.get(name, {})
    torch.manual_seed(0)
    return kind(kind.Settings(name=name, **{**small, **keys}), made(backbone), known or {})


def scans(count: int = 4, views: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 1, 4, 4, 4, generator=generator)
    x = functional.interpolate(coarse, SHAPE, mode="trilinear")[:, 0]
    if views == 1:
        return x
    return torch.stack([x, x + 0.1 * torch.randn(x.shape, generator=generator)], 1)


def trained(network: Any, x: torch.Tensor, labels: Any, steps: int) -> tuple[float, float]:
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    seen = []
    torch.manual_seed(0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = sum(
            network.weights[name] * (term.values * term.counted).sum() / term.counted.sum().clamp(1)
            for name, term in network.terms(x, labels).items()
        )
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
    return sum(seen[:3]), sum(seen[-3:])


@pytest.mark.parametrize(("name", "backbone"), MASKED)
def test_a_masked_objective_learns_and_every_part_of_it_does(name: str, backbone: str) -> None:
    """A decoder or a token without a gradient would be drawn and never learnt."""
    network = objective(name, backbone)
    before, after = trained(network, scans(), {}, 25)
    assert after < before
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # what reads the class alone is not asked; its token is, by the others looking at it
    assert not dead


@pytest.mark.parametrize(("name", "backbone"), MASKED)
def test_what_is_hidden_does_not_reach_the_encoder(name: str, backbone: str) -> None:
    """Otherwise copying would be learnt, and called understanding."""
    network, x = objective(name, backbone).eval(), scans(2)
    with torch.no_grad():
        torch.manual_seed(5)
        shown, made_whole = network.part.reconstruct(network.backbone, x)
        hidden = shown.isnan()
        other = torch.where(hidden, torch.randn_like(x), x)
        torch.manual_seed(5)
        again = network.part.reconstruct(network.backbone, other)[1]
    if name == "mae":  # made in units of each patch, which the hidden voxels decide
        mean, deviation = _by_patch(network.backbone, x)
        other_mean, other_deviation = _by_patch(network.backbone, other)
        made_whole = (made_whole - mean) / deviation
        again = (again - other_mean) / other_deviation
    assert torch.isclose(made_whole[hidden], again[hidden], rtol=1e-3, atol=1e-3).all()
    assert hidden.any(dim=(1, 2, 3)).all()
    assert torch.equal(shown[~hidden], x[~hidden])


def _by_patch(backbone: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from common.transformer import volumes_of

    patches = backbone.patches(x)
    both = (patches.mean(2, keepdim=True), (patches.var(2, unbiased=False, keepdim=True) + 1e-6).sqrt())  # fmt: skip
    mean, deviation = (volumes_of(one.expand_as(patches), SHAPE, backbone.patch) for one in both)
    return mean, deviation


@pytest.mark.parametrize(
    ("name", "backbone", "share"), [("mae", "vit", 0.75), ("simmim", "sfcn", 0.6)]
)
def test_as_much_is_hidden_as_published(name: str, backbone: str, share: float) -> None:
    """Three quarters of the patches, three fifths of the cubes, of every sample alike."""
    network = objective(name, backbone).eval()
    with torch.no_grad():
        shown = network.part.reconstruct(network.backbone, torch.rand(3, *SHAPE) + 1)[0]
    unit = 8 if name == "mae" else 4
    cells = shown.isnan()[:, ::unit, ::unit, ::unit].flatten(1).sum(1)
    whole = math.prod(-(-length // unit) for length in SHAPE)
    assert (cells == round(whole * share)).all()


def test_a_masked_encoder_does_a_quarter_of_the_work() -> None:
    """The encoder must not even embed what is hidden."""
    network = objective("mae", "vit")
    seen = []
    network.backbone.embed.register_forward_hook(lambda *given: seen.append(given[2].shape[1]))
    network.terms(scans(), {})
    assert seen == [round(network.backbone.count / 4)]


def nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """The loss by loops, as its paper writes it; z (2 B, E), pairs i and i + B."""
    z, count = functional.normalize(z, dim=1), len(z) // 2
    total = []
    for i in range(len(z)):
        j = (i + count) % len(z)
        others = [torch.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i]
        total.append(-torch.log(torch.exp(z[i] @ z[j] / temperature) / torch.stack(others).sum()))
    return torch.stack(total).view(2, -1).mean(0)


def test_simclr_is_nt_xent_as_its_paper_writes_it() -> None:
    """Against loops over every pair."""
    network, x = objective("simclr", "sfcn", temperature=0.3).eval(), scans(5, 2)
    with torch.no_grad():
        z = network.part.project(network.backbone(torch.cat([x[:, 0], x[:, 1]])))
        values = network.terms(x, {})["contrast"].values
    torch.testing.assert_close(values, nt_xent(z, 0.3), rtol=1e-4, atol=1e-5)


def test_y_aware_by_nothing_is_simclr_and_without_labels_too() -> None:
    """The limits in which the label tells nothing."""
    x = scans(5, 2)
    plain = objective("simclr", "sfcn").eval()
    ages = torch.tensor([20.0, 31, 47, 52, 80])
    narrow = objective("y-aware", "sfcn", AGE, targets=("age",), sigma=1e-3).eval()
    wide = objective("y-aware", "sfcn", AGE, targets=("age",)).eval()
    with torch.no_grad():
        wanted = plain.terms(x, {})["contrast"].values
        torch.testing.assert_close(narrow.terms(x, {"age": ages})["contrast"].values, wanted)
        nobody = torch.full((5,), torch.nan)
        torch.testing.assert_close(wide.terms(x, {"age": nobody})["contrast"].values, wanted)


def test_y_aware_weighs_others_by_a_gaussian_of_their_age() -> None:
    """Against a loop: each of the other views counts by how near its person's age is."""
    network, x = objective("y-aware", "sfcn", AGE, targets=("age",), sigma=5.0).eval(), scans(4, 2)
    ages = torch.tensor([30.0, 33.0, float("nan"), 50.0])
    with torch.no_grad():
        similar = network.part.similarity(network.backbone, x)
        values = network.terms(x, {"age": ages})["contrast"].values
    both, wanted = ages.repeat(2), []
    for i in range(8):
        others = [k for k in range(8) if k != i]
        log = {k: similar[i, k] - torch.logsumexp(similar[i, others], 0) for k in others}
        weight = {}
        for k in others:
            near = torch.exp(-((both[i] - both[k]) ** 2) / 50).item()
            weight[k] = 1.0 if k % 4 == i % 4 else (0.0 if math.isnan(near) else near)
        wanted.append(-sum(weight[k] * log[k] for k in others) / sum(weight.values()))
    torch.testing.assert_close(values, torch.stack(wanted).view(2, -1).mean(0))


@pytest.mark.parametrize("projector", ["shared", "local"])
def test_a_projector_is_averaged_or_stays(projector: str) -> None:
    """Negatives never cross a site; whether what compares them does is the study's choice."""
    network = objective("simclr", "sfcn", projector=projector)
    groups = {n: r.group for n, r in plan_of(network, "average").items() if n.startswith("part.")}
    assert set(groups.values()) == {SHARED if projector == "shared" else SITE}


def joint(unlabelled: dict[str, Any], backbone: str = "sfcn", **keys: Any) -> Any:
    return objective("joint", backbone, AGE, unlabelled=unlabelled, **keys)


SIMMIM = {"name": "simmim", "cube": 4, "width": 8}
SOME = torch.tensor([40.0, float("nan"), 60.0, float("nan")])


def test_each_sample_enters_the_loss_that_it_can() -> None:
    """Labels where they are, voxels where they are not; what does not count has no weight."""
    network = joint(SIMMIM)
    terms = network.terms(scans(), {"age": SOME})
    assert terms["age"].counted.tolist() == [True, False, True, False]
    assert terms["reconstruction"].counted.tolist() == [False, True, False, True]
    everywhere = joint(SIMMIM, of="all").terms(scans(), {"age": SOME})
    assert everywhere["reconstruction"].counted.all()


@pytest.mark.parametrize("label", [40.0, float("nan")])
def test_a_site_of_one_sort_learns_its_own_terms_alone(label: float) -> None:
    """Neither costs a step of the other's part."""
    network = joint(SIMMIM)
    labels = {"age": torch.full((4,), label)}
    terms = network.terms(scans(), labels)
    sum((t.values * t.counted).sum() for t in terms.values()).backward()
    grown = {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None}
    assert grown == {"backbone", "part" if math.isnan(label) else "heads"}


def test_labelled_samples_of_a_joint_network_have_multitasks_losses() -> None:
    """The oracle of the supervised half is the objective that has no other."""
    network = joint(SIMMIM).eval()
    plain = objective("multitask", "sfcn", AGE).eval()
    plain.load_state_dict(
        {n: t for n, t in network.state_dict().items() if not n.startswith("part.")}
    )
    with torch.no_grad():
        found = network.terms(scans(), {"age": SOME})["age"].values[[0, 2]]
        wanted = plain.terms(scans(), {"age": SOME})["age"].values[[0, 2]]
    torch.testing.assert_close(found, wanted)


def test_what_one_term_alone_trains_is_averaged_by_that_term() -> None:
    """A decoder must not be diluted by sites that have only labels."""
    plan = plan_of(joint(SIMMIM), "average")
    groups = {name.split(".")[0]: rule.group for name, rule in plan.items()}
    assert groups["part"] == f"{TERM}reconstruction"
    assert groups["heads"] == f"{LABELS}age"
    assert plan_of(joint({"name": "simclr", "projector": "local"}), "average")[
        "part.project.0.weight"
    ].group == SITE  # fmt: skip


def test_a_joint_contrast_compares_all_and_counts_the_unlabelled() -> None:
    """With fewer samples in a batch the contrast would be another in scale."""
    network = joint({"name": "simclr"}).eval()
    assert network.coupled
    assert network.views == 2
    x = scans(4, 2)
    with torch.no_grad():
        terms = network.terms(x, {"age": SOME})
        whole = network.part(network.backbone, x)
    assert terms["contrast"].counted.tolist() == [False, True, False, True]
    torch.testing.assert_close(terms["contrast"].values, whole)


@pytest.mark.parametrize(
    ("name", "backbone", "keys", "told"),
    [
        ("mae", "swin", {}, "mae needs a backbone that encodes patches apart"),
        ("mae", "sfcn", {}, "simmim hides voxels from any"),
        ("mae", "minit", {}, "mae needs a backbone that encodes patches apart"),
        ("simmim", "vit", {}, "simmim needs a backbone with a map of features"),
        ("simmim", "minit", {}, "simmim needs a backbone with a map of features"),
        ("simmim", "sfcn", {"cube": 64}, "of the 1 cubes"),
        ("mae", "vit", {"hidden": 0.01}, "of 27 patches that hides none"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    name: str, backbone: str, keys: dict[str, Any], told: str
) -> None:
    """At `study check`, not in the night of the first round."""
    with pytest.raises(ValueError, match=told):
        objective(name, backbone, **keys)


def test_every_backbone_for_volumes_is_tried_here() -> None:
    """A new one must not slip past these tests."""
    kinds = {name: catalogue.load("backbones", name) for name in catalogue.names("backbones")}
    assert set(CPU_SIZES) == {name for name, kind in kinds.items() if "volume" in kind.layouts}
