"""DeepLight layer by layer: shapes, counts, padding and the states that its features are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.backbones.deeplight import PLANS, Climb, DeepLight, Variant, _same

WHOLE = (91, 109, 91)


def built(variant: str, shape: tuple[int, ...] = WHOLE, **keys: object) -> DeepLight:
    settings = DeepLight.Settings(name="deeplight", variant=variant, **keys)  # type: ignore[arg-type]
    return DeepLight(settings, shape, "average")


def outlined(variant: str, shape: tuple[int, ...] = WHOLE) -> DeepLight:
    with torch.device("meta"):
        return built(variant, shape)


def count(module: nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(network: DeepLight, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What each block puts out for one sample."""
    found: list[tuple[int, ...]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: found.append(tuple(output.shape)))
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device="meta"))
    return found


@pytest.mark.parametrize(
    ("variant", "shape", "convolutions", "rest", "whole"),
    [
        ("2d-12", WHOLE, 165_816, 427_008, 594_888),
        # 960 features a slice, which is 79x95, the older MNI box at 2 mm; 109x91 has 1,344
        ("2d-8", (79, 95, 68), 39_504, 320_640, 361_440),
        ("3d", WHOLE, 888_216, 0, 890_280),
    ],
)
def test_each_variant_has_as_many_parameters_as_published(
    variant: str, shape: tuple[int, ...], convolutions: int, rest: int, whole: int
) -> None:
    """A network of another size is another network; the head scores 16 states."""
    network = outlined(variant, shape)
    assert count(network.blocks) == convolutions
    assert (count(network.climb) if network.climb is not None else 0) == rest
    assert count(network) + 16 * (network.features + 1) == whole


def test_2d_12_shrinks_slices_of_109x91_to_4x3() -> None:
    """SAME padding as TensorFlow's: each stride of two halves and rounds up; 768 features a slice."""
    seen = shapes(outlined("2d-12"), WHOLE)
    assert [size for _, _, *size in seen] == [
        [109, 91], [109, 91], [55, 46], [55, 46], [28, 23], [28, 23],
        [14, 12], [14, 12], [7, 6], [7, 6], [4, 3], [4, 3],
    ]  # fmt: skip
    assert [(slices, channels) for slices, channels, *_ in seen] == [
        (91, channels) for channels in PLANS["2d-12"].channels
    ]


def test_3d_shrinks_volumes_to_3x4x3() -> None:
    """Which the published network averages over."""
    *_, last = shapes(outlined("3d"), WHOLE)
    assert last == (1, 128, 3, 4, 3)


def naive_same(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's documented rule along one axis, by a loop."""
    places = -(-len(x) // stride)
    needed = max((places - 1) * stride + len(kernel) - len(x), 0)
    padded = np.concatenate([np.zeros(needed // 2), x, np.zeros(needed - needed // 2)])
    return np.array([padded[p * stride : p * stride + len(kernel)] @ kernel for p in range(places)])


@pytest.mark.parametrize("size", [7, 8, 20, 91])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_tensorflows_on_even_and_odd_edges(size: int, stride: int) -> None:
    """Torch's own padding of one would look at other voxels wherever an edge is even."""
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=size), random.normal(size=3)
    before, behind = _same((size,), stride)
    padded = nn.functional.pad(torch.tensor(x)[None, None], (before, behind))
    found = nn.functional.conv1d(padded, torch.tensor(kernel)[None, None], stride=stride)
    np.testing.assert_allclose(found[0, 0].numpy(), naive_same(x, kernel, stride))


@pytest.mark.parametrize("variant", ["2d-8", "2d-12", "3d"])
def test_each_block_pads_as_tensorflow_does_whoever_adds_the_zeros(variant: Variant) -> None:
    """Where both edges get as many, the convolution adds them by itself: the same numbers."""
    torch.manual_seed(0)
    sizes = (7, 6) if variant != "3d" else (7, 6, 5)
    settings = DeepLight.Settings(name="deeplight", variant=variant, dropout=0.0)
    shape = (6, 7, 5) if variant != "3d" else sizes
    x = torch.randn(2, 1, *sizes)
    for block, stride in zip(
        DeepLight(settings, shape, "average").blocks, PLANS[variant].strides, strict=True
    ):
        _, convolution, *_ = block
        padded = nn.functional.pad(x, _same(tuple(x.shape[2:]), stride))
        plain = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(sizes)]
        wanted = plain(padded, convolution.weight, convolution.bias, stride=stride).relu()
        x = block[:3](x)
        torch.testing.assert_close(x, wanted)


def test_features_are_the_state_of_each_way_at_its_end() -> None:
    """The way down ends at the bottom slice: its output at the top has seen one slice only."""
    torch.manual_seed(0)
    climb = Climb(5, 3)
    x = torch.randn(2, 7, 5)
    outputs, _ = climb.lstm(x)
    expected = torch.cat([outputs[:, -1, :3], outputs[:, 0, 3:]], 1)
    torch.testing.assert_close(climb(x), expected)
    changed = x.clone()
    changed[:, 0] += 1  # the bottom slice, which only the way up has seen first
    assert not torch.allclose(climb(changed)[:, 3:], climb(x)[:, 3:])


def test_slices_are_axial_and_climb_from_the_bottom() -> None:
    """A state of the way up must forget the bottom before the top."""
    torch.manual_seed(0)
    network = built("2d-12", (20, 24, 20)).eval()
    x = torch.randn(1, 20, 24, 20)
    seen: list[torch.Tensor] = []
    network.blocks.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    network(x)
    assert seen[0].shape == (20, 1, 24, 20)
    torch.testing.assert_close(seen[0][4, 0], x[0, :, :, 4].T)


def test_the_forget_gate_begins_open() -> None:
    """Otherwise the bottom slices are forgotten before the first step."""
    torch.manual_seed(0)
    climb = Climb(5, 64)
    bias = climb.lstm.bias_ih_l0.detach() + climb.lstm.bias_hh_l0.detach()
    inside, forget, candidate, outside = (float(gate.mean()) for gate in bias.split(64))
    assert forget == pytest.approx(1, abs=0.1)
    assert [inside, candidate, outside] == pytest.approx([0, 0, 0], abs=0.1)


@pytest.mark.parametrize("variant", ["2d-12", "2d-8", "3d"])
def test_any_grid_will_do_and_every_part_learns(variant: str) -> None:
    """Small hospitals have coarse grids; a parameter without a gradient is dead weight."""
    torch.manual_seed(0)
    network = built(variant, (20, 24, 20))
    network(torch.randn(3, 20, 24, 20)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_dropout_falls_on_whole_channels_in_three_groups() -> None:
    """Kept with 1.0, 0.8 and 0.6, four convolutions each; half of the features."""
    network = built("2d-12", (20, 24, 20))
    rates = [m.p for m in network.blocks.modules() if isinstance(m, nn.Dropout2d)]
    assert rates == [0.0] * 4 + [0.2] * 4 + [0.4] * 4
    assert network.dropout.p == 0.5
    quiet = built("2d-12", (20, 24, 20), dropout=0.0).train()
    x = torch.randn(1, 20, 24, 20)
    torch.testing.assert_close(quiet(x), quiet(x))


def test_what_is_no_volume_is_refused_with_its_shape() -> None:
    """Before anyone trains, and in words."""
    with pytest.raises(ValueError, match=r"takes volumes; data.shape gives \[30\]"):
        built("2d-12", (30,))
