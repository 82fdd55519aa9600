"""Low-rank additions: nothing at first, the merged network's outputs after, and rounds of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.errors import SettingError
from common.network.building import arrays_of, build, carried_over, load_arrays, plan_of
from common.network.low_rank import add_low_rank
from common.network.merging import is_added, merged
from common.network.starting import names_taken
from common.seams import FROZEN, SHARED
from common.sections import Start
from common.study import parse_study
from tests.common.backbones.test_families import CPU_SIZES, SHAPE, made
from tests.conftest import BRAINS, FEATURES, overridden

LORA = {"pretraining.trains": "lora", "pretraining.rank": 2}


def study(base: dict[str, Any], **changes: Any) -> Any:
    return parse_study(overridden(base, changes), Path("study.toml"))


def moved(network: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_added(name):
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("name", CPU_SIZES)
def test_merging_gives_the_same_outputs_to_a_hundred_thousandth(name: str) -> None:
    """What a site deploys is one network, not one and its additions."""
    adapted, plain = made(name).eval(), made(name).eval()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    before = adapted(x)
    assert list(add_low_rank(adapted, 3))
    assert torch.equal(adapted(x), before)
    moved(adapted)
    load_arrays(plain, merged(arrays_of(adapted)))
    after = adapted(x)
    assert not torch.allclose(after, before, rtol=1e-2)
    torch.testing.assert_close(after, plain(x), rtol=1e-5, atol=1e-5 * after.abs().max().item())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(2, 5, (3, 2, 1), stride=(2, 1, 1), padding=(1, 0, 2), bias=False),
        nn.Conv2d(2, 5, 3, dilation=2, padding_mode="circular", padding=1),
        nn.Conv1d(2, 5, 3),
        nn.Linear(7, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_addition_goes_through_a_layer_as_its_weight_does(layer: Any) -> None:
    """Strides, padding and its mode, dilation: the narrow layer has all of them."""
    network, dimensions = nn.Sequential(layer), getattr(layer, "kernel_size", ())
    x = torch.randn(3, 2, *[7] * len(dimensions)) if dimensions else torch.randn(3, 7)
    list(add_low_rank(network, 2))
    moved(network)
    state = merged(arrays_of(network))
    given = network(x)
    for handle in list(network[0]._forward_hooks):
        del network[0]._forward_hooks[handle]
    with torch.no_grad():
        network[0].weight.copy_(torch.from_numpy(state["0.weight"]))
    torch.testing.assert_close(given, network(x), rtol=1e-4, atol=1e-5)


def test_convolutions_of_each_channel_by_itself_are_left_alone() -> None:
    """They have nothing to narrow."""
    network = nn.Sequential(nn.Conv3d(4, 4, 3, groups=4), nn.Conv3d(4, 4, 1))
    assert list(add_low_rank(network, 2)) == ["1.low_rank."]


@pytest.mark.parametrize("base", [FEATURES, BRAINS], ids=["table", "volume"])
def test_in_rounds_additions_and_heads_travel_and_the_base_is_nobodys(base: dict[str, Any]) -> None:
    """What is frozen goes to a site once, and never back."""
    network = build(study(base, **LORA), seed=1)
    for name, rule in plan_of(network, "average").items():
        added = is_added(name)
        assert (rule.group == SHARED) == added, name
        if name.startswith("backbone.") and not added:
            assert rule.group == FROZEN
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {n for n in trained if is_added(n) or n.startswith("heads.")}


def test_in_rounds_of_last_blocks_the_first_ones_rest_whole() -> None:
    """With their statistics: a normalisation whose scale rests must not go on averaging."""
    changes = {"pretraining.trains": "last-blocks", "pretraining.blocks": 1}
    network = build(study(BRAINS, **changes), seed=1)
    frozen = {n for n, rule in plan_of(network, "average").items() if rule.group == FROZEN}
    stages = network.backbone.stages()
    last = {f"backbone.top.{name}" for name in stages[-1].state_dict()}
    assert not last & frozen
    held = {n for n in network.state_dict() if n.startswith("backbone.") and "tracked" not in n}
    assert frozen == held - last


def test_a_backbone_is_the_same_whether_rounds_train_all_of_it_or_not() -> None:
    """The base is drawn, or begun from, as ever."""
    whole, lora = (build(study(FEATURES, **c), seed=4).state_dict() for c in ({}, LORA))
    assert all(torch.equal(tensor, lora[name]) for name, tensor in whole.items())


def test_what_rounds_have_added_is_carried_over_merged() -> None:
    """A site's own task begins from the network that the rounds have made."""
    agreed = study(FEATURES, **LORA)
    pretrained = build(agreed, seed=1).eval()
    moved(pretrained)
    tuned = build(agreed, {"age": agreed.targets["age"]}, seed=2).eval()
    load_arrays(tuned, carried_over(tuned, arrays_of(pretrained), "age"))
    x = torch.randn(5, 4)
    torch.testing.assert_close(tuned.backbone(x), pretrained.backbone(x), rtol=1e-4, atol=1e-5)
    assert not any(map(is_added, tuned.state_dict()))


def test_a_start_takes_the_base_and_never_additions() -> None:
    """They are drawn anew: the checkpoint's own are part of its weights."""
    start = Start(study="a", take="all", arrays="0" * 64, contributors=("b",))
    names = ["backbone.top.weight", "backbone.top.low_rank.up", "heads.age.bias"]
    assert names_taken(start, names) == ["backbone.top.weight", "heads.age.bias"]


def test_attention_of_torchs_own_is_reached_in_fine_tuning_alone() -> None:
    """Its matrices change their names, and no checkpoint would find them."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.look(x, x, x, need_weights=False)[0]

    network, x = Looks().eval(), torch.randn(2, 3, 8)
    before = network(x)
    names = list(add_low_rank(network, 2))
    assert names == [
        "look.parametrizations.in_proj_weight.0.", "look.out_proj.parametrizations.weight.0.",
    ]  # fmt: skip
    torch.testing.assert_close(network(x), before)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("up"):
                parameter.normal_()
    assert not torch.allclose(network(x), before, rtol=1e-2)


def test_rounds_of_additions_to_nothing_are_refused() -> None:
    """A study that could train nothing of its backbone says so before anyone is asked."""
    with pytest.raises(SettingError, match="pretraining.trains: Linear has no matrices"):
        build(study(FEATURES, **LORA, backbone={"name": "linear"}), seed=0)
