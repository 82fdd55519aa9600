"""A coordinator sees what is true, in a table or in lines, and looking on ends when the run does."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import SENTENCES
from server.report import live_view as room
from server.report.live_view import follow, row_of, table_of
from server.run import Run
from server.run_files import write_json, write_sealed
from server.run_state import note_state, want

RECORD: dict[str, Any] = {
    "round": 1,
    "model": "federated",
    "degraded": False,
    "answered": {
        "alpha": {
            "support": {"shared": 30}, "participants": {"shared": 28},
            "seconds": 1.5, "bytes": 1_500_000,
        },
        "beta": {
            "support": {"shared": 40}, "participants": {"shared": 40},
            "seconds": 2.5, "bytes": 2_000_000,
        },
    },
    "refused": {},
    "loss": {"age": 0.12345, "sex": 0.6931},
    "validation_loss": {},
    "validation": {},
    "update_norm": 1.0,
    "seconds": 12.34,
}  # fmt: skip
PROGRESS: dict[str, Any] = {
    "phase": "train", "model": "federated", "task": "", "method": "", "round": 2, "rounds": 30,
    "asked": ["alpha", "beta", "gamma"],
    "answered": {"alpha": {"seconds": 61.25, "bytes": 1_500_000}},
    "refused": {"beta": "PAUSED"},
    "updated": 0.0,
}  # fmt: skip


@pytest.fixture
def run(federation: Callable[..., Any], tmp_path: Path) -> Run:
    """A run's folder as a hub sees it before anything was asked."""
    study = federation({"pretraining.rounds": 30}).study
    (tmp_path / "run").mkdir()
    return Run(folder=tmp_path / "run", id="0" * 64, study=study)


def finish(run: Run, number: int, **more: Any) -> None:
    """One more round's record."""
    path = run.federated.round(number) / "record.json"
    write_sealed(path, {**RECORD, "round": number, **more})


def shown(run: Run, state: dict[str, Any], *, hub_lives: bool = True) -> str:
    """The table as text, on a screen that is wide enough."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(run, state, hub_lives=hub_lives))
    return console.file.getvalue()  # type: ignore[attr-defined]


RUNNING = {"state": "running", "attempts": 1, "error": "", "since": 1.0}


def test_a_round_is_a_line_of_names_times_sizes_and_losses() -> None:
    """Numbers for people: tenths of seconds, megabytes, three digits of a loss."""
    assert row_of(RECORD, 30) == (
        "federated: round 1 of 30", "alpha, beta", "", "12.3", "3.5", "age 0.123, sex 0.693"
    )  # fmt: skip


def test_a_degraded_round_says_so_and_who_is_to_blame() -> None:
    """A model that lacks a hospital must not look like one that has it."""
    phase, _, refused, *_ = row_of(
        {**RECORD, "degraded": True, "refused": {"gamma": "NO_AGENT"}}, 30
    )
    assert phase == "federated: round 1 of 30 DEGRADED"
    assert refused == "gamma: NO_AGENT"


def test_the_table_shows_the_last_rounds_and_who_is_waited_for(run: Run) -> None:
    """One look answers: how far, who, how long, and whom to phone."""
    for number in range(1, 13):
        finish(run, number)
    write_json(run.folder / "progress.json", {**PROGRESS, "round": 13})
    lines = shown(run, RUNNING).splitlines()
    assert lines[0].strip() == "tiny: running"
    rounds = [number for number in range(1, 31) if any(f"round {number} of" in x for x in lines)]
    assert rounds == [*range(5, 13), 13]
    [present] = [line for line in lines if "round 13 of 30" in line]
    assert "alpha; waiting for gamma" in present
    assert "beta: PAUSED" in present
    assert "61.2" in present
    assert "1.5" in present


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        ({}, "starting"),
        ({"phase": "census", "round": 0}, "census "),
        ({"phase": "finetune", "round": 0, "task": "dementia", "method": "scratch/full"},
         "finetune dementia scratch/full"),
        ({"phase": "finetune", "round": 0, "task": "dementia", "method": "linear"},
         "finetune dementia linear"),
        ({"phase": "train", "model": "single-beta", "round": 4, "rounds": 30},
         "single-beta: round 4 of 30"),
    ],
)  # fmt: skip
def test_the_present_exchange_is_named(run: Run, progress: dict[str, Any], text: str) -> None:
    """A census and a fine-tuning have no round."""
    if progress:
        write_json(run.folder / "progress.json", {**PROGRESS, "answered": {}, **progress})
    table = shown(run, RUNNING)
    assert text in table
    assert ("nobody yet; waiting for alpha, gamma" in table) == bool(progress)


def test_before_the_hub_has_spoken_the_table_says_so(run: Run) -> None:
    """And how to start one, if none is there."""
    assert "tiny: waiting for the hub" in shown(run, {})
    assert "callosum hub --kit" not in shown(run, {})
    assert "callosum hub --kit" in shown(run, {}, hub_lives=False)


def test_a_run_that_is_over_shows_nothing_as_present(run: Run) -> None:
    """The last exchange's file stays behind; nobody is being waited for any more."""
    write_json(run.folder / "progress.json", PROGRESS)
    for state in ("finished", "failed", "stopped"):
        assert "waiting for" not in shown(run, {**RUNNING, "state": state})
    assert "waiting for" in shown(run, RUNNING)


def test_attempts_and_errors_are_told_below_the_table(run: Run) -> None:
    """A run at its fifth attempt deserves a look at the hub's log."""
    assert "attempt" not in shown(run, RUNNING)
    assert "attempt 5" in shown(run, {**RUNNING, "attempts": 5})
    failed = {**RUNNING, "state": "failed", "attempts": 5, "error": "1 of 3 sites answered"}
    assert "1 of 3 sites answered" in shown(run, failed)


@pytest.mark.parametrize(
    "error",
    ["map its column in a site file ([targets.age])", "/data/[/bold] cannot be written",
     "[red]x", "\\[x]"],
)  # fmt: skip
def test_an_error_is_shown_letter_by_letter(run: Run, error: str) -> None:
    """Our own messages name tables of a settings file in brackets."""
    text = shown(run, {**RUNNING, "state": "failed", "error": error})
    assert "".join(error.split()) in "".join(text.split())  # a narrow table breaks its lines


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"], ids=repr)
def test_a_damaged_progress_file_is_as_none(run: Run, content: bytes) -> None:
    """Looking on must not end because a file is not there yet, or is broken."""
    (run.folder / "progress.json").write_bytes(content)
    assert "starting" in shown(run, RUNNING)


class Story:
    """Lets something happen at every pause of whoever looks on, and fails if it looks too long."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    def sleep(self, seconds: float) -> None:
        assert seconds <= 1
        assert self.steps, "it still looks on, though the run is over"
        self.steps.pop(0)()

    def time(self) -> float:
        return time.time()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`told(step, ...)` sets what happens while somebody looks on."""

    def tell(*steps: Callable[[], object]) -> None:
        monkeypatch.setattr(room, "time", Story(*steps))

    yield tell
    assert room.time.steps == []  # type: ignore[attr-defined]  all of it was lived to see


def states(run: Run, state: Any, **more: Any) -> Callable[[], None]:
    return lambda: note_state(run.folder, state, attempts=1, **more)


def test_lines_tell_each_new_round_and_each_refusal_once(
    run: Run, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a log of a night's run there is one line a round, and none about what was done before."""
    finish(run, 1)
    told(
        states(run, "running"),
        lambda: finish(run, 2),
        lambda: None,
        lambda: finish(
            run, 3, degraded=True, refused={"gamma": "NO_AGENT", "zeta": "NEW"}, loss={}
        ),
        lambda: (finish(run, 4), states(run, "finished")()),
    )
    state = follow(run, hub_lives=lambda: True, since=time.time())
    assert state["state"] == "finished"
    assert capsys.readouterr().err.splitlines() == [
        "federated: round 2 of 30: alpha, beta in 12.3 s, 3.5 MB; age 0.123, sex 0.693",
        "federated: round 3 of 30 DEGRADED: alpha, beta in 12.3 s, 3.5 MB",
        f"  gamma: NO_AGENT: {SENTENCES['NO_AGENT']}",
        "  zeta: NEW: unknown to this version",
        "federated: round 4 of 30: alpha, beta in 12.3 s, 3.5 MB; age 0.123, sex 0.693",
    ]


FINAL = ["finished", "failed", "stopped"]


@pytest.mark.parametrize("final", FINAL)
def test_looking_on_in_lines_ends_with_the_run(run: Run, told: Any, final: str) -> None:
    """And gives the state in which it ended, with its error."""
    told(states(run, "waiting"), states(run, "running"), states(run, final, error="why"))
    state = follow(run, hub_lives=lambda: True, since=time.time())
    assert (state["state"], state["error"]) == (final, "why")


@pytest.mark.parametrize("final", FINAL)
def test_what_the_hub_said_before_the_request_does_not_count(
    run: Run, told: Any, final: str
) -> None:
    """A run that failed yesterday and is asked for today goes on."""
    states(run, final)()
    since = time.time()
    want(run.folder, "running")
    told(lambda: None, lambda: None, states(run, "running"), states(run, "finished"))
    assert follow(run, hub_lives=lambda: True, since=since)["state"] == "finished"


@pytest.mark.parametrize("final", FINAL)
def test_looking_on_at_a_terminal_ends_with_the_run_and_leaves_its_table(
    run: Run, told: Any, final: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live table is gone then; the last one stays above the prompt."""
    screen = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(room, "console", screen)
    finish(run, 1)
    told(
        states(run, "running"),
        lambda: write_json(run.folder / "progress.json", PROGRESS),
        lambda: finish(run, 2),
        states(run, final, error="why"),
    )
    lives = iter([False] * 3 + [True] * 9)
    state = follow(run, hub_lives=lambda: next(lives), since=time.time())
    assert state["state"] == final
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    last = text[text.rindex(f"tiny: {final}") :]
    assert "round 2 of 30" in last
    assert "why" in last
    assert "waiting for" not in last
    assert "\x1b[2K" not in last  # nothing of it is wiped again


def test_a_record_that_a_run_wrote_is_one_that_a_table_shows(
    module_federation: Callable[..., Any],
) -> None:
    """The names of its keys are those of the real thing."""
    run = module_federation({"pretraining.rounds": 1}).simulate("run")
    [record] = run.federated.records()
    assert record.keys() == RECORD.keys()
    assert record["answered"]["alpha"].keys() == RECORD["answered"]["alpha"].keys()
    phase, answered, refused, seconds, size, loss = row_of(record, 1)
    assert (phase, answered, refused) == ("federated: round 1 of 1", "alpha, beta, gamma", "")
    assert float(seconds) >= 0
    assert float(size) >= 0
    assert loss.startswith("age ")
    assert json.loads((run.folder / "progress.json").read_text()).keys() == PROGRESS.keys()
