"""Relevance is conserved, exact where it can be worked out by hand, and refuses what it cannot do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.errors import SettingError
from common.network import relevance as module
from common.network.relevance import EPSILON, relevance


def first(output: Tensor) -> Tensor:
    """The only output, or the first."""
    return output[:, 0]


class SlicesInOrder(nn.Module):
    """As DeepLight: convolutions of each slice, a memory over slices, a head on its last states."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=bias)
        self.drop = nn.Dropout2d(0.5)
        self.memory = nn.LSTM(3 * 4 * 4, 5, batch_first=True, bidirectional=True, bias=bias)
        self.head = nn.Linear(10, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        features = self.drop(torch.relu(self.look(x.flatten(0, 1).unsqueeze(1))))
        _, (last, _) = self.memory(features.reshape(*x.shape[:2], -1))
        return self.head(last.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


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


def test_nothing_is_gained_or_lost_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conservation: of a network without biases the relevance of a sample sums to its output."""
    monkeypatch.setattr(module, "EPSILON", 1e-9)
    torch.manual_seed(1)
    network = SlicesInOrder(bias=False).double()
    x = torch.randn(3, 6, 7, 8, dtype=torch.float64)
    found = relevance(network, x, lambda out: out.max(1).values)
    expected = network.eval()(x).max(1).values
    torch.testing.assert_close(found.sum((1, 2, 3)), expected, rtol=1e-4, atol=1e-6)


def test_a_network_answers_as_it_does_without_being_asked_for_relevance() -> None:
    """The memory is run step by step for its rule; what it says may not change."""
    torch.manual_seed(2)
    network = SlicesInOrder(bias=True).eval()
    x = torch.randn(2, 5, 7, 8)
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
    network = SlicesInOrder(bias=True).train()
    relevance(network, torch.randn(1, 4, 7, 8), first)
    assert all(part.training for part in network.modules())
    assert not network.look._forward_hooks
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.LSTM(3, 3, num_layers=2), nn.MultiheadAttention(4, 2)],
)
def test_a_layer_without_a_rule_is_refused(layer: nn.Module) -> None:
    """A map made by a wrong rule looks like any other."""
    with pytest.raises(SettingError, match="no rule of relevance is known for 0"):
        relevance(nn.Sequential(layer), torch.zeros(1, 3, 3, 3), first)
