"""How large a study's networks are, and a step of training, told before any of it is made.

A study's numbers come from others: a width of 65,536 twice asks for 17 GB. Networks are therefore
outlined first, on torch's meta device, where tensors have a shape and no content.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from common.errors import SettingError
from common.network.building import build
from common.study import Study
from common.transformer import Attention

LARGEST_NETWORK: Final = 250_000_000  # numbers, 1 GB; ViT-B has 86 million, the SFCN 3 million
LARGEST_STEP_GB: Final = 64.0
_log = getLogger("callosum.network")
_NETWORK: Final = "CALLOSUM_LARGEST_NETWORK"
_STEP: Final = "CALLOSUM_LARGEST_STEP_GB"
# weights, gradients, two moments of Adam, the arrays that came and those that will go
_COPIES: Final = 6
# an output is kept for the gradient. Measured beyond that: 14 % and 23 % (SFCN of 3 million numbers
# at 64 x 64 x 64, batches of 16 and 4)
_OVER_OUTPUTS: Final = 1.25
_MAKERS: Final = frozenset(
    getattr(torch, name)
    for name in (
        *("empty", "zeros", "ones", "full", "eye", "rand", "randn", "randint", "randperm"),
        *("arange", "linspace", "logspace", "tensor", "empty_strided", "normal"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is built at all.

    network: numbers of one network, with what fine-tuning adds. step_gb: memory of a step.
    """

    network: int = LARGEST_NETWORK
    step_gb: float = LARGEST_STEP_GB

    @staticmethod
    def of_environment() -> Limits:
        """The coordinator's own, who has no site file to say more in."""
        return Limits(
            network=int(_number(_NETWORK, LARGEST_NETWORK)),
            step_gb=_number(_STEP, LARGEST_STEP_GB),
        )


def outline(study: Study, most: int | None = None) -> Any:
    """The study's network without its numbers: names, shapes and rules are those of `build`.

    Raises
    ------
    SettingError
        If it has more than `most` numbers, or cannot be built.
    """
    limit = Limits.of_environment().network if most is None else most
    return outlined(lambda: build(study, seed=0), limit)


def outlined(make: Callable[[], Any], most: int, *, spare: int = 0, at_once: bool = False) -> Any:
    """The network that `make` builds, without its numbers.

    A network from outside that needs real numbers while it is built gets them, up to `most` and
    `spare` that are no part of it; `at_once`, small ones are made so: torch takes seconds before
    it runs a first layer without numbers.
    """
    if not at_once:
        try:
            with torch.device("meta"):
                return _checked(make(), most)
        except SettingError:
            raise
        except Exception as error:  # noqa: BLE001  whatever it misses in a tensor without content
            _log.debug("a network cannot be outlined: %s", error)
    with _Counted(most, spare):
        return _checked(make(), most)


def _checked(network: Any, most: int) -> Any:
    found = numbers_of(network)
    if found > most:
        raise _too_large(found, most)
    return network


def numbers_of(network: torch.nn.Module) -> int:
    """Numbers in all parameters and buffers."""
    return sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))


def step_bytes(network: Any, shape: tuple[int, ...], batch: int) -> float:
    """Roughly the memory of one step of training; from the shapes of each layer's output.

    `network` is an outline; one that cannot be run without numbers counts as if it had no layers.
    `batch` counts every view of a sample.
    """
    try:
        inner = _outputs(network.backbone, shape)
    except Exception:  # noqa: BLE001  a network from outside that looks at its numbers
        inner = 0
    return _of_step(network, shape, batch, inner)


def step_bound(network: Any, shape: tuple[int, ...], batch: int) -> float:
    """More than `step_bytes`, without running the outline, which takes torch seconds to begin.

    As if each layer gave its widest side for every number of a sample.
    """
    layers = sum(1 for layer in network.modules() if not any(layer.children()))
    widest = max((max(p.shape, default=1) for p in network.parameters()), default=1)
    return _of_step(network, shape, batch, layers * widest * math.prod(shape))


def _of_step(network: Any, shape: tuple[int, ...], batch: int, outputs: int) -> float:
    numbers = _COPIES * numbers_of(network) + batch * (
        _OVER_OUTPUTS * outputs + 2 * math.prod(shape)
    )
    return 4 * numbers


def _outputs(backbone: Any, shape: tuple[int, ...]) -> int:
    """Numbers that the backbone's layers put out for one sample."""
    counted: list[int] = []

    def count(_: Any, __: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            counted.append(output.numel())

    def count_pairs(attention: Any, given: Any, _: Any) -> None:
        """With dropout, what each token looks at is written down."""
        if attention.dropout:
            samples, tokens = given[0].shape[:2]
            counted.append(samples * attention.heads * tokens**2)

    layers = list(backbone.modules())
    handles = [one.register_forward_hook(count) for one in layers if not any(one.children())]
    handles += [
        one.register_forward_hook(count_pairs) for one in layers if isinstance(one, Attention)
    ]
    try:
        # two samples: normalisation layers refuse to learn from one
        with torch.no_grad():
            backbone(torch.empty((2, *shape), device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counted) // 2


def _number(variable: str, default: float) -> float:
    given = os.environ.get(variable, "")
    try:
        return float(given) if given else default
    except ValueError:
        raise SettingError(f'{variable} is "{given}"; a number is needed') from None


def _too_large(found: int, most: int) -> SettingError:
    return SettingError(
        f"backbone: the network would have {found:,} numbers; at most {most:,} are built "
        f"(policy.largest_network at a site, {_NETWORK} elsewhere)"
    )


class _Counted(TorchFunctionMode):
    """Refuses to make more than `most` numbers altogether."""

    def __init__(self, most: int, spare: int) -> None:
        super().__init__()
        self._most, self._made = most, -spare

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in _MAKERS:
            self._made += func(*args, **{**given, "device": "meta"}).numel()
            if self._made > self._most:
                raise _too_large(self._made, self._most)
        return func(*args, **given)
