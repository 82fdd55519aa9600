"""What an agent tells Prometheus: the right numbers, in the right units, and nothing from outside."""

from __future__ import annotations

import math
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from client.service.monitor import PHASES, Disk, SiteMetrics
from common.errors import SENTENCES, SettingError
from common.protocol.orders import Order


def families(metrics: SiteMetrics) -> dict[str, Metric]:
    text = generate_latest(metrics.registry).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: SiteMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"{name} {labels}"
    return found


@pytest.fixture
def metrics(tmp_path: Path) -> SiteMetrics:
    return SiteMetrics(folder=tmp_path)


def test_names_and_units_are_those_of_the_field(metrics: SiteMetrics) -> None:
    """Base units, named in the name and in the help; what only grows ends in _total."""
    own = {name: family for name, family in families(metrics).items() if "callosum" in name}
    assert len(own) > 15
    for name, family in own.items():
        assert name.startswith("callosum_site_")
        assert family.documentation
        counts = family.type == "counter"
        assert all(
            sample.name.endswith(("_total", "_created")) == counts
            for sample in family.samples
            if family.type in ("counter", "gauge") and not sample.name.endswith("_created")
        )
        for unit in ("seconds", "bytes"):
            assert (f"_{unit}" in name) <= (unit in family.documentation.lower()), name
        assert not any(word in name for word in ("_ms", "_mb", "_minutes", "_percent", "_milli"))


def test_an_order_is_counted_from_receipt_to_report(metrics: SiteMetrics) -> None:
    """Bytes, seconds by phase and outcome are all that there is to know of it."""
    metrics.order_received("train", 1000)
    metrics.order_done("train", "done", {"work": 12.5, "send": 0.5}, 900)
    metrics.order_done("train", "done", {"work": 2.5}, 100)
    assert value(metrics, "callosum_site_orders_total", kind="train") == 1
    assert value(metrics, "callosum_site_reports_total", kind="train") == 2
    assert value(metrics, "callosum_site_received_bytes_total", kind="train") == 1000
    assert value(metrics, "callosum_site_sent_bytes_total", kind="train") == 1000
    work = {"kind": "train", "phase": "work"}
    assert value(metrics, "callosum_site_phase_seconds_sum", **work) == 15
    assert value(metrics, "callosum_site_phase_seconds_count", **work) == 2
    assert value(metrics, "callosum_site_last_report_timestamp_seconds") > 1e9


def test_a_refusal_is_counted_by_its_code_and_is_no_report(metrics: SiteMetrics) -> None:
    """Whoever watches the refusals must not have to subtract."""
    metrics.order_done("evaluate", "PAUSED", {}, 300)
    assert value(metrics, "callosum_site_refusals_total", code="PAUSED") == 1
    assert value(metrics, "callosum_site_reports_total", kind="evaluate") == 0
    assert value(metrics, "callosum_site_last_report_timestamp_seconds") == 0


def test_every_code_is_there_before_its_first_refusal(metrics: SiteMetrics) -> None:
    """Prometheus sees an increase only where there was a number before."""
    refusals = families(metrics)["callosum_site_refusals"]
    found = {s.labels["code"] for s in refusals.samples if s.name.endswith("_total")}
    assert found == set(SENTENCES)


def test_no_text_from_outside_becomes_a_label(metrics: SiteMetrics) -> None:
    """An exception's text holds a patient's path; and labels without end fill Prometheus's memory."""
    for n in range(100):
        path = f"/data/patient-{n}"
        metrics.order_received(path, 1)
        metrics.order_done(path, path, {path: 1.0}, 1)
    text = generate_latest(metrics.registry).decode()
    assert "patient" not in text
    assert value(metrics, "callosum_site_orders_total", kind="other") == 100
    assert value(metrics, "callosum_site_refusals_total", code="SITE_FAILED") == 100


def test_every_documented_phase_and_kind_keeps_its_name(metrics: SiteMetrics) -> None:
    """`other` is for strangers."""
    kinds = Order.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
    for kind in kinds:
        metrics.order_done(kind, "done", dict.fromkeys(PHASES, 1.0), 0)
    assert 'kind="other"' not in generate_latest(metrics.registry).decode()
    assert 'phase="other"' not in generate_latest(metrics.registry).decode()


def test_clocks_that_step_back_do_not_end_an_order(metrics: SiteMetrics) -> None:
    """A counter that is asked to fall raises; an order must not fail for its own statistics."""
    metrics.order_received("train", -1)
    metrics.order_done("train", "done", {"work": -0.1}, -1)
    assert value(metrics, "callosum_site_phase_seconds_sum", kind="train", phase="work") == 0


def test_what_is_not_known_is_no_number(metrics: SiteMetrics) -> None:
    """0 exposures left, or a certificate of 1970, would call somebody out of bed."""
    assert math.isnan(value(metrics, "callosum_site_exposures_left"))
    assert math.isnan(value(metrics, "callosum_site_epsilon_spent"))
    assert math.isnan(value(metrics, "callosum_site_certificate_expiry_timestamp_seconds"))


def test_the_state_of_the_site_is_shown(metrics: SiteMetrics) -> None:
    """What the agent says last is what stands."""
    metrics.exposures(7, 3)
    metrics.epsilon(2.5, 8.0)
    metrics.queue_length(2)
    metrics.paused(True)
    metrics.certificate_expiry(2e9)
    metrics.losses("tiny", {"age": 0.75, "sex": 0.5})
    assert value(metrics, "callosum_site_exposures_spent") == 7
    assert value(metrics, "callosum_site_exposures_left") == 3
    assert value(metrics, "callosum_site_epsilon_spent") == 2.5
    assert value(metrics, "callosum_site_epsilon_cap") == 8.0
    assert value(metrics, "callosum_site_queue_length") == 2
    assert value(metrics, "callosum_site_paused") == 1
    assert value(metrics, "callosum_site_certificate_expiry_timestamp_seconds") == 2e9
    assert value(metrics, "callosum_site_loss", study="tiny", loss="age") == 0.75
    metrics.exposures(8, None)
    metrics.epsilon(2.5, 0.0)
    assert value(metrics, "callosum_site_epsilon_cap") == math.inf
    metrics.paused(False)
    assert value(metrics, "callosum_site_exposures_left") == math.inf
    assert value(metrics, "callosum_site_paused") == 0


def test_the_disk_is_watched_and_a_missing_folder_ends_no_scrape(tmp_path: Path) -> None:
    """A full disk is the commonest end of a night's work; a folder may be made later."""
    here, gone = CollectorRegistry(), CollectorRegistry()
    here.register(Disk("callosum_site", tmp_path))
    gone.register(Disk("callosum_site", tmp_path / "later"))
    free = here.get_sample_value("callosum_site_disk_free_bytes")
    size = here.get_sample_value("callosum_site_disk_size_bytes")
    assert free is not None
    assert size is not None
    assert 0 < free < size
    assert generate_latest(gone) == b""


def test_a_scrape_brings_no_torch_up() -> None:
    """It costs seconds and a GPU's memory, and it is not Prometheus's to spend them."""
    code = (
        "import sys; from client.service.monitor import SiteMetrics; from prometheus_client import *\n"
        "text = generate_latest(SiteMetrics().registry).decode()\n"
        "assert 'torch' not in sys.modules\n"
        "assert '# HELP callosum_site_gpu_memory_free_bytes' in text\n"
        "assert '\\ncallosum_site_gpu_memory_free_bytes' not in text\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_torch_that_is_not_all_there_ends_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's first order may be importing it at that very moment."""
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    assert "callosum_site_gpu_memory_free_bytes" in families(SiteMetrics())


class TwoCards:
    """What torch says on a machine with two GPUs of which training has taken the second."""

    asked: tuple[int, ...] = ()

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, device: int) -> int:
        return 300 * device

    def memory_allocated(self, device: int) -> int:
        return 200 * device

    def mem_get_info(self, device: int) -> tuple[int, int]:
        self.asked += (device,)
        return 1000, 4000


def test_only_a_gpu_in_use_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask another one for its free memory takes some of it, for as long as the agent lives."""
    torch, cards, metrics = type(sys)("torch"), TwoCards(), SiteMetrics()
    torch.cuda = cards  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    samples = families(metrics)["callosum_site_gpu_memory_free_bytes"].samples
    assert [(s.labels, s.value) for s in samples] == [({"device": "1"}, 1000)]
    assert value(metrics, "callosum_site_gpu_memory_allocated_bytes", device="1") == 200
    assert set(cards.asked) == {1}


@pytest.mark.gpu
def test_the_memory_of_a_gpu_in_use_is_shown(metrics: SiteMetrics) -> None:
    """Only once it is in use: nothing before, and the tensors' own bytes after."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tensor = torch.zeros(1 << 20, device="cuda")
    allocated = value(metrics, "callosum_site_gpu_memory_allocated_bytes", device="0")
    reserved = value(metrics, "callosum_site_gpu_memory_reserved_bytes", device="0")
    free = value(metrics, "callosum_site_gpu_memory_free_bytes", device="0")
    size = value(metrics, "callosum_site_gpu_memory_size_bytes", device="0")
    assert tensor.nbytes <= allocated <= reserved < size
    assert 0 < free < size


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_what_is_served_is_what_was_counted(metrics: SiteMetrics) -> None:
    """Over HTTP, with the process's own numbers beside it, and gone when it is closed."""
    metrics.queue_length(5)
    endpoint = metrics.serve("127.0.0.1:0")
    try:
        text = fetch(endpoint.port)
    finally:
        endpoint.close()
    assert "callosum_site_queue_length 5.0" in text
    assert "process_start_time_seconds" in text
    with pytest.raises(OSError, match="refused"):
        fetch(endpoint.port)


def test_two_agents_in_one_process_count_apart() -> None:
    """No number is global."""
    one, other = SiteMetrics(), SiteMetrics()
    one.queue_length(1)
    assert value(other, "callosum_site_queue_length") == 0


@pytest.fixture
def taken() -> Iterator[int]:
    endpoint = SiteMetrics().serve("127.0.0.1:0")
    yield endpoint.port
    endpoint.close()


def test_an_address_that_is_taken_is_named(taken: int) -> None:
    """Two agents on one machine are common; the second must say what to change."""
    with pytest.raises(SettingError, match=f"127.0.0.1:{taken}.*--metrics"):
        SiteMetrics().serve(f"127.0.0.1:{taken}")


@pytest.mark.parametrize(
    "address", ["", "9464", ":9464", "127.0.0.1", "127.0.0.1:", "a:b", "h:99999"]
)
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    """An empty host would be every address of the machine."""
    with pytest.raises(SettingError, match="host:port"):
        SiteMetrics().serve(address)
