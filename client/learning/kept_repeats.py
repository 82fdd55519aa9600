"""What each repeat of a protocol came to, kept at the site: a killed agent goes on behind the last.

Predictions are kept and models are not: a hundred repeats of five sizes would fill a disk, and
whoever wants a model for use fine-tunes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DamagedError
from common.protocol.orders import Order
from common.protocol.wire import open_arrays, write_arrays

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]
_CLOSED: Final = "closed"  # folder of ways without a start


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """What the model of one repeat said of the images that it was judged on, `test` (N,)."""

    test: Indices
    predicted: Floats


@dataclass(frozen=True, slots=True)
class KeptRepeats:
    """One run's repeats at one site, below `folder`."""

    folder: Path

    def keep(self, order: Order, number: int, repeat: Repeat) -> None:
        """Keep one, under the id of the order that it is of."""
        arrays = {"test": repeat.test, "predicted": repeat.predicted}
        write_arrays(self._path(order, number), arrays, {"order": order.id})

    def find(self, order: Order, number: int) -> Repeat | None:
        """The one that was kept for this very order."""
        return self._read(order, number, of=order.id)

    def of_rival(self, order: Order, way: str, number: int, test: Indices) -> Repeat | None:
        """What an earlier order of the protocol and size kept, if it was judged on the same."""
        init, _, method = way.rpartition("/")
        found = self._read(order.model_copy(update={"init": init, "method": method}), number)
        return found if found is not None and np.array_equal(found.test, test) else None

    def _read(self, order: Order, number: int, of: str = "") -> Repeat | None:
        path = self._path(order, number)
        if not path.exists():
            return None
        with open_arrays(path) as file:
            if of and file.text("order") != of:
                return None
            arrays = dict(file.all())
        if arrays.keys() != {"test", "predicted"}:
            raise DamagedError(f"{path} is no repeat of a protocol")
        return Repeat(test=arrays["test"], predicted=arrays["predicted"])

    def _path(self, order: Order, number: int) -> Path:
        place = self.folder / "protocols" / order.task / (order.init or _CLOSED) / order.method
        return place / f"size{order.k}" / f"repeat{number}.safetensors"
