"""What was seen of a site outlives runs and crashes, and stops that site alone, and only with cause."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from client.authority.books import check_books
from client.authority.ledger import Ledger
from client.authority.receipts import Receipts
from client.authority.records import Records
from client.site import Policy
from common.errors import Refusal, SettingError
from common.protocol.orders import Books, Order, Report
from server.federation.books import SiteBooks


def order(number: int = 1, run: int = 0, site: str = "alpha") -> Order:
    return Order.model_validate({
        "kind": "train", "study": "a" * 64, "run": f"{run:064d}", "site": site, "round": number,
        "arrays": "d" * 64,
    })  # fmt: skip


def books(receipt: int = 1, exposures: int = 1, state: str = "a", mark: str = "e") -> Books:
    return Books(state=state * 32, exposures=exposures, receipt=receipt, hash=mark * 64)


def report(asked: Order, told: Books | None) -> Report:
    return Report(order=asked.id, site=asked.site, kind="train", round=asked.round, books=told)


def taken(kept: SiteBooks, told: Books | None, asked: Order | None = None) -> str:
    """The code with which books that arrive are refused, or nothing."""
    asked = asked or order()
    try:
        kept.take(asked, report(asked, told))
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.fixture
def kept(tmp_path: Path) -> SiteBooks:
    return SiteBooks(tmp_path / "books")


def private(steps: int, **more: Any) -> Books:
    word = f"{'b' * 64} 1.0 0.1 1e-05 {steps}"
    return books(**more).model_copy(update={"private": (word,)})


def test_private_steps_that_became_fewer_stop_a_site(kept):
    """Receipts and exposures may grow on: a budget that was given back would be spent twice."""
    assert taken(kept, private(30, receipt=5)) == ""
    assert taken(kept, private(30, receipt=6)) == ""
    assert taken(kept, private(40, receipt=7)) == ""
    assert taken(kept, private(39, receipt=8)) == "BOOKS"
    assert kept.page("alpha").stopped == "39 private steps after 40"


def test_accepting_a_site_keeps_the_private_steps_that_were_seen(kept):
    """The history ends; what it cost the participants does not."""
    assert taken(kept, private(40, receipt=5)) == ""
    kept.stop("alpha", "for the test")
    assert kept.accept("alpha").private == private(40).private
    assert taken(kept, private(30, receipt=6, state="c")) == "BOOKS"
    kept.accept("alpha", 0)  # a count by hand: nothing that was told is believed
    assert taken(kept, private(30, receipt=6, state="c")) == ""


def test_what_was_seen_is_told_by_every_later_run(kept):
    """A clone would otherwise only have to wait for the next study."""
    assert kept.told(order()) is None
    assert taken(kept, books(5)) == ""
    another = SiteBooks(kept.folder)
    assert another.told(order(run=1)) == books(5)
    assert another.told(order(site="beta")) is None
    assert another.sites() == ["alpha"]


@pytest.mark.parametrize(
    "fall",
    [books(4), books(6, 0), books(5, mark="f"), books(9, 9, state="b"), books(5, 2)],
    ids=["receipt", "count", "hash", "folder", "count at a number"],
)
def test_a_fall_or_an_alternation_stops_that_site_alone_until_it_is_accepted(kept, fall):
    """Whatever it tells later: a clone's next report may look better."""
    assert taken(kept, books(5)) == ""
    kept.told(order(2))
    assert taken(kept, fall, order(2)) == "BOOKS"
    again = SiteBooks(kept.folder)
    assert again.stops("alpha")
    assert not again.stops("beta")
    assert taken(again, books(99, 99)) == "BOOKS"
    assert taken(again, books(1), order(site="beta")) == ""
    assert again.page("alpha").since > 0
    ended = again.accept("alpha")
    assert (ended.exposures, ended.receipt) == (1, 0)
    assert not again.stops("alpha")
    assert taken(again, books(7, 0, state="c")) == "BOOKS"  # the count never falls
    again.accept("alpha")
    assert taken(again, books(99, 99)) == "BOOKS"  # of the folder whose history was ended
    again.accept("alpha")
    assert taken(again, books(6, 1, state="c")) == ""


def test_reports_of_several_runs_may_overtake_each_other(kept):
    """Each ServerApp fetches when it looks; the site's own order is in its receipts."""
    assert taken(kept, books(5)) == ""
    for run in (1, 2):
        kept.told(order(run=run))
    assert taken(kept, books(7, 3, mark="f"), order(run=2)) == ""
    assert taken(kept, books(6, 2, mark="f"), order(run=1)) == ""
    assert kept.told(order(3)) == books(7, 3, mark="f")  # the last that was made, not that came


def test_what_was_made_before_its_order_was_sent_is_no_answer_to_it(kept):
    """A courier that keeps a report and brings it later would hide what was spent since."""
    assert taken(kept, books(5)) == ""
    assert taken(kept, books(8, 4, mark="f")) == ""
    kept.told(order(4))
    assert taken(kept, books(7, 3, mark="f"), order(4)) == "BOOKS"


def test_two_copies_that_answer_two_runs_at_once_are_found_on_arrival(kept):
    """Both were told the same: neither can see that it is not alone."""
    assert taken(kept, books(5)) == ""
    for run in (1, 2):
        kept.told(order(run=run))
    assert taken(kept, books(6, 2, mark="b"), order(run=1)) == ""
    assert taken(kept, books(6, 2, mark="c"), order(run=2)) == "BOOKS"


@pytest.mark.parametrize("told", [None, books(0)])
def test_a_report_without_books_is_malformed_and_changes_nothing(kept, told):
    """Leaving them out must not be the way around them."""
    assert taken(kept, told) == "REPORT_MALFORMED"
    assert not kept.stops("alpha")
    assert kept.sites() == []


def test_a_site_that_says_so_itself_is_stopped_and_the_first_reason_stays(kept):
    """The reason is for the person who decides."""
    kept.stop("alpha", "the site itself says so")
    kept.stop("alpha", "again")
    assert kept.page("alpha").stopped == "the site itself says so"
    assert kept.accept("alpha", 12).exposures == 12
    assert taken(kept, books(3, 12)) == ""


def test_a_page_that_cannot_be_read_stops_its_site_and_no_other(kept):
    """A disk that forgets what was seen must not open the door, nor end the run."""
    assert taken(kept, books(5)) == ""
    for damage in (b"", b"{", b'{"seen": [1]}', b"\xff" * 99, b'{"stopped": "", "more": 1}'):
        (kept.folder / "alpha.json").write_bytes(damage)
        assert kept.stops("alpha")
        assert taken(kept, books(6)) == "BOOKS"
        kept.stop("alpha", "more")
        assert (kept.folder / "alpha.json").read_bytes() == damage  # for whoever looks at it
    assert "newest backup" in kept.page("alpha").stopped
    kept.accept("alpha", 5)
    assert taken(kept, books(6, 5)) == ""


def test_a_stranger_to_the_books_cannot_be_accepted(kept):
    """A name that was mistyped must not look like a decision."""
    taken(kept, books(5))
    with pytest.raises(SettingError, match="nothing was seen of alhpa; known: alpha"):
        kept.accept("alhpa")


def test_nothing_is_kept_where_all_is_one_process(tmp_path):
    """A simulation's agents keep no records."""
    nowhere = SiteBooks()
    assert nowhere.told(order()) is None
    assert taken(nowhere, None) == ""
    assert not nowhere.stops("alpha")
    nowhere.stop("alpha", "x")


def test_runs_of_one_hub_take_turns(kept):
    """Two ServerApps that hear of one site at once must not forget what the other saw."""
    numbers = list(range(1, 41))

    def hear(mine: list[int]) -> None:
        own = SiteBooks(kept.folder)
        for number in mine:
            told = Books(state="a" * 32, exposures=number, receipt=number, hash=f"{number:064d}")
            assert taken(own, told, order(number)) == ""

    threads = [threading.Thread(target=hear, args=(numbers[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.receipt for each in kept.page("alpha").seen] == numbers


class Honest(RuleBasedStateMachine):
    """One honest site, several runs of one hub, and every trouble that is nobody's fault.

    Orders and reports are lost, come late and twice, the agent and the hub are killed, a receipt is
    torn, the hub is set back to a backup of its own: nobody is ever stopped. And whenever the site
    is set back behind what was seen, the next order finds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.hubs = [SiteBooks(self.home / "hub") for _ in range(2)]
        self.sealed: list[tuple[int, Order, Any]] = []
        self.working: list[tuple[int, Order]] = []
        self.sent: list[tuple[int, Order, Report]] = []
        self.rounds = 0
        self.records: Records | None = None

    @initialize()
    def begin(self) -> None:
        self._start()

    def _start(self) -> None:
        ledger = Ledger(self.home / "site" / "ledger.sqlite")
        self.records = Records(ledger, Receipts(self.home / "site" / "receipts", ledger))

    @rule(run=st.integers(0, 1), again=st.booleans())
    def seal(self, run: int, again: bool) -> None:
        """A new order, or the newest one asked again in a new envelope."""
        self.rounds += not again or not self.rounds
        asked = order(self.rounds, run)
        self.sealed.append((run, asked, self.hubs[run].told(asked)))
        self.sealed = (
            [  # one asking of an order is under way at a time
                one for one in self.sealed[:-1] if one[1].id != asked.id
            ]
            + self.sealed[-1:]
        )

    @precondition(lambda self: self.sealed)
    @rule(which=st.integers(0, 9))
    def work(self, which: int) -> None:
        """Paid for, and not answered yet while others are let in."""
        run, asked, seen = self.sealed.pop(which % len(self.sealed))
        check_books(self.records.ledger, seen)
        self.records.spend(asked, "tiny", Policy(most_exposures=0))
        self.working.append((run, asked))

    @precondition(lambda self: self.working)
    @rule(which=st.integers(0, 9), leaves=st.booleans())
    def answer(self, which: int, leaves: bool) -> None:
        run, asked = self.working.pop(which % len(self.working))
        answer = self.records.depart(asked, "tiny", report(asked, None), {})
        if leaves:
            self.sent = [one for one in self.sent if one[1].id != asked.id]
            self.sent.append((run, asked, answer))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 9))
    def arrive(self, which: int) -> None:
        run, asked, answer = self.sent.pop(which % len(self.sent))
        self.hubs[run].take(asked, answer)

    @rule()
    def refuse(self) -> None:
        """Somebody without a key knocks: that is a receipt, and no report tells it."""
        self.records.decline_unread("SIGNATURE", 99)

    @rule(torn=st.booleans())
    def kill_agent(self, torn: bool) -> None:
        self.records.ledger.shut()
        files = sorted((self.home / "site" / "receipts").glob("*.jsonl"))
        if torn and files:
            with files[-1].open("a") as stream:
                stream.write('{"number": 7, "time": "2')
        self.working = []
        self._start()

    @rule()
    def kill_hub(self) -> None:
        """Its ServerApps start anew; what was on its way to them is lost."""
        self.hubs = [SiteBooks(self.home / "hub") for _ in range(2)]
        self.sealed, self.working, self.sent = [], [], []

    @rule()
    def back_up_hub(self) -> None:
        shutil.rmtree(self.home / "backup", ignore_errors=True)
        if (self.home / "hub").exists():
            shutil.copytree(self.home / "hub", self.home / "backup")

    @precondition(lambda self: (self.home / "backup").exists())
    @rule()
    def restore_hub(self) -> None:
        shutil.rmtree(self.home / "hub")
        shutil.copytree(self.home / "backup", self.home / "hub")
        self.kill_hub()

    @rule()
    def back_up_site(self) -> None:
        shutil.rmtree(self.home / "copy", ignore_errors=True)
        shutil.copytree(self.home / "site", self.home / "copy")

    @precondition(lambda self: (self.home / "copy").exists())
    @rule()
    def a_site_set_back_is_found(self) -> None:
        """What the copy would answer, and that it may go on where nothing was seen since."""
        seen = SiteBooks(self.home / "hub").told(order(999))
        with Ledger(self.home / "copy" / "ledger.sqlite") as ledger:
            behind = seen is not None and seen.receipt > ledger.head().number
            try:
                check_books(ledger, seen)
            except Refusal as refusal:
                assert refusal.code == "BOOKS"
                assert behind
            else:
                assert not behind
        shutil.rmtree(self.home / "copy")

    def teardown(self) -> None:
        if self.records is not None:
            self.records.ledger.shut()
        shutil.rmtree(self.home)


Honest.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
test_nothing_that_is_nobodys_fault_stops_a_site = Honest.TestCase
