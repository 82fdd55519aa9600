"""The report cache: what a site keeps of a run, its answers and the arrays that are its own.

A report is kept so that the same order is never worked on twice; arrays of its own (normalisation
under silobn and fedbn, an optimiser's moments) so that the next round goes on from them. They are
kept by round, because a round that is asked for again must start from the state before it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

from client.answer import Answer, Measured
from common.arrays import Arrays
from common.errors import DamagedError, Refusal
from common.network.plan import rules_of
from common.protocol.bounded_json import parsed
from common.protocol.orders import Order, Report, read_report
from common.protocol.wire import open_arrays, write_arrays
from common.runtime.durable import write_atomically

_log = getLogger("callosum.site")
_ROUNDS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """What the site sent of one round, and what it had been given.

    moved: how far the two are from each other; base: digest of the arrays that never move.
    """

    round: int
    arrays: Arrays
    moved: float
    base: str


@dataclass(frozen=True, slots=True)
class ReportCache:
    """One run's folder at one site."""

    folder: Path

    def report(self, order: Order) -> tuple[Report, Answer] | None:
        """The report this site gave to exactly this order, if it did, and who stands behind it."""
        path = self._report_path(order)
        if not path.exists():
            return None
        try:
            with open_arrays(path) as file:
                report = read_report(file.text("report"))
                answer = _answer(report, file.all(), file.text("people"))
        except (DamagedError, Refusal, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.error("%s; the order is worked on again (private rounds that left are not)", error)
            return None
        return (report, answer) if report.order == order.id else None

    def keep(self, order: Order, report: Report, answer: Answer, moved: float = 0.0) -> None:
        """Keep an answer, and let go of those from rounds that can no longer be asked again.

        `moved` is how far a training report's arrays are from those that came with the order.
        """
        people = {
            "behind": answer.behind,
            "reveals": answer.reveals,
            "measured": [one.people for one in answer.measured],
        }
        texts = {
            "report": report.model_dump_json(),
            "people": json.dumps(people),
            "moved": repr(moved),
            "base": order.base,
        }
        write_arrays(self._report_path(order), answer.arrays, texts)
        self._forget(order, "report")

    def note_judged(self, order: Order) -> None:
        """Keep which arrays this site judged as a model of the run."""
        write_atomically(self._judged(order), f"{order.arrays} {order.base}".encode())

    def was_judged(self, order: Order) -> bool:
        """Whether the arrays of `order` are those that were judged as its model."""
        path = self._judged(order)
        return path.exists() and path.read_text() == f"{order.arrays} {order.base}"

    def trained(self, model: str, before: int = 10_001) -> Trained | None:
        """What the site sent of the last round earlier than `before`, if it is kept."""
        rounds = [path for path in self._rounds(model, "report") if _round_of(path) < before]
        for path in reversed(rounds):
            try:
                with open_arrays(path) as file:
                    moved, base = float(file.text("moved")), file.text("base")
                    return Trained(_round_of(path), file.all(), moved, base)
            except (DamagedError, ValueError):
                continue  # damaged: the round before tells as well
        return None

    def own_arrays(self, model: str, before: int = 10_001) -> Arrays:
        """The site's own arrays after the last round earlier than `before`.

        `DamagedError` if they are no longer what was written: nobody else ever had them.
        """
        return self._carried(model, "own", before)

    def keep_own(self, order: Order, arrays: Arrays) -> None:
        """Keep the site's own arrays after this round."""
        self._carry(order, "own", arrays)

    def moments(self, model: str, before: int) -> Arrays:
        """The local optimiser's moments after the last round earlier than `before`."""
        return self._carried(model, "moments", before)

    def keep_moments(self, order: Order, arrays: Arrays) -> None:
        """Keep the local optimiser's moments after this round."""
        self._carry(order, "moments", arrays)

    def _carried(self, model: str, what: str, before: int) -> Arrays:
        rounds = [path for path in self._rounds(model, what) if _round_of(path) < before]
        if not rounds:
            return {}
        with open_arrays(rounds[-1]) as file:
            return file.all()

    def _carry(self, order: Order, what: str, arrays: Arrays) -> None:
        if arrays:
            path = self.folder / order.model / f"{what}-{order.round:04d}.safetensors"
            write_arrays(path, arrays, {})
            self._forget(order, what)

    def _judged(self, order: Order) -> Path:
        return self.folder / "judged" / f"{order.model}.txt"

    def _report_path(self, order: Order) -> Path:
        if order.kind == "train":
            return self.folder / order.model / f"report-{order.round:04d}.safetensors"
        return self.folder / order.kind / f"{order.id}.safetensors"

    def _forget(self, order: Order, what: str) -> None:
        for path in self._rounds(order.model, what):
            if order.kind == "train" and _round_of(path) <= order.round - _ROUNDS_KEPT:
                path.unlink()

    def _rounds(self, model: str, what: str) -> list[Path]:
        return sorted((self.folder / model).glob(f"{what}-*.safetensors"))


def _round_of(path: Path) -> int:
    found = re.search(r"-(\d+)\.safetensors$", path.name)
    return int(found.group(1)) if found else 0


def _answer(report: Report, arrays: Arrays, people: str) -> Answer:
    """What was let out before, with who stands behind each number of it."""
    told = parsed(people)
    rows = zip(report.measurements, told["measured"], strict=True)
    return Answer(
        support=dict(report.support),
        participants=dict(report.participants),
        counts=dict(report.counts),
        measured=tuple(Measured(row, int(n)) for row, n in rows),
        arrays=arrays,
        expected=rules_of(arrays),
        behind={str(name): int(n) for name, n in told["behind"].items()},
        reveals=int(told["reveals"]),
    )
