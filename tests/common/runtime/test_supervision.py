"""Children are started again, ever more rarely while they fail, and never outlive their parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.runtime import supervision
from common.runtime.supervision import Child, told_to_stop

ROOT = Path(__file__).parents[3]
PATIENCE_S = 20.0  # until a test gives up; nothing waits that long


class Clock:
    """The supervisor's time, moved by hand: the children are real, the minutes are not."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


Make = Callable[..., Child]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Make]:
    """`child("shell code")` makes a supervised child that is surely ended after the test."""
    made: list[Child] = []

    def make(code: str, **more: str) -> Child:
        environment = {"PATH": os.environ["PATH"], **more}
        found = Child("child", ["/bin/sh", "-c", code], environment, tmp_path / "log" / "child.log")
        made.append(found)
        return found

    yield make
    for found in made:
        if found.pid is not None:
            os.killpg(found.pid, signal.SIGKILL)
            found._process.wait()


def until(seen: Callable[[], object], what: str = "it") -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.005)


def ended(pid: int | None) -> bool:
    """Whether a process of ours or of somebody else has ended, though nobody may have reaped it."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 0)[0])
    finally:
        os.close(handle)


def written(path: Path) -> str:
    """What a child writes in one go, once it is there."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name}")
    return path.read_text().strip()


@contextmanager
def typed(text: bytes) -> Iterator[None]:
    """Somebody types at the parent's terminal."""
    before, (end, keyboard) = os.dup(0), os.pipe()
    os.dup2(end, 0)
    os.write(keyboard, text)
    try:
        yield
    finally:
        os.dup2(before, 0)
        for handle in (before, end, keyboard):
            os.close(handle)


def rest_of(failing: Child, clock: Clock) -> float:
    """End one failed start: how long the supervisor waits until the next, to an eighth of a second."""
    until(lambda: ended(failing.pid), "the child's end")
    assert not failing.tend()
    assert failing.pid is None
    began = clock.now
    while not failing.tend():
        clock.now += 0.125
        assert clock.now < began + 1000
    return clock.now - began


def test_a_child_that_keeps_failing_rests_longer_each_time(child: Make, clock: Clock) -> None:
    """A full disk or a refused certificate must not fill a log with a start every second."""
    failing = child("exit 3")
    assert failing.tend()
    longest = supervision._LONGEST_REST_S
    wanted = [min(2.0**number, longest) for number in range(8)]
    assert wanted[3] == 8
    assert wanted[-1] == longest
    assert [rest_of(failing, clock) for _ in range(8)] == wanted
    assert failing.starts == 9


def test_a_child_that_ran_for_a_while_starts_again_soon(child: Make, clock: Clock) -> None:
    """One crash a day is not a child that keeps failing."""
    failing = child("exit 3")
    failing.tend()
    assert [rest_of(failing, clock) for _ in range(3)] == [1, 2, 4]
    clock.now += supervision._HEALTHY_S + 1  # it is found to have ended only now
    assert rest_of(failing, clock) == 1
    clock.now += supervision._HEALTHY_S - 1
    assert rest_of(failing, clock) == 2


def test_a_child_that_was_seen_to_work_starts_again_soon(child: Make, clock: Clock) -> None:
    """A SuperLink that answered has got over what was wrong before."""
    failing = child("exit 3")
    failing.tend()
    assert [rest_of(failing, clock) for _ in range(3)] == [1, 2, 4]
    failing.settle()
    assert [rest_of(failing, clock) for _ in range(2)] == [1, 2]


def test_what_follows_an_end_is_done_once_before_the_next_start(child: Make, clock: Clock) -> None:
    """The hub is told of a SuperNode that crashed, or it would not let the next one in."""
    failing = child("exit 3")
    seen: list[tuple[int, int | None]] = []
    failing.after_end = lambda: seen.append((failing.starts, failing.pid))
    failing.tend()
    assert seen == []
    rest_of(failing, clock)
    assert seen == [(1, None)]
    rest_of(failing, clock)
    assert seen == [(1, None), (2, None)]
    failing.stop()
    assert len(seen) == 2  # it was told to end


def test_a_childs_last_words_are_told(
    child: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason stood in a file that nobody looked at; the screen said "ended (1)" for ever."""
    failing = child("echo 'ERROR: no such key'; echo 'INFO: [uvicorn.error] Good bye.'; exit 3")
    assert failing.tend()
    rest_of(failing, clock)
    assert "child ended (3: ERROR: no such key); again in 1 s" in caplog.text
    assert "no such key" in failing.said
    failing.settle()
    assert not failing.said


def test_a_child_whose_start_would_come_to_nothing_is_not_started(
    child: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A port that another program has: SuperLink would end at once, and its calls go astray."""
    hindered, why = child("sleep 60"), ["port 1 is in use"]
    hindered.hindrance = lambda: "".join(why)
    assert not hindered.tend()
    assert (hindered.pid, hindered.said) == (None, "port 1 is in use")
    assert "child cannot start: port 1 is in use; again in 1 s" in caplog.text
    clock.now += 1
    assert not hindered.tend()
    why.clear()
    assert not hindered.tend()  # it rests longer each time, as after an end
    clock.now += 2
    assert hindered.tend()


def test_a_child_that_runs_is_left_alone(child: Make, clock: Clock) -> None:
    """Tending is done twice a second, for months."""
    running = child("exec sleep 1000")
    assert running.pid is None
    assert running.tend()
    pid = running.pid
    for _ in range(5):
        clock.now += 100
        assert not running.tend()
    assert (running.pid, running.starts) == (pid, 1)
    assert pid is not None
    assert not ended(pid)


def test_a_killed_child_is_started_again(child: Make, clock: Clock, tmp_path: Path) -> None:
    """Also one that had no time to say anything."""
    running = child(f'echo $$ > "{tmp_path}/pid"; exec sleep 1000')
    running.tend()
    first = running.pid
    assert written(tmp_path / "pid") == str(first)
    os.kill(first, signal.SIGKILL)
    assert rest_of(running, clock) == 1
    assert running.pid not in (None, first)


def test_a_child_gets_its_own_environment_its_log_and_nothing_to_read(
    child: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in the parent's environment is no child's business."""
    monkeypatch.setenv("CALLOSUM_SECRET", "of the parent")
    talking = child('echo "$CALLOSUM_SECRET|$OWN"; echo wrong >&2; cat', OWN="mine")
    with typed(b"meant for the parent\n"):
        talking.tend()
        until(lambda: ended(talking.pid), "the child's end")  # cat ends at once: no input
    assert (tmp_path / "log" / "child.log").read_text() == "|mine\nwrong\n"


def test_logs_are_continued_and_a_large_one_gives_way(
    child: Make, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a child said before it died is still there; a disk is not filled by restarts."""
    monkeypatch.setattr(supervision, "_LARGEST_LOG", 11)
    failing = child("echo a line")
    failing.tend()
    rest_of(failing, clock)
    until(lambda: ended(failing.pid), "the child's end")
    log, older = tmp_path / "log" / "child.log", tmp_path / "log" / "child.1.log"
    assert log.read_text() == "a line\n" * 2
    assert not older.exists()
    rest_of(failing, clock)
    until(lambda: ended(failing.pid), "the child's end")
    assert log.read_text() == "a line\n"
    assert older.read_text() == "a line\n" * 2


def test_a_stopped_child_has_time_to_end_in_order(child: Make, tmp_path: Path) -> None:
    """A SuperNode that says goodbye may come back at once; one that is killed waits a minute."""
    polite = child(
        f'trap \'echo bye > "{tmp_path}/bye"; exit 0\' TERM; echo on > "{tmp_path}/on"; '
        "while :; do sleep 0.01; done"
    )
    polite.tend()
    written(tmp_path / "on")
    polite.stop()
    assert (tmp_path / "bye").read_text() == "bye\n"
    assert polite.pid is None


def test_a_child_that_does_not_stop_is_killed(
    child: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd gives the whole service a minute and a half; one child must not use it up."""
    monkeypatch.setattr(supervision, "_GRACE_S", 0.2)
    stubborn = child(f'trap "" TERM; echo on > "{tmp_path}/on"; while :; do sleep 0.01; done')
    stubborn.tend()
    written(tmp_path / "on")
    pid, began = stubborn.pid, time.monotonic()
    stubborn.stop()
    assert 0.2 <= time.monotonic() - began < PATIENCE_S
    assert stubborn.pid is None
    assert ended(pid)


def test_stopping_what_does_not_run_is_nothing(child: Make) -> None:
    """Not started yet, ended by itself, or stopped before."""
    made = child("exit 0")
    made.stop()
    made.tend()
    until(lambda: ended(made.pid), "the child's end")
    made.stop()
    made.stop()
    assert made.pid is None


FAMILY = 'sleep 1000 & echo $! > "{folder}/grandchild"; '


def test_what_a_child_leaves_behind_is_ended(child: Make, clock: Clock, tmp_path: Path) -> None:
    """A ServerApp that outlives its SuperExec would hold the run's lock against the next one."""
    parent = child(FAMILY.format(folder=tmp_path) + "wait")
    parent.tend()
    grandchild = int(written(tmp_path / "grandchild"))
    assert not ended(grandchild)
    os.kill(parent.pid, signal.SIGKILL)
    rest_of(parent, clock)
    until(lambda: ended(grandchild), "the grandchild's end")


def test_what_a_stopped_child_leaves_behind_is_ended(child: Make, tmp_path: Path) -> None:
    """Stopping the service must free its ports, or the next start fails."""
    parent = child(FAMILY.format(folder=tmp_path) + "trap 'exit 0' TERM; wait")
    parent.tend()
    grandchild = int(written(tmp_path / "grandchild"))
    parent.stop()
    until(lambda: ended(grandchild), "the grandchild's end")


PARENT = """
import sys, time
from pathlib import Path
from common.runtime.supervision import Child

made = Child("child", ["/bin/sh", "-c", sys.argv[1]], {"PATH": "/usr/bin:/bin"}, Path(sys.argv[2]))
made.tend()
print(made.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_child_dies_with_its_parent_however_that_dies(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Two SuperNodes with one key, the older one orphaned, would throw each other out for ever."""
    code = f'trap "" TERM; echo on > "{tmp_path}/on"; while :; do sleep 0.01; done'
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, code, str(tmp_path / "child.log")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        pid = int(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        written(tmp_path / "on")
        parent.send_signal(number)
        parent.wait(PATIENCE_S)
        assert select.select([handle], [], [], PATIENCE_S)[0], "the child lives on"
        os.close(handle)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.fixture
def signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("signals")
def test_the_main_loop_is_told_to_stop(number: signal.Signals) -> None:
    """systemd says SIGTERM, a person at a terminal presses Ctrl-C: both end in order."""
    stop = told_to_stop()
    assert isinstance(stop, threading.Event)
    assert not stop.is_set()
    os.kill(os.getpid(), number)
    assert stop.wait(PATIENCE_S)
