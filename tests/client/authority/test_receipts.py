"""Receipts say what left, and whatever is done to them afterwards shows, with its place."""

from __future__ import annotations

import errno
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.authority import receipts as client_receipts
from client.authority.ledger import NOTHING, Head, Ledger
from client.authority.receipts import Receipts, departure, read_receipts, verify
from common.errors import FolderError, StorageError
from common.privacy.cost import Cost
from common.protocol.orders import Measurement, Order, Report, refuse

MARCH, APRIL = datetime(2024, 3, 31, 23, 59, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "receipts"


def written(folder: Path, ledger: Ledger, *months: datetime) -> Receipts:
    receipts = Receipts(folder, ledger)
    for number, month in enumerate(months):
        receipts.append({"kind": "train", "round": number, "numbers": {"loss": 0.1}}, month)
    return receipts


def faults(folder: Path, ledger: Ledger) -> list[str]:
    found = verify(folder, ledger.head).faults
    return [f"{fault.place}: {fault.what}" for fault in found]


def edit(file: Path, change: Any) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(change(lines) or lines))


# What they say.


def test_a_receipt_says_what_left_when_and_for_what(folder, ledger):
    """A person answers for every departure; this line is all that they will have of it."""
    order = Order(
        kind="train", study="a" * 64, run="b" * 64, site="alpha", round=3, arrays="c" * 64
    )
    row = Measurement(
        phase="finetune", task="dementia", target="diagnosis", model="federated",
        init="pretrained", method="lora", site="alpha", role="train", metric="auc", value=0.75,
        ci_low=0.5, ci_high=1.0, n_participants=30, n_scans=40,
    )  # fmt: skip
    few = row.model_copy(update={"k": 8, "repeat": 2, "value": 0.5})
    report = Report(
        order=order.id, site="alpha", kind="train", round=3, support={"shared": 40},
        participants={"shared": 30, "loss/age": 29}, counts={"loss/age": (12.5, 39.0)},
        measurements=(row, few), seconds=1.5, cohort="d" * 64, holds=("f" * 64,),
        cost=Cost(noise=1.0, rate=0.5, steps=2, delta=0.01),
    )  # fmt: skip
    sent = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float64)}
    receipts = Receipts(folder, ledger)
    head = receipts.append(departure(order, "tiny", report, sent, "e" * 64), MARCH)
    [found] = read_receipts(folder)
    tuned = "finetune/dementia/diagnosis/federated/pretrained/lora"
    assert found == {
        "number": 1,
        "time": "2024-03-31T23:59:00+00:00",
        "study": {"name": "tiny", "digest": "a" * 64},
        "run": "b" * 64,
        "order": order.id,
        "kind": "train",
        "model": "federated",
        "round": 3,
        "refusal": "",
        "bytes": len(report.model_dump_json()) + 24 + 24,
        "arrays": [["b", [3], "float64"], ["w", [2, 3], "float32"]],
        "numbers": {
            "support/shared": 40,
            "participants/shared": 30,
            "participants/loss/age": 29,
            "loss/age": [12.5, 39.0],
            f"{tuned}/auc": [0.75, 0.5, 1.0, 30, 40],
            f"{tuned}/k8/repeat2/auc": [0.5, 0.5, 1.0, 30, 40],
            "seconds": 1.5,
            "cost": {"noise": 1.0, "rate": 0.5, "steps": 2, "delta": 0.01},
            "cohort": "d" * 64,
            "holds": ["f" * 64],
        },
        "content": "e" * 64,
        "previous": "0" * 64,
        "hash": head.hash,
    }


def test_every_number_of_a_report_is_in_its_receipt(folder, ledger):
    """A field that a later version adds to reports must not leave without being said."""
    told = {
        "support", "participants", "counts", "measurements", "seconds", "cohort", "holds", "refusal",
        "cost",
    }  # fmt: skip
    names = {"order", "site", "kind", "round", "protocol"}  # the order's own, or the same for ever
    names.add("books")  # entered when they are told
    assert set(Report.model_fields) == told | names


def test_a_refusal_is_a_departure_too(folder, ledger):
    """A code is little, yet it left."""
    order = Order(kind="census", study="a" * 64, run="b" * 64, site="alpha", arrays="c" * 64)
    Receipts(folder, ledger).append(departure(order, "", refuse(order, "PAUSED"), {}, ""))
    [found] = read_receipts(folder)
    assert (found["refusal"], found["arrays"], found["numbers"]) == ("PAUSED", [], {})


def test_each_month_has_a_file_and_the_chain_goes_on(folder, ledger):
    """Files stay small enough to look at; numbers and hashes run through."""
    written(folder, ledger, MARCH, MARCH, APRIL)
    assert [file.name for file in sorted(folder.iterdir())] == ["2024-03.jsonl", "2024-04.jsonl"]
    assert [receipt["number"] for receipt in read_receipts(folder)] == [1, 2, 3]
    assert faults(folder, ledger) == []


def test_a_clock_that_goes_back_does_not_reorder(folder, ledger):
    """Otherwise receipt 2 would stand in an earlier file than receipt 1."""
    written(folder, ledger, APRIL, MARCH)
    assert [file.name for file in folder.iterdir()] == ["2024-04.jsonl"]
    assert faults(folder, ledger) == []


# What is done to them afterwards.


def swap(lines):
    return [lines[0], lines[2], lines[1], *lines[3:]]


def rewritten(lines):
    """An edit by somebody who knows how the hash is made."""
    entry = json.loads(lines[1])
    del entry["hash"]
    line, _ = client_receipts._sealed({**entry, "round": 99})
    return [lines[0], line, *lines[2:]]


TAMPERED = {
    "edited": (
        lambda lines: [lines[0], lines[1].replace(b"0.1", b"0.2"), *lines[2:]],
        ["2024-03.jsonl, line 2: receipt 2 was changed after it was written"],
    ),
    "a space": (
        lambda lines: [lines[0], lines[1].replace(b": ", b":", 1), *lines[2:]],
        ["2024-03.jsonl, line 2: receipt 2 was changed after it was written"],
    ),
    "edited, hash and all": (
        rewritten,
        ["2024-03.jsonl, line 3: receipt 3 does not continue receipt 2; one was rewritten"],
    ),
    "deleted": (
        lambda lines: [lines[0], *lines[2:]],
        ["2024-03.jsonl, line 2: receipt 2 is missing before receipt 3"],
    ),
    "two deleted": (
        lambda lines: [lines[0], *lines[3:]],
        ["2024-03.jsonl, line 2: receipts 2 to 3 are missing before receipt 4"],
    ),
    "the first deleted": (
        lambda lines: lines[1:],
        ["2024-03.jsonl, line 1: receipt 1 is missing before receipt 2"],
    ),
    "reordered": (
        swap,
        [
            "2024-03.jsonl, line 2: receipt 2 is missing before receipt 3",
            "2024-03.jsonl, line 3: receipt 2 stands after receipt 3; it was moved or copied",
        ],
    ),
    "repeated": (
        lambda lines: [*lines[:2], *lines[1:]],
        ["2024-03.jsonl, line 3: receipt 2 stands after receipt 2; it was moved or copied"],
    ),
    "cut off": (
        lambda lines: lines[:3],
        ["receipts: receipts 4 to 5 are missing at the end, says the ledger"],
    ),
    "cut off in mid-line": (
        lambda lines: [*lines[:4], lines[4][:40]],
        ["receipts: receipt 5 is missing at the end, says the ledger"],
    ),
    "all gone": (
        lambda lines: [b""],
        ["receipts: receipts 1 to 5 are missing at the end, says the ledger"],
    ),
    "a stranger's line": (
        lambda lines: [*lines[:2], b"hello\n", *lines[2:]],
        ["2024-03.jsonl, line 3: this line is no receipt"],
    ),
    "spoilt": (
        lambda lines: [*lines[:2], lines[2][9:], *lines[3:]],
        [
            "2024-03.jsonl, line 3: this line is no receipt",
            "2024-03.jsonl, line 4: receipt 3 is missing before receipt 4",
        ],
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_done_to_receipts_is_said_with_its_place(folder, ledger, name):
    """ "Something is wrong somewhere" helps nobody to find out what left."""
    written(folder, ledger, *[MARCH] * 5)
    change, wanted = TAMPERED[name]
    edit(folder / "2024-03.jsonl", change)
    assert [line.replace(str(folder.parent) + "/", "") for line in faults(folder, ledger)] == wanted


def test_a_forged_chain_is_not_the_ledgers(folder, ledger, tmp_path):
    """Whoever writes all receipts anew, hashes and all, lacks the ledger's last hash."""
    written(folder, ledger, MARCH, MARCH)
    with Ledger(tmp_path / "other.sqlite") as other:
        forged = tmp_path / "forged"
        written(forged, other, MARCH, APRIL)
        [fault] = verify(forged, ledger.head).faults
        assert fault.what == "receipt 2 is not the one that the ledger recorded"


def test_a_missing_month_is_named(folder, ledger):
    """Deleting a whole file is the simplest edit."""
    written(folder, ledger, MARCH, MARCH, APRIL)
    (folder / "2024-03.jsonl").unlink()
    [fault] = faults(folder, ledger)
    assert fault == "2024-04.jsonl, line 1: receipts 1 to 2 are missing before receipt 3"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_found(tmp_path_factory, data):
    """Not the edits that we thought of, but any: one byte of any line, replaced or removed."""
    folder, head, content = _five(tmp_path_factory)
    place = data.draw(st.integers(0, len(content) - 1))
    by = data.draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=1)))
    if by == content[place : place + 1]:
        return
    file = folder / "2024-03.jsonl"
    file.write_bytes(content[:place] + by + content[place + 1 :])
    try:
        assert verify(folder, lambda: head).faults
    finally:
        file.write_bytes(content)


_made: list[Any] = []


def _five(factory) -> tuple[Path, Head, bytes]:
    if not _made:
        folder = factory.mktemp("five")
        with Ledger(folder / "ledger.sqlite") as ledger:
            written(folder / "receipts", ledger, *[MARCH] * 5)
            head = ledger.head()
        content = (folder / "receipts" / "2024-03.jsonl").read_bytes()
        _made.append((folder / "receipts", head, content))
    return _made[0]


def test_a_hundred_thousand_receipts_are_checked_in_seconds(folder):
    """A check that takes minutes is a check that nobody makes."""
    folder.mkdir()
    head, lines = NOTHING, []
    for number in range(1, 100_001):
        entry = {"number": number, "kind": "train", "numbers": {"loss": 0.1 * number}}
        line, head = client_receipts._sealed({**entry, "previous": head.hash})
        lines.append(line)
    (folder / "2024-03.jsonl").write_bytes(b"".join(lines))
    began = time.monotonic()
    verdict = verify(folder, lambda: head)
    assert time.monotonic() - began < 10  # it takes one
    assert (verdict.count, verdict.faults, verdict.head) == (100_000, (), head)


# Crashes and full disks.


def torn_tails(line: bytes) -> dict[str, bytes]:
    return {
        "one byte": line[:1],
        "half": line[: len(line) // 2],
        "all but the end": line[:-1],
        "zeros": b"\0" * len(line),
        "zeros and an end": b"\0" * (len(line) - 1) + b"\n",
    }


@pytest.mark.parametrize("name", torn_tails(b"123"))
@pytest.mark.parametrize("month", [MARCH, APRIL], ids=["same file", "new file"])
def test_half_a_line_is_set_aside_and_named_by_the_next(folder, ledger, name, month):
    """A power cut in mid-write is nobody's edit; it must neither stop the site nor be hidden."""
    receipts = written(folder, ledger, MARCH, MARCH)
    line, _ = client_receipts._sealed({"number": 3, "previous": receipts._head.hash})
    torn = torn_tails(line)[name]
    with (folder / f"{month:%Y-%m}.jsonl").open("ab") as stream:
        stream.write(torn)
    again = Receipts(folder, ledger)
    assert (folder / "00000003.torn").read_bytes() == torn
    again = Receipts(folder, ledger)  # killed before it wrote anything
    again.append({"kind": "census"}, APRIL)
    again.append({"kind": "census"}, APRIL)
    found = list(read_receipts(folder))
    assert [receipt.get("torn") for receipt in found] == [None, None, "00000003.torn", None]
    assert faults(folder, ledger) == []


def test_a_crash_between_setting_aside_and_cutting_off_keeps_one_copy(folder, ledger):
    """The torn half may be looked at for years; twice the same would look like two crashes."""
    written(folder, ledger, MARCH)
    with (folder / "2024-03.jsonl").open("ab") as stream:
        stream.write(b'{"num')
    (folder / "00000002.torn").write_bytes(b'{"num')
    Receipts(folder, ledger)
    assert (folder / "00000002.torn").read_bytes() == b'{"num'


def test_a_receipt_that_the_ledger_missed_is_taken_up(folder, ledger):
    """Killed between receipt and ledger: the departure is written down, the chain goes on."""
    receipts = written(folder, ledger, MARCH)
    before = ledger.head()
    receipts.append({"kind": "train"}, APRIL)
    ledger.set_head(*before)
    assert faults(folder, ledger) == []  # as a person would see it before the restart
    again = Receipts(folder, ledger)
    assert ledger.head().number == 2
    again.append({"kind": "train"}, APRIL)
    assert faults(folder, ledger) == []


@pytest.mark.parametrize("third", [MARCH, APRIL], ids=["same file", "new file"])
def test_receipts_that_an_older_ledger_lacks_stop_the_agent(folder, ledger, third):
    """A ledger from last week's backup has forgotten what was spent since."""
    written(folder, ledger, MARCH, MARCH, third)
    ledger.set_head(1, next(read_receipts(folder))["hash"])
    with pytest.raises(FolderError, match="the ledger is not the newest"):
        Receipts(folder, ledger)
    assert any("it was lost or set back" in fault for fault in faults(folder, ledger))


def test_receipts_beside_an_empty_ledger_stop_the_agent(folder, ledger, tmp_path):
    """Removing the ledger would be the cheapest way to a new privacy budget."""
    written(folder, ledger, MARCH, MARCH)
    with Ledger(tmp_path / "new.sqlite") as empty:
        with pytest.raises(FolderError, match="count what was spent by it"):
            Receipts(folder, empty)
        assert any("lost or set back" in fault for fault in faults(folder, empty))


@pytest.mark.parametrize("month", [MARCH, APRIL], ids=["same file", "new file"])
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_cut_off_receipts_stay_missing(folder, ledger, keep, month):
    """The site goes on, for others wait; the gap stays visible for ever."""
    written(folder, ledger, *[MARCH] * 3)
    file = folder / "2024-03.jsonl"
    edit(file, lambda lines: [*lines[:keep], b'{"half'])
    Receipts(folder, ledger).append({"kind": "train"}, month)
    Receipts(folder, ledger).append({"kind": "train"}, month)
    found = faults(folder, ledger)
    span = f"receipts {keep + 1} to 3 are" if keep < 2 else "receipt 3 is"
    assert any(f"{span} missing before receipt 4" in fault for fault in found)
    assert verify(folder, ledger.head).head == ledger.head()


def test_a_full_disk_writes_nothing_and_the_chain_goes_on(folder, ledger, monkeypatch):
    """Half a receipt of what did not leave would be a fault that nobody made."""
    receipts = written(folder, ledger, MARCH)
    before = (folder / "2024-03.jsonl").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            receipts.append({"kind": "train"}, MARCH)
    assert (folder / "2024-03.jsonl").read_bytes() == before
    receipts.append({"kind": "train"}, MARCH)
    assert faults(folder, ledger) == []


def test_a_ledger_that_cannot_be_written_takes_the_receipt_back(folder, ledger, monkeypatch):
    """Two lines ahead of the ledger would look like a ledger that was set back."""
    receipts = written(folder, ledger, MARCH)

    def full(*_):
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "set_head", full)
        for _ in range(3):
            with pytest.raises(StorageError):
                receipts.append({"kind": "train"}, MARCH)
    receipts.append({"kind": "train"}, MARCH)
    assert verify(folder, ledger.head).count == 2
    assert faults(folder, ledger) == []


def test_a_receipt_is_on_disk_before_append_returns(folder, ledger, monkeypatch):
    """The order of the two is the whole promise."""
    receipts = Receipts(folder, ledger)
    synced = []
    plain = os.fsync

    def noted(descriptor):
        plain(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", noted)
    receipts.append({"kind": "train"}, MARCH)
    assert synced == ["2024-03.jsonl", "receipts"]  # the new file's name, too


def test_appending_does_not_read_what_was_written_before(folder, ledger, monkeypatch):
    """A year of receipts must not slow the next one down."""
    receipts = written(folder, ledger, MARCH)

    def forbidden(*_, **__):
        raise AssertionError

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    monkeypatch.setattr(Path, "read_text", forbidden)
    receipts.append({"kind": "train"}, MARCH)
