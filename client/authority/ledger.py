"""What a site has taken, spent and answered: one SQLite file that no crash can set back.

`ledger_schema.py` lists its tables. Everything is on disk before a method returns. One process
writes, and holds a lock beside the file for as long as it lives; anyone who may read the file can
do so meanwhile.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, NamedTuple, Self

from pydantic import ValidationError

from client.authority import spendings
from client.authority.ledger_schema import (
    HAS_STATE,
    VERSION,
    brought_up,
    check_version,
    version_of,
)
from client.authority.spendings import Asked
from client.site import LOCAL_DISK
from common.errors import FolderError, Refusal, StorageError
from common.privacy.cost import Spent, steps_in
from common.protocol.books import fallen
from common.protocol.orders import Books, Order
from common.runtime.durable import storage_checked
from common.runtime.locks import lock

# kinds that learn from participants, or tell as much of them by arrays from elsewhere
SPENDING: Final = frozenset({"train", "finetune", "protocol", "linear", "cross"})
JUDGING: Final = "evaluate"  # tells about participants what the arrays of an order ask

_EXPOSURES: Final = """
SELECT time, study, study_name, run, kind, model, round, order_id,
       order_id IN (SELECT order_id FROM answers)
FROM exposures ORDER BY number
"""
_COPIED: Final = "SELECT number, order_id, time FROM exposures WHERE kind != 'evaluate'"
_JUDGED: Final = "SELECT run FROM exposures WHERE kind = ? AND study = ? AND model = ?"


class Head(NamedTuple):
    """The last receipt; number 0 where there is none."""

    number: int
    hash: str


NOTHING: Final = Head(0, "0" * 64)


@dataclass(frozen=True, slots=True)
class Exposure:
    """One order that trained on participants, or judged; `answered` when its report was let out."""

    time: str
    study: str
    study_name: str
    run: str
    kind: str
    model: str
    round: int
    order: str
    answered: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """The coordinator has seen what these books never told; nothing is done until a person decides.

    why: in words; seen: the books as the coordinator saw them.
    """

    time: str
    why: str
    seen: Books


@dataclass(frozen=True, slots=True)
class Account:
    """A ledger as it was read at one moment.

    exposures: those that it holds; taken_over: more of them, from before it was set back; state:
    its folder's id, empty where an earlier version wrote it; stop: why no order is carried out;
    private: noised steps that were paid for, which count among the exposures, too.
    """

    exposures: tuple[Exposure, ...]
    head: Head
    taken_over: int = 0
    state: str = ""
    stop: Stop | None = None
    private: tuple[Spent, ...] = ()

    @property
    def spent(self) -> int:
        """All exposures that count, over all studies and runs; judging has a cap of its own."""
        return sum(each.kind != JUDGING for each in self.exposures) + self.taken_over


@dataclass(frozen=True, slots=True)
class Copy:
    """What is not in a ledger and in its copy alike was spent by one of them alone.

    exposures: number, order and time of each that learnt; draws: rows of private spendings.
    """

    exposures: frozenset[tuple[int, str, str]]
    draws: frozenset[spendings.Row]


class Ledger:
    """The one writer of a site's ledger, for any number of threads.

    Raises
    ------
    FolderError
        If another process holds the ledger, or the file is not one.
    StorageError
        If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        with storage_checked(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._held = _alone(path)
        self._mutex = threading.Lock()
        try:
            self._connection = _connected(path)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def shut(self) -> None:
        """Let go of the file and of its lock."""
        self._connection.close()
        self._held.close()

    def present(self, nonce: str, order_id: str, expires: float) -> None:
        """Note that an order was delivered; `Refusal("REPLAYED")` if its answer was handed over.

        Until then the same delivery may be presented again: an agent may be killed in between.
        """
        with self._change() as change:
            row = change.execute(
                "SELECT order_id, closed FROM deliveries WHERE nonce = ?", (nonce,)
            ).fetchone()
            if row is not None and (row[0] != order_id or row[1]):
                raise Refusal("REPLAYED", f"delivery {nonce} of order {row[0]}")
            # never forgotten: a clock that is set back must not reopen what has expired
            change.execute(
                "INSERT OR IGNORE INTO deliveries (nonce, order_id, expires) VALUES (?, ?, ?)",
                (nonce, order_id, expires),
            )

    def close(self, nonce: str) -> None:
        """Note that the whole answer to this delivery was handed over."""
        with self._change() as change:
            change.execute("UPDATE deliveries SET closed = 1 WHERE nonce = ?", (nonce,))

    def spend(
        self, order: Order, study_name: str, most: int = 0, asked: Asked | None = None
    ) -> bool:
        """Record an exposure for `order`, and what it is `asked` for; False if all was there.

        `Refusal("PRIVACY_SPENT")` if there are `most` already (0: no cap), `BUDGET_EXHAUSTED` if a
        private order would cost more than study or site let it. `SITE_FAILED` if it was answered:
        another draw of noise would be another release.
        """
        if asked is not None:  # curves take a while the first time; not while others wait
            spendings.lifetime(self.private(), asked.cost)
        with self._change() as change:
            new = not _is_spent(change, order.id)
            if new and most and _exposures(change) >= most:
                raise Refusal("PRIVACY_SPENT", f"{most} training orders were carried out")
            drawn = asked is not None and _pay(change, order, asked)
            if new:
                _enter(change, order, study_name)
            return new or drawn

    def see(self, order_id: str) -> None:
        """Note that something is told of a private order's draw: another one would cost anew."""
        with self._change() as change:
            spendings.close(change, order_id)

    def private(self) -> list[Spent]:
        """Noised steps that were paid for, by study, noise, rate and delta."""
        with self._reading() as reading:
            return spendings.read(reading)

    def judge(self, order: Order, study_name: str, most: int = 0) -> bool:
        """Record that a model is judged, once and for ever; False if this very order was there.

        A model of a run has one set of arrays: whoever may ask again with others asks about people.
        `Refusal("PRIVACY_SPENT")` if this run's was judged by another order, or the study's by as
        many as `most` (0: no cap).
        """
        with self._change() as change:
            if _is_spent(change, order.id):
                return False
            where = (JUDGING, order.study, order.model)
            earlier = [run for (run,) in change.execute(_JUDGED, where)]
            if order.run in earlier:
                raise Refusal("PRIVACY_SPENT", f"{order.model} of this run was judged already")
            if most and len(earlier) >= most:
                raise Refusal("PRIVACY_SPENT", f"{order.model} was judged in {most} runs")
            _enter(change, order, study_name)
            return True

    def is_spent(self, order_id: str) -> bool:
        """Whether this very order has been spent for, so that it costs nothing more."""
        with self._reading() as reading:
            return _is_spent(reading, order_id)

    def exposures(self) -> int:
        """Training orders carried out, over all studies and runs."""
        with self._reading() as reading:
            return _exposures(reading)

    def spent(self, study: str) -> int:
        """Training orders carried out for one study, by its digest."""
        with self._reading() as reading:
            counted = "SELECT count(*) FROM exposures WHERE study = ? AND kind != ?"
            return int(reading.execute(counted, (study, JUDGING)).fetchone()[0])

    def answered(self, order_id: str, digest: str) -> None:
        """Record the one answer that may leave for an order.

        `Refusal("SITE_FAILED")` if it had another.
        """
        with self._change() as change:
            change.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (order_id, digest))
            row = change.execute("SELECT digest FROM answers WHERE order_id = ?", (order_id,))
            earlier = row.fetchone()[0]
            if earlier != digest:
                raise Refusal(
                    "SITE_FAILED",
                    f"order {order_id} was answered with {earlier}; {digest} is another answer "
                    "and may not leave",
                )

    def answer(self, order_id: str) -> str | None:
        """Digest of the answer that was recorded for an order, if one was."""
        with self._reading() as reading:
            return _answer(reading, order_id)

    def head(self) -> Head:
        """The last receipt that was written."""
        with self._reading() as reading:
            return _head(reading)

    def set_head(self, number: int, hash_: str, told: int | None = None) -> None:
        """Note the last receipt that was written; `told` are the exposures that leave with it."""
        with self._change() as change:
            change.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?)", (number, hash_))
            if told is not None:
                values = (number, hash_, told)
                change.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", values)

    def books(self) -> Books:
        """How these books stand."""
        with self._reading() as reading:
            return _books(reading)

    def disowned(self, seen: Books) -> str:
        """Why these books cannot be those that the coordinator has `seen`, or nothing.

        A clone may have as many receipts, and as many exposures: but what was seen it never told.
        """
        with self._reading() as reading:
            why = fallen(seen, _books(reading))
            if why or not seen.receipt:
                return why
            found = reading.execute(
                "SELECT hash, exposures FROM told WHERE receipt = ?", (seen.receipt,)
            ).fetchone()
            same = found == (seen.hash, seen.exposures)
            return "" if same else f"receipt {seen.receipt}, which was seen, did not leave here"

    def stop(self, seen: Books, why: str) -> None:
        """Carry nothing out from now on, until a person decides; the highest count seen is kept."""
        with self._change() as change:
            before = _stop(change)
            if before is not None and not _more(before.seen, seen):
                return
            values = (_now(), why, seen.model_dump_json())
            change.execute("INSERT OR REPLACE INTO stop VALUES (1, ?, ?, ?)", values)

    def stopped(self) -> Stop | None:
        """What a person must decide on, if anything."""
        with self._reading() as reading:
            return _stop(reading)

    def go_on(self, person: str, exposures: int, copy: Copy | None = None) -> int:
        """End this history and any stop: go on under a new id, from `exposures` on at least.

        Returns the exposures that were taken over. They never fall. Private steps that were seen
        are taken over with their noise, rate and delta, unless fewer exposures are believed than
        were seen; what a `copy` spent since it was made comes on top.
        """
        with self._change() as change:
            stop, before = _stop(change), _books(change)
            why = f"{stop.why}; seen: {stop.seen.model_dump_json()}" if stop is not None else ""
            if copy is not None:
                spendings.add(change, copy.draws - spendings.rows(change))
                own = len(copy.exposures - set(change.execute(_COPIED))) + before.exposures
                exposures = max(exposures, own)
            more = max(0, exposures - before.exposures)
            change.execute(
                "INSERT INTO decisions (time, person, why, state_before, taken_over)"
                " VALUES (?, ?, ?, ?, ?)",
                (_now(), person, why, before.state, more),
            )
            if stop is not None and exposures >= stop.seen.exposures:
                spendings.take_over(change, stop.seen.private)
            change.execute("UPDATE state SET id = lower(hex(randomblob(16)))")
            change.execute("DELETE FROM told")
            change.execute("DELETE FROM stop")
            return more

    def rows(self) -> list[Exposure]:
        """Every exposure, oldest first."""
        with self._reading() as reading:
            return _rows(reading)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: durable when the block ends, undone when it raises."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # a full disk may have ended it already
                    connection.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex, _explained(self._path):
            yield self._connection


def read_ledger(path: Path) -> Account:
    """What a ledger says, read beside the agent that may be writing it; nothing, if there is none.

    Raises
    ------
    FolderError
        If the file is no ledger or cannot be read.
    """
    with _opened(path) as connection:
        if connection is None:
            return Account((), NOTHING)
        account = Account(tuple(_rows(connection)), _head(connection))
        version = version_of(connection)  # its agent may not have been started since the update
        if version >= HAS_STATE:
            account = replace(
                account,
                taken_over=_taken_over(connection),
                state=_state(connection),
                stop=_stop(connection),
            )
        if version < VERSION:
            return account
        return replace(account, private=tuple(spendings.read(connection)))


def read_copy(path: Path) -> Copy:
    """What a copy of a ledger has spent, or the ledger that it is a copy of.

    Raises
    ------
    FolderError
        If there is none of this version, or it cannot be read.
    """
    with _opened(path) as connection:
        if connection is None or version_of(connection) < VERSION:
            raise FolderError(f"{path} is no ledger of version {VERSION}; give ledger.sqlite")
        return Copy(frozenset(connection.execute(_COPIED)), frozenset(spendings.rows(connection)))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection | None]:
    """A ledger to be read at one moment; None if nothing was written yet."""
    if not path.exists():
        yield None
        return
    with _explained(path):
        # not mode=ro: after a kill in mid-write SQLite must be able to take back that write
        uri = f"{path.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as connection:
            connection.execute("PRAGMA query_only = ON")
            if version_of(connection) == 0:  # its agent was killed before it wrote anything
                yield None
                return
            check_version(connection, path)
            connection.execute("BEGIN")
            yield connection


def _alone(path: Path) -> IO[str]:
    """Hold the lock beside the ledger; the kernel lets go of it however the process ends."""
    with storage_checked(path):
        handle = path.with_suffix(".lock").open("a")
    try:
        lock(handle, path, wait=False, remedy=LOCAL_DISK)
    except BlockingIOError:
        handle.close()
        raise FolderError(
            f"another process holds {path}; a site has one agent, stop that one first"
        ) from None
    except StorageError:
        handle.close()
        raise
    return handle


def _connected(path: Path) -> sqlite3.Connection:
    with _explained(path):
        # transactions are ours; threads take turns by the mutex; readers hold it for milliseconds
        connection = sqlite3.connect(
            path, timeout=30.0, isolation_level=None, check_same_thread=False
        )
        try:
            # a rollback journal, because hospitals keep such folders on network disks, where a
            # write-ahead log is unsafe; EXTRA is FULL and syncs the folder after each commit, too
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = EXTRA")
            brought_up(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours; each names the file and the remedy."""
    try:
        yield
    except (sqlite3.Error, ValidationError, UnicodeDecodeError) as error:  # SQLite's own words rot
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
            raise StorageError(f"{path} cannot be written: {error}; free space there") from error
        raise FolderError(
            f"{path} cannot be used as a ledger: {error}; put its newest backup in its place"
        ) from error


def _is_spent(connection: sqlite3.Connection, order_id: str) -> bool:
    found = connection.execute("SELECT 1 FROM exposures WHERE order_id = ?", (order_id,))
    return found.fetchone() is not None


def _answer(connection: sqlite3.Connection, order_id: str) -> str | None:
    found = connection.execute("SELECT digest FROM answers WHERE order_id = ?", (order_id,))
    row = found.fetchone()
    return None if row is None else str(row[0])


def _exposures(connection: sqlite3.Connection) -> int:
    found = connection.execute(
        "SELECT (SELECT count(*) FROM exposures WHERE kind != ?)"
        " + (SELECT coalesce(sum(taken_over), 0) FROM decisions)",
        (JUDGING,),
    )
    return int(found.fetchone()[0])


def _taken_over(connection: sqlite3.Connection) -> int:
    found = connection.execute("SELECT coalesce(sum(taken_over), 0) FROM decisions")
    return int(found.fetchone()[0])


def _state(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT id FROM state").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("it has no id")
    return str(row[0])


def _books(connection: sqlite3.Connection) -> Books:
    number, hash_ = _head(connection)
    return Books(
        state=_state(connection),
        exposures=_exposures(connection),
        private=spendings.told(spendings.read(connection)),
        receipt=number,
        hash=hash_,
    )


def _stop(connection: sqlite3.Connection) -> Stop | None:
    row = connection.execute("SELECT time, why, seen FROM stop").fetchone()
    return Stop(row[0], row[1], Books.model_validate_json(row[2])) if row is not None else None


def _more(before: Books, seen: Books) -> bool:
    """Whether more was seen, of exposures or of private steps."""
    return seen.exposures > before.exposures or steps_in(seen.private) > steps_in(before.private)


def _enter(change: sqlite3.Connection, order: Order, study_name: str) -> None:
    change.execute(
        "INSERT INTO exposures (order_id, time, study, study_name, run, kind, model, round)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            order.id,
            _now(),
            order.study,
            study_name,
            order.run,
            order.kind,
            order.model,
            order.round,
        ),
    )


def _pay(change: sqlite3.Connection, order: Order, asked: Asked) -> bool:
    """Pay for a draw of noise, if it is another than one that is paid for and was never seen."""
    if _answer(change, order.id) is not None:
        why = "was answered, and its answer is not here any more; noise is not drawn twice"
        raise Refusal("SITE_FAILED", f"order {order.id} {why}")
    if spendings.is_open(change, order.id, asked.cost):
        return False
    spendings.check(spendings.read(change), order.study, asked)
    spendings.enter(change, order, asked)
    return True


def _head(connection: sqlite3.Connection) -> Head:
    row = connection.execute("SELECT number, hash FROM head").fetchone()
    if row is None:
        return NOTHING
    if not (isinstance(row[0], int) and isinstance(row[1], str)):
        raise sqlite3.DatabaseError("the head of its receipts makes no sense")
    return Head(*row)


def _rows(connection: sqlite3.Connection) -> list[Exposure]:
    rows = list(connection.execute(_EXPOSURES))
    for *texts, round_, order, _ in rows:  # a column's type is no promise once its bytes rot
        if not isinstance(round_, int) or not all(isinstance(t, str) for t in (*texts, order)):
            raise sqlite3.DatabaseError("an exposure makes no sense")
    return [Exposure(*(*row, bool(said))) for *row, said in rows]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
