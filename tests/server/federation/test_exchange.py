"""Whoever could not be reached is asked again, whoever declines is not, and time is never wasted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from client.site import load_site
from common.errors import SENTENCES, QuorumError
from common.protocol.orders import Order, Report, declined, digest_of, refuse
from common.protocol.signing import Sealed, read_envelope, unseal
from common.protocol.wire import (
    forward,
    open_arrays,
    pack_report,
    unpack_order,
    unpack_report,
    unpack_sealed,
)
from deploy import local
from server.federation import exchange as room
from server.federation import progress
from server.federation.exchange import Exchange
from server.federation.parcel import NOTHING, parcel_of
from server.federation.progress import ProgressFile

KEY = Ed25519PrivateKey.generate()
LIMIT_S = 100.0
BAD = "gamma"  # the site that is in trouble; alpha and beta are not
EVERYBODY = ["alpha", "beta", BAD]
AGAIN = ["BUSY", "EXPIRED", "NO_AGENT", "REPLAYED", "TRANSPORT"]


@dataclass
class Clock:
    """Time as the exchange sees it: it passes only while the exchange rests."""

    now: float = 5000.0

    def time(self) -> float:
        return 1_790_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Asking(NamedTuple):
    """One time that a site was asked."""

    at: float
    order: Order
    sealed: Sealed
    names: tuple[str, ...]  # of the arrays that travelled with it


ANSWER, LATER = object(), object()
Said = Error | RecordDict | object | None  # None: the message is lost, and nobody says so
Play = Callable[[Order, int], Said]  # which order, asked for which time (from 1)


@dataclass
class Stage:
    """What happens to orders, and what happened."""

    clock: Clock
    play: Play = lambda order, times: ANSWER
    asked: list[Asking] = field(default_factory=list)
    connected: Callable[[Order, int], bool] = lambda order, times: True

    def times(self, site: str) -> list[Asking]:
        return [asking for asking in self.asked if asking.order.site == site]


class Scripted(local.LocalGrid):
    """A LocalGrid over real agents whose messages a play may delay, lose or answer itself."""

    stage: Stage

    def push_messages(self, messages):
        kept = []
        for message in messages:
            sealed, arrays = unpack_sealed(message.content)
            order = read_envelope(sealed.text).order
            names = tuple(sorted(name for name, _ in arrays))
            self.stage.asked.append(Asking(self.stage.clock.now, order, sealed, names))
            if self.stage.connected(order, len(self.stage.times(order.site))):
                kept += super().push_messages([message])
            else:
                kept.append("")  # as SuperLink says it of a node that is not connected
        return kept

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        for message_id, message in list(self._waiting.items()):
            if message_id not in wanted:
                continue
            order, _ = unpack_order(message.content)
            said = self.stage.play(order, len(self.stage.times(order.site)))
            if said is LATER:
                continue
            del self._waiting[message_id]
            if said is not None:
                answered = said is ANSWER
                return [self._answer(message) if answered else Message(said, reply_to=message)]
        return []


def lost(times: int, said: Said, *, kind: str = "census") -> Play:
    """The bad site's first so many askings end in `said`; the next one is answered."""

    def play(order: Order, number: int) -> Said:
        return said if order.site == BAD and order.kind == kind and number <= times else ANSWER

    return play


@pytest.fixture(scope="module")
def three(module_federation):
    """Three sites of which two suffice."""
    return module_federation(
        {"sites.quorum": 2, "sites.time_limit_s": LIMIT_S, "pretraining.rounds": 2}
    )


@pytest.fixture(scope="module")
def agents(three) -> list[Any]:
    study = three.study
    return [
        local.open_agent(study, load_site(three.sites / name / "site.toml")) for name in EVERYBODY
    ]


@pytest.fixture
def stage(monkeypatch) -> Iterator[Stage]:
    made = Stage(Clock())
    monkeypatch.setattr(room, "time", made.clock)
    monkeypatch.setattr(Scripted, "stage", made, raising=False)
    return made


@dataclass
class Census:
    """One exchange of census orders, and the folder that it fills."""

    exchange: Exchange
    orders: list[Order]
    folder: Path

    def ask(self, **more: Any) -> room.Outcome:
        place = self.folder / "census"
        return self.exchange.ask(self.orders, NOTHING, place, {}, "census: sites", **more)

    def progress(self) -> dict[str, Any]:
        return json.loads((self.folder / "progress.json").read_text())


@pytest.fixture
def census(three, agents, stage, tmp_path) -> Census:
    grid = Scripted(agents)
    study = three.study
    orders = [
        Order(kind="census", study=study.digest, run="0" * 64, site=site, arrays=digest_of({}))
        for site in EVERYBODY
    ]
    file = ProgressFile(tmp_path, study.pretraining.rounds)
    exchange = Exchange(grid, grid.nodes, study, key=KEY, progress=file)
    return Census(exchange, orders, tmp_path)


def unreached(code: str) -> Sequence[Said]:
    """All the ways in which a reply says that code."""
    if code == "TRANSPORT":
        return [Error(code=number, reason="/data/sub-01") for number in (0, 2, 5)]
    order = Order(kind="census", study="1" * 64, run="0" * 64, site=BAD, arrays="0" * 64)
    return [forward(declined(code), []), pack_report(refuse(order, code), ArrayRecord())]


@pytest.mark.parametrize("code", AGAIN)
def test_an_order_that_was_not_received_is_asked_again_and_ends_well(census, stage, code):
    """A site whose agent restarts, or whose line broke, loses minutes and not the round."""
    for said in unreached(code):
        stage.asked.clear()
        stage.play = lost(3, said)
        outcome = census.ask()
        assert sorted(outcome.reports) == EVERYBODY
        assert outcome.refused == {}
        assert Counter(asking.order.site for asking in stage.asked) == {
            "alpha": 1, "beta": 1, BAD: 4
        }  # fmt: skip
        for file in (census.folder / "census").iterdir():
            file.unlink()


def test_any_other_refusal_is_final(census, stage):
    """A site that paused, or whose policy forbids it, has answered; asking again is pestering."""
    for code in sorted(SENTENCES.keys() - set(AGAIN)):
        stage.asked.clear()
        stage.play = lost(99, pack_report(refuse(census.orders[2], code), ArrayRecord()))
        outcome = census.ask()
        assert outcome.refused == {BAD: code}
        assert len(stage.times(BAD)) == 1
        for file in (census.folder / "census").iterdir():
            file.unlink()


def test_an_answer_that_nobody_can_read_is_final(census, stage):
    """A broken report would be broken the next time, too."""
    stage.play = lost(99, RecordDict({"callosum": ConfigRecord({"json": "{" * 99_999})}))
    assert census.ask().refused == {BAD: "REPORT_MALFORMED"}
    assert len(stage.times(BAD)) == 1


def test_each_asking_is_the_same_order_in_a_fresh_envelope(census, stage):
    """The site's ledger knows the order by its id, and refuses a nonce that it has seen."""
    stage.play = lost(5, forward(declined("REPLAYED"), []))
    census.ask()
    askings = stage.times(BAD)
    assert len(askings) == 6
    envelopes = []
    for asking in askings:
        now = 1_790_000_000.0 + asking.at
        envelope = unseal(asking.sealed, [KEY.public_key()], now=now)
        assert (envelope.issued, envelope.expires) == (now, now + LIMIT_S)
        envelopes.append(envelope)
    assert {envelope.order.id for envelope in envelopes} == {census.orders[2].id}
    assert len({envelope.nonce for envelope in envelopes}) == 6
    assert len({envelope.issued for envelope in envelopes}) == 6


def test_an_unreachable_site_is_asked_ever_more_rarely(census, stage):
    """Each asking may carry a gigabyte; a site that is away for an hour is not asked a thousandfold."""
    stage.play = lost(9, Error(code=2, reason=""))
    census.ask()
    at = [asking.at for asking in stage.times(BAD)]
    rests = [later - earlier for earlier, later in pairwise(at)]
    for rest, wanted in zip(rests, [0.5, 1, 2, 4, 8, 15, 15, 15, 15], strict=True):
        assert wanted <= rest <= wanted + room._LONGEST_POLL_S


def test_a_wrong_clock_costs_a_few_askings_and_not_the_time_limit(census, stage):
    """A clock does not mend itself within the round; an hour of waiting each round would end it."""
    began = stage.clock.now
    stage.play = lost(99999, unreached("EXPIRED")[0])
    outcome = census.ask()
    assert stage.clock.now - began < 20
    assert len(stage.times(BAD)) == 4
    assert outcome.refused == {BAD: "EXPIRED"}


@pytest.mark.parametrize("code", [code for code in AGAIN if code != "EXPIRED"])
def test_error_replies_do_not_prolong_the_time_limit(census, stage, code):
    """A site that is away for a week must not hold two others for a week."""
    began = stage.clock.now
    stage.play = lost(99999, unreached(code)[0])
    outcome = census.ask()
    assert LIMIT_S < stage.clock.now - began <= LIMIT_S + 2 * room._LONGEST_POLL_S
    assert sorted(outcome.reports) == ["alpha", "beta"]
    assert outcome.refused == {BAD: code}  # and not NO_ANSWER: somebody should mend this


def test_an_exchange_may_have_a_shorter_limit_and_the_next_one_has_the_studys(census, stage):
    """What takes a site no time is not waited for as training is; and never longer than the study says."""
    for limit_s, wanted in ((7.0, 7.0), (None, LIMIT_S), (10 * LIMIT_S, LIMIT_S)):
        began, stage.play = stage.clock.now, lost(99999, None)
        assert census.ask(limit_s=limit_s).refused == {BAD: "NO_ANSWER"}
        assert wanted < stage.clock.now - began <= wanted + 2 * room._LONGEST_POLL_S


def test_the_last_trouble_is_the_one_that_is_told(census, stage):
    """The line came back, the agent did not: the hospital should look at the agent."""

    def play(order: Order, times: int) -> Said:
        if order.site != BAD:
            return ANSWER
        return Error(code=2, reason="") if times < 3 else forward(declined("NO_AGENT"), [])

    stage.play = play
    assert census.ask().refused == {BAD: "NO_AGENT"}


def test_a_site_that_says_nothing_is_recorded_as_silent(census, stage):
    """It may work still; it is not asked again in this exchange."""
    stage.play = lost(1, None)
    assert census.ask().refused == {BAD: "NO_ANSWER"}
    assert len(stage.times(BAD)) == 1


def test_a_refusal_after_trouble_is_told_and_the_trouble_is_not(census, stage):
    """What the site itself says outweighs what was wrong on the way to it."""

    def play(order: Order, times: int) -> Said:
        if order.site != BAD:
            return ANSWER
        return Error(code=2, reason="") if times < 3 else pack_report(refused, ArrayRecord())

    refused = refuse(census.orders[2], "PAUSED")
    stage.play = play
    assert census.ask().refused == {BAD: "PAUSED"}


def test_answers_prolong_the_time_limit(census, stage):
    """Slow hospitals that answer one after the other are waited for."""
    began = stage.clock.now

    def play(order: Order, times: int) -> Said:
        due = {"alpha": 0.0, "beta": 80.0, BAD: 160.0}[order.site]
        return ANSWER if stage.clock.now >= began + due else LATER

    stage.play = play
    assert sorted(census.ask().reports) == EVERYBODY
    assert stage.clock.now - began < 170


def test_others_are_heard_while_one_rests(census, stage):
    """A rest of fifteen seconds is the resting site's alone."""
    began = stage.clock.now
    heard: list[float] = []

    def play(order: Order, times: int) -> Said:
        if order.site == BAD and times < 7:
            return Error(code=2, reason="")
        if order.site == "beta" and stage.clock.now < began + 20:
            return LATER
        heard.append(stage.clock.now - began)
        return ANSWER

    stage.play = play
    assert sorted(census.ask().reports) == EVERYBODY
    assert heard[0] == 0
    assert 20 <= heard[1] <= 20 + room._LONGEST_POLL_S  # beta, while gamma rests from 15.5 on
    assert heard[2] > 25


@pytest.mark.slow
def test_a_site_may_be_away_for_a_day(census, stage):
    """A study whose sites work at night has a time limit of many hours."""
    census.exchange._time_limit_s = 24 * 3600.0
    stage.play = lost(99999, Error(code=2, reason=""))
    assert census.ask().refused == {BAD: "TRANSPORT"}


def test_a_node_that_is_not_connected_is_asked_again(census, stage):
    """Flower takes no message for it; a site that restarts is there a minute later."""
    stage.connected = lambda order, times: order.site != BAD or times > 3
    outcome = census.ask()
    assert sorted(outcome.reports) == EVERYBODY
    assert len(stage.times(BAD)) == 4


def test_a_node_that_never_connects_is_left_to_the_quorum(census, stage):
    """Also when it is the only one left to wait for."""
    began = stage.clock.now
    stage.connected = lambda order, times: order.site != BAD
    assert census.ask().refused == {BAD: "TRANSPORT"}
    assert stage.clock.now - began <= LIMIT_S + 2 * room._LONGEST_POLL_S


def test_a_site_without_a_node_is_not_waited_for(census, stage):
    """Nobody provisioned it: that is known before anything is sent."""
    began = stage.clock.now
    census.exchange._nodes = {s: n for s, n in census.exchange._nodes.items() if s != BAD}
    assert census.ask().refused == {BAD: "NO_ANSWER"}
    assert stage.clock.now == began


def test_who_has_answered_is_not_asked_again(census, stage):
    """A resumed run goes on with the missing sites; the spool is as good as an answer."""
    stage.play = lost(99999, None)
    first = census.ask()
    assert sorted(first.reports) == ["alpha", "beta"]
    stage.asked.clear()
    stage.play = lost(0, None)
    second = census.ask()
    assert [asking.order.site for asking in stage.asked] == [BAD]
    assert second.reports["alpha"] == first.reports["alpha"]
    stage.asked.clear()
    assert census.ask().reports == second.reports
    assert stage.asked == []


@pytest.mark.parametrize("first", ["trouble", "answer"])
def test_who_answered_is_neither_asked_again_nor_waited_for(census, stage, monkeypatch, first):
    """A hub that misses a heartbeat says that a node is away whose answer has just arrived.

    Each asking anew brought one more answer and one more trouble, and held up the round.
    """
    pull = Scripted.pull_messages

    def both(self, message_ids):
        found = pull(self, message_ids)
        mine = [one for one in found if read_report_of(one).site == BAD]
        troubles = [trouble_for(one) for one in mine]
        return [*troubles, *found] if first == "trouble" else [*found, *troubles]

    monkeypatch.setattr(Scripted, "pull_messages", both)
    began = stage.clock.now
    outcome = census.ask()
    assert sorted(outcome.reports) == EVERYBODY
    assert outcome.refused == {}
    assert len(stage.times(BAD)) == 1
    assert stage.clock.now - began < 1


def read_report_of(message: Message) -> Report:
    return unpack_report(message.content)[0]


def trouble_for(message: Message) -> Message:
    """What a hub says of the same order while it believes that its node is away."""
    told = Message(Error(code=5, reason="node_unavail"), reply_to=message)
    told.metadata.__dict__["_reply_to_message_id"] = message.metadata.reply_to_message_id
    return told


def test_the_trouble_of_one_exchange_is_forgotten_in_the_next(census, stage):
    """A site that was unreachable at the census and silent in a round was silent in the round."""
    stage.play = lost(99999, Error(code=2, reason=""))
    assert census.ask().refused == {BAD: "TRANSPORT"}
    stage.asked.clear()
    stage.play = lost(1, None)
    assert census.ask().refused == {BAD: "NO_ANSWER"}


def test_whoever_looks_on_sees_who_answered_and_who_did_not(census, stage, monkeypatch):
    """`callosum run` shows this file; a coordinator phones a hospital because of it."""
    monkeypatch.setattr(progress, "_TIMES_AT_REST", 0)
    seen: list[dict[str, Any]] = []

    def play(order: Order, times: int) -> Said:
        seen.append(census.progress())
        if order.site == "beta":
            return pack_report(refuse(census.orders[1], "PAUSED"), ArrayRecord())
        return ANSWER if order.site != BAD or times > 2 else Error(code=2, reason="")

    stage.play = play
    outcome = census.ask()
    fixed = {
        "phase": "census", "model": "federated", "task": "", "method": "", "round": 0,
        "rounds": 0, "asked": EVERYBODY,
    }  # fmt: skip
    for now in [*seen, census.progress()]:
        assert fixed.items() <= now.items()
        assert set(now["answered"]) <= {"alpha", BAD}
        assert set(now["refused"]) <= {"beta"}
    assert (seen[0]["answered"], seen[0]["refused"]) == ({}, {})
    assert set(seen[2]["answered"]) == {"alpha"}  # noted before the third is waited for
    last = census.progress()
    assert last["refused"] == {"beta": "PAUSED"}
    assert last["answered"] == {
        site: {
            "seconds": round(outcome.reports[site].seconds, 3),
            "bytes": (census.folder / "census" / f"{site}.safetensors").stat().st_size,
        }
        for site in ("alpha", BAD)
    }


def test_the_watch_names_round_task_start_and_method(tmp_path):
    """One line says which of many exchanges this is."""
    file = ProgressFile(tmp_path, 30)
    common = {"study": "0" * 64, "run": "0" * 64, "site": "alpha", "arrays": "0" * 64}

    def shown(**more: Any) -> dict[str, Any]:
        file.show([Order.model_validate({**common, **more})], {"alpha": 1.23456}, {"alpha": 7}, {})
        return json.loads((tmp_path / "progress.json").read_text())

    train = shown(kind="train", round=4, model="single-beta")
    assert (train["phase"], train["model"]) == ("train", "single-beta")
    assert (train["round"], train["rounds"], train["method"]) == (4, 30, "")
    assert train["answered"] == {"alpha": {"seconds": 1.235, "bytes": 7}}
    tuned = shown(kind="finetune", task="dementia", init="scratch", method="full")
    named = (tuned["phase"], tuned["task"], tuned["method"])
    assert named == ("finetune", "dementia", "scratch/full")
    assert tuned["rounds"] == 0
    assert shown(kind="finetune", task="dementia", method="linear")["method"] == "linear"


# Whole runs.


def simulated(three: Any, out: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(local, "LocalGrid", Scripted)
    return three.simulate(out)


def test_trouble_on_the_way_does_not_change_one_bit_of_the_model(three, stage, monkeypatch):
    """Whether and how often a site had to be asked again says nothing about its patients."""
    calm = simulated(three, "calm", monkeypatch)
    stage.asked.clear()

    def play(order: Order, times: int) -> Said:
        before = [a for a in stage.times(order.site) if a.order.id == order.id]
        code = AGAIN[(len(order.site) + order.round) % len(AGAIN)]
        return ANSWER if len(before) > 2 else unreached(code)[0]

    stage.play = play
    troubled = simulated(three, "troubled", monkeypatch)
    assert troubled.federated.final.read_bytes() == calm.federated.final.read_bytes()
    assert {len(times) for times in _askings(stage).values()} == {3}
    for record in troubled.federated.records():
        assert record["refused"] == {}
        assert record["degraded"] is False


def test_the_arrays_of_every_asking_are_those_that_the_order_names(
    census, three, stage, tmp_path, agents
):
    """They are read from disk again each time, and must be the same numbers."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(())}
    digests = []

    class Reading(Scripted):
        def push_messages(self, messages):
            digests.extend(digest_of(unpack_order(message.content)[1]) for message in messages)
            return super().push_messages(messages)

    grid = Reading(agents)
    exchange = Exchange(grid, grid.nodes, three.study, key=KEY)
    stage.play = lost(3, Error(code=2, reason=""))
    orders = [order.model_copy(update={"arrays": digest_of(arrays)}) for order in census.orders]
    exchange.ask(orders, parcel_of(arrays, {}), tmp_path / "arrays", {}, "census: sites")
    assert len(digests) == 6
    assert set(digests) == {digest_of(arrays)}


# What a site holds already.

FROZEN = ("backbone.standardise.deviation", "backbone.standardise.mean")  # no site sends them ever
TASK = {
    "name": "dementia",
    "target": "diagnosis",
    "methods": ["pretrained/full", "pretrained/last-blocks", "scratch/full"],
    "epochs": 1,
    "learning_rates": [0.01],
}


@pytest.fixture(scope="module")
def four(module_federation):
    """Three sites that train, tune and may lose one of them for a round; one that judges."""
    return module_federation({
        "sites": {"train": EVERYBODY, "heldout": ["omega"], "quorum": 2, "time_limit_s": LIMIT_S},
        "pretraining.rounds": 3,
        "evaluation.head": False,
        "finetuning": [TASK],
    })  # fmt: skip


@pytest.fixture
def forgotten(four) -> None:
    """Sites keep what they were sent from run to run: here each begins with nothing."""
    for site in [*EVERYBODY, "omega"]:
        shutil.rmtree(store_of(four, site), ignore_errors=True)


def store_of(four: Any, site: str) -> Path:
    return load_site(four.sites / site / "site.toml").state / "arrays"


def carried(stage: Stage, site: str, kind: str) -> list[tuple[str, ...]]:
    """Names of the arrays that travelled with each order of one kind, in order."""
    return [asking.names for asking in stage.times(site) if asking.order.kind == kind]


@pytest.mark.usefixtures("forgotten")
def test_arrays_that_a_site_holds_are_not_sent_to_it_again(four, stage, monkeypatch):
    """The frozen base of adapters is most of a network: each round, and each method, resent it."""
    run = simulated(four, "held", monkeypatch)
    with open_arrays(run.federated.final) as file:
        whole = tuple(sorted(name.removeprefix("model/") for name in file.names()))
    moving = tuple(name for name in whole if name not in FROZEN)
    assert set(FROZEN) < set(whole)
    for site in EVERYBODY:
        assert carried(stage, site, "train") == [whole, moving, moving]
        assert carried(stage, site, "finetune") == [moving, (), ()]  # frozen ones are there
    constants = [("constant/age",), ("constant/age",)]  # the training labels' mean and median
    assert carried(stage, "omega", "evaluate") == [whole, *constants]
    # every order names all of its arrays, sent or held: that is what the site checks them by
    trained = [asking.order for asking in stage.asked if asking.order.kind == "train"]
    assert len({order.base for order in trained}) == 1
    assert len({order.arrays for order in trained}) == 3
    again = simulated(four, "again", monkeypatch)
    assert again.federated.final.read_bytes() == run.federated.final.read_bytes()


@pytest.mark.usefixtures("forgotten")
def test_a_restarted_coordinator_reads_from_the_spool_what_sites_hold(four, stage, monkeypatch):
    """What was on its way once should not travel anew because a server was restarted."""

    def play(order: Order, times: int) -> Said:
        gone = order.kind == "train" and order.round == 2 and order.site != "alpha"
        return None if gone else ANSWER

    stage.play = play
    with pytest.raises(QuorumError):
        simulated(four, "restarted", monkeypatch)
    stage.asked.clear()
    stage.play = lost(0, None)
    simulated(four, "restarted", monkeypatch)
    second, third = ([a for a in stage.asked if a.order.round == n] for n in (2, 3))
    for asking in second:  # nothing is known of them yet
        assert asking.order.site in ("beta", BAD)
        assert set(FROZEN) < set(asking.names)
    assert sorted(asking.order.site for asking in third) == EVERYBODY
    for asking in third:
        assert not set(FROZEN) & set(asking.names)


@pytest.mark.usefixtures("forgotten")
def test_a_site_that_lost_what_it_held_is_sent_everything_at_once(four, stage, monkeypatch):
    """A new disk at a hospital costs one message, and no second of anybody's time."""
    calm = simulated(four, "calm", monkeypatch)
    stage.asked.clear()

    def play(order: Order, times: int) -> Said:
        if order.site == BAD and (order.kind, order.round) == ("train", 2):
            shutil.rmtree(store_of(four, BAD), ignore_errors=True)  # also of the second asking
        return ANSWER

    stage.play = play
    run = simulated(four, "lost", monkeypatch)
    first, second = (
        asking
        for asking in stage.times(BAD)
        if (asking.order.kind, asking.order.round) == ("train", 2)
    )
    assert first.order.id == second.order.id
    assert first.sealed != second.sealed  # another nonce: the site would call it REPLAYED
    assert not set(FROZEN) & set(first.names)
    assert set(second.names) == set(first.names) | set(FROZEN)
    assert second.at == first.at
    for record in run.federated.records():
        assert record["refused"] == {}
        assert record["degraded"] is False
    assert run.federated.final.read_bytes() == calm.federated.final.read_bytes()
    # from then on it holds them again
    third = carried(stage, BAD, "train")[3]
    assert not set(FROZEN) & set(third)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(("number", "askings"), [(1, 1), (2, 2)])
def test_a_site_that_needs_what_it_was_sent_is_not_asked_for_ever(
    four, stage, monkeypatch, number, askings
):
    """Its disk does not keep what arrives; a gigabyte more each second would not mend it."""

    def play(order: Order, times: int) -> Said:
        bad = order.site == BAD and (order.kind, order.round) == ("train", number)
        return pack_report(refuse(order, "NEEDS_ARRAYS"), ArrayRecord()) if bad else ANSWER

    stage.play = play
    run = simulated(four, f"needy-{number}", monkeypatch)
    record = run.federated.records()[number - 1]
    assert record["refused"] == {BAD: "NEEDS_ARRAYS"}
    assert record["degraded"] is True
    of_round = [a for a in stage.times(BAD) if (a.order.kind, a.order.round) == ("train", number)]
    assert len(of_round) == askings
    assert set(FROZEN) < set(of_round[-1].names)


# The quorum.


def test_the_quorum_decides_over_a_site_that_stays_away(three, stage, monkeypatch):
    """Two of three suffice here, and the record says what was wrong with the third."""
    stage.play = lost(99999, forward(declined("NO_AGENT"), []), kind="train")
    run = simulated(three, "without-one", monkeypatch)
    for record in run.federated.records():
        assert sorted(record["answered"]) == ["alpha", "beta"]
        assert record["refused"] == {BAD: "NO_AGENT"}
        assert record["degraded"] is True

    def play(order: Order, times: int) -> Said:
        away = order.kind == "train" and order.site != "alpha"
        return forward(declined("NO_AGENT"), []) if away else ANSWER

    stage.play = play
    with pytest.raises(QuorumError, match=r"1 of 3 sites answered.*beta: NO_AGENT, gamma: NO_A"):
        simulated(three, "without-two", monkeypatch)


def _askings(stage: Stage) -> dict[str, list[Asking]]:
    found: dict[str, list[Asking]] = {}
    for asking in stage.asked:
        found.setdefault(asking.order.id, []).append(asking)
    return found
