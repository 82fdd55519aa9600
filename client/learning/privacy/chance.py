"""Chance that nobody can repeat: who is drawn, the noise, masks and dropout of private training.

Differential privacy holds against everyone who does not know what was drawn. A study's seed is
known to all who take part; so here, and here alone, chance comes from the operating system, and
equal runs have unlike bits. That is why a private round is never worked on again once its answer
left: the agent sends what it kept, or declines.

The generators are seeded by 256 bits of `secrets` and are no ciphers themselves. Noise is drawn in
float32; that its lowest bits may tell something (Mironov 2012) is not defended against.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor


class Chance:
    """Secret chance on the CPU, and on a device its own.

    numbers: for whatever is drawn on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        # torch's own generator would take 32 bits of a seed on the CPU: few enough to try them all
        entropy = np.random.SeedSequence(secrets.randbits(256), pool_size=8)
        self.numbers = np.random.Generator(np.random.PCG64DXSM(entropy))
        self._on_device: torch.Generator | None = None
        if device.type == "cuda":  # its generator has 64 bits
            self._on_device = torch.Generator(device)
            self._on_device.manual_seed(self.seed())

    def seed(self) -> int:
        """For generators that are seeded by a number."""
        return int(self.numbers.integers(2**63))

    def normal(self, like: Tensor, deviation: float) -> Tensor:
        """Normal numbers of the shape, and on the device, of `like`, in float32."""
        if self._on_device is not None:
            made = torch.empty(like.shape, device=like.device, dtype=torch.float32)
            return made.normal_(0.0, deviation, generator=self._on_device)
        drawn = self.numbers.standard_normal(tuple(like.shape), dtype=np.float32)
        return torch.from_numpy(np.multiply(drawn, np.float32(deviation), out=drawn))
