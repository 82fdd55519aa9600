"""The ledger counts every exposure once, takes no delivery twice, and no crash sets it back."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from client.authority.ledger import NOTHING, Head, Ledger, read_ledger
from common.errors import FolderError, Refusal, StorageError
from common.protocol.orders import Books, Order

STUDIES = ("a" * 64, "b" * 64)


def order(number: int = 0, study: int = 0, kind: str = "train") -> Order:
    return Order.model_validate({
        "kind": kind, "study": STUDIES[study], "run": "c" * 64, "site": "alpha", "round": number,
        "arrays": "d" * 64,
    })  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def code(act: Any, *things: Any) -> str:
    with pytest.raises(Refusal) as refusal:
        act(*things)
    return refusal.value.code


def test_a_delivery_is_taken_again_until_it_is_closed(path):
    """An agent killed before it answered must be able to answer; one that answered must not."""
    with Ledger(path) as ledger:
        ledger.present("1" * 32, "x", 10.0)
        ledger.present("1" * 32, "x", 10.0)
    with Ledger(path) as ledger:
        ledger.present("1" * 32, "x", 10.0)
        ledger.close("1" * 32)
        assert code(ledger.present, "1" * 32, "x", 10.0) == "REPLAYED"
        ledger.present("2" * 32, "x", 10.0)  # the same order, asked again
    with Ledger(path) as ledger:
        assert code(ledger.present, "1" * 32, "x", 10.0) == "REPLAYED"


def test_a_number_used_once_is_of_one_order(path):
    """Two orders under one number would let the second pass as the first, asked again."""
    with Ledger(path) as ledger:
        ledger.present("1" * 32, "x", 10.0)
        assert code(ledger.present, "1" * 32, "y", 10.0) == "REPLAYED"


def test_an_order_is_spent_for_once(path):
    """Asking again after a crash is the same order; its participants were learnt from once."""
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny") is True
        assert ledger.spend(order(1), "tiny") is False
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny") is False
        assert ledger.spend(order(2), "tiny") is True
        assert ledger.spend(order(1, study=1), "other") is True
        assert (ledger.exposures(), ledger.spent(STUDIES[0]), ledger.spent(STUDIES[1])) == (3, 2, 1)
        assert ledger.is_spent(order(2).id)
        assert not ledger.is_spent(order(3).id)


def test_the_cap_holds_over_studies_and_lets_spent_orders_pass(path):
    """Queued orders were all admitted while one exposure was left; spending decides."""
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny", most=2)
        assert ledger.spend(order(1, study=1), "other", most=2)
        assert code(ledger.spend, order(2), "tiny", 2) == "PRIVACY_SPENT"
        assert ledger.spend(order(1), "tiny", most=2) is False
        assert ledger.exposures() == 2


def judgement(run: int = 0, study: int = 0, model: str = "federated", arrays: str = "d") -> Order:
    return order(0, study, "evaluate").model_copy(
        update={"run": f"{run:064x}", "model": model, "arrays": arrays * 64}
    )


def test_a_model_of_a_run_is_judged_by_one_order(path):
    """A hundred orders with other arrays each would be a hundred questions about the same people."""
    with Ledger(path) as ledger:
        assert ledger.judge(judgement(), "tiny") is True
        assert ledger.judge(judgement(), "tiny") is False  # the same, asked again
        assert code(ledger.judge, judgement(arrays="e"), "tiny") == "PRIVACY_SPENT"
        assert ledger.judge(judgement(model="single-alpha"), "tiny") is True
        assert ledger.judge(judgement(run=1), "tiny") is True
    with Ledger(path) as ledger:
        assert code(ledger.judge, judgement(arrays="e"), "tiny") == "PRIVACY_SPENT"
        assert ledger.judge(judgement(), "tiny") is False


def test_a_model_of_a_study_is_judged_in_so_many_runs(path):
    """Runs are free to open; the cap is by study and model, and what was judged stays answered."""
    with Ledger(path) as ledger:
        for run in range(2):
            assert ledger.judge(judgement(run), "tiny", most=2) is True
        assert code(ledger.judge, judgement(2), "tiny", 2) == "PRIVACY_SPENT"
        assert ledger.judge(judgement(1), "tiny", most=2) is False
        assert ledger.judge(judgement(2, study=1), "other", most=2) is True
        assert ledger.judge(judgement(2, model="pooled"), "tiny", most=2) is True
        assert ledger.judge(judgement(2), "tiny", most=0) is True  # 0: no cap


def test_judging_and_training_are_counted_apart(path):
    """A limit on training orders must not run out because a site judged, nor the other way."""
    with Ledger(path) as ledger:
        ledger.judge(judgement(), "tiny")
        assert (ledger.exposures(), ledger.spent(STUDIES[0])) == (0, 0)
        assert ledger.spend(order(1), "tiny", most=1) is True
        assert code(ledger.spend, order(2), "tiny", 1) == "PRIVACY_SPENT"
        assert ledger.judge(judgement(1), "tiny", most=2) is True
        assert (ledger.exposures(), ledger.spent(STUDIES[0])) == (1, 1)
        account = read_ledger(path)
    assert account.spent == 1
    assert [each.kind for each in account.exposures] == ["evaluate", "train", "evaluate"]


def test_one_order_has_one_answer(path):
    """The difference of two answers tells what neither does; two noises would average out."""
    with Ledger(path) as ledger:
        ledger.answered("x", "1" * 64)
        ledger.answered("x", "1" * 64)
        assert code(ledger.answered, "x", "2" * 64) == "SITE_FAILED"
    with Ledger(path) as ledger:
        assert code(ledger.answered, "x", "2" * 64) == "SITE_FAILED"
        ledger.answered("x", "1" * 64)


def test_a_second_agent_is_refused_by_name_of_the_file(path):
    """Two writers would each believe in their own last receipt."""
    with Ledger(path), pytest.raises(FolderError, match=r"ledger\.sqlite; a site has one agent"):
        Ledger(path)
    Ledger(path).shut()  # the first has let go


def test_a_killed_agent_leaves_no_lock(path):
    """`kill -9` must not need a person to remove a file."""
    child = os.fork()
    if child == 0:
        ledger = Ledger(path)
        ledger.spend(order(1), "tiny")
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    with Ledger(path) as ledger:
        assert ledger.exposures() == 1


def test_the_ledger_can_be_read_while_the_agent_writes(path):
    """A person looks at it whenever they like; the agent must neither wait long nor fail."""
    assert read_ledger(path).exposures == ()
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny")
        ledger.set_head(3, "e" * 64)
        account = read_ledger(path)
        assert account.head == Head(3, "e" * 64)
        [exposure] = account.exposures
        assert (exposure.study_name, exposure.kind, exposure.round) == ("tiny", "train", 1)
        assert exposure.answered is False
        ledger.answered(order(1).id, "1" * 64)
        assert read_ledger(path).exposures[0].answered is True
        assert ledger.rows() == list(read_ledger(path).exposures)


def test_what_a_kill_left_in_mid_write_is_taken_back_by_the_reader(path):
    """The journal of a killed agent is there until somebody opens the ledger; be it a reader."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny")
    torn = sqlite3.connect(path, isolation_level=None)
    torn.execute("PRAGMA cache_size = 1")  # spills to the file before it commits
    torn.execute("BEGIN EXCLUSIVE")
    for number in range(2000):
        torn.execute("INSERT INTO deliveries VALUES (?, 'x', 0, 0)", (str(number),))
    copy = path.with_name("copy.sqlite")
    for suffix in ("", "-journal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    torn.close()
    assert len(read_ledger(copy).exposures) == 1
    assert not Path(f"{copy}-journal").exists()


def test_threads_take_turns(path):
    """Orders come in many connections at once; each is spent for once, and none is lost."""
    with Ledger(path) as ledger:
        spent = []

        def work() -> None:
            spent.extend(ledger.spend(order(number), "tiny", most=5) for number in range(5))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (sum(spent), len(spent), ledger.exposures()) == (5, 20, 5)


def test_a_file_that_is_no_ledger_is_refused_with_its_remedy(path):
    """A new, empty ledger in its place would forget what was spent."""
    path.parent.mkdir()
    path.write_text("age,sex\n" * 200)
    for act in (Ledger, read_ledger):
        with pytest.raises(FolderError, match=r"ledger\.sqlite cannot be used as a ledger"):
            act(path)


def test_a_ledger_of_a_later_version_is_refused(path):
    """It may hold costs that this version cannot see."""
    Ledger(path).shut()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4")
    for act in (Ledger, read_ledger):
        with pytest.raises(FolderError, match="version 4; this Callosum knows version 3"):
            act(path)


FIRST = """
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
INSERT INTO exposures VALUES (1, 'x', '2026-01-01T00:00:00', 'aa', 'tiny', 'cc', 'train', 'm', 1);
INSERT INTO answers VALUES ('x', 'dd');
INSERT INTO deliveries VALUES ('11', 'x', 10.0, 1);
INSERT INTO head SELECT 1, 7, lower(hex(zeroblob(32)));
PRAGMA user_version = 1;
"""
SEVENTH = Head(7, "0" * 64)


def test_a_ledger_of_the_first_version_is_brought_up_and_keeps_everything(path):
    """Sites update between runs; what was spent before counts for ever."""
    path.parent.mkdir()
    with sqlite3.connect(path) as first:
        first.executescript(FIRST)
    before = read_ledger(path)  # before its agent was started
    assert (before.spent, before.head, before.state) == (1, SEVENTH, "")
    with Ledger(path) as ledger:
        assert (ledger.exposures(), ledger.head()) == (1, SEVENTH)
        assert ledger.is_spent("x")
        assert code(ledger.present, "11", "x", 10.0) == "REPLAYED"
        assert code(ledger.answered, "x", "other") == "SITE_FAILED"
        state = ledger.books().state
    assert len(state) == 32
    with Ledger(path) as ledger:
        assert ledger.books().state == state
    account = read_ledger(path)
    assert (account.exposures, account.state) == (before.exposures, state)


def test_a_ledger_killed_while_it_is_brought_up_is_the_old_one(path):
    """Half of the tables would be a ledger that no version can read."""
    path.parent.mkdir()
    with sqlite3.connect(path) as first:
        first.executescript(FIRST)
        first.execute("CREATE TABLE spendings (x)")  # so that the last of them fails
    with pytest.raises(FolderError):
        Ledger(path)
    with sqlite3.connect(path) as found:
        names = {row[0] for row in found.execute("SELECT name FROM sqlite_master")}
        assert found.execute("PRAGMA user_version").fetchone() == (1,)
        assert names.isdisjoint({"state", "told", "stop", "decisions"})
        found.execute("DROP TABLE spendings")
    with Ledger(path) as ledger:
        assert ledger.exposures() == 1


def test_every_state_folder_has_an_id_of_its_own(path, tmp_path):
    """By it a folder that was made anew is told from the one that was there."""
    with Ledger(path) as one, Ledger(tmp_path / "other" / "ledger.sqlite") as other:
        assert one.books().state != other.books().state


def test_what_is_taken_over_counts_and_never_falls(path):
    """A restored ledger has forgotten exposures; the people behind them have not."""
    seen = Books(state="f" * 32, exposures=8, receipt=52, hash="e" * 64)
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny")
        before = ledger.books()
        assert "state folder" in ledger.disowned(seen)
        ledger.stop(seen, "another folder")
        ledger.stop(seen.model_copy(update={"exposures": 7}), "less")  # the highest counts
        assert ledger.stopped().seen == seen
        assert read_ledger(path).stop == ledger.stopped()
        assert ledger.go_on("jane", 8) == 7
        assert ledger.go_on("jane", 3) == 0
    with Ledger(path) as ledger:
        assert ledger.stopped() is None
        assert ledger.exposures() == read_ledger(path).spent == 8
        assert ledger.books().state != before.state
        assert code(ledger.spend, order(2), "tiny", 8) == "PRIVACY_SPENT"
        assert ledger.spend(order(2), "tiny", 9)
        assert ledger.books().exposures == 9


def test_only_what_was_told_is_owned(path):
    """A clone may come to have as many receipts: what the hub has seen of them is not its own."""
    with Ledger(path) as ledger:
        ledger.set_head(4, "c" * 64)
        ledger.set_head(5, "d" * 64, 0)
        ledger.set_head(6, "e" * 64)
        own = ledger.books().model_copy(update={"receipt": 5, "hash": "d" * 64})
        assert ledger.disowned(own) == ""
        ledger.set_head(7, "f" * 64, 0)
        newest = ledger.books()
        ledger.spend(order(1), "tiny")  # under way, or killed before it was answered
        assert ledger.disowned(newest) == ledger.disowned(own) == ""
        for change in ({"hash": "c" * 64}, {"receipt": 4, "hash": "c" * 64}, {"receipt": 3}):
            assert "did not leave here" in ledger.disowned(own.model_copy(update=change))
        assert "receipt 7 after 8" in ledger.disowned(own.model_copy(update={"receipt": 8}))


def test_a_full_disk_is_said_and_leaves_the_ledger_usable(path):
    """Space is freed and the same agent goes on; the failed entry is not half there."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny")
        ledger._connection.execute(
            "PRAGMA max_page_count = 1"
        )  # as small as it is: no page is left
        with pytest.raises(StorageError, match=r"ledger\.sqlite cannot be written"):
            for number in range(2, 2000):
                ledger.spend(order(number), "n" * 2000)
        before = ledger.exposures()
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        assert ledger.spend(order(5000), "tiny")
        assert ledger.exposures() == before + 1


def test_every_change_is_on_disk_when_it_returns(path):
    """A power cut after `spend` must not undo it: FULL and more, in a journal that is synced."""
    with Ledger(path) as ledger:
        pragma = {
            name: ledger._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("synchronous", "journal_mode", "user_version")
        }
    assert pragma == {"synchronous": 3, "journal_mode": "delete", "user_version": 3}


class Deliveries(RuleBasedStateMachine):
    """Any order of deliveries, closings, spendings, answers and restarts, beside plain sets."""

    names = st.integers(0, 3)

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.ledger = Ledger(self.folder / "ledger.sqlite")
        self.presented: dict[int, int] = {}
        self.closed: set[int] = set()
        self.spent: list[str] = []
        self.judged: dict[tuple[int, int], str] = {}  # order by study and run
        self.rows: list[str] = []
        self.answers: dict[int, int] = {}
        self.head = NOTHING

    @rule(nonce=names, about=names)
    def present(self, nonce: int, about: int) -> None:
        replayed = nonce in self.closed or self.presented.get(nonce, about) != about
        if replayed:
            assert code(self.ledger.present, str(nonce), str(about), 1.0) == "REPLAYED"
        else:
            self.ledger.present(str(nonce), str(about), 1.0)
            self.presented[nonce] = about

    @rule(nonce=names)
    def close(self, nonce: int) -> None:
        self.ledger.close(str(nonce))
        if nonce in self.presented:
            self.closed.add(nonce)

    @rule(number=names, study=st.integers(0, 1), most=st.integers(0, 4))
    def spend(self, number: int, study: int, most: int) -> None:
        asked = order(number, study)
        if asked.id in self.spent:
            assert self.ledger.spend(asked, "tiny", most) is False
        elif most and len(self.spent) >= most:
            assert code(self.ledger.spend, asked, "tiny", most) == "PRIVACY_SPENT"
        else:
            assert self.ledger.spend(asked, "tiny", most) is True
            self.spent.append(asked.id)
            self.rows.append(asked.id)

    @rule(run=names, study=st.integers(0, 1), arrays=st.sampled_from("de"), most=st.integers(0, 3))
    def judge(self, run: int, study: int, arrays: str, most: int) -> None:
        asked = judgement(run, study, arrays=arrays)
        earlier = {r: each for (s, r), each in self.judged.items() if s == study}
        if asked.id in earlier.values():
            assert self.ledger.judge(asked, "tiny", most) is False
        elif run in earlier or (most and len(earlier) >= most):
            assert code(self.ledger.judge, asked, "tiny", most) == "PRIVACY_SPENT"
        else:
            assert self.ledger.judge(asked, "tiny", most) is True
            self.judged[study, run] = asked.id
            self.rows.append(asked.id)

    @rule(about=names, digest=st.integers(0, 1))
    def answered(self, about: int, digest: int) -> None:
        if self.answers.setdefault(about, digest) != digest:
            assert code(self.ledger.answered, str(about), str(digest)) == "SITE_FAILED"
        else:
            self.ledger.answered(str(about), str(digest))

    @rule(number=st.integers(1, 9))
    def write(self, number: int) -> None:
        self.head = Head(number, f"{number:064d}")
        self.ledger.set_head(*self.head)

    @rule()
    def restart(self) -> None:
        self.ledger.shut()
        self.ledger = Ledger(self.folder / "ledger.sqlite")

    @invariant()
    def counts_are_those_of_the_sets(self) -> None:
        assert self.ledger.exposures() == len(self.spent)
        assert [each.order for each in self.ledger.rows()] == self.rows
        assert self.ledger.head() == self.head

    def teardown(self) -> None:
        self.ledger.shut()
        shutil.rmtree(self.folder)


Deliveries.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_any_interleaving_keeps_the_invariants = Deliveries.TestCase
