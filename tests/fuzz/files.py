"""What lies in run and site folders: arrays, checkpoints, tables of a run, ledger, receipts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from client.answer import Answer
from client.authority import approvals, receipts
from client.authority.ledger import Ledger, read_ledger
from client.authority.receipts import Receipts, read_receipts, verify
from client.data.generation import INDEX, Record, line_of, read_index
from client.learning.tuned_models import Cell, Passage, TunedModel, TunedModels, kept_models
from client.service.array_store import ArrayStore
from client.service.report_cache import ReportCache
from client.site import load_site
from common.arrays import Arrays
from common.errors import CallosumError
from common.network.plan import Rule
from common.protocol.orders import EMPTY, Order, Report
from common.protocol.wire import read_spooled, spool, write_arrays
from server.checkpoints import Branch, Checkpoint, load_checkpoint
from server.lineage import Lineage
from server.report import participation
from server.report.live_view import row_of, table_of
from server.run import create_run, read_run
from server.run_files import write_json, write_sealed
from server.run_state import failure_of, state_of, wanted_of, wanted_since
from tests.fuzz.border import Border
from tests.fuzz.made import SITE_TABLE, STUDY, STUDY_TABLE, folder, of_this_process, written
from tests.fuzz.mutation import grown, mutated

ARRAYS: Arrays = {"model/w": np.arange(6, dtype=np.float32).reshape(2, 3), "state/m/w": np.ones(3)}
ORDER = Order(kind="train", study=STUDY.digest, run="a" * 64, site="alpha", round=1, arrays=EMPTY)
TUNE = ORDER.model_copy(
    update={"kind": "finetune", "task": "dementia", "method": "full", "init": "scratch"}
)
LINEAGE = Lineage.model_validate({
    "salt": "5" * 64,
    "stages": [{
        "study": "tiny", "digest": "d" * 64, "model": "federated", "prepared": "e" * 64,
        "parts": [{"site": "alpha", "uses": ["weights"], "participants": 9, "scans": 9,
                   "cohort": "c" * 64}],
    }],
})  # fmt: skip
PLAN = {"w": Rule(shape=(2, 3), dtype="float32", group="scans", role="parameter", kept=False)}
ENTRY = {
    "round": 1, "model": "federated", "degraded": False, "refused": {"beta": "BUSY"},
    "answered": {"alpha": {"support": {"scans": 9}, "participants": {"scans": 9}, "seconds": 1.0,
                           "bytes": 900}},
    "loss": {"age": 0.5}, "validation_loss": {}, "update_norm": 0.1, "seconds": 2.5,
    "validation": {"age": {"n": 9, "mae": 4.0}},
}  # fmt: skip


def _kinds(here: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """A sound file of each kind that holds arrays, and how it is read."""
    branch = Branch(here, "federated")
    done = Checkpoint(round=1, arrays={"w": ARRAYS["model/w"]}, state={}, lineage=LINEAGE)
    branch.save(done, STUDY, PLAN, last=False)
    report = Report(order=ORDER.id, site="alpha", kind="train", round=1, support={"scans": 9})
    cache, models, store = (
        ReportCache(here / "runs/a"),
        TunedModels(here / "runs/a"),
        ArrayStore(here),
    )
    cache.keep(ORDER, report, Answer(arrays=ARRAYS))
    cache.keep_own(ORDER, ARRAYS)
    cell = Cell(learning_rate=0.1, weight_decay=0.0, history=(Passage(epoch=1, loss=0.5),))
    models.keep(
        TUNE, 0, TunedModel(order=TUNE.id, metric="auc", arrays=ARRAYS, grid=(cell,), chosen=0)
    )
    write_arrays(here / f"{'b' * 64}.safetensors", ARRAYS, {})
    spool(here / "reply", report, ARRAYS)

    def tuned(_: Path) -> None:
        kept_models(here / "runs")
        found = models.find(TUNE, 0)
        assert found is None or found.cell is not None or found.chosen is None

    [kept] = here.rglob("report-0001.safetensors")
    [own] = here.rglob("own-0001.safetensors")
    [model] = here.rglob("k0-repeat0.safetensors")
    return {
        "checkpoint": (branch._path(1), lambda path: (load_checkpoint(path, STUDY), branch.plan(STUDY))),
        "kept report": (kept, lambda _: cache.report(ORDER)),
        "own arrays": (own, lambda _: cache.own_arrays("federated")),
        "tuned model": (model, tuned),
        "array store": (here / f"{'b' * 64}.safetensors", lambda _: store.get("b" * 64)),
        "reply": (here / "reply", read_spooled),
    }  # fmt: skip


@of_this_process
def _files() -> dict[str, tuple[Path, bytes, Callable[[Path], object]]]:
    kinds = _kinds(folder("arrays"))
    return {name: (path, path.read_bytes(), read) for name, (path, read) in kinds.items()}


def _grown_text(random: Random, text: str) -> str:
    """Another text in its place, as JSON where it was that."""
    try:
        return json.dumps(grown(random, json.loads(text)))
    except ValueError:
        return str(grown(random, text))


def arrays(random: Random) -> tuple[str, bytes]:
    """A file that rots, or one whose header lies under a digest that fits."""
    name = random.choice(list(_files()))
    data = _files()[name][1]
    if random.random() < 0.3:
        return name, mutated(random, data)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = json.loads(header["__metadata__"]["json"])
    which = random.randrange(3)
    if which == 0:
        header = grown(random, header)
    elif which == 1:
        told = grown(random, told)
    else:
        key = random.choice(sorted(told["texts"]) or [""])
        if key:
            told["texts"][key] = _grown_text(random, told["texts"][key])
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        rest = {k: v for k, v in told.items() if k != "sha256"} if isinstance(told, dict) else told
        text = json.dumps({"sha256": "0" * 64, **rest} if isinstance(rest, dict) else rest,
                          separators=(",", ":"))  # fmt: skip
        header["__metadata__"]["json"] = text
    head = json.dumps(header, separators=(",", ":")).encode()
    digest = hashlib.sha256(head).hexdigest().encode()
    head = head.replace(b"0" * 64, digest, 1)
    return name, len(head).to_bytes(8, "little") + head + data[8 + length :]


def read_arrays(value: tuple[str, bytes]) -> None:
    name, data = value
    path, _, read = _files()[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    read(path)


# Tables of a run.

TABLES: Mapping[str, Any] = {
    "rounds/0001/record.json": ENTRY,
    "census.json": {"alpha": {"role": "train", "refused": "", "held": {"scans": 9},
                              "participants": {"scans": 9}}},
    "census/refused.json": {"beta": "BUSY"},
    "progress.json": {"phase": "train", "model": "federated", "task": "", "method": "", "round": 1,
                      "rounds": 2, "asked": ["alpha"], "refused": {}, "seconds": 1.0, "since": 1.0,
                      "answered": {"alpha": {"seconds": 1.0, "bytes": 9}}},
    "state.json": {"state": "running", "attempts": 1, "error": "", "since": 1.0},
    "wanted.json": {"wanted": "running", "since": 1.0},
    "failure.json": {"error": "x", "at": 1.0},
}  # fmt: skip
SEALED = ("rounds/0001/record.json", "provenance.json")


@of_this_process
def _run() -> tuple[Path, dict[str, bytes]]:
    made = folder("run") / "run"
    create_run(made, STUDY, written("study.toml", STUDY_TABLE))
    for name, table in TABLES.items():
        (write_sealed if name in SEALED else write_json)(made / name, table)
    names = [*TABLES, "study.json", "provenance.json"]
    return made, {name: (made / name).read_bytes() for name in names}


def table(random: Random) -> tuple[str, bytes]:
    _, sound = _run()
    name = random.choice(list(sound))
    if random.random() < 0.3:
        return name, mutated(random, sound[name])
    tree = grown(random, json.loads(sound[name]))
    return name, json.dumps(tree).encode()


def read_table(value: tuple[str, bytes]) -> None:
    """As runs, hub and lookers-on read a run folder of which one table is not sound."""
    made, sound = _run()
    name, data = value
    (made / name).write_bytes(data)
    try:
        _looked_at(made)
    finally:
        (made / name).write_bytes(sound[name])


def _looked_at(made: Path) -> None:
    wanted_of(made), wanted_since(made), failure_of(made)
    state = state_of(made)
    run = read_run(made)
    for look in (
        lambda: table_of(run, state, hub_lives=True),
        lambda: [row_of(record, 2) for record in participation.records(run.federated)],
        lambda: participation.holdings(STUDY, participation.census(run)),
        lambda: participation.traffic("federated", participation.records(run.federated)),
        lambda: participation.participation(
            STUDY, run.federated.records(), participation.census(run)
        ),
    ):
        try:
            look()
        except CallosumError:
            continue


# What a site keeps.


@of_this_process
def _books() -> tuple[Path, bytes, bytes]:
    """A ledger and a month of receipts."""
    here = folder("books")
    shutil.rmtree(here / "receipts", ignore_errors=True)
    with Ledger(here / "ledger.sqlite") as ledger:
        kept = Receipts(here / "receipts", ledger)
        for number in range(3):
            order = ORDER.model_copy(update={"round": number})
            ledger.present(f"{number:032x}", order.id, 9.0)
            ledger.spend(order, "tiny")
            report = Report(order=order.id, site="alpha", kind="train", support={"scans": 9})
            ledger.answered(order.id, "e" * 64)
            kept.append(receipts.departure(order, "tiny", report, ARRAYS, "e" * 64), _NOW)
    [file] = (here / "receipts").glob("*.jsonl")
    return here, (here / "ledger.sqlite").read_bytes(), file.read_bytes()


_NOW = datetime(2025, 3, 1, tzinfo=UTC)


def ledger(random: Random) -> bytes:
    return mutated(random, _books()[1])


def read_books(data: bytes) -> None:
    here, *_ = _books()
    path = here / "one" / "ledger.sqlite"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    for look in (lambda: _read_account(path), lambda: _written_to(path)):
        try:
            look()
        except CallosumError:
            continue


def _read_account(path: Path) -> None:
    account = read_ledger(path)
    for each in account.exposures:
        f"{each.time} {each.study[:12]} {each.round:d} {each.order[:12]}"
    f"{account.head.number:d} {account.head.hash[:12]}"


def _written_to(path: Path) -> None:
    with Ledger(path) as ledger:
        ledger.head(), ledger.exposures(), ledger.rows(), ledger.spent(STUDY.digest)
        ledger.answer(ORDER.id)
        ledger.present("f" * 32, ORDER.id, 9.0)
        ledger.spend(ORDER, "tiny", 100)
        ledger.answered(ORDER.id, "e" * 64)
        ledger.set_head(9, "f" * 64)


def receipt(random: Random) -> bytes:
    """Lines that rot, or that say something else under a hash that fits."""
    data = _books()[2]
    if random.random() < 0.5:
        return mutated(random, data)
    lines = data.splitlines()
    number = random.randrange(len(lines))
    entry = json.loads(lines[number])
    entry.pop("hash")
    tree = grown(random, entry)
    body = json.dumps(tree)
    digest = hashlib.sha256(body.encode()).hexdigest()
    lines[number] = f'{body[:-1]}, "hash": "{digest}"}}'.encode()
    return b"\n".join(lines) + b"\n"


def read_receipt_file(data: bytes) -> None:
    here, sound, _ = _books()
    kept = here / "two" / "receipts"
    kept.mkdir(parents=True, exist_ok=True)
    for torn in kept.glob("*.torn"):
        torn.unlink()
    file = kept / "2025-03.jsonl"
    file.write_bytes(data)
    path = here / "two" / "ledger.sqlite"
    path.write_bytes(sound)
    for _ in read_receipts(kept):
        pass
    verify(kept, lambda: read_ledger(path).head)
    with Ledger(path) as ledger:
        Receipts(kept, ledger).append({"refusal": "BUSY"}, _NOW)


RECORD = Record(participant="p", scan="s", stamp="t", n=1, status="ready", notes=("odd",),
                sha256="0" * 64, labels={"age": ["1"]})  # fmt: skip
APPROVAL = {"digest": "0" * 64, "name": "tiny", "approved": "2025", "by": "me", "file": "f",
            "report_bytes": 9}  # fmt: skip


def kept(random: Random) -> tuple[str, bytes]:
    """Small files in a site's state folder: an index of prepared data, an approval, a pause."""
    name = random.choice((INDEX, "approval", "paused"))
    if name == INDEX:
        return name, mutated(random, line_of(RECORD) * 2)
    sound = APPROVAL if name == "approval" else {"since": "2025", "reason": "r", "by": "me"}
    data = json.dumps(grown(random, sound)).encode()
    return name, mutated(random, data) if random.random() < 0.3 else data


def read_kept(value: tuple[str, bytes]) -> None:
    name, data = value
    here = folder("site")
    if name == INDEX:
        (here / INDEX).write_bytes(data)
        read_index(here)
        return
    site = _site()
    places = {"approval": f"studies/{'0' * 64}.json", "paused": "paused"}
    path = site.state / places[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    approvals.approved(site), approvals.paused(site), approvals.study_of(site, "0" * 64)


@of_this_process
def _site() -> Any:
    return load_site(written("site.toml", SITE_TABLE))


def borders() -> Iterator[Border]:
    yield Border(name="arrays", share=10, make=arrays, read=read_arrays)
    yield Border(name="run", share=5, make=table, read=read_table)
    yield Border(name="ledger", share=3, make=ledger, read=read_books)
    yield Border(name="receipts", share=4, make=receipt, read=read_receipt_file)
    yield Border(name="kept", share=5, make=kept, read=read_kept)
