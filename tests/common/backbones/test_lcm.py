"""The Large Connectome Model's decoder is the published one: sizes, and each layer in plain words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.backbones.lcm import Layer, Lcm
from common.network.building import stages
from common.objectives import lcm
from common.sections import Target

# brain-environment indicators of the paper: 28 tokens
GROUPS = {"state_a": 4, "state_b": 7, "ad": 2, "pd": 4, "asd": 2, "taowu": 2, "neurocon": 2, "sz": 2,
          "sex": 2}  # fmt: skip


def target(classes: int) -> Target:
    words = tuple(f"c{n}" for n in range(classes))
    if classes > 2:
        return Target(kind="categorical", classes=words)
    return Target(kind="binary", classes=words) if classes == 2 else Target(kind="regression")


def made(regions: int = 9, policy: str = "average", **keys: Any) -> Lcm:
    torch.manual_seed(0)
    small = {"width": 16, "depth": 2, "heads": 4, "feed_forward": 24, "dropout": 0.0, **keys}
    return Lcm(Lcm.Settings(name="lcm", **small), (regions, regions), policy)


@pytest.mark.parametrize(
    ("keys", "millions"),
    [
        ({"depth": 4}, "147.2"),
        ({"depth": 8}, "294.2"),
        ({"depth": 20}, "734.9"),
        ({"depth": 32}, "1175.7"),
        ({"width": 128, "depth": 4, "feed_forward": 256}, "0.81"),
        ({"width": 192, "depth": 6, "feed_forward": 384}, "2.7"),
        ({"width": 256, "depth": 8, "feed_forward": 512}, "6.4"),
    ],
)
def test_the_model_has_as_many_parameters_as_published(keys: Any, millions: str) -> None:
    """A network of another size is another network."""
    targets = {name: target(count) for name, count in {**GROUPS, "age": 1}.items()}
    with torch.device("meta"):
        backbone = Lcm(Lcm.Settings(name="lcm", **keys), (116, 116), "average")
        network = lcm.Lcm(lcm.Lcm.Settings(name="lcm"), backbone, targets)
    found = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    digits = len(millions.partition(".")[2])
    assert f"{found:.{digits}f}" == millions


def attention(ours: Any) -> nn.MultiheadAttention:
    """Torch's own with the same weights."""
    theirs = nn.MultiheadAttention(ours.query.in_features, ours.heads, batch_first=True)
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


def plain_layer(ours: Layer, gathered: Tensor, table: Tensor, memory: Tensor) -> Tensor:
    """The layer as the paper says it: post-norm, queries and keys with what a token is."""
    asked = gathered + table
    found, _ = attention(ours.among)(asked, asked, gathered)
    gathered = ours.norms[0](gathered + found)
    found, _ = attention(ours.across)(gathered + table, memory, memory)
    gathered = ours.norms[1](gathered + found)
    wide, narrow = ours.feed_forward[0], ours.feed_forward[3]
    found = torch.relu(gathered @ wide.weight.T + wide.bias) @ narrow.weight.T + narrow.bias
    return ours.norms[2](gathered + found)


def shaken(module: nn.Module) -> None:
    """Biases and norms begin as 0 and 1, which would hide where they stand."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_a_layer_is_that_of_the_paper() -> None:
    """An independent statement of it, with torch's own attention and the same weights."""
    layer = Layer(16, 4, 24, 0.0)
    shaken(layer)
    gathered, table, memory = torch.randn(3, 5, 16), torch.randn(5, 16), torch.randn(3, 9, 16)
    wanted = plain_layer(layer, gathered, table, memory)
    torch.testing.assert_close(layer(gathered, table, memory), wanted)


def test_the_decoder_starts_at_zero_and_shows_every_layer_through_one_norm() -> None:
    """Readout needs all layers on one scale; targets begin as nothing and learn from the brain."""
    backbone = made(depth=3).eval()
    shaken(backbone)
    x, table = torch.randn(2, 9, 9), torch.randn(5, 16)
    rows = x @ backbone.rows.weight.T + backbone.rows.bias
    norm: Any = backbone.normalise
    scaled = (rows - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    memory = nn.functional.leaky_relu(scaled * norm.weight + norm.bias)
    torch.testing.assert_close(backbone.memory(x), memory)
    gathered, wanted = torch.zeros(2, 5, 16), []
    for layer in backbone.layers:
        gathered = plain_layer(layer, gathered, table, memory)  # type: ignore[arg-type]
        wanted.append(backbone.last(gathered))
    torch.testing.assert_close(backbone.decode(memory, table), torch.stack(wanted))


def test_regions_are_told_by_their_rows_and_not_by_their_places() -> None:
    """There is no positional code: memory is a set, so its order changes nothing."""
    backbone = made().eval()
    memory, table = torch.randn(2, 9, 16), torch.randn(5, 16)
    turned = backbone.decode(memory[:, torch.randperm(9)], table)
    torch.testing.assert_close(turned, backbone.decode(memory, table))


def test_without_tokens_it_is_a_backbone_like_others() -> None:
    """Plain heads may stand on it: features, stages and group normalisation are there."""
    for policy in ("average", "groupnorm"):
        backbone = made(policy=policy)
        assert backbone(torch.randn(3, 9, 9)).shape == (3, backbone.features)
        held = {id(p) for stage in stages(backbone) for part in stage for p in part.parameters()}
        assert held == {id(p) for p in backbone.parameters()}
    assert "GroupNorm" in repr(backbone)


@pytest.mark.parametrize(("shape", "keys", "told"), [
    ((9,), {}, r"takes connectomes, \(R, R\); data.shape gives \[9\]"),
    ((9, 8), {}, r"gives \[9, 8\]"),
    ((9, 9), {"heads": 5}, "width is 16; heads, 5, must divide it"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(shape: Any, keys: Any, told: str) -> None:
    """Before anyone trains."""
    with pytest.raises(ValueError, match=told):
        Lcm(Lcm.Settings(name="lcm", **{"width": 16, **keys}), shape, "average")
