"""What left the site: one readable line for each departure, each bound to the one before it.

    receipts/2025-03.jsonl      JSON lines, appended and on disk before the bytes leave
    receipts/00000042.torn      half a line that a crash left, set aside; line 42 then names it

A line ends with the SHA-256 of all of it that stands before, and holds that of the line before, so
an edit, a deletion or another order shows. What is cut off at the end shows in the ledger, which
keeps number and hash of the last line. Whoever may write both could forge both: note elsewhere,
from time to time, the last hash that `callosum-site receipts verify` prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Final, NamedTuple

from client.authority.egress import size_of
from client.authority.ledger import NOTHING, Head, Ledger
from common.arrays import Arrays
from common.errors import FolderError
from common.protocol.bounded_json import parsed
from common.protocol.orders import Books, Order, Report
from common.runtime.durable import storage_checked, sync_folder, write_atomically

_log = getLogger("callosum.site")
_TAIL: Final = len(', "hash": ""}') + 64


class Receipts:
    """The one writer of a site's receipts, for any number of threads.

    Raises
    ------
    FolderError
        If there are receipts that the ledger knows nothing of: then the ledger is not the newest,
        and what it says was spent is too little.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._mutex = threading.Lock()
        with storage_checked(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._head = self._recovered()

    def append(self, departure: Mapping[str, Any], now: datetime | None = None) -> Head:
        """Write a receipt; when this returns, it is on disk and what it is for may leave."""
        with self._mutex:
            return self._written(departure, now or datetime.now(UTC))

    def tell(self, departure: Mapping[str, Any], now: datetime | None = None) -> Books:
        """The same for what leaves with the site's books; the books as they leave.

        Counted while nobody else writes a receipt: the count and the numbers grow together, and
        whoever reads two of them can tell which was first.
        """
        with self._mutex:
            before = self._ledger.books().model_copy(update={"receipt": self._head.number + 1})
            more = len(before.model_dump_json()) - len("null")  # a hash has one length
            books: dict[str, Any] = {"state": before.state, "exposures": before.exposures}
            if before.private:
                books["private"] = list(before.private)
            size = departure["bytes"] + more
            head = self._written(
                {**departure, "bytes": size, "books": books},
                now or datetime.now(UTC),
                told=before.exposures,
            )
            return before.model_copy(update={"hash": head.hash})

    def _written(
        self, departure: Mapping[str, Any], now: datetime, told: int | None = None
    ) -> Head:
        number, file = self._head.number + 1, self._file(now)
        torn = self._folder / f"{number:08d}.torn"
        line, head = _sealed({
            "number": number,
            "time": now.isoformat(timespec="seconds"),
            **departure,
            **({"torn": torn.name} if torn.exists() else {}),
            "previous": self._head.hash,
        })  # fmt: skip
        with storage_checked(file):
            size = _append(file, line)
            try:
                self._ledger.set_head(*head, told)
            except BaseException:
                os.truncate(file, size)  # nothing leaves, so there is nothing to receipt
                raise
        self._head = head
        return head

    def _file(self, now: datetime) -> Path:
        """The month's file; a later one if a clock went back, for files must stay in order."""
        newest = max((file.stem for file in _files(self._folder)), default="")
        return self._folder / f"{max(newest, f'{now:%Y-%m}')}.jsonl"

    def _recovered(self) -> Head:
        """The head to go on from, after whatever a crash left beyond the ledger's."""
        head = self._ledger.head()
        beyond = _beyond(_files(self._folder), head)
        if beyond is None:
            _log.error(
                "%s lacks receipt %d, the last that the ledger knows; the next one will follow it, "
                "and `callosum-site receipts verify` says what is missing",
                self._folder,
                head.number,
            )
            return head
        for file, start in beyond:
            head = self._taken_up(file, start, head)
        if head != self._ledger.head():
            self._ledger.set_head(*head)
        return head

    def _taken_up(self, file: Path, start: int, head: Head) -> Head:
        """The head after what stands in `file` from `start`: one receipt, half of one, nothing."""
        lines = re.findall(rb"[^\n]*\n|[^\n]+", file.read_bytes()[start:])
        first = _parsed(lines[0]) if lines and _is_receipt(lines[0]) else None
        if first is not None and first.follows(head) and head == self._ledger.head():
            head = Head(first.number, first.hash)
            start += len(lines.pop(0))
        torn = not lines or (len(lines) == 1 and not _is_receipt(lines[0]))
        if not torn:
            raise FolderError(
                f"{file} goes on after receipt {head.number}, the last that the ledger knows; the "
                "ledger is not the newest. Put its newest backup in its place. Without any, move "
                f"{self._folder} away, keep it, and count what was spent by it"
            )
        if lines:
            self._set_aside(file, start, lines[0], head.number + 1)
        return head

    def _set_aside(self, file: Path, start: int, torn: bytes, number: int) -> None:
        """Keep half a line for people to see, and cut it off."""
        path = self._folder / f"{number:08d}.torn"
        earlier = path.read_bytes() if path.exists() else b""
        if not earlier.endswith(torn):  # else a second crash came between the two writes
            write_atomically(path, earlier + torn)
        with file.open("r+b") as stream:
            stream.truncate(start)
            os.fsync(stream.fileno())


class Fault(NamedTuple):
    """What is wrong with the receipts, and where."""

    place: str
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many receipts there are, the last of them, and every fault found."""

    count: int
    head: Head
    faults: tuple[Fault, ...]


def verify(folder: Path, head: Callable[[], Head]) -> Verdict:
    """Check every receipt below `folder` against its neighbours and the ledger's `head`.

    `head` is asked before and after reading, because an agent may be writing meanwhile.
    """
    before = head()
    faults: list[Fault] = []
    last, count = NOTHING, 0
    recorded = ""
    for place, entry in _entries(folder):
        count += 1
        if entry is None:
            faults.append(Fault(place, "this line is no receipt"))
            continue
        if not entry.sound:
            faults.append(Fault(place, f"receipt {entry.number} was changed after it was written"))
        recorded = entry.hash if entry.number == before.number else recorded
        wrong = _wrong_place(entry, last)
        if wrong:
            faults.append(Fault(place, wrong))
        if entry.number > last.number:
            last = Head(entry.number, entry.hash)
    faults += _against_ledger(folder, last, recorded, before, head())
    return Verdict(count, last, tuple(faults))


def read_receipts(folder: Path) -> Iterator[dict[str, Any]]:
    """Every receipt, oldest first, whether it is sound or not; lines that are none are left out."""
    for _, entry in _entries(folder):
        if entry is not None:
            yield entry.content


def departure(
    order: Order, study: str, report: Report, arrays: Arrays, content: str
) -> dict[str, Any]:
    """What a receipt says of a report to `order` that leaves with `arrays`.

    `content` is the digest by which the ledger knows the answer.
    """
    return {
        "study": {"name": study, "digest": order.study},
        "run": order.run,
        "order": order.id,
        "kind": order.kind,
        "model": order.model,
        "round": order.round,
        "refusal": report.refusal,
        "bytes": size_of(report, arrays),
        "arrays": [[name, list(a.shape), str(a.dtype)] for name, a in sorted(arrays.items())],
        "numbers": _numbers(report),
        "content": content,
    }


def bare_refusal(code: str, size: int) -> dict[str, Any]:
    """What a receipt says of a refusal to something that was no readable order."""
    return {"refusal": code, "bytes": size, "arrays": [], "numbers": {}}


def _numbers(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {f"support/{name}": n for name, n in report.support.items()}
    found |= {f"participants/{name}": n for name, n in report.participants.items()}
    found |= {name: list(sums) for name, sums in report.counts.items()}
    for row in report.measurements:
        which = (f"k{row.k}" if row.k else "", f"repeat{row.repeat}" if row.repeat else "")
        words = (row.phase, row.task, row.target, row.model, row.init, row.method, *which)
        key = "/".join(word for word in (*words, row.metric) if word)
        found[key] = [row.value, row.ci_low, row.ci_high, row.n_participants, row.n_scans]
    if report.seconds:
        found["seconds"] = report.seconds
    if report.cost:
        found["cost"] = report.cost.model_dump()
    if report.cohort:
        found["cohort"] = report.cohort
    if report.holds:
        found["holds"] = list(report.holds)
    return found


class _Entry(NamedTuple):
    """One line as it stands on disk."""

    number: int
    previous: str
    hash: str
    sound: bool
    content: dict[str, Any]

    def follows(self, head: Head) -> bool:
        return self.sound and (self.number, self.previous) == (head.number + 1, head.hash)


def _sealed(entry: Mapping[str, Any]) -> tuple[bytes, Head]:
    body = json.dumps(entry, allow_nan=False)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{body[:-1]}, "hash": "{digest}"}}\n'.encode(), Head(entry["number"], digest)


def _parsed(line: bytes) -> _Entry | None:
    line = line.rstrip(b"\n")
    try:
        content = parsed(line)
        number, previous, found = content["number"], content["previous"], content["hash"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(number, int) or not isinstance(previous, str) or not isinstance(found, str):
        return None
    digest = hashlib.sha256(line[:-_TAIL] + b"}").hexdigest()
    sound = line[-_TAIL:] == f', "hash": "{digest}"}}'.encode()
    return _Entry(number, previous, found, sound, content)


def _is_receipt(line: bytes) -> bool:
    """Whether this was once a whole line, be it sound or not."""
    return line.endswith(b"\n") and _parsed(line) is not None


def _append(file: Path, line: bytes) -> int:
    """Append a line durably, or not at all; the file's size before."""
    new = not file.exists()
    with file.open("a+b", buffering=0) as stream:  # a buffer would be tried again when it closes
        size = stream.seek(0, os.SEEK_END)
        if size and os.pread(stream.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # somebody cut the file; the half line stays, for `verify` to see
        try:
            while line:
                line = line[stream.write(line) :]
            os.fsync(stream.fileno())
        except BaseException:
            os.truncate(file, size)
            raise
    if new:
        sync_folder(file.parent)
    return size


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9][0-9][0-9]-[0-9][0-9].jsonl"))


def _entries(folder: Path) -> Iterator[tuple[str, _Entry | None]]:
    """Every whole line with its place; half a line at the very end is being written, or torn."""
    files = _files(folder)
    for file in files:
        *lines, rest = file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            yield f"{file.name}, line {number}", _parsed(line)
        if rest and file != files[-1]:
            yield f"{file.name}, line {len(lines) + 1}", None


def _beyond(files: Sequence[Path], head: Head) -> list[tuple[Path, int]] | None:
    """Files that go on after the head's line, and from where; None if that line is nowhere."""
    if head.number == 0:
        return [(file, 0) for file in files]
    end = f', "hash": "{head.hash}"}}\n'.encode()
    for index in range(len(files) - 1, -1, -1):
        place = files[index].read_bytes().rfind(end)
        if place >= 0:
            return [(files[index], place + len(end)), *((file, 0) for file in files[index + 1 :])]
    return None


def _wrong_place(entry: _Entry, last: Head) -> str:
    if entry.number <= last.number:
        return f"receipt {entry.number} stands after receipt {last.number}; it was moved or copied"
    if entry.number > last.number + 1:
        return f"{_span(last.number + 1, entry.number - 1)} missing before receipt {entry.number}"
    if entry.previous != last.hash:
        return f"receipt {entry.number} does not continue receipt {last.number}; one was rewritten"
    return ""


def _against_ledger(
    folder: Path, last: Head, recorded: str, before: Head, after: Head
) -> Iterator[Fault]:
    if last.number < before.number:
        what = f"{_span(last.number + 1, before.number)} missing at the end, says the ledger"
        yield Fault(str(folder), what)
    elif recorded and recorded != before.hash:
        yield Fault(str(folder), f"receipt {before.number} is not the one that the ledger recorded")
    if last.number > after.number + 1:
        yield Fault(
            str(folder),
            f"the ledger knows receipts up to {after.number} only, there are {last.number}; "
            "it was lost or set back",
        )


def _span(first: int, last: int) -> str:
    return f"receipt {first} is" if first == last else f"receipts {first} to {last} are"
