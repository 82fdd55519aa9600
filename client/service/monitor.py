"""What an agent tells its hospital's Prometheus: orders, seconds, bytes, losses, what is left.

Nothing here is about a participant, and no text from outside becomes a label: kinds, codes and
phases are those that Callosum documents. Losses are to be given as the egress gate let them out.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    Summary,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from common.errors import SENTENCES, SettingError
from common.protocol.orders import PROTOCOL, OrderKind

DONE: Final = "done"
PHASES: Final = ("queue", "prepare", "receive", "work", "send")
_KINDS: Final = get_args(OrderKind)
_OTHER: Final = "other"  # a kind or phase that nobody documented: counted, never repeated


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running HTTP server of metrics."""

    address: str
    port: int
    server: WSGIServer

    def close(self) -> None:
        """Serve no longer, and free the port."""
        self.server.shutdown()
        self.server.server_close()


def listen(registry: CollectorRegistry, address: str) -> Endpoint:
    """Serve `registry` at "host:port" on threads of its own; port 0 takes a free one.

    Raises
    ------
    SettingError
        If the address has no port, or cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise SettingError(
            f'metrics are to be served at "{address}"; host:port is needed, such as 127.0.0.1:9464 '
            "(--metrics)"
        )
    try:
        server, _ = start_http_server(int(port), host, registry)
    except OSError as error:
        raise SettingError(
            f"metrics cannot be served at {address}: {error.strerror or error}; "
            "give another --metrics"
        ) from None
    return Endpoint(address=address, port=server.server_port, server=server)


class SiteMetrics:
    """The metrics of one agent.

    Parameters
    ----------
    registry : where they are registered; None makes one that also holds the process's own
    folder : the site's state folder, whose disk is watched
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, folder: Path | None = None
    ) -> None:
        if registry is None:
            registry = CollectorRegistry(auto_describe=True)
            ProcessCollector(registry=registry)
        self.registry = registry
        registry.register(Graphics())
        if folder is not None:
            registry.register(Disk("callosum_site", folder))
        about = Info("callosum_site_build", "Versions of this agent", registry=registry)
        about.info({"version": _version(), "protocol": str(PROTOCOL)})
        self._count_orders(registry)
        self._show_state(registry)

    def order_received(self, kind: str, size: int) -> None:
        """An order of `size` bytes came in, arrays included."""
        kind = _known(kind, _KINDS)
        self._orders.labels(kind).inc()
        self._received.labels(kind).inc(max(size, 0))

    def order_done(
        self, kind: str, outcome: str, phases: Mapping[str, float], bytes_sent: int
    ) -> None:
        """An order is over: "done" or a code of refusal, seconds by phase, bytes that left."""
        kind = _known(kind, _KINDS)
        if outcome == DONE:
            self._reports.labels(kind).inc()
            self._last_report.set_to_current_time()
        else:
            self._refusals.labels(outcome if outcome in SENTENCES else "SITE_FAILED").inc()
        for phase, seconds in phases.items():
            self._seconds.labels(kind, _known(phase, PHASES)).observe(max(seconds, 0.0))
        self._sent.labels(kind).inc(max(bytes_sent, 0))

    def losses(self, study_name: str, losses: Mapping[str, float]) -> None:
        """Mean losses of the newest training, by name; as many as the study has."""
        for name, value in losses.items():
            self._loss.labels(study_name, name).set(value)

    def queue_length(self, n: int) -> None:
        """Orders that wait."""
        self._queue.set(n)

    def exposures(self, spent: int, left: int | None) -> None:
        """Training orders in the ledger, and how many the policy still allows (None: no cap)."""
        self._spent.set(spent)
        self._left.set(math.inf if left is None else left)

    def epsilon(self, spent: float, cap: float) -> None:
        """What private training has cost each participant, and the site's own cap (0: none)."""
        self._epsilon.set(spent)
        self._epsilon_cap.set(cap or math.inf)

    def paused(self, paused: bool) -> None:
        """Whether the site has paused all work."""
        self._paused.set(paused)

    def certificate_expiry(self, timestamp: float) -> None:
        """When the first of the site's certificates ends, as Unix time."""
        self._expiry.set(timestamp)

    def serve(self, address: str) -> Endpoint:
        """Serve them at "host:port"; see `listen`."""
        return listen(self.registry, address)

    def _count_orders(self, registry: CollectorRegistry) -> None:
        self._orders = Counter(
            "callosum_site_orders_total", "Orders received", ["kind"], registry=registry
        )
        self._reports = Counter(
            "callosum_site_reports_total",
            "Orders carried out and reported",
            ["kind"],
            registry=registry,
        )
        self._refusals = Counter(
            "callosum_site_refusals_total", "Orders declined", ["code"], registry=registry
        )
        self._received = Counter(
            "callosum_site_received_bytes_total",
            "Bytes of orders and their arrays",
            ["kind"],
            registry=registry,
        )
        self._sent = Counter(
            "callosum_site_sent_bytes_total",
            "Bytes of reports and their arrays",
            ["kind"],
            registry=registry,
        )
        self._seconds = Summary(
            "callosum_site_phase_seconds",
            "Seconds that orders spent in each phase",
            ["kind", "phase"],
            registry=registry,
        )
        # from zero on: the first refusal would otherwise be no increase to Prometheus
        for kind in _KINDS:
            for counter in (self._orders, self._reports, self._received, self._sent):
                counter.labels(kind)
        for code in SENTENCES:
            self._refusals.labels(code)

    def _show_state(self, registry: CollectorRegistry) -> None:
        self._last_report = Gauge(
            "callosum_site_last_report_timestamp_seconds",
            "Unix time at which the newest report was handed over, in seconds; 0: none yet",
            registry=registry,
        )
        self._loss = Gauge(
            "callosum_site_loss",
            "Mean training loss of the newest training order",
            ["study", "loss"],
            registry=registry,
        )
        self._queue = Gauge("callosum_site_queue_length", "Orders that wait", registry=registry)
        self._spent = Gauge(
            "callosum_site_exposures_spent",
            "Training orders in the ledger, over all studies and runs",
            registry=registry,
        )
        self._left = Gauge(
            "callosum_site_exposures_left",
            "Training orders that the policy still allows; +Inf: no cap",
            registry=registry,
        )
        self._epsilon = Gauge(
            "callosum_site_epsilon_spent",
            "Epsilon of private training in the ledger, over all studies and runs",
            registry=registry,
        )
        self._epsilon_cap = Gauge(
            "callosum_site_epsilon_cap",
            "Most epsilon that the policy allows; +Inf: no cap",
            registry=registry,
        )
        self._paused = Gauge(
            "callosum_site_paused", "1 while all work is paused", registry=registry
        )
        self._expiry = Gauge(
            "callosum_site_certificate_expiry_timestamp_seconds",
            "Unix time at which the first of the site's certificates ends, in seconds",
            registry=registry,
        )
        unsaid = (self._spent, self._left, self._epsilon, self._epsilon_cap, self._expiry)
        for unknown in unsaid:
            unknown.set(math.nan)  # 0 would be a statement, and an alarm


class Disk(Collector):
    """Room on the disk of one folder, read when scraped; `prefix` begins the names."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self._prefix, self._folder = prefix, folder

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return self._families(0, 0)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return  # no folder, no number; whatever needs it says so itself
        yield from self._families(usage.free, usage.total)

    def _families(self, free: int, size: int) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            f"{self._prefix}_disk_free_bytes", "Bytes that may still be written", free
        )
        yield GaugeMetricFamily(f"{self._prefix}_disk_size_bytes", "Bytes the disk holds", size)


class Graphics(Collector):
    """Memory of the GPUs that this process works on, read when scraped.

    torch is asked only where the agent has brought it up already: a scrape must neither import it
    nor be what claims a GPU.
    """

    _HELP: Final = {
        "allocated": "Bytes of GPU memory that tensors of this agent occupy",
        "reserved": "Bytes of GPU memory that this agent holds, for tensors now or later",
        "free": "Bytes of GPU memory that no process holds",
        "size": "Bytes of memory that the GPU has",
    }

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        return iter(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        with self._lock:
            for device, values in _gpu_memory().items():
                for name, value in values.items():
                    families[name].add_metric([str(device)], value)
        yield from families.values()

    def _families(self) -> dict[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(
                f"callosum_site_gpu_memory_{name}_bytes", text, labels=["device"]
            )
            for name, text in self._HELP.items()
        }


def _gpu_memory() -> dict[int, dict[str, int]]:
    """Bytes by name, by device; empty without torch, without CUDA, or before its first use."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    found: dict[int, dict[str, int]] = {}
    try:
        if cuda is None or not cuda.is_available() or not cuda.is_initialized():
            return {}
        for device in range(cuda.device_count()):
            reserved = cuda.memory_reserved(device)
            if reserved:  # on any other GPU the question itself would claim memory
                free, size = cuda.mem_get_info(device)
                allocated = cuda.memory_allocated(device)
                found[device] = {
                    "allocated": allocated,
                    "reserved": reserved,
                    "free": free,
                    "size": size,
                }
    except (RuntimeError, AttributeError):
        return found  # half imported, or the driver is gone; training says so, not its metrics
    return found


def _known(value: str, known: tuple[str, ...]) -> str:
    return value if value in known else _OTHER


def _version() -> str:
    try:
        return version("callosum")
    except PackageNotFoundError:
        return "not installed"
