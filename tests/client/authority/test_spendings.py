"""Private spendings are written before the work, counted once, capped twice, and never forgotten."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from client.authority import spendings
from client.authority.ledger import Ledger, read_copy, read_ledger
from client.authority.spendings import Asked, lifetime, of_study, told
from common.errors import FolderError, Refusal
from common.privacy.accounting import epsilon
from common.privacy.cost import MIXED, Cost, Spent, read_spent, steps_in
from common.protocol.books import fallen
from common.protocol.orders import Books, Order
from tests.client.authority.test_ledger import FIRST, STUDIES, code, order

ONE = Cost(noise=1.0, rate=0.1, steps=10, delta=1e-4)
OTHER = Cost(noise=2.0, rate=0.25, steps=8, delta=1e-5)


def asked(cost: Cost = ONE, study_cap: float = 0.0, site_cap: float = 0.0) -> Asked:
    return Asked(cost=cost, people=100, study_cap=study_cap, site_cap=site_cap)


def after(rounds: int, cost: Cost = ONE) -> float:
    return epsilon([cost.model_copy(update={"steps": cost.steps * rounds})], cost.delta)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def steps(ledger: Ledger) -> int:
    return sum(each.cost.steps for each in ledger.private())


def test_a_round_is_entered_once_with_its_exposure(path):
    """Both or neither: a kill between the two would be an exposure without a bound."""
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny", asked=asked()) is True
        assert ledger.spend(order(1), "tiny", asked=asked()) is False
        assert (ledger.exposures(), steps(ledger)) == (1, 10)
    account = read_ledger(path)
    assert account.private == (Spent(study=STUDIES[0], cost=ONE),)
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny", asked=asked()) is False
        assert steps(ledger) == 10


@pytest.mark.parametrize("caps", [{"study_cap": after(3)}, {"site_cap": after(3)}])
def test_the_round_that_would_exceed_a_cap_is_declined_and_not_entered(path, caps):
    """Declined before any work; what was paid for is still answered."""
    with Ledger(path) as ledger:
        for number in (1, 2, 3):
            assert ledger.spend(order(number), "tiny", asked=asked(**caps))
        assert code(ledger.spend, order(4), "tiny", 0, asked(**caps)) == "BUDGET_EXHAUSTED"
        assert (ledger.exposures(), steps(ledger)) == (3, 30)
        assert ledger.spend(order(3), "tiny", asked=asked(**caps)) is False
    with Ledger(path) as ledger:  # a restart buys nothing
        assert code(ledger.spend, order(4), "tiny", 0, asked(**caps)) == "BUDGET_EXHAUSTED"


def test_the_tighter_cap_holds(path):
    """The coordinator's is of one study, the site's of all; neither can be talked away."""
    with Ledger(path) as ledger:
        tight, loose = after(1), after(9)
        assert ledger.spend(order(1), "tiny", asked=asked(study_cap=loose, site_cap=tight))
        both = asked(study_cap=loose, site_cap=tight)
        assert code(ledger.spend, order(2), "tiny", 0, both) == "BUDGET_EXHAUSTED"
        # another study has a budget of its own, and the same people
        assert code(ledger.spend, order(2, study=1), "other", 0, both) == "BUDGET_EXHAUSTED"
        only_study = asked(study_cap=tight)
        assert code(ledger.spend, order(2), "tiny", 0, only_study) == "BUDGET_EXHAUSTED"
        assert ledger.spend(order(2, study=1), "other", asked=only_study)


def test_a_lifetime_is_composed_over_studies_at_the_smallest_delta(path):
    """Mixed noise and rate: no sum of epsilons, which would be too much, nor a maximum, too little."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked(ONE))
        ledger.spend(order(1, study=1), "other", asked=asked(OTHER))
        spent = ledger.private()
    whole = epsilon([ONE, OTHER], OTHER.delta)
    assert lifetime(spent) == whole
    assert max(after(1), after(1, OTHER)) < whole
    assert whole < epsilon([ONE], OTHER.delta) + after(1, OTHER)
    assert of_study(spent, STUDIES[0]) == after(1)
    assert of_study(spent, STUDIES[1], OTHER) == after(2, OTHER)
    assert lifetime([]) == 0.0


def test_orders_without_privacy_cost_no_epsilon_and_have_no_bound(path):
    """They are exposures; a private study beside them does not hide them."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "plain")
        ledger.spend(order(2, kind="finetune"), "plain")
        assert (ledger.exposures(), ledger.private()) == (2, [])


def test_a_draw_that_was_told_of_is_paid_for_again(path):
    """A code says how the noise fell: asking until it falls well is asking more than once."""
    with Ledger(path) as ledger:
        cap = asked(study_cap=after(2))
        assert ledger.spend(order(1), "tiny", asked=cap) is True
        ledger.see(order(1).id)
        assert ledger.spend(order(1), "tiny", asked=cap) is True
        assert ledger.spend(order(1), "tiny", asked=cap) is False  # killed, nothing was told
        assert (ledger.exposures(), steps(ledger)) == (1, 20)
        ledger.see(order(1).id)
        assert code(ledger.spend, order(1), "tiny", 0, cap) == "BUDGET_EXHAUSTED"


def test_a_draw_among_fewer_people_is_paid_for_by_its_own_rate(path):
    """Killed, restarted after some had left: the draw that was paid for is not the one that is made."""
    fewer = ONE.model_copy(update={"rate": 0.2, "steps": 5})
    with Ledger(path) as ledger:
        assert ledger.spend(order(1), "tiny", asked=asked())
        assert ledger.spend(order(1), "tiny", asked=asked(fewer)) is True
        assert ledger.spend(order(1), "tiny", asked=asked(fewer)) is False
        assert lifetime(ledger.private()) == epsilon([ONE, fewer], ONE.delta)


def test_an_answered_order_is_never_drawn_again(path):
    """Its first answer left; if it is lost here, a second one would be another release."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked())
        ledger.answered(order(1).id, "1" * 64)
        assert code(ledger.spend, order(1), "tiny", 0, asked()) == "SITE_FAILED"
        assert steps(ledger) == 10


def test_threads_do_not_spend_the_same_budget_twice(path):
    """The check and the entry are one: two runs at once must not both find the last round free."""
    with Ledger(path) as ledger:
        codes = []

        def work(number: int) -> None:
            try:
                ledger.spend(order(number), "tiny", asked=asked(site_cap=after(3)))
            except Refusal as refusal:
                codes.append(refusal.code)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (steps(ledger), codes) == (30, ["BUDGET_EXHAUSTED"] * 5)


def books(ledger: Ledger) -> Books:
    return ledger.books().model_copy(update={"receipt": 7, "hash": "d" * 64})


def test_books_tell_private_steps_and_a_ledger_set_back_shows(path):
    """The same exposures with fewer steps would be a history that somebody made cheaper."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked())
        ledger.see(order(1).id)
        before = books(ledger)
        ledger.spend(order(1), "tiny", asked=asked())  # another draw: no more exposures, more steps
        now = books(ledger)
        assert (before.exposures, steps_in(before.private)) == (1, 10)
        assert (now.exposures, steps_in(now.private)) == (1, 20)
        assert fallen(now, before) == "10 private steps after 20"
        assert fallen(before, now) == ""
    assert Books.model_validate_json(now.model_dump_json()) == now


def test_what_a_restored_ledger_forgot_is_taken_over_with_its_noise(path, tmp_path):
    """A count alone could not say what epsilon was lost with the newer ledger."""
    older = tmp_path / "older" / "ledger.sqlite"
    with Ledger(path) as ledger, Ledger(older) as restored:
        for number in (1, 2, 3):
            ledger.spend(order(number), "tiny", asked=asked())
        ledger.spend(order(9, study=1), "other", asked=asked(OTHER))
        restored.spend(order(1), "tiny", asked=asked())
        seen, wanted = books(ledger), lifetime(ledger.private())
        restored.stop(seen, "set back")
        assert restored.go_on("jane", seen.exposures) == 3
        assert lifetime(restored.private()) == pytest.approx(wanted)
        assert of_study(restored.private(), STUDIES[0]) == pytest.approx(after(3))
        assert steps(restored) == steps(ledger)
        cap = asked(study_cap=after(3))
        assert code(restored.spend, order(4), "tiny", 0, cap) == "BUDGET_EXHAUSTED"
        assert restored.go_on("jane", 0) == 0  # accepted twice is taken over once
        assert steps(restored) == steps(ledger)


def test_what_a_copy_spent_by_itself_is_added(path, tmp_path):
    """Neither ledger knows of the other's rounds; the people behind both are the same."""
    other = tmp_path / "copy" / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked())
    other.parent.mkdir()
    shutil.copy(path, other)
    with Ledger(path) as ledger, Ledger(other) as copy:
        ledger.spend(order(2), "tiny", asked=asked())
        copy.spend(order(4, kind="finetune"), "tiny")
        for number in (2, 3):  # the same order drawn at both is two draws
            copy.spend(order(number), "tiny", asked=asked())
        seen = books(copy)
        ledger.stop(seen, "a copy")
        assert ledger.go_on("jane", seen.exposures, read_copy(other)) == 3
        assert (ledger.exposures(), steps(ledger)) == (5, 40)
        assert lifetime(ledger.private()) == pytest.approx(after(4))
        # what the copy drew is no draw that may be made here for nothing
        assert ledger.spend(order(3), "tiny", asked=asked()) is True
        before = steps(ledger)
        ledger.go_on("jane", 0, read_copy(path))  # itself: nothing is new
        ledger.go_on("jane", 0, read_copy(other))  # and given twice, nothing either
        assert steps(ledger) == before
    with pytest.raises(FolderError, match="is no ledger of version"):
        read_copy(tmp_path / "nowhere.sqlite")


def test_steps_of_a_count_that_is_not_believed_are_not_taken_over(path):
    """Somebody on the way may have made both up, to spend a site's budget without a round."""
    word = Spent(study=STUDIES[0], cost=ONE.model_copy(update={"steps": 2**50})).word
    seen = Books(state="f" * 32, exposures=10**9, receipt=9, hash="e" * 64, private=(word,))
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked())
        ledger.stop(seen, "made up")
        ledger.go_on("jane", 1)
        assert steps(ledger) == 10
        ledger.stop(seen, "seen indeed")
        ledger.go_on("jane", 10**9)
        assert steps(ledger) == 2**50


def test_the_stop_that_has_seen_most_is_kept(path):
    """Whatever comes after it must not make less of what is taken over."""
    with Ledger(path) as ledger:
        seen = Books(state="f" * 32, exposures=8, receipt=52, hash="e" * 64)
        word = Spent(study=STUDIES[0], cost=ONE).word
        ledger.stop(seen, "first")
        ledger.stop(seen.model_copy(update={"private": (word,)}), "second")
        ledger.stop(seen, "third")
        assert ledger.stopped().seen.private == (word,)


def test_very_many_entries_are_told_as_one_at_its_worst() -> None:
    """Books have a bounded length; what is left out of them would be left out for ever."""
    spent = [
        Spent(
            study=STUDIES[n % 2],
            cost=ONE.model_copy(update={"delta": 1e-5 * (n + 1), "rate": rate}),
        )
        for n, rate in enumerate([0.1, 0.2] * 100)
    ]
    words = told(spent)
    assert len(words) <= 64
    assert steps_in(words) == 2000
    assert read_spent(words[-1]).study == MIXED
    folded = [read_spent(word).cost for word in words]
    assert epsilon(folded, 1e-5) >= epsilon([each.cost for each in spent], 1e-5)
    assert told(spent[:30]) == words[:30]


def test_a_ledger_of_the_second_version_is_brought_up_and_keeps_everything(path):
    """Sites update between runs; their exposures and decisions count for ever."""
    from client.authority import ledger_schema

    path.parent.mkdir()
    with sqlite3.connect(path) as second:
        second.executescript(FIRST)
        second.executescript(f"{ledger_schema._SECOND} PRAGMA user_version = 2;")
        second.execute("INSERT INTO decisions VALUES (1, 't', 'jane', '', '', 4)")
    before = read_ledger(path)
    assert (before.spent, before.private, len(before.state)) == (5, (), 32)
    with Ledger(path) as ledger:
        assert ledger.exposures() == 5
        assert ledger.books().state == before.state
        ledger.spend(order(1), "tiny", asked=asked())
    assert read_ledger(path).private == (Spent(study=STUDIES[0], cost=ONE),)


@pytest.mark.parametrize(("column", "value"), [("noise", -1), ("rate", "x"), ("steps", 0)])
def test_a_rotten_spending_is_no_smaller_cost(path, column, value):
    """A row that makes no sense ends the ledger with a remedy, not the person's protection."""
    with Ledger(path) as ledger:
        ledger.spend(order(1), "tiny", asked=asked())
    with sqlite3.connect(path) as found:
        found.execute(f"UPDATE spendings SET {column} = ?", (value,))
    with pytest.raises(FolderError, match="cannot be used as a ledger"):
        read_ledger(path)
    with Ledger(path) as ledger, pytest.raises(FolderError):
        ledger.spend(order(2), "tiny", asked=asked())


def test_spendings_know_no_order_of_their_own(path: Any) -> None:
    """What a person took over has no order id, so no order can pass as paid by it."""
    with Ledger(path) as ledger:
        seen = Books(
            state="f" * 32, exposures=1, receipt=2, hash="e" * 64,
            private=(Spent(study=STUDIES[0], cost=ONE).word,),
        )  # fmt: skip
        ledger.stop(seen, "made anew")
        ledger.go_on("jane", 1)
        assert ledger.spend(order(1), "tiny", asked=asked()) is True
        assert steps(ledger) == 20


def test_every_order_pays_for_its_own_draw(path):
    """The control for all of the above: two orders are two spendings."""
    with Ledger(path) as ledger:
        for one in (
            order(1),
            order(2),
            Order.model_validate({**order(1).model_dump(), "run": "e" * 64}),
        ):
            assert ledger.spend(one, "tiny", asked=asked())
        assert steps(ledger) == 30
        assert spendings.told(ledger.private())[0].endswith(" 30")
