"""What a site lets out so that overlaps can be counted, and what it keeps when that could be read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from client.authority.receipts import read_receipts
from client.authority.records import open_records
from client.data.check import check
from client.learning.census import telling
from client.service.agent import Agent
from client.service.agent_pool import open_agent
from client.site import load_site
from common.errors import SettingError
from common.protocol.orders import EMPTY, Order, Report
from common.protocol.tokens import PERSONS, SCANS, fault_in, salt_of, tokens_of
from tests.conftest import FEATURES, Federation

WIDE = [f"region{number:02d}" for number in range(20)]
Open = Callable[..., Agent]


@pytest.fixture
def opened(federation: Callable[..., Federation]) -> Iterator[Open]:
    """A deployed site: `opened(columns=..., flags=..., policy=...)`."""
    with ExitStack() as stack:

        def stand(columns: list[str] | None = None, *, flags: bool = False, **site: Any) -> Agent:
            wanted = columns or FEATURES["data"]["columns"]
            made = federation({"data.columns": wanted}, site=site)
            file = made.sites / "alpha" / "site.toml"
            widen(file.parent / "table.csv", flags=flags)
            records = stack.enter_context(open_records(load_site(file)))
            agent: Agent = open_agent(made.study, load_site(file), records=records)
            return agent

        yield stand


def widen(table: Path, *, flags: bool) -> None:
    """Twenty more columns: measures of three figures, or flags."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        for place, name in enumerate(WIDE):
            value = (number * 7919 * (place + 3)) % 997
            row[name] = str(value % 2 if flags else value / 1000)
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def asked(agent: Agent, kind: str = "overlap", run: str = "a" * 64) -> tuple[Report, Any]:
    order = Order.model_validate({
        "kind": kind, "study": agent.study.digest, "run": run, "site": agent.site.name,
        "arrays": EMPTY,
    })  # fmt: skip
    return agent.answer(order, {})


def test_a_token_leaves_for_each_scan_with_a_receipt(opened: Open) -> None:
    """Nothing that is about single people leaves unseen by its own site."""
    agent = opened(WIDE)
    report, arrays = asked(agent)
    assert report.refusal == ""
    assert fault_in(arrays, 40, 40) == ""
    assert len(arrays[SCANS]) == 40
    [*_, receipt] = read_receipts(agent.site.state / "receipts")
    assert receipt["kind"] == "overlap"
    assert ["scans", [40], "int64"] in receipt["arrays"]
    assert receipt["bytes"] > 40 * 12


@pytest.mark.parametrize("flags", [True, False])
def test_tokens_that_could_be_guessed_stay(opened: Open, flags: bool) -> None:
    """A coordinator who names sixteen flags as columns tries 65,536 rows, and has everybody's."""
    agent = opened(WIDE if flags else None, flags=flags)
    assert telling(agent.study, agent.cohort) < 16
    report, arrays = asked(agent)
    assert (report.refusal, arrays) == ("GUESSABLE", {})


def test_under_a_key_of_the_sites_own_they_may_leave(opened: Open) -> None:
    """Who lacks the key can guess as many rows as they like."""
    agent = opened(overlap_key="agreed among hospitals")
    report, arrays = asked(agent)
    assert report.refusal == ""
    people = agent.cohort.participants
    keyless = tokens_of(agent.cohort.contents, people, salt_of(agent.study), "")
    assert not set(arrays[SCANS].tolist()) & set(keyless[SCANS].tolist())


def test_a_policy_without_overlap_lets_none_out(opened: Open) -> None:
    """The site decides; the coordinator says that it was compared as a whole only."""
    agent = opened(WIDE, policy={"orders": ["census", "train"]})
    report, arrays = asked(agent)
    assert (report.refusal, arrays) == ("POLICY", {})


def test_too_few_people_behind_them_stay(opened: Open) -> None:
    """As with every other number about them."""
    agent = opened(WIDE, policy={"minimum_support": 41})
    assert asked(agent)[0].refusal == "COHORT_TOO_SMALL"


def test_tokens_count_nobody_whom_a_census_would_not(opened: Open) -> None:
    """Forty before and thirty-nine after say that one withdrew; a census is refused then."""
    agent = opened(WIDE)
    assert asked(agent, "census")[0].refusal == ""
    table = agent.site.root / "table.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    fewer = open_agent(agent.study, agent.site, records=agent.records)
    assert len(fewer.cohort) == 39
    assert asked(fewer, run="b" * 64)[0].refusal == "COHORT_TOO_SMALL"


def numbered(agent_file: Path, numbers: Callable[[int], str]) -> None:
    """A column of national numbers in a site's table."""
    table = agent_file.parent / "table.csv"
    with table.open(newline="") as stream:
        rows = [{**row, "nhs": numbers(n)} for n, row in enumerate(csv.DictReader(stream))]
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_identifiers_become_tokens_under_the_sites_key_and_are_nowhere_else(
    federation: Callable[..., Federation],
) -> None:
    """The number itself is in no report, receipt or prepared file."""
    made = federation(site={"overlap_key": "ours", "person_column": "nhs"})
    file = made.sites / "alpha" / "site.toml"
    numbered(file, lambda n: f"943 476 {5000 + n}" if n else "n/a")
    with open_records(load_site(file)) as records:
        agent = open_agent(made.study, load_site(file), records=records)
        report, arrays = asked(agent)
        assert report.refusal == ""
        assert len(arrays[PERSONS]) == 39
        known = tokens_of(["x"], ["x"], salt_of(agent.study), "ours", ["9434765001"])
        assert known[PERSONS][0] in arrays[PERSONS]
    kept = [path.read_bytes() for path in agent.site.state.rglob("*") if path.is_file()]
    assert not any(b"4765001" in each or b"476 5001" in each for each in kept)


def test_identifiers_without_a_key_are_no_site_file(federation: Callable[..., Federation]) -> None:
    """A coordinator would try all ten thousand million of them."""
    made = federation(site={"person_column": "nhs"})
    with pytest.raises(SettingError, match="overlap_key is empty"):
        load_site(made.sites / "alpha" / "site.toml")


def test_identifiers_that_cannot_be_right_are_told(federation: Callable[..., Federation]) -> None:
    """A column that holds none is an error; one number of two people is one person."""
    made = federation(site={"overlap_key": "ours", "person_column": "nhs"})
    file = made.sites / "alpha" / "site.toml"
    numbered(file, lambda n: str(max(n, 1)))
    notes = [one.problem for one in check(made.study, load_site(file)).findings]
    assert any("alpha-000, alpha-001 have one identifier" in text for text in notes)
    numbered(file, lambda _: "n/a")
    assert any(
        "no row holds one" in one.problem for one in check(made.study, load_site(file)).errors
    )
