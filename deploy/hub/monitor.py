"""What a hub tells the coordinator's Prometheus: runs, rounds, seconds, bytes, losses, refusals.

It reads run folders when it is scraped and keeps nothing of its own, so it is as true after a
restart as before. A finished round is read once: its record changes no more when the next one
stands. What cannot be read is counted and left out; no file makes a scrape fail.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from client.service.monitor import Disk, Endpoint, listen
from common.errors import SENTENCES
from common.protocol.orders import Count, OrderKind

_log = getLogger("callosum.hub")
_STATES: Final = ("waiting", "running", "finished", "failed", "stopped")
_KINDS: Final = get_args(OrderKind)
_OTHER: Final = "other"  # a code or kind that nobody documented
_MOST_RUNS: Final = 50  # the newest; older ones lie in their folders, not in every scrape
_LARGEST_FILE: Final = 16 << 20  # bytes; a record of a thousand sites has a tenth of that

Family = CounterMetricFamily | GaugeMetricFamily
Families = dict[str, Family]
Stamp = tuple[int, int, int]  # of a file: which one, how long, when written
Parsed = TypeVar("Parsed", bound=BaseModel)
Seconds = Annotated[float, Field(ge=0)]

_OF_RUN: Final = ("run",)
_OF_MODEL: Final = ("run", "model")
_OF_PHASE: Final = ("run", "model", "phase")
_OF_SITE: Final = ("run", "model", "site")
_OF_REFUSAL: Final = ("run", "model", "site", "code")
_NAMES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "run_state": ("1 for the state that the run is in, 0 for the others", ("run", "state")),
    "run_wanted": ("1 if the run is to go on, 0 if it is to stand still", _OF_RUN),
    "run_attempts_total": ("Times that the run was handed to Flower", _OF_RUN),
    "rounds_total": ("Rounds finished", _OF_MODEL),
    "degraded_rounds_total": ("Rounds finished without a site that belongs to them", _OF_MODEL),
    "round_seconds_total": (
        "Seconds of finished rounds; sites: the slowest at work, other: carrying and averaging",
        _OF_PHASE,
    ),
    "site_seconds_total": ("Seconds that a site worked for finished rounds", _OF_SITE),
    "received_bytes_total": ("Bytes of the reports of finished rounds", _OF_SITE),
    "refusals_total": ("Orders or reports declined in finished rounds", _OF_REFUSAL),
    "loss": ("Mean training loss of the newest finished round", ("run", "model", "loss")),
    "last_round_seconds": ("Seconds of the newest finished round", _OF_MODEL),
    "last_round_degraded": ("1 if a site is missing in the newest finished round", _OF_MODEL),
    "last_round_refused": ("1 for what was declined in the newest finished round", _OF_REFUSAL),
    "last_round_timestamp_seconds": (
        "Unix time in seconds at which the run's newest round was finished, or the run began",
        _OF_RUN,
    ),
    "progress_round": ("The round that is under way; 0 outside training", _OF_PHASE),
    "progress_rounds": ("Rounds that the study asks for; 0 outside training", _OF_PHASE),
    "progress_sites_asked": ("Sites that were asked", _OF_PHASE),
    "progress_sites_answered": ("Sites that have answered", _OF_PHASE),
    "progress_refused": ("1 for what has been declined so far", _OF_REFUSAL),
    "progress_timestamp_seconds": ("Unix time in seconds of the newest progress", _OF_RUN),
    "site_online": ("1 while the site's node is connected, 0 while it is away", ("site",)),
    "process_restarts_total": ("Times that a process was started again", ("process",)),
    "certificate_expiry_timestamp_seconds": (
        "Unix time in seconds at which a certificate ends",
        ("certificate",),
    ),
    "unreadable": ("Files and sources that could not be read for this scrape", ()),
}


class Line(BaseModel):
    """What one site's answer took."""

    seconds: Seconds = 0.0
    bytes: Count = 0


class Record(BaseModel):
    """As much of a round's `record.json` as is shown."""

    degraded: bool = False
    answered: dict[str, Line] = {}
    refused: dict[str, str] = {}
    loss: dict[str, float | None] = {}
    seconds: Seconds = 0.0


class State(BaseModel):
    """As much of `state.json` as is shown."""

    state: str = ""
    wanted: str | None = None
    attempts: Count = 0


class Progress(BaseModel):
    """As much of `progress.json` as is shown."""

    model: str = ""
    phase: str = ""
    round: Count = 0
    rounds: Count = 0
    asked: list[str] = []
    answered: dict[str, Any] = {}
    refused: dict[str, str] = {}
    updated: float = 0.0


@dataclass(slots=True)
class Totals:
    """Sums over finished rounds of one model."""

    rounds: int = 0
    degraded: int = 0
    sites_s: float = 0.0
    other_s: float = 0.0
    worked_s: dict[str, float] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count one more round."""
        slowest = max((line.seconds for line in record.answered.values()), default=0.0)
        slowest = min(slowest, record.seconds)  # of a report kept from before a restart: none
        self.rounds += 1
        self.degraded += record.degraded
        self.sites_s += slowest
        self.other_s += record.seconds - slowest
        for site, line in record.answered.items():
            self.worked_s[site] = self.worked_s.get(site, 0.0) + line.seconds
            self.bytes[site] += line.bytes
        self.refusals.update((site, _code(code)) for site, code in record.refused.items())

    def with_one_more(self, record: Record) -> Totals:
        """The same and one round more."""
        more = replace(
            self,
            worked_s=dict(self.worked_s),
            bytes=self.bytes.copy(),
            refusals=self.refusals.copy(),
        )
        more.add(record)
        return more


@dataclass(slots=True)
class Rounds:
    """The finished rounds of one model: all but the newest summed up, and the newest itself."""

    folder: Path
    summed: Totals = field(default_factory=Totals)
    done: set[str] = field(default_factory=set)  # rounds that are in `summed`
    newest: tuple[str, Stamp, Record] | None = None

    def read(self) -> int:
        """Take in what is new; how many records could not be read."""
        found, unreadable = [], 0
        names = (name for name in _names(self.folder / "rounds") if name.isdecimal())
        for name in sorted((name for name in names if name not in self.done), key=int):
            path = self.folder / "rounds" / name / "record.json"
            stamp = _stamp(path)
            if stamp is None:
                continue  # under way
            if self.newest is not None and self.newest[:2] == (name, stamp):
                found.append(self.newest)
                continue
            record = _parsed(path, Record)
            if record is None:
                unreadable += 1
            else:
                found.append((name, stamp, record))
        for name, _, record in found[:-1]:
            self.summed.add(record)
            self.done.add(name)
        self.newest = found[-1] if found else self.newest
        return unreadable

    def show(self, run: str, model: str, families: Families) -> None:
        """Add the samples of this model."""
        if self.newest is None:
            return
        record, of = self.newest[2], (run, model)
        totals = self.summed.with_one_more(record)
        families["rounds_total"].add_metric(of, totals.rounds)
        families["degraded_rounds_total"].add_metric(of, totals.degraded)
        families["round_seconds_total"].add_metric((*of, "sites"), totals.sites_s)
        families["round_seconds_total"].add_metric((*of, "other"), totals.other_s)
        for site, seconds in totals.worked_s.items():
            families["site_seconds_total"].add_metric((*of, site), seconds)
        for site, size in totals.bytes.items():
            families["received_bytes_total"].add_metric((*of, site), size)
        for (site, code), n in totals.refusals.items():
            families["refusals_total"].add_metric((*of, site, code), n)
        families["last_round_seconds"].add_metric(of, record.seconds)
        families["last_round_degraded"].add_metric(of, record.degraded)
        for site, code in record.refused.items():
            families["last_round_refused"].add_metric((*of, site, _code(code)), 1)
        for name, value in record.loss.items():
            if value is not None:
                families["loss"].add_metric((*of, name), value)

    @property
    def finished(self) -> float:
        """Unix time at which the newest round was finished; 0 before the first."""
        return self.newest[1][2] / 1e9 if self.newest is not None else 0.0


@dataclass(slots=True)
class RunFolder:
    """What is known of one run folder since it was `born`."""

    folder: Path
    born: Stamp | None
    models: dict[str, Rounds] = field(default_factory=dict)

    def show(self, families: Families) -> int:
        """Read what is new and add the run's samples; how many files could not be read."""
        run, unreadable = self.folder.name, 0
        rivals = _names(self.folder / "comparisons")
        for model, folder in [
            ("federated", self.folder),
            *((name, self.folder / "comparisons" / name) for name in rivals),
        ]:
            rounds = self.models.setdefault(model, Rounds(folder))
            unreadable += rounds.read()
            rounds.show(run, model, families)
        began = self.born[2] / 1e9 if self.born else 0.0
        newest = max(began, *(rounds.finished for rounds in self.models.values()))
        if newest:
            families["last_round_timestamp_seconds"].add_metric((run,), newest)
        return unreadable + self._show_state(run, families)

    def _show_state(self, run: str, families: Families) -> int:
        paths = [self.folder / "state.json", self.folder / "progress.json"]
        there = [_stamp(path) is not None for path in paths]
        state, progress = _parsed(paths[0], State), _parsed(paths[1], Progress)
        if state is not None:
            for name in _STATES:
                families["run_state"].add_metric((run, name), state.state == name)
            families["run_wanted"].add_metric((run,), state.wanted == "running")
            families["run_attempts_total"].add_metric((run,), state.attempts)
        if progress is not None and (state is None or state.state in ("waiting", "running")):
            _show_progress(run, progress, families)
        return sum(
            exists and found is None for exists, found in zip(there, (state, progress), strict=True)
        )


class HubCollector(Collector):
    """Reads run folders, and asks whoever knows about processes, at every scrape.

    Parameters
    ----------
    runs : the folder of run folders
    online : every registered site, and whether its node is connected
    restarts : how often each process was started again
    certificates : when each certificate ends, as Unix time
    """

    def __init__(
        self,
        runs: Path,
        *,
        online: Callable[[], Mapping[str, bool]] = dict,
        restarts: Callable[[], Mapping[str, int]] = dict,
        certificates: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._runs = runs
        self._asked: dict[str, Callable[[], Mapping[str, float]]] = {
            "site_online": online,
            "process_restarts_total": restarts,
            "certificate_expiry_timestamp_seconds": certificates,
        }
        self._known: dict[str, RunFolder] = {}
        self._lock = threading.Lock()  # scrapes come on threads of their own

    def describe(self) -> Iterator[Family]:
        return iter(_families().values())

    def collect(self) -> Iterator[Family]:
        families, unreadable = _families(), 0
        with self._lock:
            for run in self._newest_runs():
                unreadable += run.show(families)
        for name, ask in self._asked.items():
            try:
                for label, value in ask().items():
                    families[name].add_metric((label,), float(value))
            except Exception as error:  # noqa: BLE001  others' trouble is no reason to show nothing
                _log.warning("%s cannot be told: %s", name, error)
                unreadable += 1
        families["unreadable"].add_metric((), unreadable)
        yield from families.values()

    def serve(self, address: str) -> Endpoint:
        """Serve them, with the process's own and the disk's, at "host:port"."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(self)
        registry.register(Disk("callosum_hub", self._runs))
        return listen(registry, address)

    def _newest_runs(self) -> Sequence[RunFolder]:
        stamped = [
            (stamp[2], name)
            for name in _names(self._runs)
            if (stamp := _stamp(self._runs / name)) is not None
        ]
        names = sorted(name for _, name in sorted(stamped)[-_MOST_RUNS:])
        self._known = {name: self._run(name) for name in names}
        return list(self._known.values())

    def _run(self, name: str) -> RunFolder:
        """What is known already, unless the folder now holds another run."""
        born, known = _stamp(self._runs / name / "provenance.json"), self._known.get(name)
        return known if known and known.born == born else RunFolder(self._runs / name, born)


def _families() -> Families:
    return {
        name: (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(
            f"callosum_hub_{name}", text, labels=labels
        )
        for name, (text, labels) in _NAMES.items()
    }


def _show_progress(run: str, progress: Progress, families: Families) -> None:
    phase = progress.phase if progress.phase in _KINDS else _OTHER
    of = (run, progress.model, phase)
    families["progress_round"].add_metric(of, progress.round)
    families["progress_rounds"].add_metric(of, progress.rounds)
    families["progress_sites_asked"].add_metric(of, len(progress.asked))
    families["progress_sites_answered"].add_metric(of, len(progress.answered))
    for site, code in progress.refused.items():
        refusal = (run, progress.model, site, _code(code))
        families["progress_refused"].add_metric(refusal, 1)
    families["progress_timestamp_seconds"].add_metric((run,), progress.updated)


def _code(code: str) -> str:
    return code if code in SENTENCES else _OTHER


def _names(folder: Path) -> list[str]:
    """Names in a folder that can be labels; none if there is no folder."""
    found = []
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208  thousands of names, not thousands of paths
            with suppress(UnicodeEncodeError):
                name.encode()
                found.append(name)
    return [name for name in sorted(found) if not name.startswith(".")]


def _stamp(path: Path) -> Stamp | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def _parsed(path: Path, model: type[Parsed]) -> Parsed | None:
    """The file's content, or None where it is missing, half there or of another form."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return None
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
