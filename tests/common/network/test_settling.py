"""Constants that are made of sums: the same however the samples lie on sites and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.backbones.linear import Standardise
from common.network.building import build, plan_of
from common.network.settling import added, constants, passes, settle, settling, sums_of, sums_plan
from common.seams import FROZEN
from common.study import parse_study
from tests.conftest import FEATURES


def total(module: nn.Module, parts: list[Tensor], number: int = 0) -> dict[str, Any]:
    modules = {"it": module}
    return added(
        {name: value.numpy() for name, value in sums_of(modules, part, {}, number).items()}
        for part in parts
    )


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_columns_are_standardised_by_everybody_together(sizes: list[int]) -> None:
    """However the rows are cut: the mean and the deviation of all of them at once."""
    random = np.random.default_rng(sum(sizes))
    rows = random.normal(loc=(0, 1e4, 5), scale=(1, 3, 0), size=(sum(sizes), 3)).astype(np.float32)
    module = Standardise(3)
    parts = [torch.from_numpy(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    settle({"it": module}, [total(module, parts)], 0)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(module.mean.numpy(), wide.mean(0), rtol=1e-6)
    if len(rows) > 2:
        np.testing.assert_allclose(module.deviation.numpy()[:2], wide.std(0)[:2], rtol=1e-3)
    assert module.deviation[2] == 1  # it does not vary


class Whitened(nn.Module):
    """Asks twice: the mean first, then the spread around it."""

    passes = 2
    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def sums(self, x: Tensor, labels: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        n = torch.tensor(float(x.numel()))
        if number == 0:
            return {"sum": x.double().sum(), "n": n}
        return {"squares": (x.double() - self.mean).square().sum(), "n": n}

    def settle(self, sums: Mapping[str, Tensor], number: int) -> None:
        if number == 0:
            self.mean.copy_(sums["sum"] / sums["n"])
        else:
            self.spread.copy_((sums["squares"] / sums["n"]).sqrt())


def test_a_later_pass_sees_what_the_earlier_settled() -> None:
    """What is fitted around a mean cannot be asked for before the mean is known."""
    module, x = Whitened(), torch.randn(50, 3) * 2 + 7
    for number in range(passes({"it": module})):
        settle({"it": module}, [total(module, list(x.split(20)), number)], number)
    assert module.mean.item() == pytest.approx(x.mean().item(), rel=1e-6)
    assert module.spread.item() == pytest.approx(x.std(correction=0).item(), rel=1e-5)


def test_settled_buffers_are_frozen_wherever_they_lie() -> None:
    """A constant that a server optimiser moves, or a site returns, is none."""
    study = parse_study(FEATURES, Path("study.toml"))
    network = build(study, seed=1)
    network.backbone.inner = Whitened()
    names = {
        "backbone.standardise.mean", "backbone.standardise.deviation",
        "backbone.inner.mean", "backbone.inner.spread",
    }  # fmt: skip
    assert constants(network) == names
    plan = plan_of(network, "average")
    assert {plan[name].group for name in names} == {FROZEN}
    modules = settling(network)
    assert passes(modules) == 2
    first, second = (set(sums_plan(study, modules, number)) for number in (0, 1))
    assert first == {
        "backbone.standardise/sum", "backbone.standardise/squares", "backbone.standardise/n",
        "backbone.inner/sum", "backbone.inner/n",
    }  # fmt: skip
    assert second == {"backbone.inner/squares", "backbone.inner/n"}
