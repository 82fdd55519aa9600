"""An agent behind its socket answers as it does beside it: once, to whom it should, and no more."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import grpc
import numpy as np
import pytest
import tomli_w
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Array
from prometheus_client import CollectorRegistry

from client.authority import approvals
from client.authority.admission import Admission
from client.authority.ledger import read_ledger
from client.authority.receipts import read_receipts
from client.authority.records import open_records
from client.kit import SiteKit, open_kit
from client.learning import pretraining
from client.link.caller import ask, unix_address
from client.link.frames import METHOD, chunks, header
from client.link.listener import serve_link
from client.service import agent_pool as client_pool
from client.service.agent_pool import AgentPool
from client.service.daemon import Daemon, serve
from client.service.monitor import SiteMetrics
from client.service.site_log import announce
from client.service.work_queue import MOST_ORDERS
from client.site import load_site
from common.errors import Refusal, SettingError, StorageError
from common.network.building import arrays_of, build, plan_of
from common.network.settling import constants
from common.protocol.code import agreed_digest
from common.protocol.orders import Order, Report, digest_of, read_report
from common.protocol.signing import Sealed, read_private_key, seal
from common.protocol.wire import npy_bytes, npy_parts, view_npy
from common.seeding import seed_of
from common.study import load_study
from deploy.kits.provision import provision

ROOT = Path(__file__).parents[3]
RUN = "ab" * 32
SECRET = "/data/hospital/sub-0042_T1w.nii.gz"
KEY = Ed25519PrivateKey.generate()


CODES: dict[str, str] = {}  # of the studies that were asked about, by their digest


def order_for(study: Any, kind: str, arrays: Any = None, **more: Any) -> Order:
    CODES[study.digest] = agreed_digest(study)
    moving, static = parted(study, arrays or {})
    if kind == "settle":  # the constants are what it is about
        moving, static = arrays or {}, {}
    return Order.model_validate({
        "kind": kind, "study": study.digest, "run": RUN, "site": "alpha",
        "round": 1 if kind == "train" else 0, "arrays": digest_of(moving),
        "base": digest_of(static) if static else "", **more,
    })  # fmt: skip


def parted(study: Any, arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that a site would send back, and those that none ever sends."""
    plan = plan_of(build(study, seed=0), study.aggregation.normalisation) if arrays else {}
    static = {n: array for n, array in arrays.items() if n in plan and not plan[n].travels}
    return {n: array for n, array in arrays.items() if n not in static}, static


def sealed(order: Order, *, key: Any = KEY, age_s: float = 0.0) -> Sealed:
    code = CODES.get(order.study, "0" * 64)
    return seal(order, key, code=code, now=time.time() - age_s, lifetime_s=600)


def initial(study: Any) -> dict[str, np.ndarray]:
    """What the study's seed draws, which is what every run begins with."""
    return arrays_of(build(study, seed=seed_of(study.seed, "initial")))


def drawn_constants(study: Any) -> dict[str, np.ndarray]:
    names = constants(build(study, seed=3))
    return {name: array for name, array in initial(study).items() if name in names}


def write_kit(folder: Path, site_folder: Path, name: str = "alpha", role: str = "train") -> SiteKit:
    """A kit around a site's folder; its certificates are tested with the link."""
    folder.mkdir(parents=True)
    (folder / "agent").symlink_to(site_folder)
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "coordinator.pem").write_bytes(public)
    text = {"name": name, "role": role, "consortium": "tests", "hub": "localhost:9092"}
    toml = tomli_w.dumps(text) + "expires = 2099-01-01\n"
    (folder / "kit.toml").write_text(toml)
    return open_kit(folder)


@dataclass
class Station:
    """A site's kit, and its agent in this process once it is entered."""

    kit: SiteKit
    federation: Any
    ends: ExitStack = field(default_factory=ExitStack)

    @property
    def site(self) -> Any:
        return load_site(self.kit.site_file)

    @property
    def study(self) -> Any:
        return self.federation.study

    @property
    def address(self) -> str:
        return unix_address(self.kit.socket)

    @property
    def receipts(self) -> list[dict[str, Any]]:
        return list(read_receipts(self.site.state / "receipts"))

    @property
    def exposures(self) -> int:
        return len(read_ledger(self.site.state / "ledger.sqlite").exposures)

    def approve(self) -> None:
        approvals.approve(self.site, self.federation.study_file, report_bytes=1000)

    def __enter__(self) -> Self:
        site = self.site
        records = self.ends.enter_context(open_records(site))
        study_of = partial(approvals.study_of, site)
        admission = Admission(site, [KEY.public_key()], records.ledger, study_of)
        self.metrics = SiteMetrics(CollectorRegistry())
        self.told: list[str] = []
        pool = AgentPool(site, records, self.told.append)
        self.daemon = Daemon(site, admission, records, pool, self.metrics, heartbeat_s=0.05)
        self.ends.callback(self.daemon.close)
        listener = serve_link(self.daemon.answer, socket=self.kit.socket, stall_s=5)
        self.ends.callback(listener.stop, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.close()

    def ask(self, what: Order | Sealed, arrays: Any = None, patience_s: float = 0.0) -> Any:
        """The report and its arrays, through the socket."""
        return asked(self.address, what, arrays, patience_s)


def asked(address: str, what: Order | Sealed, arrays: Any = None, patience_s: float = 0.0) -> Any:
    what = sealed(what) if isinstance(what, Order) else what
    named = [(name, npy_bytes(array)) for name, array in (arrays or {}).items()]
    text, sent = ask(address, None, what, named, patience_s)
    return read_report(text), {name: view_npy(data) for name, data in sent}


class Aside(threading.Thread):
    """An asking in a thread of its own."""

    def __init__(self, station: Station, *things: Any, **more: Any) -> None:
        super().__init__(daemon=True)
        self._call = partial(station.ask, *things, **more)
        self.start()

    def run(self) -> None:
        try:
            self.found = self._call()
        except Exception as error:  # noqa: BLE001
            self.found = error

    def result(self, limit_s: float = 30) -> Any:
        self.join(limit_s)
        return self.found


@pytest.fixture
def station(federation, tmp_path) -> Callable[..., Station]:
    """`station(changes)`: a training site, with the study approved; enter it to have it serve."""

    def make(changes: Any = None, *, approve: bool = True, **more: Any) -> Station:
        made = federation({
            "sites": {"train": ["alpha"], "heldout": ["omega"]}, "objective.targets": ["age"],
            **(changes or {}),
        }, **more)  # fmt: skip
        found = Station(write_kit(tmp_path / "kit", made.sites / "alpha"), made)
        if approve:
            found.approve()
        return found

    return make


@pytest.fixture
def gate(monkeypatch) -> Any:
    """Real training, which waits for `gate.open` and counts; `gate.begun` tells that it waits."""

    gate = SimpleNamespace(open=threading.Event(), begun=threading.Event(), trained=[], threads=[])
    plain = pretraining.train

    def train(network: Any, cohort: Any, indices: Any, recipe: Any, *things: Any) -> Any:
        gate.trained.append(recipe.seed)
        gate.threads.append(torch.get_num_threads())
        gate.begun.set()
        assert gate.open.wait(30)
        return plain(network, cohort, indices, recipe, *things)

    monkeypatch.setattr(pretraining, "train", train)
    yield gate
    gate.open.set()


def bare_answer(station: Station, order: Order, arrays: Any, tmp_path: Path) -> Any:
    """What the agent says without daemon, link and records, over a copy of the same data."""
    shutil.copytree(station.federation.sites / "alpha", tmp_path / "bare")
    site = load_site(tmp_path / "bare" / "site.toml")
    shutil.rmtree(site.state, ignore_errors=True)
    return client_pool.open_agent(station.study, site).answer(order, arrays)


def same(one: Any, other: Any) -> bool:
    (report, arrays), (expected, wanted) = one, other
    plain = {"seconds": 0.0, "books": None}  # each departure has its own
    return report.model_copy(update=plain) == expected.model_copy(update=plain) and {
        name: array.tobytes() for name, array in arrays.items()
    } == {name: array.tobytes() for name, array in wanted.items()}


@pytest.mark.parametrize("kind", ["census", "settle", "train"])
def test_answer_is_that_of_the_agent_itself(station, tmp_path, kind):
    """The deployment must end with the weights of the local engine, to the bit."""
    with station() as here:
        made = {"census": lambda _: {}, "settle": drawn_constants, "train": initial}
        arrays = made[kind](here.study)
        order = order_for(here.study, kind, arrays)
        found = here.ask(order, arrays)
        assert found[0].refusal == ""
        assert same(found, bare_answer(here, order, arrays, tmp_path))
        assert len(found[1]) == {"census": 0, "settle": 3, "train": 8}[kind]
        [receipt] = here.receipts
        assert receipt["order"] == order.id
        assert len(receipt["arrays"]) == len(found[1])


def test_arrays_that_are_held_here_need_not_be_brought_again(station):
    """What a site lacks it asks for, and that costs nothing; what it has stays off the link."""
    with station() as here:
        arrays = initial(here.study)
        moving, static = parted(here.study, arrays)
        order = order_for(here.study, "train", arrays)
        assert here.ask(order, moving)[0].refusal == "NEEDS_ARRAYS"
        assert here.exposures == 0
        report, sent = here.ask(order, arrays)  # the same order, with everything
        assert (report.refusal, report.holds) == ("", (digest_of(static),))
        later = order_for(here.study, "train", {**arrays, **sent}, round=2)
        assert here.ask(later, sent)[0].refusal == ""
        assert [receipt["refusal"] for receipt in here.receipts] == ["NEEDS_ARRAYS", "", ""]
        assert here.receipts[-1]["numbers"]["holds"] == [digest_of(static)]


def test_trained_arrays_come_back_without_a_copy_or_a_changed_bit():
    """`npy_parts` must be what NumPy and Flower write, for every shape that a network has."""
    for array in (
        np.float32(3.5).reshape(()),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(24, dtype=np.float64).reshape(4, 6).T,
        np.zeros((0, 3), np.int64),
        np.ones(1, np.float16),
    ):
        assert npy_bytes(np.asarray(array)) == Array(np.asarray(array, order="C")).data
    large = np.arange(1000.0)
    _, body = npy_parts(large)
    assert np.shares_memory(np.frombuffer(body), large)


def test_refusals_are_reports_on_the_order_and_have_receipts(station):
    """The coordinator sees which site refused what and why; the hospital sees that it did."""
    with station() as here:
        order = order_for(here.study, "census")
        other = order.model_copy(update={"study": "0" * 64})
        forbidden = order_for(here.study, "linear")
        stranger = Ed25519PrivateKey.generate()
        for what, code in (
            (sealed(order, key=None), "UNSIGNED"),
            (sealed(order, key=stranger), "SIGNATURE"),
            (sealed(order, age_s=3600), "EXPIRED"),
            (sealed(other), "STUDY_UNKNOWN"),
            (sealed(forbidden), "POLICY"),
        ):
            report, arrays = here.ask(what)
            assert (report.refusal, arrays) == (code, {})
            wanted = {"STUDY_UNKNOWN": other, "POLICY": forbidden}.get(code, order)
            assert report == Report(order=wanted.id, site="alpha", kind=wanted.kind, refusal=code)
            assert here.receipts[-1]["refusal"] == code
        approvals.pause(here.site, "maintenance")
        assert here.ask(order)[0].refusal == "PAUSED"
        approvals.resume(here.site)
        assert here.ask(order)[0].refusal == ""
        assert len(here.receipts) == 7
        assert here.exposures == 0


@pytest.mark.parametrize(
    ("text", "signature", "code"),
    [("no envelope", "", "UNSIGNED"), ("no envelope", "ab" * 64, "SIGNATURE"), ("{}", "zz", "SIGNATURE")],
)  # fmt: skip
def test_what_is_no_order_gets_a_bare_code_and_a_receipt(station, text, signature, code):
    """There is nothing to report on; the courier still has something to carry back."""
    with station() as here:
        with pytest.raises(Refusal) as refused:
            here.ask(Sealed(text, signature))
        assert refused.value.code == code
        [receipt] = here.receipts
        assert receipt["refusal"] == code
        assert here.ask(order_for(here.study, "census"))[0].refusal == ""


def test_refused_order_is_refused_before_its_arrays(station):
    """Signature, study, role, policy and pause need no gigabyte."""
    with station() as here:
        approvals.pause(here.site, "maintenance")
        order = sealed(order_for(here.study, "train", initial(here.study)))
        head = header(**order._asdict(), arrays=[["x", 1 << 30]])
        hold = threading.Event()

        def frames() -> Iterator[bytes]:
            yield head
            hold.wait(10)

        with grpc.insecure_channel(here.address) as channel:
            call = channel.stream_stream(METHOD)(frames())
            first = json.loads(next(call))
            call.cancel()
        hold.set()
        assert json.loads(first["report"])["refusal"] == "PAUSED"


def leave_when(gone: Callable[[bytes], bool], address: str, what: Sealed, arrays: Any) -> None:
    """A courier that brings all of an order, and leaves at the first frame that `gone` is true of."""
    named = {name: npy_bytes(array) for name, array in arrays.items()}
    sizes = [[name, len(data)] for name, data in named.items()]
    done = threading.Event()

    def frames() -> Iterator[bytes]:
        yield header(**what._asdict(), arrays=sizes)
        yield from chunks(named.values())
        done.wait(30)

    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(METHOD)(frames())
        assert any(gone(frame) for frame in call)
        call.cancel()
    done.set()


def test_delivery_is_closed_when_the_report_is_confirmed_and_not_before(station, gate):
    """A courier killed with half a report asks again; a stolen envelope is worth nothing later."""
    gate.open.set()
    with station() as here:
        arrays = initial(here.study)
        delivery = sealed(order_for(here.study, "train", arrays))
        leave_when(lambda frame: b"report" in frame, here.address, delivery, arrays)
        first = here.ask(delivery, arrays)
        assert first[0].refusal == ""
        assert here.ask(delivery, arrays)[0].refusal == "REPLAYED"
        again = here.ask(order_for(here.study, "train", arrays), arrays)  # in a new envelope
        assert same(again, first)
        assert len(gate.trained) == here.exposures == 1


def test_forged_envelope_does_not_use_up_a_number(station):
    """Whoever carries an order could otherwise spoil it by delivering a bad copy first."""
    with station() as here:
        good = sealed(order_for(here.study, "census"))
        leave_when(lambda frame: b"report" in frame, here.address, good, {})
        assert here.ask(Sealed(good.text, "ab" * 64))[0].refusal == "SIGNATURE"
        assert here.ask(good)[0].refusal == ""


def test_same_order_asked_twice_at_once_is_worked_on_once(station, gate):
    """A courier that restarts while the agent trains joins, instead of training again behind it."""
    with station() as here:
        arrays = initial(here.study)
        order = order_for(here.study, "train", arrays)
        asides = [Aside(here, order, arrays) for _ in range(3)]
        assert gate.begun.wait(10)
        time.sleep(0.2)  # let the others arrive, too
        gate.open.set()
        found = [aside.result() for aside in asides]
        assert all(same(each, found[0]) for each in found)
        assert found[0][0].refusal == ""
        assert len(gate.trained) == here.exposures == 1
        assert [receipt["refusal"] for receipt in here.receipts] == ["", "", ""]  # each left


def test_joining_does_not_wait_behind_other_orders(station, gate):
    """Nor does it count as one more: the place in the queue is the order's."""
    with station() as here:
        arrays = initial(here.study)
        orders = [
            order_for(here.study, "train", arrays, round=n) for n in range(1, MOST_ORDERS + 1)
        ]
        asides = [Aside(here, orders[0], arrays)]
        assert gate.begun.wait(10)
        asides += [Aside(here, order, arrays) for order in orders[1:]]
        wait_for(lambda: sample(here, "callosum_site_queue_length") == MOST_ORDERS - 1)
        asides.append(Aside(here, orders[0], arrays))
        report, _ = here.ask(order_for(here.study, "train", arrays, round=99), arrays)
        assert report.refusal == "BUSY"
        gate.open.set()
        assert [aside.result()[0].refusal for aside in asides] == [""] * (MOST_ORDERS + 1)
        assert len(gate.trained) == here.exposures == MOST_ORDERS
        assert here.ask(order_for(here.study, "census"))[0].refusal == ""
        assert sample(here, "callosum_site_queue_length") == 0


def test_work_goes_on_when_the_courier_leaves(station, gate):
    """Hours of training must not hang on a connection; the next asking gets the report."""
    with station() as here:
        arrays = initial(here.study)
        order = order_for(here.study, "train", arrays)
        leave_when(lambda _: gate.begun.is_set(), here.address, sealed(order), arrays)
        assert here.receipts == []
        gate.open.set()
        wait_for(lambda: len(here.receipts) == 1)  # it is done, with nobody there
        report, sent = here.ask(order, arrays)
        assert report.refusal == ""
        assert sent["heads.age.weight"].shape == arrays["heads.age.weight"].shape
        assert len(gate.trained) == here.exposures == 1


def test_courier_that_leaves_before_all_is_there_does_not_block_the_order(station):
    """Half an order is forgotten; the same order is new for whoever brings all of it."""
    with station() as here:
        arrays = initial(here.study)
        order = order_for(here.study, "train", arrays)
        what = sealed(order)
        named = [(name, npy_bytes(array)) for name, array in arrays.items()]
        head = header(**what._asdict(), arrays=[[name, len(data)] for name, data in named])
        hold = threading.Event()

        def frames() -> Iterator[bytes]:
            yield head
            hold.wait(20)

        with grpc.insecure_channel(here.address) as channel:
            call = channel.stream_stream(METHOD)(frames())
            assert any("send" in json.loads(said) for said in call)  # it may be at work until then
            waiting = Aside(here, order, arrays)  # joins, and must then bring the order itself
            time.sleep(0.2)
            call.cancel()
        hold.set()
        assert waiting.result()[0].refusal == ""
        assert here.ask(what, arrays)[0].refusal == ""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:20],
        lambda data: b"PK\x03\x04" + data,
        lambda data: data.replace(b"<f4", b"|O8"),
        lambda data: data[:-4] + b"\0\0\0\x7f",
    ],
    ids=["torn", "no npy", "objects", "other bits"],
)
def test_spoilt_arrays_are_refused_unread(station, gate, spoil):
    """A courier that changes them, or worse, wants them unpickled."""
    gate.open.set()
    with station() as here:
        arrays = initial(here.study)
        named = [(name, spoil(npy_bytes(array))) for name, array in arrays.items()]
        what = sealed(order_for(here.study, "train", arrays))
        text, sent = ask(here.address, None, what, named, 0)
        assert (read_report(text).refusal, sent) == ("ORDER_MALFORMED", [])
        assert (gate.trained, here.exposures) == ([], 0)


def test_data_that_cannot_be_prepared_are_tried_again_at_the_next_order(station, monkeypatch):
    """A full disk is mended, and nobody restarts the agent for it."""
    with station() as here:
        arrays = initial(here.study)
        order = order_for(here.study, "train", arrays)

        def full(*_: Any, **__: Any) -> Any:
            raise StorageError(f"{SECRET} cannot be written")

        with monkeypatch.context() as broken:
            broken.setattr(client_pool, "prepare", full)
            report, _ = here.ask(order, arrays)
        assert report.refusal == "DISK_FULL"
        assert "sub-0042" not in report.model_dump_json()
        assert here.receipts[-1]["refusal"] == "DISK_FULL"
        assert here.ask(order, arrays)[0].refusal == ""


def test_text_of_an_exception_stays_at_the_site(station, monkeypatch, caplog):
    """Wherever it is raised: here, in the thread that prepares."""
    with station() as here, caplog.at_level(logging.INFO, logger="callosum.site"):

        def broken(*_: Any, **__: Any) -> Any:
            raise ValueError(SECRET)

        monkeypatch.setattr(client_pool, "prepare", broken)
        text, _ = ask(here.address, None, sealed(order_for(here.study, "census")), [], 0)
        assert json.loads(text)["refusal"] == "SITE_FAILED"
        assert "sub-0042" not in text
        assert "sub-0042" in caplog.text


def test_approval_while_the_agent_runs_counts_at_once(station):
    """Nobody restarts an agent to join a study; and what is approved is prepared before it is asked."""
    with station(approve=False) as here:
        order = order_for(here.study, "census")
        assert here.ask(order)[0].refusal == "STUDY_UNKNOWN"
        here.approve()
        here.daemon.look_round()
        wait_for(lambda: any("40 samples are ready" in line for line in here.told))
        assert here.ask(order)[0].refusal == ""
        approvals.revoke(here.site, here.study.name)
        here.daemon.look_round()
        assert (
            here.ask(order_for(here.study, "census", run="cd" * 32))[0].refusal == "STUDY_UNKNOWN"
        )


def test_data_are_looked_through_once_a_run(station, monkeypatch):
    """New scans count from the next run on; a round is not delayed by a walk through an archive."""
    prepared = []
    plain = client_pool.prepare

    def prepare(*things: Any, **more: Any) -> Any:
        prepared.append(things)
        return plain(*things, **more)

    monkeypatch.setattr(client_pool, "prepare", prepare)
    with station() as here:
        arrays = initial(here.study)
        first, _ = here.ask(order_for(here.study, "census"))
        for n in (1, 2):
            here.ask(order_for(here.study, "train", arrays, round=n), arrays)
        assert len(prepared) == 1
        for n in range(40, 50):
            add_participant(here, f"alpha-{n:03d}")
        second, _ = here.ask(order_for(here.study, "census", run="cd" * 32))
        assert len(prepared) == 2
        assert (first.support["scans"], second.support["scans"]) == (40, 50)
        here.ask(order_for(here.study, "train", arrays, round=3), arrays)
        assert len(prepared) == 2
        for n in range(50, 60):
            add_participant(here, f"alpha-{n:03d}")
        plain(here.study, here.site)  # by hand: callosum-site prepare
        report, _ = here.ask(order_for(here.study, "train", arrays, round=4), arrays)
        assert report.refusal == ""
        assert "60 samples are ready" in here.told[-1]


def test_newcomers_take_part_once_there_are_enough_of_them(station):
    """A census with one person more than the last, and a training, are about her alone."""
    with station() as here:
        arrays = initial(here.study)
        here.ask(order_for(here.study, "census"))
        add_participant(here, "alpha-040")
        run = "cd" * 32
        for kind, given in (("census", {}), ("train", arrays)):
            report, _ = here.ask(order_for(here.study, kind, given, run=run), given)
            assert report.refusal == ""
            if kind == "census":
                assert report.support["scans"] == report.participants["scans"] == 40
        assert any("1 participants have come since the last census" in line for line in here.told)
        for n in range(41, 50):
            add_participant(here, f"alpha-{n:03d}")
        report, _ = here.ask(order_for(here.study, "census", run="ef" * 32))
        assert report.support["scans"] == report.participants["scans"] == 50


def add_participant(here: Station, name: str) -> None:
    """One more row of the site's table, with a value of its own."""
    table = here.kit.folder / "agent" / "table.csv"
    lines = table.read_text().splitlines()
    cells = lines[-1].split(",")
    added = ",".join([name, f"{float(cells[1]) + 0.5}", *cells[2:]])
    table.write_text("\n".join([*lines, added]) + "\n")


def test_study_in_preparation_does_not_hold_up_another(station, federation, gate, monkeypatch):
    """A first preparation takes hours; the consortium's other study goes on meanwhile."""
    with station() as here:
        assert here.ask(order_for(here.study, "census"))[0].refusal == ""
        plain = client_pool.prepare

        def prepare(study: Any, *things: Any, **more: Any) -> Any:
            if study.name == "other":
                assert gate.open.wait(30)
            return plain(study, *things, **more)

        monkeypatch.setattr(client_pool, "prepare", prepare)
        text = here.federation.study_file.read_text()
        other = here.federation.folder / "other.toml"
        other.write_text(text.replace('name = "tiny"', 'name = "other"', 1))
        approvals.approve(here.site, other, report_bytes=1000)
        here.daemon.look_round()
        slow = Aside(here, order_for(load_study(other), "census"))
        assert here.ask(order_for(here.study, "census", run="cd" * 32))[0].refusal == ""
        assert slow.is_alive()
        gate.open.set()
        assert slow.result()[0].refusal == ""


def test_training_has_the_threads_that_the_site_file_says(station, gate):
    """Bits depend on their number, and the worker is another thread than the one that set it."""
    gate.open.set()
    torch.set_num_threads(2)
    with station() as here:
        arrays = initial(here.study)
        here.ask(order_for(here.study, "train", arrays), arrays)
    assert here.site.device.threads == 1
    assert gate.threads == [1]


def test_metrics_tell_of_orders_refusals_and_what_is_left(station, gate):
    """An operator who never reads logs must still see that a site refuses or has nothing left."""
    gate.open.set()
    with station(site={"policy.most_exposures": 1}) as here:
        arrays = initial(here.study)
        order = order_for(here.study, "train", arrays)
        report, sent = here.ask(order, arrays)
        assert (
            here.ask(order_for(here.study, "train", arrays, round=2), arrays)[0].refusal
            == "PRIVACY_SPENT"
        )
        here.daemon.look_round()
        assert sample(here, "callosum_site_orders_total", kind="train") == 2
        assert sample(here, "callosum_site_reports_total", kind="train") == 1
        assert sample(here, "callosum_site_refusals_total", code="PRIVACY_SPENT") == 1
        assert sample(here, "callosum_site_exposures_left") == 0
        size = sum(array.nbytes for array in sent.values())
        assert sample(here, "callosum_site_sent_bytes_total", kind="train") > size
        for phase in ("prepare", "receive", "queue", "work", "send"):
            name = "callosum_site_phase_seconds_count"
            assert sample(here, name, kind="train", phase=phase) >= 1
        total, count = report.counts["loss/age"]
        loss = sample(here, "callosum_site_loss", study="tiny", loss="age")
        assert loss == pytest.approx(total / count)


def sample(station: Station, name: str, **labels: str) -> float:
    found = station.metrics.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


def wait_for(true: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SERVE = """
import json
import sys
from pathlib import Path
from client.service import daemon
from client.kit import open_kit
kit, grace, more = json.loads(sys.argv[1])
daemon._GRACE_S = grace
daemon.serve(open_kit(Path(kit)), **{"socket": None, "listen": None, "metrics": None, **more})
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def serving(processes) -> Callable[..., subprocess.Popen[str]]:
    """`serving(kit)`: the daemon as the process that it is in a hospital."""

    def start(kit: SiteKit, grace_s: float = 10.0, **more: str) -> subprocess.Popen[str]:
        arguments = json.dumps([str(kit.folder), grace_s, more])
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, arguments], cwd=ROOT, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
        )  # fmt: skip
        processes.append(process)
        return process

    return start


LONG = {"pretraining.local_epochs": 300}  # some seconds of training


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_agent_ended_in_mid_work_answers_as_if_nothing_had_been(station, serving, tmp_path, number):
    """The same report, paid for once: whatever ends the process, at the worst of moments."""
    here = station(LONG)
    arrays = initial(here.study)
    order = order_for(here.study, "train", arrays)
    wanted = bare_answer(here, order, arrays, tmp_path)
    first = serving(here.kit, grace_s=0.2)
    aside = Aside(here, order, arrays, patience_s=60)
    wait_for(lambda: here.exposures == 1, 40)  # paid, and not a moment later
    time.sleep(0.2)
    first.send_signal(number)
    assert first.wait(30) == (0 if number == signal.SIGTERM else -number)
    assert here.kit.socket.exists() == (number == signal.SIGKILL)
    assert aside.is_alive()
    assert here.receipts == []
    log = (here.site.state / "agent.log").read_text()
    if number == signal.SIGTERM:  # it does not wait for the training's end
        assert log.endswith("goes on from there\n")
    second = serving(here.kit)
    found = aside.result(60)
    assert same(found, wanted)
    assert here.exposures == 1
    assert [receipt["order"] for receipt in here.receipts] == [order.id]
    second.terminate()
    assert second.wait(20) == 0


@pytest.mark.slow
def test_agent_says_how_it_stands_and_ends_politely(station, serving):
    """A person reads the log first; systemd and Kubernetes send SIGTERM and count the seconds."""
    here = station()
    process = serving(here.kit)
    wait_for(here.kit.socket.exists, 40)
    assert here.ask(order_for(here.study, "census"), patience_s=20)[0].refusal == ""
    second = serving(here.kit)
    assert second.wait(30) != 0
    assert "FolderError" in second.stderr.read()
    began = time.monotonic()
    process.terminate()
    assert process.wait(20) == 0
    assert time.monotonic() - began < 5
    assert not here.kit.socket.exists()
    log = here.site.state / "agent.log"
    assert log.stat().st_mode & 0o007 == 0  # it may name participants
    text = log.read_text()
    for words in (
        "agent of alpha (train) in tests",
        f"approved: tiny ({here.study.digest[:12]})",
        "policy: census, settle, train, finetune, judge, evaluate; at least 10 participants",
        f"listening at unix:{here.kit.socket}, metrics nowhere",
        "tiny: 40 participants, 40 samples are ready",
        f"census of run {RUN[:12]}, federated, round 0: done in",
        "stopping",
        "stopped",
    ):
        assert words in text
    assert process.stderr.read().count("agent of alpha") == 1


def test_start_says_what_somebody_must_see_to(station, caplog):
    """A pause that was forgotten, a role that the coordinator does not expect: both stop a round."""
    here = station(approve=False)
    approvals.pause(here.site, "the scanner is moved")
    kit = here.kit.model_copy(update={"role": "heldout"})
    caplog.set_level(logging.INFO, logger="callosum.site")
    with open_records(here.site) as records:
        announce(kit, here.site, records.ledger, at="unix:/run/agent.sock", metrics=None)
    assert "approved: no study yet; callosum-site approve STUDY" in caplog.text
    assert re.search(r"PAUSED since 2.*: the scanner is moved; callosum-site resume", caplog.text)
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 'role is "train"' in warning.getMessage()
    assert 'expects "heldout"' in warning.getMessage()


def test_kit_of_another_site_is_refused(station, monkeypatch):
    """Two kits on one machine are easily mixed up, and each would answer with the other's data."""
    here = station()
    file = here.kit.folder / "kit.toml"
    file.write_text(file.read_text().replace('name = "alpha"', 'name = "beta"'))
    monkeypatch.setattr("client.service.daemon.told_to_stop", threading.Event)
    with pytest.raises(SettingError, match="the kit is for beta"):
        serve(open_kit(here.kit.folder), socket=None, listen=None, metrics=None)


@pytest.mark.slow
def test_kit_from_the_coordinator_serves_over_tls_and_is_measured(station, serving, tmp_path):
    """Agent and courier in two containers: the coordinator's files are all that they need."""
    made = station(approve=False).federation
    members = [{"name": "alpha", "role": "train", "data": "features"}]
    tables = {"name": "tests", "hub": "hub.example.org:443", "contact": "us", "sites": members}
    (tmp_path / "consortium.toml").write_text(tomli_w.dumps(tables))
    provision(tmp_path / "consortium.toml", tmp_path / "kits")
    kit = open_kit(tmp_path / "kits" / "alpha")
    shutil.copytree(made.sites / "alpha", kit.site_file.parent, dirs_exist_ok=True)
    here = Station(kit, made)
    here.approve()
    agent, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    serving(kit, listen=agent, metrics=metrics)
    key = read_private_key(tmp_path / "kits" / "hub" / "coordinator.key")
    what = sealed(order_for(here.study, "census"), key=key)
    text, arrays = ask(agent, kit.courier_tls, what, [], 60)
    assert (read_report(text).refusal, arrays) == ("", [])
    given = drawn_constants(here.study)
    what = sealed(order_for(here.study, "settle", given), key=key)
    named = [(name, npy_bytes(array)) for name, array in given.items()]
    text, arrays = ask(agent, kit.courier_tls, what, named, 60)
    assert (read_report(text).refusal, len(arrays)) == ("", 3)
    assert not kit.socket.exists()
    with urllib.request.urlopen(f"http://{metrics}/metrics") as page:
        shown = page.read().decode()
    assert 'callosum_site_reports_total{kind="census"} 1.0' in shown
    assert "callosum_site_exposures_left 1000.0" in shown
    assert re.search(r"callosum_site_certificate_expiry_timestamp_seconds [12]\.\d+e\+09", shown)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
