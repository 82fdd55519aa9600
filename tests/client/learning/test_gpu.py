"""What a GPU must not change: the same training, up to bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.learning.training import predict, train
from common.network import arrays_of, build
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
        losses = train(
            network, cohort, rows, study.pretraining,
            epochs=10, batch_size=8, rate=1e-3, seed=1, device=device,
        )  # fmt: skip
        assert all(np.isfinite(array).all() for array in arrays_of(network).values())
        total, count = losses.counts()["loss/age"]
        found[kind] = total / count
        assert predict(network, cohort, rows, device)["age"].shape == (len(cohort),)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.2)
