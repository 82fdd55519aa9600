"""Orders of one run for sites by name: who declined is noted beside the answers, and said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import SENTENCES
from common.network.plan import Plan
from common.protocol.orders import Order
from common.runtime.progress import say
from server.federation.exchange import Exchange, Outcome
from server.federation.parcel import Parcel
from server.federation.report_validation import Sound
from server.run import Run
from server.run_files import read_refused, write_json

OVERLAP: Final = "overlap"  # folder of sites' tokens
REFUSED: Final = "refused.json"  # who declined the orders of a folder, and with which code


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks the sites of one run.

    out: where answers of a census and of judges go; the run's own folder if nothing is said.
    """

    run: Run
    exchange: Exchange
    out: Path

    def ask(
        self,
        orders: Sequence[Order],
        parcel: Parcel,
        folder: Path,
        plan: Plan,
        title: str,
        sound: Sound | None = None,
    ) -> Outcome:
        """Send orders and wait; answers are in `folder`, and so is who declined."""
        outcome = self.exchange.ask(orders, parcel, folder, plan, title, sound)
        if outcome.refused or (folder / REFUSED).exists():
            write_json(folder / REFUSED, outcome.refused)
        for site, code in sorted(outcome.refused.items()):
            say(f"{title.partition(':')[0]}: {site} did not take part: {code}: {SENTENCES[code]}")
        return outcome

    def refusals(self, phase: str) -> dict[str, str]:
        """Who declined a phase's orders, with which code."""
        path = self.out / phase / REFUSED
        return read_refused(path) if path.exists() else {}

    def orders(
        self, kind: str, sites: Sequence[str], parcel: Parcel, **more: object
    ) -> list[Order]:
        """The same order for each of `sites`, about the arrays of `parcel`."""
        common = {
            "kind": kind,
            "study": self.run.study.digest,
            "run": self.run.id,
            **parcel.digests,
            **more,
        }
        return [Order.model_validate({**common, "site": site}) for site in sites]
