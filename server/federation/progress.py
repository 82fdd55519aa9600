"""`progress.json` in the run folder: who was asked and who has answered, for whoever looks on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.protocol.orders import Order
from server.run import write_json


@dataclass(frozen=True, slots=True)
class ProgressFile:
    """Writes what one exchange looks like now; a reader never sees half of it."""

    folder: Path
    rounds: int

    def show(
        self,
        orders: Sequence[Order],
        seconds: Mapping[str, float],
        sizes: Mapping[str, int],
        refused: Mapping[str, str],
    ) -> None:
        """Replace the file by the present state of one exchange."""
        first = orders[0]
        answered = {
            site: {"seconds": round(seconds[site], 3), "bytes": sizes[site]}
            for site in sorted(seconds)
        }
        write_json(
            self.folder / "progress.json",
            {
                "phase": first.kind,
                "model": first.model,
                "task": first.task,
                "method": "/".join(word for word in (first.init, first.method) if word),
                "round": first.round,
                "rounds": self.rounds if first.kind == "train" else 0,
                "asked": sorted(order.site for order in orders),
                "answered": answered,
                "refused": dict(sorted(refused.items())),
                "updated": time.time(),
            },
        )
