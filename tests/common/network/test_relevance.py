"""Relevance is conserved, exact where it can be worked out by hand, and refuses what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common import catalogue
from common.backbones.deeplight import DeepLight
from common.errors import SettingError
from common.network import relevance as module
from common.network.buildable import check_networks
from common.network.relevance import EPSILON, check_rules, relevance
from common.study import parse_study

SHAPE = (20, 24, 6)


def first(output: Tensor) -> Tensor:
    """The only output, or the first."""
    return output[:, 0]


def deeplight(*, bias: bool, variant: str = "2d-12") -> nn.Sequential:
    """The published network at a coarse grid, with a head for four states, in float64."""
    torch.manual_seed(1)
    settings = DeepLight.Settings(name="deeplight", variant=variant)  # type: ignore[arg-type]
    backbone = DeepLight(settings, SHAPE, "average")
    network = nn.Sequential(backbone, nn.Linear(backbone.features, 4)).double()
    for name, parameter in network.named_parameters():
        if "bias" in name and not bias:
            nn.init.zeros_(parameter)
    return network


def volumes(count: int = 2) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2)).double()


def test_a_worked_example_of_a_dense_layer() -> None:
    """R_i = x_i w_i R / (z + eps): 2 and 3 of an output of 5, by hand."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, 1.0]])
    found = relevance(layer, torch.tensor([[1.0, 3.0]]), first)
    torch.testing.assert_close(found, torch.tensor([[2.0, 3.0]]) * 5 / (5 + EPSILON))


def test_a_worked_example_of_a_memory_of_two_steps() -> None:
    """One unit, inputs 1 and 2, all by hand: candidates take all, and no gate anything."""
    memory = nn.LSTM(1, 1, batch_first=True, bias=False)
    memory.weight_ih_l0.data = torch.tensor([[0.5], [0.25], [1.0], [0.75]])
    memory.weight_hh_l0.data = torch.zeros(4, 1)
    memory.weight_hh_l0.data[2] = 0.5
    sigmoid, tanh = torch.sigmoid, torch.tanh
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    c1 = sigmoid(0.5 * one) * tanh(one)
    h1 = sigmoid(0.75 * one) * tanh(c1)
    z2 = two + 0.5 * h1
    added, held = sigmoid(0.5 * two) * tanh(z2), sigmoid(0.25 * two) * c1
    h2 = sigmoid(0.75 * two) * tanh(held + added)
    share = h2 / (held + added + EPSILON)
    signal = added * share / (z2 + EPSILON)
    back = 0.5 * h1 * signal + held * share  # through the hidden state, and through the cell
    expected = torch.stack([c1 * back / (c1 + EPSILON) / (one + EPSILON) * one, two * signal])
    found = relevance(memory, torch.tensor([[[1.0], [2.0]]]), lambda out: out[0][:, -1, 0])
    torch.testing.assert_close(found[0, :, 0], expected)


@pytest.mark.parametrize("variant", ["2d-12", "2d-8", "3d"])
def test_nothing_is_gained_or_lost_on_the_way(
    monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Conservation: of a network without biases the relevance of a sample sums to its output."""
    monkeypatch.setattr(module, "EPSILON", 1e-14)
    network, x = deeplight(bias=False, variant=variant), volumes()
    found = relevance(network, x, lambda out: out.max(1).values)
    expected = network.eval()(x).max(1).values
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-5, atol=1e-9)


def test_a_network_answers_as_it_does_without_being_asked_for_relevance() -> None:
    """The memory is run step by step for its rule; what it says may not change."""
    network, x = deeplight(bias=True).eval(), volumes()
    heard: list[Tensor] = []
    relevance(network, x, lambda out: heard.append(out.detach()) or first(out))  # type: ignore[func-returns-value]
    torch.testing.assert_close(heard[0], network(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_every_state_of_both_directions_is_as_torch_has_it(batch_first: bool) -> None:
    """An oracle: outputs, last states and cells of nn.LSTM."""
    torch.manual_seed(3)
    memory = nn.LSTM(4, 3, batch_first=batch_first, bidirectional=True)
    x = torch.randn(2, 6, 4)
    outputs, (hidden, cell) = memory(x)
    found, (last, ended) = module._through_memory(memory, x)
    torch.testing.assert_close(found, outputs)
    torch.testing.assert_close(last, hidden)
    torch.testing.assert_close(ended, cell)


def test_a_network_is_left_as_it_was() -> None:
    """Training goes on after it: mode, hooks and gradients are none of its business."""
    network = deeplight(bias=True).train()
    network[0].blocks[0].eval()
    before = [part.training for part in network.modules()]
    relevance(network, volumes(1), first)
    assert [part.training for part in network.modules()] == before
    assert not any(part._forward_hooks for part in network.modules())
    assert all(weight.grad is None for weight in network.parameters())


def test_a_voxel_of_0_has_no_relevance_and_another_keeps_its_place() -> None:
    """What lies outside the brain cannot have spoken; slices are stacked as they were taken apart."""
    x = torch.zeros(1, *SHAPE).double()
    x[0, 4, 19, 2] = 5.0
    found = relevance(deeplight(bias=False), x, first)
    assert torch.nonzero(found).tolist() == [[0, 4, 19, 2]]


@pytest.mark.parametrize("layer", [nn.LSTM(3, 3, num_layers=2), nn.MultiheadAttention(4, 2)])
def test_a_layer_without_a_rule_is_refused(layer: nn.Module) -> None:
    """A map made by a wrong rule looks like any other."""
    with pytest.raises(SettingError, match="no rule of relevance is known for 0"):
        relevance(nn.Sequential(layer), torch.zeros(1, 3, 3, 3), first)


class Twice(nn.Module):
    """Layers that have rules, with something between them that has none."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.way = nn.Linear(4, 4), nn.Linear(4, 4), way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.one(x), self.other(x))


@pytest.mark.parametrize(
    ("what", "way"),
    [
        ("add", lambda one, other: one + other),
        ("mul", lambda one, other: one * other),
        ("mean", lambda one, _: one.mean(1, keepdim=True)),
        ("sigmoid", lambda one, _: torch.sigmoid(one)),
    ],
)
def test_what_is_done_between_layers_is_looked_at_too(
    what: str, way: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """A shortcut past a layer would count its relevance twice, and nobody would see it."""
    with pytest.raises(SettingError, match=f"no rule of relevance is known for {what}, done"):
        check_rules(Twice(way), (4,))
    with pytest.raises(SettingError, match=f"no rule of relevance is known for {what}, done"):
        relevance(Twice(way), torch.ones(1, 4), first)


def test_two_ways_that_are_joined_keep_all_of_it() -> None:
    """As in dense blocks: what was read twice gets the relevance of both."""
    network = Twice(lambda one, other: torch.cat([one, other], 1)).double()
    for layer in (network.one, network.other):
        nn.init.zeros_(layer.bias)
    ends = nn.Sequential(network, nn.Linear(8, 1, bias=False).double())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).double() + 2
    found = relevance(ends, x, first).sum(1)
    torch.testing.assert_close(found, ends(x)[:, 0].detach(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["adapters", "lora"])
def test_a_network_that_was_given_a_second_way_is_refused_when_the_study_is_checked(
    name: str,
) -> None:
    """Adapters and LoRA add to what a layer says; the hours of training would be in vain."""
    study = parse_study(
        {
            "name": "maps",
            "data": {"kind": "t1w", "shape": [20, 24, 6], "spacing_mm": 8.0},
            "targets": {
                "age": {"kind": "regression", "centre": 50.0, "scale": 18.0},
                "sex": {"kind": "binary", "classes": ["female", "male"]},
            },
            "backbone": {"name": "deeplight", "variant": "2d-8"},
            "objective": {"name": "multitask"},
            "sites": {"train": ["here"]},
            "finetuning": [
                {"name": "sex", "target": "sex", "then": ["explain"], "maps": "relevance",
                 "methods": [f"pretrained/{name}"]}
            ],
        },
        Path("maps.toml"),
    )  # fmt: skip
    with pytest.raises(SettingError, match=r"finetuning.0.methods: no rule of relevance"):
        check_networks(study)


@pytest.mark.parametrize(
    ("name", "keys"), [("sfcn", {"channels": (4, 8), "top": 8}), ("densenet", {})]
)
def test_networks_with_batch_normalisation_conserve_what_their_biases_do_not_take(
    monkeypatch: pytest.MonkeyPatch, name: str, keys: dict[str, Any]
) -> None:
    """A scale by running statistics is a layer like any other; shifts are biases."""
    monkeypatch.setattr(module, "EPSILON", 1e-14)
    torch.manual_seed(1)
    kind = catalogue.load("backbones", name)
    backbone = kind(kind.Settings(name=name, **keys), (32, 32, 32), "average")
    network = nn.Sequential(backbone, nn.Linear(backbone.features, 2)).double()
    for key, parameter in network.named_parameters():
        if "bias" in key:
            nn.init.zeros_(parameter)
    x = torch.randn(1, 32, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    found = relevance(network, x, first)
    torch.testing.assert_close(
        found.sum((1, 2, 3)), network.eval()(x)[:, 0].detach(), rtol=1e-5, atol=1e-9
    )
