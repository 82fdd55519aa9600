"""A perceptron on tables: what it drops of the columns while it learns, and only then."""

from __future__ import annotations

import torch

from common.backbones.mlp import Mlp


def network(input_dropout: float) -> Mlp:
    torch.manual_seed(3)
    settings = Mlp.Settings(name="mlp", hidden=(4,), dropout=0.0, input_dropout=input_dropout)
    return Mlp(settings, (1000,), "groupnorm")


def test_columns_are_dropped_in_training_alone() -> None:
    """Half of them, and what is left counts double; a judge sees all."""
    some, x = network(0.5), torch.ones(1, 1000)
    seen: list[torch.Tensor] = []
    some.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    some(x)
    assert set(seen[-1].unique().tolist()) == {0.0, 2.0}
    assert 400 < int((seen[-1] == 0).sum()) < 600
    some.eval()
    some(x)
    assert torch.equal(seen[-1], x)


def test_nothing_is_dropped_unless_a_study_asks() -> None:
    """Nor is any chance drawn, so studies of before have the same bits."""
    plain, x = network(0.0), torch.randn(2, 1000)
    before = torch.random.get_rng_state()
    plain(x)
    assert torch.equal(torch.random.get_rng_state(), before)
