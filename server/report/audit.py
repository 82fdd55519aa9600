"""What an audit found, beside what was promised: the tables in a run's folder, and on its page.

`callosum audit` writes them (`deploy.audit`). An attack that gets nowhere proves nothing: a lower
bound of epsilon is what somebody has shown, and the upper bound is what is promised.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from common.errors import DamagedError
from common.printable import csv_cell
from common.runtime.durable import write_atomically
from common.settings import Table
from server.run_files import read_sealed, write_sealed

NAME: Final = "audit.json"
TABLE: Final = "audit.csv"
EPSILON: Final = "epsilon"  # the metric that is a lower bound

Part = Literal["mechanism", "membership", "inversion"]


class Line(Table):
    """One figure of an audit; where it is a bound of epsilon, with what was accounted beside it.

    model: what is attacked. n: games, pairs of model and person, or people.
    """

    part: Part
    model: str
    attack: str
    metric: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    accounted: float | None = None
    delta: float | None = None
    n: int

    @property
    def breaks_the_claim(self) -> bool:
        """Whether more was shown than was promised at most."""
        return self.metric == EPSILON and self.accounted is not None and self.value > self.accounted

    @property
    def told(self) -> str:
        """The figure with its interval, in words."""
        if self.metric == EPSILON:
            return f"at least {self.value:.2f}"
        if self.ci_low is None or self.ci_high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.ci_low:.3g} to {self.ci_high:.3g})"

    @property
    def promised(self) -> str:
        """The accounted bound, in words."""
        if self.accounted is None:
            return ""
        return f"at most {self.accounted:.2f} (delta {self.delta:.1g})"


@dataclass(frozen=True, slots=True)
class Shown:
    """One table for people."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Audit(Table):
    """All lines, and what is to be said about them.

    confidence: of all bounds of epsilon together, and of each interval. setting: digest of what
        was attacked, from which seed, by which code. private: whether an epsilon was promised.
        people: the auditor's, in words; empty where none were needed.
    """

    confidence: float
    setting: str
    private: bool
    people: str = ""
    lines: tuple[Line, ...]
    remarks: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[Line, ...]:
        """Lines that contradict what was promised."""
        return tuple(line for line in self.lines if line.breaks_the_claim)

    @property
    def verdict(self) -> str:
        """What follows, in a sentence or two."""
        sure = f"{100 * self.confidence:g} %"
        bounds = [line for line in self.lines if line.metric == EPSILON and line.accounted]
        if self.broken:
            worst = max(self.broken, key=lambda line: line.value)
            return (
                f"The claim does not hold: epsilon is at least {worst.value:.2f} ({worst.attack}), "
                f"and at most {worst.accounted:.2f} was accounted, with {sure} confidence over all "
                "bounds. Do not release the model; find out what broke."
            )
        if not self.private:
            return "Nothing was promised of one person (no epsilon), so no promise could be broken."
        if not bounds:
            return "No attack has shown a bound of epsilon yet; what was promised stands untried."
        # at several deltas: the one that comes nearest to its promise
        best = max(bounds, key=lambda line: line.value / (line.accounted or 1.0))
        return (
            f"No attack broke the claim: the strongest shows that epsilon is at least "
            f"{best.value:.2f} ({best.attack}; {sure} confidence over all bounds), and "
            f"{best.promised} was accounted. That proves no safety: the upper bound is the promise."
        )


def write_audit(folder: Path, audit: Audit) -> Path:
    """Write both tables into a folder."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(list(Line.model_fields))
    for line in audit.lines:
        cells = line.model_dump(mode="json").values()
        table.writerow([csv_cell(one) if isinstance(one, str) else one for one in cells])
    write_atomically(folder / TABLE, text.getvalue().encode())
    write_sealed(folder / NAME, audit.model_dump(mode="json"))
    return folder / TABLE


def read_audit(folder: Path) -> Audit | None:
    """What a run's last audit found; None where nobody looked.

    Raises
    ------
    DamagedError
        If the file is not what was written.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return Audit.model_validate(read_sealed(path))
    except ValidationError as error:
        raise DamagedError(
            f"{path} is no audit of this version: {error.errors()[0]['msg']}"
        ) from None


def tables(audit: Audit) -> list[Shown]:
    """A table for each thing that is attacked, a row an attack, a column a figure."""
    titles: dict[Part, str] = {
        "mechanism": "Canaries in real private training, seen from the inside",
        "membership": "Who was trained on",
        "inversion": "One person made again, error (1: no better than the mean of all)",
    }
    found: dict[str, list[Line]] = {}
    for line in audit.lines:
        title = titles[line.part]
        whole = title if line.part == "inversion" else f"{title}: {line.model}"
        found.setdefault(whole, []).append(line)
    return [_table(title, lines) for title, lines in found.items()]


def _table(title: str, lines: Sequence[Line]) -> Shown:
    figures = tuple(dict.fromkeys(line.metric for line in lines))
    by_attack: dict[str, dict[str, Line]] = {}
    for line in lines:
        by_attack.setdefault(line.attack, {})[line.metric] = line
    promised = any(line.promised for line in lines)
    rows = []
    for attack, known in by_attack.items():
        told = [known[figure].told if figure in known else "" for figure in figures]
        accounted = next((line.promised for line in known.values() if line.promised), "")
        n = max(line.n for line in known.values())
        rows.append((attack, *told, *([accounted] if promised else []), f"{n:,}"))
    columns = ("attack", *figures, *(["accounted"] if promised else []), "of")
    return Shown(title, columns, tuple(rows))
