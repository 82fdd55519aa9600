"""Tokens by target: the readout in two stages, what is masked, and what is averaged by what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.backbones.lcm import Lcm as Backbone
from common.backbones.linear import Linear
from common.network.building import arrays_of, build, carried_over, plan_of
from common.network.tuning import build_for, task_of
from common.objectives.lcm import Lcm
from common.sections import Target
from common.study import load_study

STUDIES = Path(__file__).parents[3] / "deploy" / "studies"
TARGETS = {
    "age": Target(kind="regression", centre=50.0, scale=10.0),
    "sex": Target(kind="binary", classes=("female", "male"), positive_weight=2.0),
    "state": Target(kind="categorical", classes=("rest", "left", "right")),
}
NAN = float("nan")
LABELS = {
    "age": torch.tensor([40.0, NAN, 70.0]),
    "sex": torch.tensor([0.0, 1.0, NAN]),
    "state": torch.tensor([2.0, NAN, NAN]),
}


def made(**keys: Any) -> Lcm:
    torch.manual_seed(0)
    small = {"width": 8, "depth": 3, "heads": 2, "feed_forward": 12, "dropout": 0.0}
    backbone = Backbone(Backbone.Settings(name="lcm", **small), (6, 6), "average")
    return Lcm(Lcm.Settings(name="lcm", **keys), backbone, TARGETS)


def x(samples: int = 3) -> torch.Tensor:
    return torch.randn(samples, 6, 6, generator=torch.Generator().manual_seed(1))


def cross_entropy(logits: list[float], true: int) -> float:
    whole = torch.tensor(logits)
    return float(whole.exp().sum().log() - whole[true])


def readout(logits_LK: Any, true: int, stage: str) -> list[float]:
    """The three ways to read layers, one class at a time."""
    layers = logits_LK.tolist()
    columns = list(zip(*layers, strict=True))
    if stage == "mean":
        return [sum(column) / len(column) for column in columns]
    if stage == "surest":
        return list(max(layers, key=lambda layer: layer[true]))
    return [max(column) for column in columns]


@pytest.mark.parametrize(("stage", "training", "epoch"), [
    ("mean", True, 4), ("surest", True, 5), ("maximum", False, 4), ("maximum", False, 5),
])  # fmt: skip
def test_layers_are_read_as_the_paper_reads_them(stage: str, training: bool, epoch: int) -> None:
    """The true class may choose a layer in training alone, or a judge would be told the answer."""
    network = made(mean_epochs=5).train(training)
    network.begin(epoch, 10)
    outputs = network(x())
    terms = network.terms_of(outputs, LABELS)
    for name, weight in (("sex", 2.0), ("state", 1.0)):
        for sample, label in enumerate(LABELS[name].tolist()):
            if label != label:  # NaN  # noqa: PLR0124
                continue
            read = readout(outputs[name][sample], int(label), stage)
            wanted = cross_entropy(read, int(label)) * (weight if label == 1 else 1)
            assert terms[name].values[sample].item() == pytest.approx(wanted, abs=1e-5)
    age = outputs["age"].mean(1)[:, 0]
    assert terms["age"].values[0].item() == pytest.approx(
        float((age[0].detach() + 1) ** 2), abs=1e-5
    )


def test_a_judge_reads_the_maximum_of_each_class_and_the_mean_of_a_scale() -> None:
    """What is predicted depends on no label, whatever stage training is in."""
    network = made(mean_epochs=0).eval()
    network.begin(9, 10)
    outputs, told = network(x()), network.predict(x())
    state = torch.tensor([readout(one, 0, "maximum") for one in outputs["state"]])
    torch.testing.assert_close(told["state"], torch.softmax(state, 1))
    sex = torch.tensor([readout(one, 0, "maximum") for one in outputs["sex"]])
    torch.testing.assert_close(told["sex"], torch.softmax(sex, 1)[:, 1])
    torch.testing.assert_close(told["age"], outputs["age"].mean(1)[:, 0] * 10 + 50)


def test_missing_labels_count_nowhere_and_spoil_nothing() -> None:
    """Most sites lack most targets: NaN must neither count nor reach a gradient."""
    network = made()
    terms = network.terms(x(), LABELS)
    for name, label in LABELS.items():
        assert terms[name].counted.tolist() == (~label.isnan()).tolist()
        assert terms[name].values.isfinite().all()
    sum(term.values[term.counted].sum() for term in terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_token_has_no_gradient_from_labels_of_nobody_but_is_seen_by_others() -> None:
    """Self-attention passes what old tokens know to new ones, so they stay in the table."""
    network = made().eval()
    before = network.predict(x())["state"]
    with torch.no_grad():
        network.tokens["age"].weight += 1  # type: ignore[operator]
    assert not torch.equal(network.predict(x())["state"], before)


def test_rows_of_a_target_are_averaged_over_those_who_hold_its_labels() -> None:
    """Tokens are addressed by name; a site without a target leaves its rows alone."""
    plan = plan_of(made(), "average")
    groups = {name: rule.group for name, rule in plan.items() if not name.startswith("backbone.")}
    assert groups == {
        "tokens.age.weight": "labels/age",
        "tokens.sex.weight": "labels/sex",
        "tokens.state.weight": "labels/state",
        "score.weight": "shared",
        "score.bias": "shared",
    }
    assert {rule.group for name, rule in plan.items() if name.startswith("backbone.")} == {"shared"}
    shapes = [plan[f"tokens.{name}.weight"].shape for name in TARGETS]
    assert shapes == [(1, 8), (2, 8), (3, 8)]


TASK = SimpleNamespace(target_name="state")


def test_tokens_alone_may_be_tuned() -> None:
    """At a handful of people the decoder is far too many numbers to move."""
    assert made().tune("tokens", TASK) == ["tokens."]
    assert made().tune("full", TASK) is NotImplemented


@pytest.mark.parametrize("method", ["tokens", "full", "last-blocks"])
def test_a_task_that_is_learnt_alone_is_alone_in_the_loss(method: str) -> None:
    """What semi-supervised tuning is measured against; mixed samples go the same way."""
    network = made()
    network.tune(method, TASK)
    assert set(network.terms(x(), LABELS)) == {"state"}
    assert set(network.terms_of(network(x()), LABELS)) == {"state"}
    assert set(network.predict(x())) == set(TARGETS)


def test_semi_supervised_tuning_keeps_old_groups_in_the_loss() -> None:
    """Facts of the acquisition, given by `value`, keep old tokens true while new ones are learnt."""
    network = made()
    assert network.tune("semi-supervised", TASK) == [""]
    terms = network.terms(x(), {**LABELS, "age": torch.full((3,), NAN)})
    counted = {name: term.counted.tolist() for name, term in terms.items()}
    assert counted == {
        "age": [False] * 3, "sex": [True, True, False], "state": [True, False, False],
    }  # fmt: skip


def test_a_task_adds_its_tokens_to_those_of_pretraining() -> None:
    """The new are drawn, whatever pretraining knew under that name; the old are carried over."""
    study = load_study(STUDIES / "connectomes.toml")
    task = task_of(study, study.finetuning[0])
    pretrained, network = build(study, seed=0), build_for(study, task, seed=1)
    assert network.target_names == ("age", "sex", "state", "diagnosis")
    known = arrays_of(pretrained)
    carried = carried_over(network, {**arrays_of(network), **known}, "diagnosis")
    assert carried.keys() == known.keys()


def test_features_are_what_tokens_gathered() -> None:
    """Frozen heads stand on what pretraining made of a brain."""
    network = made().eval()
    table = torch.cat([network.tokens[name].weight for name in TARGETS])  # type: ignore[misc]
    wanted = network.backbone.decode(network.backbone.memory(x()), table)[-1].mean(1)
    torch.testing.assert_close(network.features(x()), wanted)


def test_a_backbone_without_a_decoder_is_refused() -> None:
    """In words, before anyone is asked."""
    with pytest.raises(ValueError, match=r'backbone\.name = "lcm" does'):
        Lcm(Lcm.Settings(name="lcm"), Linear(Linear.Settings(name="linear"), (5,), ""), TARGETS)
