"""Scraping, alerts and the dashboard: Prometheus's own tools judge them, and a real one scrapes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.service.monitor import Disk, SiteMetrics
from deploy.hub.monitor import HubCollector

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARD = json.loads((DEPLOY / "grafana" / "callosum.json").read_text())
PROCESS = {"process_resident_memory_bytes", "process_start_time_seconds"}  # the client library's
NAME = re.compile(r"\b(?:callosum|process)_[a-z_]+")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed"
)


def exported(tmp_path: Path) -> set[str]:
    """Every series that the two monitors can have, by the name that a query uses."""
    site = SiteMetrics(folder=tmp_path)
    site.losses("tiny", {"age": 1.0})
    families = [
        *site.registry.collect(),
        *HubCollector(tmp_path).describe(),
        *Disk("callosum_hub", tmp_path).collect(),
    ]
    names = set()
    for family in families:
        endings = {"counter": ("_total",), "summary": ("_sum", "_count"), "info": ("_info",)}
        names |= {family.name + end for end in endings.get(family.type, ("",))}
    return {name for name in names if name.startswith("callosum_")} | PROCESS


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def shown() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    """Prometheus refuses to start on one misspelt key."""
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "alerts.yml")


@needs_promtool
def test_each_alert_is_raised_when_it_should_be_and_only_then() -> None:
    """An alarm that cries wolf is switched off; alerts_test.yml holds both cases of each."""
    promtool("test", "rules", "alerts_test.yml")


def test_each_alert_has_a_case_of_its_own() -> None:
    """A new alert without a case would be accepted by promtool."""
    cases = (RULES / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in rules() if f'alertname="{rule["alert"]}"' not in cases] == []


def test_each_alert_says_what_to_do() -> None:
    """Whoever is called at night knows Prometheus, not Callosum."""
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]


@needs_promtool
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """A panel with a wrong query shows "No data", as does one of a quiet night."""
    recorded = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$(run|agent)", ".*", query)}
        for number, query in enumerate(shown())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", str(file))


def test_alerts_and_dashboard_name_only_what_is_exported(tmp_path: Path) -> None:
    """A renamed metric silences its alert without a word."""
    known = exported(tmp_path)
    for query in (*(rule["expr"] for rule in rules()), *shown()):
        names = set(NAME.findall(re.sub(r'"[^"]*"', "", query)))
        assert names or query.startswith("up{"), query
        assert names <= known, query


def test_everything_that_is_exported_is_on_the_dashboard(tmp_path: Path) -> None:
    """A number that nobody looks at is a number too many."""
    named = set(NAME.findall(" ".join(shown())))
    assert exported(tmp_path) - {"process_start_time_seconds"} == named


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    """No data source, no id of the Grafana that it was drawn in; no two panels overlap."""
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        *("datasource", "run", "agent")
    }
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel.get("datasource", {"uid": "${datasource}"})["uid"] == "${datasource}"
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Prometheus:
    """A running Prometheus, asked over its own API."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        address = f"{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query: str) -> list[float]:
        return [float(found["value"][1]) for found in self.ask("query", query=query)["result"]]

    def until(self, query: str, wanted: list[float]) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                found = self.values(query)
            except (urllib.error.URLError, ConnectionError):
                found = []
            if found == wanted:
                return
            assert time.monotonic() < deadline, f"{query}: {found}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, SiteMetrics]]:
    """Debian's Prometheus with our configuration (but every second), an agent's and a hub's metrics."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    site = SiteMetrics(folder=folder)
    (folder / "runs" / "night" / "rounds" / "0001").mkdir(parents=True)
    record = {
        "answered": {"amber": {"seconds": 2.0, "bytes": 50}},
        "seconds": 3.0,
        "degraded": True,
    }
    (folder / "runs/night/rounds/0001/record.json").write_text(json.dumps(record))
    (folder / "runs/night/state.json").write_text('{"state": "running", "wanted": "running"}')
    hub = HubCollector(folder / "runs", online=lambda: {"amber": True, "birch": False})
    endpoints = {"site": site.serve("127.0.0.1:0"), "hub": hub.serve("127.0.0.1:0")}
    shutil.copy(RULES / "alerts.yml", folder)
    text = (RULES / "prometheus.yml").read_text()
    (folder / "prometheus.yml").write_text(text.replace("_interval: 30s", "_interval: 1s"))
    (folder / "targets").mkdir()
    for name, endpoint in endpoints.items():
        (folder / f"targets/{name}.yml").write_text(f'- targets: ["127.0.0.1:{endpoint.port}"]\n')
    running = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Prometheus(port), site
    finally:
        running.terminate()
        running.wait(30)
        for endpoint in endpoints.values():
            endpoint.close()


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_has_what_a_running_agent_counted(
    scraped: tuple[Prometheus, SiteMetrics],
) -> None:
    """Scraped over HTTP and asked over Prometheus's own API: the values arrive."""
    prometheus, site = scraped
    site.order_received("train", 1000)
    site.order_done("train", "done", {"work": 12.5, "queue": 0.5}, 900)
    site.exposures(95, 5)
    site.losses("tiny", {"age": 0.25})
    prometheus.until('up{job="callosum-site"}', [1])
    prometheus.until('callosum_site_reports_total{kind="train"}', [1])
    assert prometheus.values('callosum_site_sent_bytes_total{kind="train"}') == [900]
    assert prometheus.values('callosum_site_phase_seconds_sum{phase="work"}') == [12.5]
    assert prometheus.values('callosum_site_loss{study="tiny", loss="age"}') == [0.25]
    site.order_done("train", "SIGNATURE", {}, 0)
    prometheus.until('increase(callosum_site_refusals_total{code="SIGNATURE"}[1h]) > bool 0', [1])
    raised = 'ALERTS{alertname="CallosumPrivacyLimitNear", alertstate="firing"}'
    prometheus.until(raised, [1])


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_has_what_the_run_folders_say(
    scraped: tuple[Prometheus, SiteMetrics],
) -> None:
    """The hub's half, with an alert that rests on two of its metrics."""
    prometheus, _ = scraped
    prometheus.until('callosum_hub_received_bytes_total{site="amber"}', [50])
    prometheus.until("sum (callosum_hub_site_online)", [1])
    prometheus.until('ALERTS{alertname="CallosumRoundDegraded", alertstate="firing"}', [1])


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_answers_every_query_of_the_dashboard(
    scraped: tuple[Prometheus, SiteMetrics],
) -> None:
    """Types and matching of labels show only against data."""
    prometheus, site = scraped
    site.order_done("train", "done", {"work": 1.0}, 1)
    prometheus.until("sum (up)", [2])
    for query in shown():
        prometheus.ask("query", query=re.sub(r"\$(run|agent)", ".*", query))
