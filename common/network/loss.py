"""One number to differentiate, made of the terms of some samples, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from common.seams import Terms


def total_loss(terms: Mapping[str, Terms], weights: Mapping[str, float]) -> Tensor:
    """sum_t w_t [sum_i m_it l_t(i)] / max(1, sum_i m_it), see `common.objectives.multitask`."""
    parts = []
    for name, term in terms.items():
        parts.append(weights[name] * counted(term).sum() / term.counted.sum().clamp(min=1))
    return torch.stack(parts).sum()


def counted(term: Terms) -> Tensor:
    """(B,) the losses that count, 0 for the others."""
    return torch.where(term.counted, term.values, torch.zeros_like(term.values))


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where it is fast (CUDA); plain float32 on the CPU, where results must repeat."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()
