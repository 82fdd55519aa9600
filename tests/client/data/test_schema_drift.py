"""Columns that are not what they were: named at the site's door, and at the coordinator."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.data.check import check
from client.site import load_site
from common.errors import DataError
from server.run_files import read_json

Table = list[list[str]]  # a header line, and rows


def column(change: Callable[[str], str], place: int) -> Callable[[Table], Table]:
    """The table with every number of one column changed."""
    return lambda table: [
        table[0],
        *([*row[:place], change(row[place]), *row[place + 1 :]] for row in table[1:]),
    ]


def header(**names: str) -> Callable[[Table], Table]:
    return lambda table: [[names.get(name, name) for name in table[0]], *table[1:]]


def without(place: int) -> Callable[[Table], Table]:
    return lambda table: [row[:place] + row[place + 1 :] for row in table]


def in_rows(word: str, rows: int, place: int) -> Callable[[Table], Table]:
    return lambda table: [
        [*row[:place], word, *row[place + 1 :]] if 0 < number <= rows else row
        for number, row in enumerate(table)
    ]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What became of a site's table, and how it is told.

    door: words of `check`, from an error or a finding; "" where one site cannot see it.
    remedy: what is to be done, in the same place. refused: the site does not take part.
    coordinator: words of the run's findings.
    """

    change: Callable[[Table], Table]
    door: str = ""
    remedy: str = ""
    refused: bool = False
    coordinator: str = ""
    delimiter: str = ","


DRIFTS = {
    "renamed": Drift(
        change=header(thickness="Thickness_mm"),
        door='no column "thickness"; did you mean "Thickness_mm"?', remedy="data.rename", refused=True,
    ),
    "several renamed": Drift(
        change=header(thickness="T1", volume="V1", depth="D1"),
        door='lacks 3 of 4 columns: "thickness", "volume", "depth"', remedy="data.rename", refused=True,
    ),
    "missing": Drift(
        change=without(4), door='no column "curvature"', remedy="data.rename", refused=True
    ),
    "a name twice": Drift(
        change=lambda table: [[*row, "volume" if number == 0 else "1.0"] for number, row in enumerate(table)],
        door='more than one column "volume"', remedy="rename the other in the table", refused=True,
    ),
    "a copy of another": Drift(
        change=lambda table: [table[0], *([*row[:3], row[2], *row[4:]] for row in table[1:])],
        door="volume and depth hold the same in all 40 rows", remedy="give each its own numbers",
    ),
    "all zero": Drift(
        change=column(lambda _: "0", 2),
        door="volume (0) is the same in all 40 rows", remedy="was it measured here?",
        coordinator="beta may count in other units than the others: column volume",
    ),
    "another unit": Drift(
        change=column(lambda cell: str(1000 * float(cell)), 2),
        coordinator="beta may count in other units than the others: column volume",
    ),
    "another decimal mark": Drift(
        change=column(lambda cell: cell.replace(".", ","), 1), delimiter=";",
        door="a number is needed", remedy="with a point for its decimals", refused=True,
    ),
    "another decimal mark among commas": Drift(
        change=column(lambda cell: cell.replace(".", ","), 1), delimiter="unquoted",
        door="9 cells where the header has 8", remedy="9 cells", refused=True,
    ),
    "another delimiter": Drift(
        change=lambda table: table, delimiter="|",
        door="lacks 4 of 4 columns",
        remedy="commas, semicolons or tabs are needed", refused=True,
    ),
    "text among numbers": Drift(
        change=in_rows("not done", 3, 2),
        door='column "volume" holds "not done"', remedy="a number is needed",
    ),
    "codes for missing values": Drift(
        change=in_rows("-9999", 4, 2),
        door="-9999 in 4 rows of volume", remedy="Leave such cells empty",
    ),
}  # fmt: skip


def rewrite(path: Path, drift: Drift) -> None:
    with path.open(newline="") as stream:
        table = drift.change(list(csv.reader(stream)))
    if drift.delimiter == "unquoted":
        path.write_text("\n".join(",".join(row) for row in table) + "\n")
        return
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter=drift.delimiter).writerows(table)


def told_at_the_door(study: Any, file: Path) -> list[str]:
    try:
        found = check(study, load_site(file))
    except DataError as error:
        return [str(error)]
    return [finding.problem for finding in found.findings]


@pytest.mark.parametrize("name", DRIFTS)
def test_a_site_reads_what_became_of_its_table_and_what_to_do(federation: Any, name: str) -> None:
    """`callosum-site check` is where a hospital finds it, before anything is trained."""
    drift = DRIFTS[name]
    made = federation({"sites": {"train": ["beta"]}})
    assert not told_at_the_door(made.study, made.sites / "beta" / "site.toml")
    rewrite(made.sites / "beta" / "table.csv", drift)
    told = told_at_the_door(made.study, made.sites / "beta" / "site.toml")
    if not drift.door:
        assert not told
        return
    assert any(drift.door in one and drift.remedy in one for one in told), told


def test_columns_in_another_order_are_the_same_columns(federation: Any) -> None:
    """Names bind and places do not: nothing is to be told, and the numbers are the same."""
    made = federation({"sites": {"train": ["beta"]}})
    before = made.agent("beta").cohort
    numbers = before.samples[:].tolist()
    reverse = Drift(change=lambda table: [row[::-1] for row in table])
    rewrite(made.sites / "beta" / "table.csv", reverse)
    assert not told_at_the_door(made.study, made.sites / "beta" / "site.toml")
    assert made.agent("beta").cohort.samples[:].tolist() == numbers


@pytest.mark.whole
@pytest.mark.parametrize("name", DRIFTS)
def test_a_federation_names_a_drifted_site_and_ends_well(federation: Any, name: str) -> None:
    """No drift ends everybody's run, and none trains where nobody could have known."""
    drift = DRIFTS[name]
    made = federation(
        {
            "sites.quorum": 2,
            "pretraining.rounds": 1,
            "sites.train": ["alpha", "beta", "gamma", "delta"],
        }
    )
    rewrite(made.sites / "beta" / "table.csv", drift)
    run = made.simulate()
    assert run.federated.final.exists()
    refused = read_json(run.folder / "census.json")["beta"]["refused"]
    assert (refused == "NO_DATA") == drift.refused, refused
    found = json.loads((run.folder / "columns.json").read_text())["findings"]
    if drift.coordinator:
        assert any(drift.coordinator in text for text in found), found
