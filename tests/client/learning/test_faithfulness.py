"""A faithful map's loudest places matter; what is deleted, and how much, is worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.learning.faithfulness import agreement, without_the_loudest
from common import metrics


class Reads:
    """Says the first of two classes by the sum of some places; `several` as softmax of two."""

    def __init__(self, places: slice, *, several: bool = True) -> None:
        self.places, self.several = places, several

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        logit = x[:, self.places].sum(1)
        if not self.several:
            return {"t": torch.sigmoid(logit)}
        return {"t": torch.softmax(torch.stack([logit, torch.zeros_like(logit)], 1), 1)}


def deleted(network: Any, x: Tensor, maps: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    return without_the_loudest(network, x, maps, "t", np.random.default_rng(0))


def chance(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def test_the_loudest_go_first_and_as_many_as_is_said() -> None:
    """Of 100 places 1, 5, 20 and 50 are deleted; the network reads the first ten, ones."""
    x = torch.ones(1, 100)
    found = deleted(Reads(slice(10)), x, torch.arange(100.0, 0, -1)[None])
    said = [found[name][0] for name in (metrics.SAID, *map(metrics.without, metrics.DELETED))]
    np.testing.assert_allclose(said, [chance(10), chance(9), chance(5), 0.5, 0.5], rtol=1e-6)


def test_chance_deletes_as_many_places_that_any_map_might_have_named() -> None:
    """What is 0 in a sample is no place: deleting it would cost nothing."""
    x = torch.zeros(1, 100)
    x[0, 40:60] = 1.0
    found = deleted(Reads(slice(None)), x, torch.randn(1, 100))
    for share, left in zip(metrics.DELETED, (19, 19, 16, 10), strict=True):
        for way in ("", metrics.AT_RANDOM):
            name = metrics.without(share) + way
            np.testing.assert_allclose(found[name], chance(left), rtol=1e-6, err_msg=name)


def test_a_map_for_the_second_class_is_turned_round_where_the_first_was_said() -> None:
    """One output has one map; who is told to be a control is told so by its quietest places."""
    x = torch.cat([torch.ones(1, 10), -torch.ones(1, 10)])
    maps = x * torch.arange(1, 11)
    found = deleted(Reads(slice(None), several=False), x, maps)
    np.testing.assert_allclose(found[metrics.SAID], chance(10), rtol=1e-5)
    np.testing.assert_allclose(found[metrics.without(50)], chance(5), rtol=1e-5)


def test_what_was_said_is_asked_about_even_where_the_network_has_changed_its_mind() -> None:
    """The probability of another class would rise again."""
    x = torch.cat([2 * torch.ones(1, 10), -torch.ones(1, 10)], 1)
    found = deleted(Reads(slice(None)), x, x)
    assert found[metrics.SAID][0] == pytest.approx(chance(10))
    assert found[metrics.without(50)][0] == pytest.approx(chance(-10), rel=1e-4)


def test_maps_agree_by_rank_over_the_places_that_are_there() -> None:
    """A monotone change is none; a constant map agrees with nothing; outside nobody is asked."""
    x = torch.ones(3, 6)
    x[:, 5] = 0
    one = torch.arange(6.0).repeat(3, 1)
    others = torch.stack([one[0] ** 3, -one[0], torch.full((6,), 2.0)])
    others[0, 5] = -100.0
    np.testing.assert_allclose(agreement(one, others, x), [1.0, -1.0, 0.0])
