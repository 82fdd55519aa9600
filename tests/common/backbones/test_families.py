"""Every backbone of the catalogue: as large as published, and well-behaved on any volume."""

import resource
from typing import Any

import pytest
import torch

from common import catalogue
from common.network.building import stages
from common.network.size import _outputs, step_bytes

CPU_SIZES: dict[str, dict[str, Any]] = {
    "sfcn": {"channels": (4, 8, 8), "top": 6},
    "densenet": {"initial": 8, "growth": 4, "layers": (2, 2)},
    "resnet": {"widths": (4, 4, 8, 8), "layers": (1, 1, 1, 1)},
    "swin": {"patch": (2, 4, 4), "width": 12, "depths": (2, 2), "heads": (2, 4), "window": (4, 3, 3)},
    "vit": {"patch": 8, "width": 24, "depth": 2, "heads": 4, "feed_forward": 48},
    "nit": {"patch": 8, "width": 24, "depth": 2, "heads": 4, "feed_forward": 48},
    "minit": {"width": 24, "depth": 2, "heads": 4, "feed_forward": 48, "logits": 3},
    "deeplight": {"variant": "2d-8"},
}  # fmt: skip
SHAPE = (17, 22, 19)  # no edge divides these


def made(name: str, shape: tuple[int, ...] = SHAPE, policy: str = "average", **keys: Any) -> Any:
    kind = catalogue.load("backbones", name)
    torch.manual_seed(0)
    backbone = kind(kind.Settings(name=name, **(keys or CPU_SIZES[name])), shape, policy)
    backbone.shape = shape
    return backbone


def published(name: str, shape: tuple[int, ...], **keys: Any) -> Any:
    kind = catalogue.load("backbones", name)
    with torch.device("meta"):
        return kind(kind.Settings(name=name, **keys), shape, "average")


@pytest.mark.parametrize(
    ("name", "edge", "keys", "outputs", "count"),
    [
        ("sfcn", 96, {}, 1, 2_950_401),
        ("sfcn", 96, {}, 6, 2_950_726),
        ("densenet", 64, {}, 1, 11_243_649),
        ("densenet", 64, {"initial": 16, "growth": 8, "layers": (2, 4, 4, 2)}, 1, 105_109),
        ("resnet", 64, {}, 1, 33_161_409),
        ("swin", 64, {"patch": (2, 4, 4)}, 0, 27_844_326),
        ("vit", 96, {}, 0, 88_368_384),
        ("nit", 64, {}, 2, 1_798_826),
        ("nit", 64, {"width": 128}, 2, 637_738),
        ("minit", 64, {}, 2, 3_632_962),
        ("minit", 64, {"width": 512}, 2, 10_409_538),
    ],
)
def test_a_backbone_has_as_many_parameters_as_published(
    name: str, edge: int, keys: dict[str, Any], outputs: int, count: int
) -> None:
    """A network of another size is another network. Video Swin-T has 27,850,470 without its head,
    6,144 of them for the second and third colour; 1.80, .64, 3.63, 10.4, 33.2 and 88.4 million
    are what the other papers round to."""
    backbone = published(name, (edge,) * 3, **keys)
    found = sum(parameter.numel() for parameter in backbone.parameters())
    assert found + outputs * (backbone.features + 1) == count


@pytest.mark.parametrize("name", CPU_SIZES)
def test_a_backbone_reads_any_volume_and_every_part_of_it_learns(name: str) -> None:
    """A parameter without a gradient is dead weight that travels in every round."""
    backbone = made(name).train()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    features = backbone(x)
    assert features.shape == (3, backbone.features)
    features.square().sum().backward()
    dead = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", CPU_SIZES)
def test_a_sample_has_the_same_features_whatever_its_batch(name: str) -> None:
    """A judge must not depend on who else is judged."""
    backbone = made(name).eval()
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = backbone(x), torch.cat([backbone(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CPU_SIZES)
def test_a_backbone_names_its_stages_and_they_hold_all_but_tokens(name: str) -> None:
    """Layer-wise rates, last blocks and adapters go by stages; what no stage holds is tokens."""
    backbone = made(name)
    held = {id(p) for stage in stages(backbone) for part in stage for p in part.parameters()}
    outside = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in held}
    assert outside <= {"place", "token", "which"}


@pytest.mark.parametrize("name", ["sfcn", "densenet", "resnet"])
def test_group_normalisation_leaves_no_batch_statistics(name: str) -> None:
    """A library's layers obey the study's policy, too."""
    backbone = made(name, policy="groupnorm")
    kinds = {type(module).__name__ for module in backbone.modules()}
    assert "GroupNorm" in kinds
    assert not any("BatchNorm" in kind for kind in kinds)


@pytest.mark.parametrize("name", ["sfcn", "densenet", "resnet", "swin"])
def test_a_map_of_features_covers_a_volume_of_whole_strides(name: str) -> None:
    """What fills in hidden voxels makes `stride` of them from each place."""
    backbone = made(name)
    stride = backbone.stride
    steps = (stride,) * 3 if isinstance(stride, int) else stride
    shape = tuple(step * times for step, times in zip(steps, (2, 3, 2), strict=True))
    with torch.no_grad():
        found = backbone.feature_map(torch.zeros(2, *shape))
    assert found.shape == (2, backbone.features, 2, 3, 2)


@pytest.mark.parametrize(
    ("name", "keys", "shape", "told"),
    [
        ("densenet", {}, (16, 64, 64), "at least 17 voxels a side"),
        ("resnet", {}, (15, 64, 64), "at least 16 voxels a side"),
        ("vit", {}, (12, 64, 64), "at least as many a side"),
        ("minit", {}, (64, 8, 64), "blocks of 16 voxels"),
        ("swin", {}, (3, 64, 64), r"at least as many; data.shape gives \[3, 64, 64\]"),
        ("nit", {}, (64,), r"data.shape gives \[64\]"),
    ],
)
def test_a_volume_that_is_too_small_is_refused_with_its_shape(
    name: str, keys: dict[str, Any], shape: tuple[int, ...], told: str
) -> None:
    """Before anyone trains, and in words."""
    with pytest.raises(ValueError, match=told):
        published(name, shape, **keys)


@pytest.mark.parametrize(
    ("name", "keys", "told"),
    [
        ("vit", {"heads": 7}, "heads is 7; it must divide width, 768"),
        ("minit", {"patch": 5}, "patch is 5; it must divide block, 16"),
        ("swin", {"depths": (2, 2)}, "depths has 2 stages, heads 4"),
        ("swin", {"heads": (3, 5, 12, 24)}, "5 must divide the width of stage 2, 192"),
    ],
)
def test_widths_that_contradict_each_other_are_refused(
    name: str, keys: dict[str, Any], told: str
) -> None:
    """A setting that cannot be is named, not found in a stack of torch's."""
    with pytest.raises(ValueError, match=told):
        published(name, (64, 64, 64), **keys)


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ((256, 256, 256), {"patch": (4, 4, 4), "window": (64, 64, 64)}),
        ((512, 512, 512), {"patch": (1, 1, 1)}),
        ((64, 64, 64), {"patch": (1, 1, 1), "window": (16, 16, 16)}),
    ],
)
def test_windows_that_nobody_could_hold_are_refused_before_a_table_is_made(
    shape: tuple[int, int, int], keys: dict[str, Any]
) -> None:
    """A study's numbers come from others: 262,144 tokens a window ask for 550 GB of places."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="smaller windows or larger patches are needed"):
        published("swin", shape, **keys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_step_is_told_with_what_attention_writes_down() -> None:
    """With dropout every pair of tokens is kept: 8,001 tokens and 8 heads are 2 GB a sample."""
    found = {}
    for dropout in (0.0, 0.1):
        keys = {"patch": 2, "width": 32, "depth": 1, "heads": 8, "dropout": dropout}
        network = published("nit", (40, 40, 40), feed_forward=32, **keys)
        network.backbone = network
        found[dropout] = step_bytes(network, (40, 40, 40), 1)
    pairs = 8 * 8001**2
    assert found[0.1] - found[0.0] == pytest.approx(4 * 1.25 * pairs, rel=0.01)


def test_swins_places_count_in_a_step() -> None:
    """Who may not look at whom is written down for every window after a move."""
    small = published("swin", (32, 32, 32), patch=(2, 2, 2), window=(4, 4, 4))
    counted = _outputs(small, (32, 32, 32))
    tokens = 16**3
    assert counted > tokens * 4**3 * 3  # tokens, those that each looks at, heads


@pytest.mark.parametrize("name", CPU_SIZES)
def test_a_backbone_trains_after_it_has_judged(name: str) -> None:
    """A round judges first; what is made then must serve the training behind it."""
    shape = (18, 20, 21)  # of no other test: nothing of it is kept from before
    backbone, x = made(name, shape), torch.randn(2, *shape)
    with torch.inference_mode():
        backbone.eval()(x)
    backbone.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
