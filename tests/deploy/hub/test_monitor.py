"""What a hub tells Prometheus: what its run folders say, whatever state they are in."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.hub.monitor import HubCollector

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def record(number: int, **more: Any) -> dict[str, Any]:
    """A round of two sites, as `server.federation.rounds` writes it."""
    return {
        "round": number,
        "model": "federated",
        "degraded": False,
        "answered": {
            "amber": {"support": {"scans": 9}, "seconds": 20.0, "bytes": 1000},
            "birch": {"support": {"scans": 5}, "seconds": 30.0, "bytes": 1000},
        },
        "refused": {},
        "loss": {"age": 1.0 / number},
        "validation": {},
        "update_norm": 0.1,
        "seconds": 40.0,
        **more,
    }


def write_round(run: Path, number: int, **more: Any) -> Path:
    path = run / "rounds" / f"{number:04d}" / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("temporary")  # replaced, as the coordinator's engine does it
    temporary.write_text(json.dumps(record(number, **more)))
    return temporary.replace(path)


def write_run(runs: Path, name: str = "night", rounds: int = 0) -> Path:
    run = runs / name
    run.mkdir(parents=True)
    (run / "provenance.json").write_text("{}")
    for number in range(1, rounds + 1):
        write_round(run, number)
    return run


def scrape(collector: HubCollector) -> Samples:
    """Every sample, through the text that Prometheus would read."""
    registry = CollectorRegistry()
    registry.register(collector)
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"callosum_hub_{name}", frozenset(labels.items())]


def named(samples: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {labels: v for (found, labels), v in samples.items() if found == f"callosum_hub_{name}"}


def test_names_and_units_are_those_of_the_field(tmp_path: Path) -> None:
    """Base units, named in the name and in the help; what only grows ends in _total."""
    for family in HubCollector(tmp_path).describe():
        assert family.name.startswith("callosum_hub_")
        assert family.documentation
        for unit in ("seconds", "bytes"):
            assert (f"_{unit}" in family.name) <= (unit in family.documentation.lower())


@pytest.mark.slow
def test_a_real_run_is_summed_up_as_its_records_say(
    federation: Callable[..., Any],
) -> None:
    """The records that the coordinator's engine writes, rivals' rounds included."""
    rivals = {"comparisons.pooled": True, "evaluation.head": False}
    run = federation(rivals).simulate("runs/tiny")
    samples = scrape(HubCollector(run.folder.parent))
    assert len(run.branches()) == 2
    for branch in run.branches():
        records, of = branch.records(), {"run": "tiny", "model": branch.model}
        assert records
        assert value(samples, "rounds_total", **of) == len(records)
        for site in records[0]["answered"]:
            lines = [found["answered"][site] for found in records]
            assert value(samples, "received_bytes_total", **of, site=site) == sum(
                line["bytes"] for line in lines
            )
        for name, loss in records[-1]["loss"].items():
            assert value(samples, "loss", **of, loss=name) == pytest.approx(loss)
        assert value(samples, "last_round_seconds", **of) == records[-1]["seconds"]
    assert value(samples, "unreadable") == 0


def test_the_seconds_of_a_round_are_its_slowest_sites_and_the_rest(tmp_path: Path) -> None:
    """Whether to buy a faster link or a faster GPU is read off the two."""
    write_run(tmp_path, rounds=3)
    samples, of = scrape(HubCollector(tmp_path)), {"run": "night", "model": "federated"}
    assert value(samples, "round_seconds_total", **of, phase="sites") == 90
    assert value(samples, "round_seconds_total", **of, phase="other") == 30
    assert value(samples, "site_seconds_total", **of, site="amber") == 60


def test_a_report_of_before_a_restart_takes_no_time_twice(tmp_path: Path) -> None:
    """Resumed, a round takes a second; the site's half hour was spent before. No phase is negative."""
    run = write_run(tmp_path)
    write_round(run, 1, seconds=1.0)
    samples, of = scrape(HubCollector(tmp_path)), {"run": "night", "model": "federated"}
    assert value(samples, "round_seconds_total", **of, phase="sites") == 1
    assert value(samples, "round_seconds_total", **of, phase="other") == 0


def test_refusals_and_degraded_rounds_are_counted_and_the_newest_is_marked(tmp_path: Path) -> None:
    """The counter is for the month, the mark for the alarm: it goes when a round goes well."""
    run, collector = write_run(tmp_path), HubCollector(tmp_path)
    of = {"run": "night", "model": "federated"}
    write_round(run, 1, degraded=True, refused={"cedar": "PAUSED"})
    write_round(run, 2, degraded=True, refused={"cedar": "PAUSED"})
    samples = scrape(collector)
    assert value(samples, "refusals_total", **of, site="cedar", code="PAUSED") == 2
    assert value(samples, "degraded_rounds_total", **of) == 2
    assert value(samples, "last_round_degraded", **of) == 1
    assert value(samples, "last_round_refused", **of, site="cedar", code="PAUSED") == 1
    write_round(run, 3)
    samples = scrape(collector)
    assert value(samples, "refusals_total", **of, site="cedar", code="PAUSED") == 2
    assert value(samples, "degraded_rounds_total", **of) == 2
    assert value(samples, "last_round_degraded", **of) == 0
    assert named(samples, "last_round_refused") == {}


def test_a_code_that_nobody_documented_is_not_repeated(tmp_path: Path) -> None:
    """Labels are a list that is known beforehand."""
    write_round(write_run(tmp_path), 1, refused={"cedar": "/data/patient-7"})
    (labels,) = named(scrape(HubCollector(tmp_path)), "refusals_total")
    assert dict(labels)["code"] == "other"


def test_state_and_progress_are_shown_while_a_run_goes_on(tmp_path: Path) -> None:
    """What is under way is of interest until it is over; then the file is merely old."""
    run, collector = write_run(tmp_path), HubCollector(tmp_path)
    state = {"state": "running", "wanted": "running", "attempts": 2, "error": "", "since": 1.0}
    progress = {
        "phase": "train",
        "model": "federated",
        "round": 4,
        "rounds": 9,
        "asked": ["amber", "birch"],
        "answered": {"amber": {"seconds": 1.0, "bytes": 5}},
        "refused": {"birch": "BUSY"},
        "updated": 1e9,
    }
    (run / "state.json").write_text(json.dumps(state))
    (run / "progress.json").write_text(json.dumps(progress))
    samples, of = scrape(collector), {"run": "night", "model": "federated", "phase": "train"}
    assert value(samples, "run_state", run="night", state="running") == 1
    assert value(samples, "run_state", run="night", state="failed") == 0
    assert value(samples, "run_wanted", run="night") == 1
    assert value(samples, "run_attempts_total", run="night") == 2
    assert value(samples, "progress_round", **of) == 4
    assert value(samples, "progress_rounds", **of) == 9
    assert value(samples, "progress_sites_asked", **of) == 2
    assert value(samples, "progress_sites_answered", **of) == 1
    of.pop("phase")
    assert value(samples, "progress_refused", **of, site="birch", code="BUSY") == 1
    assert value(samples, "progress_timestamp_seconds", run="night") == 1e9
    (run / "state.json").write_text(json.dumps({**state, "state": "finished"}))
    samples = scrape(collector)
    assert value(samples, "run_state", run="night", state="finished") == 1
    assert named(samples, "progress_round") == {}


def test_the_newest_round_is_dated_and_a_run_without_one_by_its_beginning(tmp_path: Path) -> None:
    """A run that never finishes its first round must not go unnoticed."""
    run, collector = write_run(tmp_path), HubCollector(tmp_path)
    os.utime(run / "provenance.json", (1000, 1000))
    assert value(scrape(collector), "last_round_timestamp_seconds", run="night") == 1000
    os.utime(write_round(run, 1), (2000, 2000))
    assert value(scrape(collector), "last_round_timestamp_seconds", run="night") == 2000


def test_a_finished_round_is_read_once(tmp_path: Path) -> None:
    """Thousands of rounds are scraped every 30 s for months: only what is new may cost anything."""
    run, collector = write_run(tmp_path, rounds=500), HubCollector(tmp_path)
    before = scrape(collector)
    for number in range(1, 500):
        (run / "rounds" / f"{number:04d}" / "record.json").write_text("never looked at again")
    assert scrape(collector) == before
    write_round(run, 501)
    after = scrape(collector)
    assert value(after, "rounds_total", run="night", model="federated") == 501
    assert value(after, "unreadable") == 0


def test_a_round_that_is_done_again_is_read_again(tmp_path: Path) -> None:
    """A crash between record and checkpoint: the newest round, and only it, is redone."""
    run, collector = write_run(tmp_path, rounds=2), HubCollector(tmp_path)
    scrape(collector)
    write_round(run, 2, seconds=99.0)
    samples, of = scrape(collector), {"run": "night", "model": "federated"}
    assert value(samples, "last_round_seconds", **of) == 99
    assert value(samples, "rounds_total", **of) == 2


def test_another_run_in_the_same_folder_begins_anew(tmp_path: Path) -> None:
    """A name is used again after a rehearsal; its rounds are not the new run's."""
    run, collector = write_run(tmp_path, rounds=5), HubCollector(tmp_path)
    assert value(scrape(collector), "rounds_total", run="night", model="federated") == 5
    shutil.rmtree(run)
    run = write_run(tmp_path, rounds=2)
    os.utime(run / "provenance.json", (5, 5))
    assert value(scrape(collector), "rounds_total", run="night", model="federated") == 2


def test_only_the_newest_runs_are_shown(tmp_path: Path) -> None:
    """A hub of years has hundreds of runs; each would cost every scrape and every Prometheus."""
    for number in range(60):
        os.utime(write_run(tmp_path, f"run-{number}", rounds=1), (number, number))
    shown = {
        dict(labels)["run"] for labels in named(scrape(HubCollector(tmp_path)), "rounds_total")
    }
    assert shown == {f"run-{number}" for number in range(10, 60)}


def test_a_record_cut_anywhere_is_left_out_and_counted(tmp_path: Path) -> None:
    """Half a file, at whichever byte, costs this round's numbers and nothing else."""
    run = write_run(tmp_path, rounds=2)
    path = run / "rounds/0002/record.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        samples = scrape(HubCollector(tmp_path))
        assert value(samples, "unreadable") == 1
        assert value(samples, "rounds_total", run="night", model="federated") == 1
    path.write_bytes(whole)
    assert (
        value(scrape(HubCollector(tmp_path)), "rounds_total", run="night", model="federated") == 2
    )


def test_a_record_that_is_mended_is_taken_in_however_late(tmp_path: Path) -> None:
    """A network disk shows half a file for a moment; the round is not lost for it."""
    run, collector = write_run(tmp_path, rounds=4), HubCollector(tmp_path)
    path = run / "rounds/0002/record.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert value(scrape(collector), "rounds_total", run="night", model="federated") == 3
    write_round(run, 5)
    assert value(scrape(collector), "unreadable") == 1
    path.write_bytes(whole)
    assert value(scrape(collector), "rounds_total", run="night", model="federated") == 5
    assert value(scrape(collector), "unreadable") == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"seconds": -1}',
        b'{"seconds": NaN}',
        b'{"answered": {"a": {"bytes": 1e400}}}',
        b'{"answered": {"a": {"bytes": ' + b"9" * 400 + b"}}}",
        b'{"refused": {"\\ud800": "PAUSED"}}',
        b'{"loss": []}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("file", ["rounds/0002/record.json", "state.json", "progress.json"])
def test_no_content_of_a_file_ends_a_scrape(tmp_path: Path, file: str, content: bytes) -> None:
    """What else is known is shown."""
    run = write_run(tmp_path, rounds=1)
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).write_bytes(content)
    samples = scrape(HubCollector(tmp_path))
    assert value(samples, "site_seconds_total", run="night", model="federated", site="amber") >= 20


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["seconds", "bytes", "answered", "refused", "loss", "state", "updated", "amber"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(content=json_like)
@settings(max_examples=100, deadline=None)
def test_no_json_ends_a_scrape(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    """Another version's file is valid JSON of another form."""
    run = write_run(tmp_path_factory.mktemp("runs"), rounds=1)
    for file in ("rounds/0001/record.json", "state.json", "progress.json"):
        (run / file).write_text(json.dumps(content))
    assert value(scrape(HubCollector(run.parent)), "unreadable") >= 0


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "redo", "cut", "mend"]),
            st.integers(0, 7),
            st.floats(0, 100),
        ),
        max_size=12,
    )
)
@settings(max_examples=40, deadline=None)
def test_what_is_remembered_equals_what_is_read_afresh(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, float]]
) -> None:
    """However files come, break, and are mended between scrapes, memory is never wrong."""
    runs = tmp_path_factory.mktemp("runs")
    run, collector, rounds, cut = write_run(runs), HubCollector(runs), 0, {}
    for what, which, seconds in steps:
        if what == "add":
            rounds += 1
            write_round(run, rounds, seconds=seconds)
        elif what == "redo" and rounds and rounds not in cut:  # only the newest is ever redone
            write_round(run, rounds, seconds=seconds, degraded=True)
        elif what == "cut" and rounds and rounds not in cut:  # before it was seen whole and passed
            path = run / f"rounds/{rounds:04d}/record.json"
            cut[rounds] = path.read_bytes()
            path.write_bytes(cut[rounds][: 10 + which])
            continue  # no scrape between writing and cutting
        elif what == "mend" and cut:
            number, whole = cut.popitem()
            (run / f"rounds/{number:04d}/record.json").write_bytes(whole)
        scrape(collector)
    for number, whole in cut.items():
        (run / f"rounds/{number:04d}/record.json").write_bytes(whole)
    remembered, afresh = scrape(collector), scrape(HubCollector(runs))
    assert remembered.keys() == afresh.keys()
    for key, number in afresh.items():
        assert remembered[key] == pytest.approx(number), key


def test_folders_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    """Whatever lies about: a lock, a file, a name in another encoding, no folder at all."""
    (tmp_path / ".lock").touch()
    (tmp_path / "notes.txt").write_text("not a run")
    (tmp_path / "empty").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    write_run(tmp_path, rounds=1)
    assert len(named(scrape(HubCollector(tmp_path)), "rounds_total")) == 1
    assert value(scrape(HubCollector(tmp_path / "none")), "unreadable") == 0


def test_whoever_knows_about_processes_is_asked_and_may_fail(tmp_path: Path) -> None:
    """SuperLink may be down at that moment: its nodes are unknown then, and all else is not."""

    def away() -> Mapping[str, bool]:
        raise ConnectionError("SuperLink does not answer")

    samples = scrape(
        HubCollector(
            tmp_path,
            online=lambda: {"amber": True, "birch": False},
            restarts=lambda: {"SuperLink": 3},
            certificates=lambda: {"server.crt": 2e9},
        )
    )
    assert value(samples, "site_online", site="amber") == 1
    assert value(samples, "site_online", site="birch") == 0
    assert value(samples, "process_restarts_total", process="SuperLink") == 3
    expiry = value(samples, "certificate_expiry_timestamp_seconds", certificate="server.crt")
    assert expiry == 2e9
    write_run(tmp_path, rounds=1)
    samples = scrape(HubCollector(tmp_path, online=away, restarts=lambda: None))  # type: ignore[arg-type,return-value]
    assert value(samples, "unreadable") == 2
    assert value(samples, "rounds_total", run="night", model="federated") == 1


def test_what_is_served_is_what_the_folders_say(tmp_path: Path) -> None:
    """Over HTTP, with the disk's and the process's own numbers."""
    write_run(tmp_path, rounds=3)
    endpoint = HubCollector(tmp_path).serve("127.0.0.1:0")
    try:
        address = f"http://127.0.0.1:{endpoint.port}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        endpoint.close()
    assert 'callosum_hub_rounds_total{model="federated",run="night"} 3.0' in text
    assert "callosum_hub_disk_free_bytes" in text
    assert "process_start_time_seconds" in text
