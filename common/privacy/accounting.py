"""Epsilon of a history of noised steps, the noise that reaches an epsilon, and what a budget buys.

Two accountants, both of Opacus. **RDP decides**, in ledgers and plans: it is an upper bound for
either direction of the neighbours, never fails, adds histories of different noise and rate without
loss, and takes microseconds once the curve of a noise and rate is known. PRV composes the privacy
loss itself and is tighter, by about a tenth; it takes seconds and grids of millions of numbers,
may fail for extreme values, and is shown beside.

Mironov et al. 2019 (arXiv 1908.10530) for the curve, Balle et al. 2020 (arXiv 1905.09982, theorem
21) for its conversion, Gopi et al. 2021 (arXiv 2106.02848) for PRV.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.privacy.cost import Cost

Orders = tuple[float, ...]
Curve = NDArray[np.float64]  # (orders,), Renyi divergence at each order

# those of Google, and more of the large ones, which bound what costs little
_WHOLE: Final[Orders] = tuple(range(2, 65))
_LARGE: Final[Orders] = (
    *range(64, 128, 8), *range(128, 256, 32), 256, 320, 384, 512, 640, 768, 1024,
)  # fmt: skip
_FRACTIONS_TO: Final = 11  # whole orders above lie close enough to each other
_LEAST_NOISE: Final = 0.1  # below, series of the curve lose their digits, and sampling hides little
_ROUNDING: Final = 1e-13  # of one step, so that what is rounded away is not forgotten
_MOST_NOISE: Final = 1e6  # what a study may ask for
_CLOSE: Final = 1e-3  # relative, of a noise that was searched for
_MOST_POINTS: Final = 1 << 24  # of PRV's grid: 128 MB an array
_SLACK: Final = 0.004  # of epsilon, that PRV's grid may cost


def epsilon(costs: Iterable[Cost], delta: float) -> float:
    """The upper bound that decides, by Renyi differential privacy; infinite without noise.

    >>> thousand = Cost(noise=1, rate=0.01, steps=1000, delta=1e-5)
    >>> round(epsilon([thousand], 1e-5), 3), epsilon([], 1e-5)
    (2.101, 0.0)
    """
    steps = _merged(costs)
    if not steps:
        return 0.0
    found, order = _least(steps, delta, _WHOLE)
    if order < _FRACTIONS_TO:
        found = min(found, _least(steps, delta, _around(int(order)))[0])
    elif order == _WHOLE[-1]:
        found = min(found, _least(steps, delta, _LARGE)[0])
    return max(0.0, found)


def tighter_epsilon(costs: Iterable[Cost], delta: float) -> float | None:
    """The same by privacy loss variables, which is closer to the truth; None where that fails."""
    history = list(costs)
    if not history:
        return 0.0
    error = max(_SLACK * epsilon(history, delta), 1e-3)
    if not _fits(history, delta, error):
        return None
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(*one, number) for one, number in _merged(history).items()]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError):
        return None
    return found if math.isfinite(found) else None


def _fits(history: list[Cost], delta: float, error: float) -> bool:
    """Whether PRV's grid is one that a machine holds, by the rule that Opacus lays it out by."""
    steps = sum(cost.steps for cost in history)
    wide = 2 * (epsilon(history, delta / 4000) + 3)
    points = wide * math.sqrt(steps * math.log(12_000 / delta) / 2) / error
    return points < _MOST_POINTS and min(cost.noise for cost in history) >= _LEAST_NOISE


def noise_for(target: float, cost: Cost, delta: float) -> float | None:
    """The least noise, up to four figures, with which `cost` stays within `target`.

    None if not even the most that a study may ask for does.
    """

    def spent(noise: float) -> float:
        return epsilon([cost.model_copy(update={"noise": noise})], delta)

    if target <= 0 or spent(_MOST_NOISE) > target:
        return None
    low, high = 1e-3, max(1.0, cost.noise)
    while spent(high) > target:
        low, high = high, 4 * high
    while high / low > 1 + _CLOSE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target else (middle, high)
    return _rounded_up(high, lambda noise: spent(noise) <= target)


def rounds_for(budget: float, cost: Cost, delta: float, most: int = 10_000) -> int:
    """How many rounds of `cost` each stay within `budget`, at most `most`."""
    low, high = 0, most + 1  # the first is affordable, the second is not looked at
    while high - low > 1:
        middle = (low + high) // 2
        steps = middle * cost.steps
        within = epsilon([cost.model_copy(update={"steps": steps})], delta) <= budget
        low, high = (middle, high) if within else (low, middle)
    return low


def _merged(costs: Iterable[Cost]) -> dict[tuple[float, float], int]:
    """Steps by noise and rate: their order does not matter."""
    steps: dict[tuple[float, float], int] = {}
    for cost in costs:
        key = (cost.noise, cost.rate)
        steps[key] = steps.get(key, 0) + cost.steps
    return steps


def _least(
    steps: dict[tuple[float, float], int], delta: float, orders: Orders
) -> tuple[float, float]:
    """Epsilon and its order: the least of what each order bounds it by."""
    at = np.array(orders)
    curve = sum(number * _curve(*one, orders) for one, number in steps.items())
    found = curve + np.log1p(-1 / at) - (math.log(delta) + np.log(at)) / (at - 1)
    best = int(found.argmin())
    return float(found[best]), orders[best]


def _around(order: int) -> Orders:
    """Fractions beside the best whole order: any is a bound, and all would take a second."""
    return tuple(tenths / 10 for tenths in range(10 * order - 9, 10 * order + 10) if tenths % 10)


def _rounded_up(noise: float, suffices: Callable[[float], bool]) -> float:
    """The next number of four figures that suffices."""
    unit = 10.0 ** (math.floor(math.log10(noise)) - 3)
    number = math.ceil(noise / unit)
    while not suffices(rounded := float(f"{number * unit:.4g}")):
        number += 1
    return rounded


@lru_cache(maxsize=4096)
def _curve(noise: float, rate: float, orders: Orders) -> Curve:
    """Renyi divergence of one step at each order; infinite where it cannot be computed.

    An order that is left out makes the bound larger, never wrong; so does taking a step with very
    little noise for one that draws everybody.
    """
    if noise < _LEAST_NOISE:
        rate = 1.0
    found = np.array([_divergence(noise, rate, order) for order in orders]) + _ROUNDING
    found[~(found >= 0)] = np.inf  # NaN, and what lost all of its digits
    found.flags.writeable = False
    return found


def _divergence(noise: float, rate: float, order: float) -> float:
    try:
        return float(_opacus()._compute_rdp(rate, noise, order))  # noqa: SLF001
    except (ArithmeticError, ValueError):
        return math.inf


@lru_cache(maxsize=1)
def _opacus() -> Any:
    """Opacus's analysis of Renyi divergence, without Opacus: that would load torch.

    The file stands alone on NumPy and SciPy; a test compares it with the accountant around it.
    """
    found = find_spec("opacus")
    assert found is not None  # it is installed with us
    assert found.origin is not None
    place = Path(found.origin).parent / "accountants" / "analysis" / "rdp.py"
    spec = spec_from_file_location("opacus_rdp", place)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
