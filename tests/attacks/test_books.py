"""A state folder that is restored or copied must not learn from people twice behind anyone's back.

Real agents behind their sockets, the coordinator's own exchange, and a line between them that may
lead to the original, to a clone, or through somebody who changes what the site tells.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from rich.console import Console

from client.authority import approvals
from client.authority import books as site_books
from client.authority.ledger import Account, read_ledger
from client.authority.spendings import lifetime
from client.doctor import readiness
from client.link.caller import ask, unix_address
from client.site import Policy
from common.network.building import build, plan_of
from common.privacy.accounting import epsilon
from common.privacy.cost import cost_of, steps_in
from common.protocol.code import agreed_digest
from common.protocol.orders import Report
from common.protocol.signing import read_envelope, seal
from common.protocol.wire import forward, unpack_sealed
from deploy.local_grid import LocalGrid
from server import cli as server_cli
from server.federation.books import SiteBooks
from server.federation.exchange import Exchange
from server.federation.parcel import NOTHING, parcel_of
from server.federation.phases import Phases
from server.run import create_run, open_run
from tests.client.service.test_daemon import (
    KEY,
    Aside,
    Station,
    initial,
    leave_when,
    order_for,
    sealed,
    write_kit,
)
from tests.deploy.standing import Standing, read_json, removed, short_folder, standing, until

Change = Callable[[str], str]


class Line(LocalGrid):
    """Flower's part: it carries each message to whichever agent's node is connected for a site."""

    def __init__(self, hub: Hub) -> None:
        super().__init__([])
        self._hub = hub
        self.nodes = {site: 100 + i for i, site in enumerate(sorted(hub.connected))}

    def _answer(self, message: Message) -> Message:
        asked, arrays = unpack_sealed(message.content)
        site = read_envelope(asked.text).order.site
        self._hub.carried.append(site)
        text, sent = ask(unix_address(self._hub.connected[site]), None, asked, arrays, 0.0)
        return Message(forward(self._hub.changed(text), sent), reply_to=message)


@dataclass
class Hub:
    """A coordinator whose runs come and go; `connected` is each site's socket."""

    folder: Path
    study: Any
    connected: dict[str, Path]
    changed: Change = lambda text: text
    carried: list[str] = field(default_factory=list)
    asked: int = 0

    @property
    def books(self) -> SiteBooks:
        return SiteBooks(self.folder / "books")

    def exchange(self) -> Exchange:
        line = Line(self)
        return Exchange(line, line.nodes, self.study, key=KEY, books=self.books)

    def ask(self, kind: str = "census", *, exchange: Exchange | None = None, **more: Any) -> Any:
        """One order to alpha in a run of its own; the report, or the code."""
        self.asked += 1
        arrays = initial(self.study) if kind == "train" else {}
        plan = plan_of(build(self.study, seed=0), self.study.aggregation.normalisation)
        more = {"run": f"{self.asked:064d}", **more}
        order = order_for(self.study, kind, arrays, **more)
        parcel = parcel_of(arrays, plan) if arrays else NOTHING
        folder = self.folder / f"{self.asked}"
        made = exchange or self.exchange()
        outcome = made.ask([order], parcel, folder, plan if arrays else {}, "sites")
        return outcome.reports.get("alpha") or outcome.refused["alpha"]

    def train(self, times: int) -> None:
        for _ in range(times):
            assert isinstance(self.ask("train"), Report)


@dataclass
class Hospital:
    """The folder of one site, its kit, and its agent while it serves."""

    federation: Any
    folder: Path
    home: Path
    ends: ExitStack = field(default_factory=ExitStack)

    @property
    def station(self) -> Station:
        return Station(self.kit, self.federation)

    def __post_init__(self) -> None:
        self.kit = write_kit(self.home / "kit", self.folder)

    @property
    def site(self) -> Any:
        return self.station.site

    @property
    def account(self) -> Account:
        return read_ledger(self.site.state / "ledger.sqlite")

    @property
    def exposures(self) -> int:
        return self.account.spent

    def start(self) -> Station:
        return self.ends.enter_context(self.station)

    def stop(self) -> None:
        self.ends.close()

    def copied(self, name: str) -> Hospital:
        """All of it once more, as a disk's image or a moved folder that was not deleted has it."""
        shutil.copytree(self.folder, self.home.parent / name / "data")
        return Hospital(self.federation, self.home.parent / name / "data", self.home.parent / name)

    def back_up(self) -> Path:
        shutil.copytree(self.site.state, self.home / "backup")
        return self.home / "backup"

    def restore(self, backup: Path) -> None:
        shutil.rmtree(self.site.state)
        shutil.copytree(backup, self.site.state)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Short, for the sockets below it."""
    made = short_folder()
    yield made
    removed(made)


@pytest.fixture
def alpha(federation: Any, place: Path) -> Iterator[Hospital]:
    made = federation({"sites": {"train": ["alpha"]}, "objective.targets": ["age"]})
    there = Hospital(made, made.sites / "alpha", place / "alpha")
    there.station.approve()
    yield there
    there.stop()


@pytest.fixture
def hub(alpha: Hospital, place: Path) -> Hub:
    return Hub(place / "hub", alpha.federation.study, {"alpha": alpha.kit.socket})


def test_a_restored_backup_learns_nothing_until_both_ends_have_decided(alpha, hub):
    """It went on from 1 exposure where 3 had been spent: the limit of the policy was moot."""
    alpha.start()
    hub.train(1)
    alpha.stop()
    backup = alpha.back_up()
    alpha.start()
    hub.train(2)
    alpha.stop()
    assert alpha.exposures == 3
    alpha.restore(backup)
    assert alpha.exposures == 1

    there = alpha.start()
    assert hub.ask("train") == "BOOKS"
    assert alpha.exposures == 1
    carried = len(hub.carried)
    assert hub.ask("train") == "BOOKS"
    assert len(hub.carried) == carried  # nothing more is sent there
    told = order_for(hub.study, "census")
    assert there.ask(told)[0].refusal == "BOOKS"  # whoever asks, and without being told again
    assert "books" not in there.receipts[-1]
    alpha.stop()

    finding = readiness.books(alpha.site)
    assert finding.state == "bad"
    assert "1 exposures after 3" in finding.texts(share=False)[0]
    assert "callosum-site books --accept" in finding.remedy
    there = alpha.start()  # a restart is no decision
    assert there.ask(told)[0].refusal == "BOOKS"
    alpha.stop()

    said = site_books.accept(alpha.site, None)
    assert "goes on from 3 exposures, 2 of them taken over" in said
    assert readiness.books(alpha.site).state == "good"
    alpha.start()
    assert hub.ask("train") == "BOOKS"  # the other end has not decided
    assert hub.books.accept("alpha").exposures == 3
    hub.train(1)
    assert alpha.exposures == 4
    assert hub.books.page("alpha").seen[-1].exposures == 4
    alpha.stop()
    alpha.restore(backup)  # and once more, with the id of before
    alpha.start()
    assert hub.ask("train") == "BOOKS"
    assert alpha.exposures == 1


PRIVATE = {
    "sites": {"train": ["alpha"]}, "objective.targets": ["age"],
    "aggregation": {"normalisation": "groupnorm"},
    "privacy": {"unit": "participant", "people_per_step": 8, "noise": 2.0, "epsilon": 50.0},
}  # fmt: skip


@pytest.fixture
def private(federation: Any, place: Path) -> Iterator[Hospital]:
    """A study whose budget is four rounds of the site's."""
    made = federation({**PRIVATE, "privacy": dict(PRIVATE["privacy"])})
    agent = made.agent("alpha")
    people = len(agent.cohort.indices("train", agent.study.splits))
    cost = cost_of(agent.study, people)
    made.changes["privacy"]["epsilon"] = epsilon([cost] * 4, cost.delta)
    there = Hospital(made, made.sites / "alpha", place / "alpha")
    there.station.approve()
    yield there
    there.stop()


def test_a_restored_backup_gives_no_privacy_back(private, place):
    """Three rounds were spent, the backup knows of one: what epsilon they cost is taken over, too."""
    hub = Hub(place / "hub", private.federation.study, {"alpha": private.kit.socket})
    private.start()
    hub.train(1)
    private.stop()
    backup = private.back_up()
    private.start()
    hub.train(2)
    private.stop()
    spent = lifetime(list(private.account.private))
    private.restore(backup)
    assert lifetime(list(private.account.private)) < spent
    private.start()
    assert hub.ask("train") == "BOOKS"
    private.stop()
    site_books.accept(private.site, None)
    hub.books.accept("alpha")
    assert lifetime(list(private.account.private)) == pytest.approx(spent)
    private.start()
    hub.train(1)
    assert hub.ask("train") == "BUDGET_EXHAUSTED"
    steps = steps_in(hub.books.page("alpha").seen[-1].private)
    assert steps == sum(each.cost.steps for each in private.account.private)


def test_the_limit_of_the_policy_holds_over_a_restored_backup(alpha, hub):
    """Exposures that a person took over count as all others do."""
    alpha.start()
    hub.train(1)
    alpha.stop()
    backup = alpha.back_up()
    alpha.start()
    hub.train(2)
    alpha.stop()
    alpha.restore(backup)
    alpha.start()
    assert hub.ask("train") == "BOOKS"
    alpha.stop()
    site_books.accept(alpha.site, None)
    hub.books.accept("alpha")
    file = alpha.kit.site_file
    file.write_text(file.read_text() + "\n[policy]\nmost_exposures = 3\n")
    alpha.start()
    assert hub.ask("train") == "PRIVACY_SPENT"
    assert alpha.exposures == 3


def test_a_clone_that_takes_turns_with_the_original_is_stopped_at_its_first_turn(alpha, hub):
    """Each spent what the other did not know of."""
    alpha.start()
    hub.train(1)
    alpha.stop()
    clone = alpha.copied("clone")
    alpha.start()
    clone.start()
    hub.train(1)
    hub.connected["alpha"] = clone.kit.socket
    assert hub.ask("train") == "BOOKS"
    hub.connected["alpha"] = alpha.kit.socket
    assert hub.ask("train") == "BOOKS"  # nobody answers for this site until a person decides
    assert (alpha.exposures, clone.exposures) == (2, 1)
    clone.stop()
    alpha.stop()
    site_books.accept(alpha.site, None)
    hub.books.accept("alpha")
    alpha.start()
    hub.train(1)
    clone.start()
    hub.connected["alpha"] = clone.kit.socket
    assert hub.ask("train") == "BOOKS"
    clone.stop()
    assert clone.exposures == 1


def test_a_clone_that_waits_until_the_original_is_off_is_stopped(alpha, hub):
    """Nor does it help to have as many receipts: refusals make receipts, and nobody was told."""
    alpha.start()
    hub.train(1)
    alpha.stop()
    clone = alpha.copied("clone")
    alpha.start()
    hub.train(3)
    alpha.stop()
    there = clone.start()
    for _ in range(12):
        assert there.ask(sealed(order_for(hub.study, "census"), key=None))[0].refusal == "UNSIGNED"
    hub.connected["alpha"] = clone.kit.socket
    assert hub.ask("train") == "BOOKS"
    assert clone.exposures == 1
    clone.stop()


def test_of_two_copies_that_nobody_saw_since_one_goes_on_and_the_other_is_stopped(alpha, hub):
    """A move is a copy, too: the first to answer goes on, and the one left behind cannot."""
    alpha.start()
    hub.train(1)
    alpha.stop()
    moved = alpha.copied("moved")
    hub.connected["alpha"] = moved.kit.socket
    moved.start()
    hub.train(1)
    moved.stop()
    hub.connected["alpha"] = alpha.kit.socket
    alpha.start()
    assert hub.ask("train") == "BOOKS"
    assert (alpha.exposures, moved.exposures) == (1, 2)


def test_a_state_folder_made_anew_is_stopped_and_takes_the_count_over(alpha, hub):
    """Whoever removes the ledger has not given anyone their exposures back."""
    alpha.start()
    hub.train(2)
    alpha.stop()
    shutil.rmtree(alpha.site.state)
    alpha.station.approve()
    alpha.start()
    assert hub.ask("train") == "BOOKS"
    assert alpha.exposures == 0
    alpha.stop()
    site_books.accept(alpha.site, None)
    hub.books.accept("alpha")
    alpha.start()
    hub.train(1)
    assert alpha.exposures == 3


def altered(**changes: Any) -> Change:
    """Somebody between site and hub: reports are not signed."""

    def change(text: str) -> str:
        report = json.loads(text)
        if report.get("books"):
            report["books"] |= changes
        return json.dumps(report)

    return change


def test_forged_higher_numbers_stop_the_site_and_persons_set_the_count_right(alpha, hub):
    """A clone that makes itself tall, or a courier: the true books contradict it at once."""
    alpha.start()
    hub.train(1)
    hub.changed = altered(receipt=2**50, exposures=2**50, hash="f" * 64)
    hub.train(1)
    hub.changed = lambda text: text
    assert hub.ask("train") == "BOOKS"
    assert alpha.exposures == 2
    alpha.stop()
    site_books.accept(alpha.site, 2)
    hub.books.accept("alpha", 2)
    alpha.start()
    hub.train(1)
    assert alpha.exposures == 3


@pytest.mark.parametrize("forged", [{"exposures": 0}, {"receipt": 2, "hash": "f" * 64}])
def test_a_site_that_does_not_check_itself_is_stopped_by_the_coordinator(alpha, hub, forged):
    """A clone may run software of its own; what arrives is compared, too."""
    alpha.start()
    hub.train(2)
    hub.changed = altered(**forged)
    assert hub.ask("train") == "BOOKS"
    hub.changed = lambda text: text
    assert hub.ask("train") == "BOOKS"
    hub.books.accept("alpha")
    assert hub.ask("census") == "BOOKS"  # nor is one person enough: its history was ended
    alpha.stop()
    site_books.accept(alpha.site, None)
    hub.books.accept("alpha")
    alpha.start()
    hub.train(1)


def test_a_site_that_leaves_its_books_out_is_refused(alpha, hub):
    """The way around would be to say nothing."""
    alpha.start()
    hub.changed = lambda text: json.dumps({**json.loads(text), "books": None})
    assert hub.ask("census") == "REPORT_MALFORMED"
    hub.changed = lambda text: text
    hub.train(1)


def test_a_hub_set_back_to_its_own_backup_stops_nobody(alpha, hub):
    """It has seen less than the site has: that is no fall."""
    alpha.start()
    hub.train(1)
    shutil.copytree(hub.folder / "books", hub.folder / "backup")
    hub.train(2)
    shutil.rmtree(hub.folder / "books")
    shutil.copytree(hub.folder / "backup", hub.folder / "books")
    hub.train(1)
    shutil.rmtree(hub.folder / "books")  # or lost them altogether
    hub.train(1)
    assert alpha.exposures == 5


def test_honest_crashes_stop_nobody(alpha, hub):
    """Killed before it sent, a report that nobody received, the same asked again, a torn receipt."""
    there = alpha.start()
    hub.train(1)
    arrays = initial(hub.study)
    order = order_for(hub.study, "train", arrays, run="f" * 64)
    seen = hub.books.told(order)

    def delivery() -> Any:
        code = agreed_digest(hub.study)
        return seal(order, KEY, code=code, now=time.time(), lifetime_s=600, seen=seen)

    leave_when(lambda frame: b"report" in frame, there.address, delivery(), arrays)
    first, _ = there.ask(delivery(), arrays)  # arrives nowhere
    asides = [Aside(there, delivery(), arrays) for _ in range(3)]
    again = [aside.result()[0] for aside in asides]
    assert [report.refusal for report in (first, *again)] == [""] * 4
    assert (
        len({report.books.receipt for report in (first, *again)}) == 4
    )  # departures, each its own
    assert {report.books.exposures for report in (first, *again)} == {2}
    alpha.stop()
    [file] = (alpha.site.state / "receipts").glob("*.jsonl")
    with file.open("a") as stream:
        stream.write('{"number": 99, "ti')  # what a power cut leaves
    there = alpha.start()
    assert isinstance(hub.ask("train", run="f" * 64), Report)  # the very order, asked again
    assert alpha.exposures == 2
    approvals.pause(alpha.site, "maintenance")
    assert hub.ask("train") == "PAUSED"
    approvals.resume(alpha.site)
    hub.train(1)
    assert alpha.exposures == 3


def test_runs_that_overtake_each_other_at_one_site_stop_nobody(alpha, hub):
    """Two ServerApps hear of the site in another order than it answered them."""
    there = alpha.start()
    exchanges = [hub.exchange() for _ in range(2)]
    for kind in ("census", "train"):
        for exchange in exchanges:
            assert isinstance(hub.ask(kind, exchange=exchange), Report)
    orders = [order_for(hub.study, "census", run=f"{run:064d}") for run in (98, 99)]
    runs = [SiteBooks(hub.books.folder) for _ in orders]
    asked = [
        seal(o, KEY, code=agreed_digest(hub.study), now=time.time(), lifetime_s=9, seen=r.told(o))
        for o, r in zip(orders, runs, strict=True)
    ]
    reports = [there.ask(each)[0] for each in asked]
    for run, order, report in reversed(list(zip(runs, orders, reports, strict=True))):
        run.take(order, report)
    under_way = order_for(hub.study, "train", initial(hub.study), run="c" * 64)
    there.daemon._records.spend(under_way, "tiny", Policy())  # paid for, and not answered yet
    hub.train(1)
    assert alpha.exposures == 4
    receipts = [books.receipt for books in hub.books.page("alpha").seen]
    assert receipts == sorted(receipts)
    assert len(receipts) == 7


def test_an_order_that_waits_when_the_books_are_stopped_costs_nothing(alpha, hub):
    """Admitted is not begun: the stop counts for what waits in the queue, too."""
    there = alpha.start()
    hub.train(1)
    records = there.daemon._records
    records.ledger.stop(hub.books.page("alpha").seen[-1], "for the test")
    arrays = initial(hub.study)
    order = order_for(hub.study, "train", arrays, run="e" * 64)
    agent = there.daemon._pool.agent(hub.study).result()
    assert agent.answer(order, arrays)[0].refusal == "BOOKS"
    free = order_for(hub.study, "census", run="d" * 64)  # nor does what costs nothing leave
    assert agent.answer(free, {})[0].refusal == "BOOKS"
    assert alpha.exposures == 1


def test_the_receipt_that_a_report_names_says_what_it_told(alpha, hub):
    """The hub's memory points to one line at the site, which a person can look up."""
    there = alpha.start()
    report = hub.ask("train")
    receipt = next(r for r in there.receipts if r["number"] == report.books.receipt)
    assert receipt["hash"] == report.books.hash
    assert receipt["books"] == {"state": report.books.state, "exposures": 1}
    census = hub.ask("census")
    assert there.receipts[-1]["bytes"] == len(census.model_dump_json())


def test_a_federation_goes_on_without_the_site_and_says_why(federation, place, monkeypatch):
    """One site never ends a run: its code is in the record, in what `show` prints, and on disk."""
    made = federation({
        "sites.train": ["alpha", "beta", "gamma"], "sites.quorum": 2, "objective.targets": ["age"],
        "pretraining.rounds": 2,
    })  # fmt: skip
    sites = {n: Hospital(made, made.sites / n, place / n) for n in made.study.sites.train}
    hub = Hub(place / "hub", made.study, {n: there.kit.socket for n, there in sites.items()})
    with ExitStack() as ends:
        for there in sites.values():
            there.station.approve()
            there.start()
            ends.callback(there.stop)

        def run(name: str) -> Any:
            create_run(place / name, made.study, made.study_file)
            with open_run(place / name, made.study) as opened:
                Phases(opened, hub.exchange()).all()
                return opened

        gamma = sites["gamma"]
        gamma.stop()
        gamma.start()
        first = run("first")
        assert not any(record["degraded"] for record in first.federated.records())
        gamma.stop()
        clone = gamma.copied("clone")
        gamma.start()
        run("second")
        hub.connected["gamma"] = clone.kit.socket
        clone.start()
        ends.callback(clone.stop)
        third = run("third")
    for record in third.federated.records():
        assert record["degraded"]
        assert sorted(record["answered"]) == ["alpha", "beta"]
        assert record["refused"] == {"gamma": "BOOKS"}
    assert read_json(third.folder / "census.json")["gamma"]["refused"] == "BOOKS"
    assert (gamma.exposures, clone.exposures) == (4, 2)
    shown = Console(record=True, width=200)
    monkeypatch.setattr(server_cli, "console", shown)
    server_cli.show(third.folder)
    assert "gamma: BOOKS" in shown.export_text()
    assert hub.books.page("gamma").stopped == "the site itself says so"


def test_a_simulation_keeps_no_books(federation):
    """All is one process there, and its agents keep no records."""
    made = federation({"sites.train": ["alpha"], "objective.targets": ["age"]})
    run = made.simulate()
    replies = list(run.folder.glob("rounds/*/replies/*.safetensors"))
    assert replies
    assert not any(b'"receipt"' in path.read_bytes() for path in replies)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_live_hospital_that_was_restored_is_stopped_and_accepted_by_commands(federation):
    """The same with every process in its place, and the commands that two persons give."""
    made = federation({
        "sites.train": ["alpha", "beta"], "sites.quorum": 1, "objective.targets": ["age"],
        "pretraining.rounds": 2, "sites.time_limit_s": 300.0, "evaluation.head": False,
    })  # fmt: skip
    files = {name: ("train", made.sites / name / "site.toml") for name in ("alpha", "beta")}
    folder = short_folder()
    with standing(folder, files) as there:
        there.stand(made.study_file)
        backup = folder / "backup"

        def run(name: str) -> list[Any]:
            study, hub = made.study_file, there.hub
            there.command("callosum", "run", study, "--hub", hub, "--name", name)
            paths = sorted((there.hub / "runs" / name).glob("rounds/*/record.json"))
            return [read_json(path)["refused"] for path in paths]

        def stop_agent() -> None:
            there.started["agent-alpha"].terminate()
            there.started["agent-alpha"].wait(60)

        assert run("first") == [{}, {}]
        stop_agent()
        shutil.copytree(there.state("alpha"), backup)
        there.start_agent("alpha")
        assert run("second") == [{}, {}]
        stop_agent()
        assert spent(there) == 4
        shutil.rmtree(there.state("alpha"))
        shutil.copytree(backup, there.state("alpha"))
        there.start_agent("alpha")
        assert run("third") == [{"alpha": "BOOKS"}] * 2
        assert spent(there) == 2
        shown = there.command("callosum", "books", "--hub", there.hub)
        assert "the site itself says so" in " ".join(shown.split())
        assert "STOPPED" in shown
        log = (there.state("alpha") / "agent.log").read_text()
        assert "callosum-site books --accept" in log
        stop_agent()
        kit = there.kits / "alpha"
        there.command("callosum-site", "books", "--kit", kit, "--accept", "--yes")
        there.command("callosum", "books", "--hub", there.hub, "--accept", "alpha")
        there.start_agent("alpha")
        until((kit / "run" / "agent.sock").exists, 60, "socket of alpha")
        assert run("fourth") == [{}, {}]
        assert spent(there) == 6
    removed(folder)


def spent(there: Standing) -> int:
    return read_ledger(there.state("alpha") / "ledger.sqlite").spent
