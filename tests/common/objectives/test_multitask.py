"""Losses of the masked multi-task objective, by hand."""

from __future__ import annotations

import pytest
import torch

from common.backbones.linear import Linear
from common.objectives.multitask import Multitask
from common.sections import Target


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_squared_hinge_is_what_lacks_to_a_margin_of_one(weight: float) -> None:
    """A support vector machine: beyond its margin a sample tells nothing; who has no label neither."""
    target = Target(kind="binary", classes=("control", "ill"), positive_weight=weight)
    settings = Multitask.Settings(name="multitask", binary_loss="squared-hinge")
    backbone = Linear(Linear.Settings(name="linear"), (2,), "average")
    network = Multitask(settings, backbone, {"ill": target})
    outputs = torch.tensor([[2.0], [0.5], [-0.5], [0.25], [-3.0], [9.0]], requires_grad=True)
    labels = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, float("nan")])
    found = network.terms_of({"ill": outputs}, {"ill": labels})["ill"]
    wanted = torch.tensor([0.0, weight * 0.25, weight * 2.25, 1.5625, 0.0])
    torch.testing.assert_close(found.values[:5], wanted)
    assert found.counted.tolist() == [True] * 5 + [False]
    found.values[found.counted].sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[[0, 4, 5], 0].tolist() == [0.0, 0.0, 0.0]


def test_outputs_of_either_loss_rank_alike() -> None:
    """An AUC asks for ranks alone: whatever the loss, a larger output is a larger prediction."""
    target = Target(kind="binary", classes=("control", "ill"))
    settings = Multitask.Settings(name="multitask", binary_loss="squared-hinge")
    backbone = Linear(Linear.Settings(name="linear"), (2,), "average")
    network = Multitask(settings, backbone, {"ill": target})
    with torch.no_grad():
        network.heads["ill"].weight.copy_(torch.tensor([[1.0, -2.0]]))
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    assert (
        network.predict(x)["ill"].argsort().tolist() == (x[:, 0] - 2 * x[:, 1]).argsort().tolist()
    )
