"""Every fine-tuning method begins as the pretrained network, and trains what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.backbones.mlp import Mlp
from common.errors import SettingError
from common.network.building import arrays_of, build, carried_over, load_arrays, stages
from common.network.tuning import Adapter, Task, build_for, task_of, tune, tuned_arrays
from common.study import Study, parse_study
from tests.conftest import BRAINS, FEATURES, overridden

TASK = {"name": "own", "target": "sex", "rank": 2, "width": 3, "blocks": 1}
X = {"features": torch.randn(6, 4), "t1w": torch.randn(6, 12, 14, 12)}


def study_of(base: dict[str, Any], **task: Any) -> Study:
    tables = {**base, "finetuning": [{**TASK, **task}]}
    return parse_study(overridden(tables, {"objective.targets": ["age"]}), Path("study.toml"))


@pytest.fixture(params=[FEATURES, BRAINS], ids=["table", "volume"])
def study(request: pytest.FixtureRequest) -> Study:
    return study_of(request.param)


def fresh(study: Study, method: str) -> tuple[Any, Any, Task]:
    """A pretrained network for the task, tuned, and the same before it was."""
    task = task_of(study, study.finetuning[0])
    pretrained = arrays_of(build(study, seed=1))
    networks = []
    for _ in range(2):
        network = build_for(study, task, seed=2)
        load_arrays(network, carried_over(network, pretrained, task.target_name))
        networks.append(network.eval())
    tune(networks[0], method, task, seed=3)
    return networks[0].eval(), networks[1], task


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


METHODS = ["full", "last-blocks", "lora", "adapters"]


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_network_begins_as_the_pretrained_one(study: Study, method: str) -> None:
    """What is added starts as nothing; else fine-tuning would first have to unlearn it."""
    network, before, _ = fresh(study, method)
    nn.init.normal_(network.heads["sex"].weight, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(before.heads["sex"].weight, generator=torch.Generator().manual_seed(0))
    x = X[study.kind_name]
    torch.testing.assert_close(network.predict(x)["sex"], before.predict(x)["sex"])
    assert network.predict(x)["sex"].std() > 0


@pytest.mark.parametrize("method", METHODS)
def test_one_step_moves_what_trains_and_nothing_else(study: Study, method: str) -> None:
    """A frozen array that moves is a method of another name."""
    network, _, _ = fresh(study, method)
    nn.init.normal_(network.heads["sex"].weight)
    before = arrays_of(network)
    labels = {"sex": torch.tensor([0.0, 1, 0, 1, 0, 1])}
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # what starts at zero lets its partner move in the second step
        optimiser.zero_grad()
        network.terms(X[study.kind_name], labels)["sex"].values.mean().backward()
        optimiser.step()
    after = arrays_of(network)
    moved = {name for name in after if (after[name] != before[name]).any()}
    assert moved <= trained(network)
    assert {"heads.sex.weight", "heads.sex.bias"} <= moved
    backbone = [name for name in trained(network) if not name.startswith("heads.")]
    assert any(name in moved for name in backbone)


def test_each_method_trains_what_its_name_says() -> None:
    """By name, for one network in full."""
    layers = [f"backbone.layers.{n}" for n in (0, 1, 4, 5)]  # Linear and BatchNorm1d of two stages
    head = {"heads.sex.weight", "heads.sex.bias"}
    study = study_of(overridden(FEATURES, {"backbone.hidden": [6, 5]}))
    full, *_ = fresh(study, "full")
    own = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert trained(full) == own | head
    last, *_ = fresh(study, "last-blocks")
    assert trained(last) == {name for name in own if name > "backbone.layers.4"} | head
    lora, *_ = fresh(study, "lora")
    added = [f"backbone.layers.{n}.low_rank" for n in (0, 4)]
    assert trained(lora) == {f"{at}.{part}" for at in added for part in ("down", "up")} | head
    assert dict(lora.named_parameters())[f"{added[0]}.down"].shape == (2, 4)
    adapted, *_ = fresh(study, "adapters")
    assert trained(adapted) == head | {
        f"adapters.{n}.{layer}.{part}"
        for n in (0, 1) for layer in ("down", "up") for part in ("weight", "bias")
    }  # fmt: skip


def test_what_is_kept_is_what_tuning_can_have_changed() -> None:
    """Statistics beside a trained layer go with it; those of a resting one stay the base's."""
    study = study_of(overridden(FEATURES, {"backbone.hidden": [6, 5]}))
    last, *_ = fresh(study, "last-blocks")
    kept = set(tuned_arrays(last))
    assert {"backbone.layers.5.running_mean", "backbone.layers.5.running_var"} < kept
    resting = ("backbone.layers.0", "backbone.layers.1", "backbone.standardise")
    assert not any(name.startswith(resting) for name in kept)
    lora, before, _ = fresh(study_of(BRAINS), "lora")
    old = {name for name in before.state_dict() if name.startswith("backbone.")}
    assert not old & set(tuned_arrays(lora))


def test_statistics_that_nothing_holds_still_are_kept() -> None:
    """A layer without scales of its own cannot rest; its statistics move in any training."""
    network, *_ = fresh(study_of(FEATURES), "full")
    network.backbone.layers[1] = nn.BatchNorm1d(6, affine=False)
    assert "backbone.layers.1.running_var" in tuned_arrays(network)
    network.requires_grad_(requires_grad=False)
    assert "backbone.layers.1.running_var" in tuned_arrays(network)


def test_stages_are_the_blocks_of_a_network() -> None:
    """What last-blocks and layer_decay go by: nothing without numbers is a stage."""
    volume = build(study_of(BRAINS), seed=1).backbone
    assert stages(volume) == [(volume.blocks[0],), (volume.blocks[1],), (volume.top,)]
    volume.stages = lambda: [volume.blocks, volume.top]
    assert stages(volume) == [(volume.blocks,), (volume.top,)]


def test_what_is_done_to_a_layers_output_belongs_to_its_stage() -> None:
    """A normalisation by itself must not be all that `last-blocks` trains."""
    table = build(study_of(FEATURES), seed=1).backbone
    [stage] = stages(table)
    names = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert [type(part).__name__ for part in stage] == names
    table.more = nn.ModuleList([nn.LayerNorm(3), nn.Identity()])
    assert stages(table)[1:] == [(table.more[0],)]


def test_a_method_that_nobody_offers_is_refused_with_those_there_are() -> None:
    """Prompts need a network that takes them; a guess must not become another method."""
    with pytest.raises(SettingError, match="prompts.*neither by Multitask nor by Mlp.*lora"):
        fresh(study_of(FEATURES), "prompts")


def test_adapters_that_cannot_tell_the_channels_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow layer over places instead of channels would train, and mean nothing."""

    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, None, None] * self.scale

    plain = Mlp.__init__

    def odd(self: Any, *given: Any) -> None:
        plain(self, *given)
        self.layers = nn.Sequential(Still(), nn.Linear(1, 1), nn.Flatten(), nn.Linear(4, 6))

    monkeypatch.setattr(Mlp, "__init__", odd)
    with pytest.raises(SettingError, match="cannot tell which axis of"):
        fresh(study_of(FEATURES), "adapters")


def test_a_stage_that_is_never_called_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapter would never see anything."""
    plain = Mlp.__init__

    def spare(self: Any, *given: Any) -> None:
        plain(self, *given)
        self.spare = nn.Linear(2, 2)

    monkeypatch.setattr(Mlp, "__init__", spare)
    with pytest.raises(SettingError, match="found no output of Linear"):
        fresh(study_of(FEATURES), "adapters")


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 5, 3, 4, 3)])
def test_an_adapter_works_on_channels_alone(shape: tuple[int, ...]) -> None:
    """Every place gets the same correction, whatever its neighbours hold."""
    first = len(shape) > 3
    adapter = Adapter(shape, 3, channels_first=first)
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(shape)
    wide = x.movedim(1, -1) if first else x
    expected = wide + wide.matmul(adapter.down.weight.T).add(adapter.down.bias).relu().matmul(
        adapter.up.weight.T
    )
    got = adapter(x)
    torch.testing.assert_close(got.movedim(1, -1) if first else got, expected)
