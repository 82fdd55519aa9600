"""The tables of a ledger, and how a ledger of an earlier version gets those that it lacks.

deliveries    numbers used once of delivered orders; closed when the answer was handed over
exposures     orders that trained on the site's participants, or judged by them, each once and for
              ever
answers       digest of the one answer that may leave for an order
head          number and hash of the last receipt, so that missing receipts are noticed
state         id of this state folder, drawn at random; a copy of the folder has it, too
told          what reports told the coordinator of these books, by the receipt of each
stop          what the coordinator has seen and these books never told, until a person decides
decisions     what persons decided then, and the exposures that they took over
spendings     draws of private orders: noise, rate, steps, people, delta; seen once something was
              told of how the draw ended; without an order where a person took it over
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from common.errors import FolderError

VERSION: Final = 3
HAS_STATE: Final = 2  # version from which a ledger has an id and decisions
_FIRST: Final = """
CREATE TABLE deliveries (
    nonce TEXT PRIMARY KEY, order_id TEXT NOT NULL, expires REAL NOT NULL,
    closed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE exposures (
    number INTEGER PRIMARY KEY, order_id TEXT NOT NULL UNIQUE, time TEXT NOT NULL,
    study TEXT NOT NULL, study_name TEXT NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    model TEXT NOT NULL, round INTEGER NOT NULL
);
CREATE TABLE answers (order_id TEXT PRIMARY KEY, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE head (
    only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL, hash TEXT NOT NULL
);
"""
_SECOND: Final = """
CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT NOT NULL);
INSERT INTO state VALUES (1, lower(hex(randomblob(16))));
CREATE TABLE told (
    receipt INTEGER PRIMARY KEY, hash TEXT NOT NULL, exposures INTEGER NOT NULL
);
CREATE TABLE stop (
    only INTEGER PRIMARY KEY CHECK (only = 1), time TEXT NOT NULL, why TEXT NOT NULL,
    seen TEXT NOT NULL
);
CREATE TABLE decisions (
    number INTEGER PRIMARY KEY, time TEXT NOT NULL, person TEXT NOT NULL, why TEXT NOT NULL,
    state_before TEXT NOT NULL, taken_over INTEGER NOT NULL
);
"""
_THIRD: Final = """
CREATE TABLE spendings (
    number INTEGER PRIMARY KEY, order_id TEXT NOT NULL, time TEXT NOT NULL, study TEXT NOT NULL,
    noise REAL NOT NULL, rate REAL NOT NULL, steps INTEGER NOT NULL, delta REAL NOT NULL,
    people INTEGER NOT NULL, seen INTEGER NOT NULL,
    draw TEXT NOT NULL DEFAULT (lower(hex(randomblob(16))))
);
CREATE INDEX spendings_of_order ON spendings (order_id);
"""
_STEPS: Final = (_FIRST, _SECOND, _THIRD)  # a ledger of version n has the first n


def brought_up(connection: sqlite3.Connection, path: Path) -> None:
    """Give a ledger the tables that its version lacks, all or none; what it holds stays.

    Raises
    ------
    FolderError
        If a later Callosum wrote it.
    """
    check_version(connection, path)
    lacking = "".join(_STEPS[version_of(connection) :])
    if lacking:
        connection.executescript(
            f"BEGIN IMMEDIATE; {lacking} PRAGMA user_version = {VERSION}; COMMIT;"
        )


def version_of(connection: sqlite3.Connection) -> int:
    """A ledger's version; 0 before anything was written."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a ledger that may hold costs which this version cannot see."""
    found = version_of(connection)
    if found > VERSION:
        raise FolderError(
            f"{path} is a ledger of version {found}; this Callosum knows version {VERSION}, "
            "install the one that wrote it"
        )
