"""A process of its own that tries torch and the GPU: a driver that hangs or crashes ends only this.

`python -m client.doctor.gpu_probe` prints one line of JSON and ends.
"""

from __future__ import annotations

import json
from typing import Any, Final

_FAITHFUL: Final = 1e-2  # relative; convolutions in TF32 differ from the CPU's by about 1e-3


def tell() -> dict[str, Any]:
    """What torch is, and what became of a small convolution on the GPU that it sees."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
    if torch.version.cuda is None:
        return found
    try:
        torch.cuda.init()
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            found["gpus"].append({"name": name, "free": free, "total": total})
        if found["gpus"]:
            found["difference"] = _difference()
    except (RuntimeError, AssertionError) as error:
        found["problem"] = str(error)
    return found


def _difference() -> float:
    """Largest relative difference between GPU and CPU in a convolution's output and gradient."""
    import torch

    generator = torch.Generator().manual_seed(1)
    # B=2, C=1, X=Y=Z=16
    x_BCXYZ = torch.randn((2, 1, 16, 16, 16), generator=generator)
    weight = torch.randn((4, 1, 3, 3, 3), generator=generator)
    results = []
    for device in ("cpu", "cuda"):
        own = weight.to(device).requires_grad_()
        output = torch.nn.functional.conv3d(x_BCXYZ.to(device), own)
        output.square().mean().backward()
        gradient = own.grad
        if gradient is None:
            return float("inf")
        results.append((output.detach().cpu(), gradient.cpu()))
    pairs = zip(*results, strict=True)
    return max(float((here - there).norm() / here.norm()) for here, there in pairs)


def is_faithful(difference: float) -> bool:
    """Whether the GPU computes what the CPU does; not so for NaN.

    >>> is_faithful(1e-4), is_faithful(float("nan"))
    (True, False)
    """
    return difference < _FAITHFUL


if __name__ == "__main__":
    print(json.dumps(tell()))
