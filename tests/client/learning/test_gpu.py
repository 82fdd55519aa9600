"""What a GPU must not change: the same training, up to bfloat16, of every network and objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.cohort import Cohort
from client.data.loading import Loader
from client.learning.prediction import features_of, predict
from client.learning.privacy.training import train_privately
from client.learning.training import Recipe, lay_out, train
from common.network.buildable import augmentations
from common.network.building import arrays_of, build
from common.privacy.person_gradients import of_many
from common.privacy.settings import Privacy
from common.privacy.way import Way
from common.sections import Steps
from common.study import Study, parse_study
from tests.common.backbones.test_families import CPU_SIZES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHAPE = (20, 24, 20)
STEPS = Steps(batch_size=8, schedule="constant")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mae": {"width": 16, "depth": 1},
    "simmim": {"cube": 4, "width": 8},
    "simclr": {"width": 8},
    "y-aware": {"width": 8, "targets": ["age"]},
}
PAIRS = [
    *((backbone, "multitask") for backbone in CPU_SIZES),
    *((backbone, "simclr") for backbone in ("densenet", "swin", "minit")),
    *((backbone, "simmim") for backbone in ("sfcn", "densenet", "resnet", "swin")),
    *((backbone, "mae") for backbone in ("vit", "nit")),
    ("resnet", "y-aware"),
]


def study(backbone: str, name: str, **changes: Any) -> Study:
    tables = {
        "name": "gpu",
        "data": {"kind": "t1w", "shape": list(SHAPE), "spacing_mm": 8.0},
        "targets": {"age": {"kind": "regression", "centre": 50.0, "scale": 18.0}},
        "backbone": {"name": backbone, **CPU_SIZES[backbone]},
        "objective": {"name": name, **OBJECTIVES.get(name, {})},
        "augmentation": [{"name": "noise"}],
        "pretraining": {"warmup": 0.1},
        "sites": {"train": ["a"]},
    }
    return parse_study({**tables, **changes}, Path("gpu.toml"))


def cohort(count: int = 16) -> Cohort:
    """Volumes whose brightness in one corner is the age."""
    random = np.random.default_rng(0)
    ages = random.uniform(20, 80, count).astype(np.float32)
    samples = random.standard_normal((count, *SHAPE)).astype(np.float32)
    samples[:, :10, :10, :10] += ((ages - 50) / 18)[:, None, None, None]
    people = tuple(f"sub-{number:02d}" for number in range(count))
    return Cohort(
        samples=samples.astype(np.float16), participants=people, scans=people,
        labels={"age": ages}, measures=None, layout="volume", findings=(), contents=people,
        secrets=("",) * count,
    )  # fmt: skip


def losses(agreed: Study, kind: str, epochs: int, **keys: Any) -> tuple[list[float], Any]:
    """The mean loss of each epoch, and the network."""
    network, seen = build(agreed, seed=1), []

    def note(_: int, tally: Any) -> bool:
        seen.append(tally.mean())
        return True

    recipe = Recipe(
        steps=STEPS.model_copy(update=keys), rate=2e-3, weight_decay=1e-3, epochs=epochs, of=epochs, seed=1,
        loader=Loader(augmentations(agreed), 1, 2),
    )  # fmt: skip
    train(network, cohort(), np.arange(16), recipe, torch.device(kind), go_on=note)
    return seen, network


@pytest.mark.parametrize(("backbone", "objective"), PAIRS)
def test_a_gpu_learns_what_a_cpu_learns(backbone: str, objective: str) -> None:
    """bf16 and another device may round differently, not learn something else."""
    agreed = study(backbone, objective)
    found = {kind: losses(agreed, kind, 12)[0] for kind in ("cpu", "cuda")}
    assert all(np.isfinite(seen).all() for seen in found.values())
    first, last = ({kind: np.mean(seen[at]) for kind, seen in found.items()}
                   for at in (slice(0, 3), slice(-3, None)))  # fmt: skip
    assert last["cuda"] < first["cuda"]
    # masks, views and dropout are other draws on another device
    assert last["cuda"] == pytest.approx(last["cpu"], rel=0.35)


@pytest.mark.parametrize("backbone", CPU_SIZES)
def test_features_and_predictions_are_the_cpus_up_to_bfloat16(backbone: str) -> None:
    """The same weights say the same of the same scans wherever they are judged."""
    _, network = losses(study(backbone, "multitask"), "cpu", 6)
    found = {}
    for kind in ("cpu", "cuda"):
        device = torch.device(kind)
        features = features_of(network, cohort(), device)
        found[kind] = (features, predict(network, cohort(), np.arange(16), device)["age"])
    (cpu, age), (cuda, other) = found["cpu"], found["cuda"]
    assert np.linalg.norm(cuda - cpu) < 0.02 * np.linalg.norm(cpu)
    assert np.abs(other - age).max() < 1.5  # years


@pytest.mark.parametrize("backbone", ["sfcn", "vit"])
def test_the_same_seed_gives_nearly_the_same_on_a_gpu_again(backbone: str) -> None:
    """Two runs on one device differ by its atomics alone."""
    one, other = (arrays_of(losses(study(backbone, "multitask"), "cuda", 3)[1]) for _ in range(2))
    for name, array in one.items():
        assert np.allclose(array, other[name], rtol=0.05, atol=0.05), name


@pytest.mark.parametrize("backbone", CPU_SIZES)
def test_a_backbone_compiles_and_says_the_same(backbone: str) -> None:
    """torch.compile is for whoever trains for a night; it must not change what is learnt."""
    network = build(study(backbone, "multitask"), seed=1).eval()
    lay_out(network, torch.device("cuda"))
    x = torch.from_numpy(cohort().samples.astype(np.float32)).cuda()
    compiled = torch.compile(network.backbone)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network.backbone(x), rtol=1e-3, atol=1e-3)


def test_low_rank_rounds_train_on_a_gpu() -> None:
    """Additions live beside weights that were moved to the device before or after them."""
    rounds = {"pretraining": {"trains": "lora", "rank": 2, "warmup": 0.1}}
    seen, _ = losses(study("vit", "multitask", **rounds), "cuda", 12)
    assert np.mean(seen[-3:]) < np.mean(seen[:3])


@pytest.mark.parametrize("option", ["mixup", "cutmix", "sharpness", "weight_averaging"])
@pytest.mark.parametrize("backbone", ["sfcn", "vit"])
def test_each_option_of_the_recipe_trains_on_a_gpu(backbone: str, option: str) -> None:
    """Mixed batches, two passes and averages live on the device as the weights do."""
    value = {"mixup": 0.3, "cutmix": 0.3, "sharpness": 0.02, "weight_averaging": 0.5}[option]
    seen, network = losses(study(backbone, "multitask"), "cuda", 12, **{option: value})
    assert np.isfinite(seen).all()
    assert np.mean(seen[-3:]) < np.mean(seen[:3]) * 1.05  # mixed losses are noisy
    assert all(np.isfinite(array).all() for array in arrays_of(network).values())


def test_soft_labels_train_on_a_gpu() -> None:
    """Bins, their centres and the labels meet on one device."""
    bins = {"age": {"low": 10.0, "high": 90.0}}
    tables = {
        "targets": {
            "age": {"kind": "regression", "centre": 50.0, "scale": 18.0, "low": 15.0, "high": 85.0}
        },
        "objective": {"name": "multitask", "soft_labels": bins},
    }
    seen, network = losses(study("sfcn", "multitask", **tables), "cuda", 12)
    assert np.mean(seen[-3:]) < np.mean(seen[:3])
    told = predict(network, cohort(), np.arange(16), torch.device("cuda"))["age"]
    assert ((told > 10) & (told < 90)).all()


def test_a_joint_network_trains_on_a_gpu() -> None:
    """Some samples by their labels, the others by their voxels, in one batch."""
    own = {"name": "joint", "unlabelled": {"name": "simmim", "cube": 4, "width": 8}}
    agreed = study("sfcn", "multitask", objective=own)
    held = cohort()
    held.labels["age"][::2] = np.nan
    network = build(agreed, seed=1)
    recipe = Recipe(steps=STEPS, rate=2e-3, weight_decay=1e-3, epochs=4, of=4, seed=1)
    done = train(network, held, np.arange(16), recipe, torch.device("cuda"))
    counts = done.tally.counts("loss")
    assert {name: n for name, (_, n) in counts.items()} == {
        "loss/age": 32,
        "loss/reconstruction": 32,
    }


@pytest.mark.parametrize("samples", [1, 8])
@pytest.mark.parametrize("backbone", ["sfcn", "vit"])
def test_a_private_step_on_the_device_is_the_cpus(backbone: str, samples: int) -> None:
    """The sum of cut-down gradients, but for bfloat16, and noise as long, drawn on the device."""
    agreed = study(backbone, "multitask", aggregation={"normalisation": "groupnorm"})
    people = cohort()
    moved = {}
    for kind, noise in (("cpu", 0.0), ("cuda", 0.0), ("cuda", 2.0)):
        network = build(agreed, seed=1)
        with torch.no_grad():
            for parameter in network.heads.parameters():
                parameter.fill_(0.05)
        before = arrays_of(network)
        privacy = Privacy(unit="participant", noise=noise, epsilon=0.0, clip=0.5)
        steps = STEPS.model_copy(update={"optimiser": "sgd", "momentum": 0.0, "gradient_clip": 0.0})
        recipe = Recipe(steps=steps, rate=16.0, weight_decay=0.0, epochs=1, of=1, seed=1)
        way = Way(samples, of_many, "")
        train_privately(network, people, np.arange(16), recipe, torch.device(kind), privacy, way)
        moved[kind, noise] = np.concatenate(
            [(array - before[name]).ravel() for name, array in arrays_of(network).items()]
        )
    bare = moved["cuda", 0.0]
    wrong = np.linalg.norm(bare - moved["cpu", 0.0]) / np.linalg.norm(moved["cpu", 0.0])
    assert wrong < 0.05
    noise = moved["cuda", 2.0] - bare
    assert abs(noise.std() - 1) < 5 / (2 * len(noise)) ** 0.5 + 0.02
