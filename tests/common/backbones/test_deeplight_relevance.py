"""Relevance adds up to the score, follows a worked example, and points at what was looked at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.backbones.deeplight import Climb, DeepLight
from common.backbones.deeplight_relevance import climb_relevance, relevance

SHAPE = (20, 24, 6)


def built(variant: str = "2d-12", *, biased: bool = False) -> tuple[DeepLight, nn.Linear]:
    """A network and a head for four states, in float64."""
    torch.manual_seed(0)
    settings = DeepLight.Settings(name="deeplight", variant=variant)  # type: ignore[arg-type]
    network, head = DeepLight(settings, SHAPE, "average").double(), nn.Linear(128, 4).double()
    if network.features != 128:
        head = nn.Linear(network.features, 4).double()
    if not biased:
        with torch.no_grad():
            for name, array in (*network.named_parameters(), *head.named_parameters()):
                if "bias" in name:
                    array.zero_()
    return network, head


def volumes(count: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("variant", ["2d-12", "2d-8"])
def test_without_biases_relevance_adds_up_to_the_score(variant: str) -> None:
    """Nothing is made up and nothing lost on the way from the score to the voxels."""
    network, head = built(variant)
    x = volumes()
    found, scores = relevance(network, head, x, epsilon=1e-14)
    assert found.shape == x.shape
    torch.testing.assert_close(found.sum((1, 2, 3)), scores.max(1).values, rtol=1e-5, atol=1e-9)
    chosen = torch.tensor([3, 0, 1])
    found, scores = relevance(network, head, x, chosen, epsilon=1e-14)
    asked = scores.gather(1, chosen[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2, 3)), asked, rtol=1e-5, atol=1e-9)


def test_scores_are_the_networks_own_without_dropout() -> None:
    """What is explained must be what was said."""
    network, head = built(biased=True)
    x = volumes()
    _, scores = relevance(network.train(), head, x)
    torch.testing.assert_close(scores, head(network.eval()(x)))


def test_a_voxel_of_0_has_no_relevance_and_the_published_epsilon_little_effect() -> None:
    """What is outside the brain cannot have spoken; epsilon only takes the sharpest edge off."""
    network, head = built()
    x = volumes(1)
    x[:, :5] = 0
    fine, _ = relevance(network, head, x, epsilon=1e-12)
    assert not fine[:, :5].any()
    assert fine[:, 5:].any()


def worked() -> Climb:
    """One unit, gates half open whatever comes; the candidate is tanh(x + h / 2). Down: nothing."""
    climb = Climb(1, 1).double()
    with torch.no_grad():
        for array in climb.parameters():
            array.zero_()
        climb.lstm.weight_ih_l0[2] = 1.0
        climb.lstm.weight_hh_l0[2] = 0.5
    return climb


def test_the_worked_example_of_two_slices() -> None:
    """By hand, x = 1 and then 2: c1 = tanh(1) / 2 = 0.38080, h1 = tanh(c1) / 2 = 0.18172, the second
    candidate is 2.09086 before its tanh, c2 = 0.19040 + 0.48496. Of a relevance of 1, 0.71808 goes
    to the second slice's candidate, 2 / 2.09086 of that to its x and the rest to h1, which joins the
    0.28192 of c1: 0.68687 and 0.31313."""
    x = torch.tensor([[[1.0], [2.0]]]).double()
    told = torch.tensor([[1.0, 0.0]]).double()
    found = climb_relevance(worked(), x, told, epsilon=1e-14)
    expected = torch.tensor([[[0.31313], [0.68687]]]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_the_way_down_is_told_by_its_own_order() -> None:
    """Mirrored weights and slices: mirrored relevance."""
    climb = worked()
    with torch.no_grad():
        climb.lstm.weight_ih_l0_reverse.copy_(climb.lstm.weight_ih_l0)
        climb.lstm.weight_hh_l0_reverse.copy_(climb.lstm.weight_hh_l0)
    x = torch.tensor([[[1.0], [2.0], [4.0]]]).double()
    up = climb_relevance(climb, x, torch.tensor([[1.0, 0.0]]).double())
    down = climb_relevance(climb, x.flip(1), torch.tensor([[0.0, 1.0]]).double())
    torch.testing.assert_close(up, down.flip(1))


def test_a_slice_that_was_changed_changes_the_map_at_its_place() -> None:
    """Slices and axes are stacked again as they were taken apart."""
    network, head = built()
    x = torch.zeros(1, *SHAPE).double()
    x[0, 4, 19, 2] = 5.0
    found, _ = relevance(network, head, x, epsilon=1e-12)
    places = torch.nonzero(found)
    assert places.tolist() == [[0, 4, 19, 2]]


def test_the_3d_network_is_refused() -> None:
    """Its rules are others."""
    network, head = built("3d")
    with pytest.raises(ValueError, match="goes through 2d-12 and 2d-8; the network is 3d"):
        relevance(network, head, volumes())
