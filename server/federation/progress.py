"""`progress.json` in the run folder: who was asked and who has answered, for whoever looks on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.protocol.orders import Order
from common.runtime.durable import write_atomically

# times as long as it took to write: after each reply, it was half the time of 1,000 sites
_TIMES_AT_REST: Final = 50


@dataclass(slots=True)
class ProgressFile:
    """Writes what one exchange looks like now; a reader never sees half of it."""

    folder: Path
    rounds: int
    due: float = 0.0  # by the monotonic clock

    def is_due(self) -> bool:
        """Whether the file is old enough to be written anew for one reply more."""
        return time.monotonic() >= self.due

    def show(
        self,
        orders: Sequence[Order],
        seconds: Mapping[str, float],
        sizes: Mapping[str, int],
        refused: Mapping[str, str],
    ) -> None:
        """Replace the file by the present state of one exchange."""
        began = time.monotonic()
        first = orders[0]
        answered = {
            site: {"seconds": round(seconds[site], 3), "bytes": sizes[site]}
            for site in sorted(seconds)
        }
        table = json.dumps(
            {
                "phase": first.kind,
                "model": first.model,
                "task": first.task,
                "method": "/".join(word for word in (first.init, first.method) if word),
                "round": first.round,
                "rounds": self.rounds if first.kind in ("train", "unmask") else 0,
                "asked": sorted(order.site for order in orders),
                "answered": answered,
                "refused": dict(sorted(refused.items())),
                "updated": time.time(),
            }
        )
        write_atomically(self.folder / "progress.json", table.encode())
        now = time.monotonic()
        self.due = now + _TIMES_AT_REST * (now - began)
