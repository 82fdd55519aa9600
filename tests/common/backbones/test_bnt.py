"""The Brain Network Transformer in its paper's words, and what of it travels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from common.backbones.bnt import Bnt, Layer, Readout
from common.network.building import plan_of, stages
from common.objectives.multitask import Multitask
from common.sections import Target


def made(regions: int = 12, **keys: Any) -> Bnt:
    torch.manual_seed(0)
    small = {"heads": 4, "feed_forward": 20, "clusters": 5, "dropout": 0.0, **keys}
    return Bnt(Bnt.Settings(name="bnt", **small), (regions, regions), "average")


def x(regions: int = 12) -> torch.Tensor:
    return torch.randn(3, regions, regions, generator=torch.Generator().manual_seed(1))


def test_a_layer_is_torchs_own_encoder_layer() -> None:
    """Post-norm with a rectifier, as published; torch's layer with the same weights is the oracle."""
    layer = Layer(12, 4, 20, 0.0)
    theirs = nn.TransformerEncoderLayer(12, 4, 20, 0.0, batch_first=True)
    pairs = [
        (theirs.self_attn.in_proj_weight, layer.among.look.weight),
        (theirs.self_attn.in_proj_bias, layer.among.look.bias),
        (theirs.self_attn.out_proj.weight, layer.among.out.weight),
        (theirs.self_attn.out_proj.bias, layer.among.out.bias),
    ]
    for part, place in ((theirs.linear1, 0), (theirs.linear2, 3)):
        ours: Any = layer.feed_forward[place]
        pairs += [(part.weight, ours.weight), (part.bias, ours.bias)]
    with torch.no_grad():
        for norm in (layer.first, layer.last):
            norm.weight.add_(torch.rand_like(norm.weight))
        theirs.norm1.load_state_dict(layer.first.state_dict())
        theirs.norm2.load_state_dict(layer.last.state_dict())
        for to, of in pairs:
            to.copy_(of)
    torch.testing.assert_close(layer(x()), theirs(x()))


def test_clusters_are_orthonormal_and_every_region_is_given_away_whole() -> None:
    """P = softmax over clusters of <Z, E>; what a cluster is given is P' Z, region by region."""
    readout = Readout(12, 5)
    torch.testing.assert_close(readout.centres @ readout.centres.T, torch.eye(5))
    wanted = torch.zeros(3, 5, 12)
    for sample, rows in enumerate(x()):
        for row in rows:
            shares = torch.softmax(torch.stack([row @ centre for centre in readout.centres]), 0)
            wanted[sample] += shares[:, None] * row
    torch.testing.assert_close(readout(x()), wanted)
    torch.testing.assert_close(readout(x()).sum(1), x().sum(1))


def test_centres_stay_as_they_were_drawn_and_everything_else_learns() -> None:
    """Sites that each moved them would average clusters of other regions."""
    backbone = made()
    target = {"sex": Target(kind="binary", classes=("female", "male"))}
    network = Multitask(Multitask.Settings(name="multitask"), backbone, target)
    groups = {name: rule.group for name, rule in plan_of(network, "average").items()}
    assert groups.pop("backbone.readout.centres") == "frozen"
    assert set(groups.values()) == {"shared", "labels/sex"}
    features = backbone(x())
    assert features.shape == (3, backbone.features)
    features.square().sum().backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_regions_need_not_be_a_multiple_of_heads() -> None:
    """Atlases have as many regions as they have."""
    assert made(13)(x(13)).shape == (3, 32)


def test_stages_hold_every_parameter() -> None:
    """What last-blocks and layer-wise rates go by."""
    backbone = made()
    held = {id(p) for stage in stages(backbone) for part in stage for p in part.parameters()}
    assert held == {id(p) for p in backbone.parameters()}


@pytest.mark.parametrize(("shape", "keys", "told"), [
    ((9,), {}, r"takes connectomes, \(R, R\); data.shape gives \[9\]"),
    ((9, 8), {}, r"gives \[9, 8\]"),
    ((9, 9), {"clusters": 10}, "clusters is 10; of 9 regions no more can be orthonormal"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(shape: Any, keys: Any, told: str) -> None:
    """Before anyone trains."""
    with pytest.raises(ValueError, match=told):
        Bnt(Bnt.Settings(name="bnt", **keys), shape, "average")
