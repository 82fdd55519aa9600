"""What private training cost each site's participants in one run, by what the sites declared.

The coordinator's own arithmetic over rounds and models, by the accountant that decides. It knows
this run alone; a site's ledger goes on over all runs and studies, and is the one that holds.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from common.printable import csv_cell
from common.privacy.accounting import epsilon
from common.privacy.cost import Cost
from common.runtime.durable import write_atomically
from server.report.findings import Record

NAME = "privacy.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """One round of one model at one site; epsilon is of all orders so far, at the least delta."""

    site: str
    order: int
    model: str
    round: int
    noise: float
    rate: float
    steps: int
    delta: float
    epsilon: float


def paid(branches: Mapping[str, Sequence[Record]]) -> Iterator[Paid]:
    """Every round that cost something, site by site, model after model."""
    found: dict[str, list[tuple[str, int, Cost]]] = {}
    for model, records in branches.items():
        for record in records:
            for site, line in record["answered"].items():
                if "cost" in line:
                    cost = Cost.model_validate(line["cost"])
                    found.setdefault(site, []).append((model, record["round"], cost))
    for site, orders in sorted(found.items()):
        so_far: dict[tuple[float, float], Cost] = {}  # by noise and rate: runs have many rounds
        delta = 1.0
        for number, (model, number_of_round, cost) in enumerate(orders, start=1):
            key, delta = (cost.noise, cost.rate), min(delta, cost.delta)
            steps = cost.steps + (so_far[key].steps if key in so_far else 0)
            so_far[key] = cost.model_copy(update={"steps": steps})
            yield Paid(
                site=site, order=number, model=model, round=number_of_round, noise=cost.noise,
                rate=cost.rate, steps=cost.steps, delta=delta,
                epsilon=epsilon(so_far.values(), delta),
            )  # fmt: skip


def last_of(every: Sequence[Paid]) -> list[Paid]:
    """How each site stands in the end."""
    return list({each.site: each for each in every}.values())


def write_paid(folder: Path, every: Sequence[Paid]) -> Path | None:
    """The table beside the page, a line for each order; none of a run without privacy."""
    if not every:
        return None
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Paid)])
    for each in every:
        cells = astuple(each)
        table.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    path = folder / NAME
    write_atomically(path, text.getvalue().encode())
    return path
