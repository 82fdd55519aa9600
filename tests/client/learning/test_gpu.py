"""What a GPU must not change: the same training, up to bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.learning.prediction import predict
from client.learning.training import Recipe, train
from common.network.building import arrays_of, build
from tests.bench import federation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_gpu_learns_what_a_cpu_learns():
    """bf16 and another device may round differently, not learn something else."""
    study, cohort = federation.study(), federation.cohort("site-0")
    rows, found = np.arange(len(cohort)), {}
    for kind in ("cpu", "cuda"):
        network, device = build(study, seed=1), torch.device(kind)
        steps = study.pretraining.model_copy(update={"batch_size": 8, "schedule": "constant"})
        recipe = Recipe(steps=steps, rate=1e-3, weight_decay=1e-3, epochs=10, of=10, seed=1)
        done = train(network, cohort, rows, recipe, device)
        assert all(np.isfinite(array).all() for array in arrays_of(network).values())
        total, count = done.tally.counts("loss")["loss/age"]
        found[kind] = total / count
        assert predict(network, cohort, rows, device)["age"].shape == (len(cohort),)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.2)
