"""What was prepared is never prepared twice, never torn, and the same bytes however made."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data import prepare as preparing
from client.data import workers
from client.data.generation import INDEX, QUALITY, SAMPLES, prepared_folder, read_index
from client.data.prepare import prepare
from client.data.reader import Source
from client.data.readers.features import FeaturesReader
from client.site import Site, load_site
from common.errors import DataError, StorageError
from common.study import Study, parse_study

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
HEADER = "participant_id,age,sex,a,b\n"
ROWS = [f"p{n},{20 + n},{'FM'[n % 2]},{n}.5,{n * n}\n" for n in range(8)]


def study_of(data: dict[str, Any]) -> Study:
    tables = {
        "name": "tiny",
        "data": data,
        "targets": {
            "age": {"kind": "regression", "unit": "years", "low": 0, "high": 120},
            "sex": {"kind": "binary", "classes": ["female", "male"]},
        },
        "backbone": {"name": "linear"},
        "objective": {"name": "multitask"},
        "sites": {"train": ["here"]},
    }
    return parse_study(tables, Path("study.toml"))


STUDY = study_of({"kind": "features", "columns": ["a", "b"]})


def site_in(folder: Path, rows: list[str] = ROWS) -> Site:
    folder.mkdir(exist_ok=True)
    (folder / "table.csv").write_text(HEADER + "".join(rows))
    (folder / "site.toml").write_text(
        'name = "here"\nrole = "train"\n[data]\nkind = "features"\ntable = "table.csv"\n'
    )
    return load_site(folder / "site.toml")


def content(generation: Path) -> dict[str, bytes]:
    return {name: (generation / name).read_bytes() for name in (SAMPLES, INDEX, QUALITY)}


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the scans that are prepared inside the block."""
    names: list[str] = []
    original = FeaturesReader.prepare

    def counting(study: Any, source: Source) -> Any:
        names.append(source.scan)
        return original(study, source)

    with monkeypatch.context() as patch:
        patch.setattr(FeaturesReader, "prepare", staticmethod(counting))
        yield names


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that is killed at its step-th touch of the disk; true if it died.

    A write that is hit is done by half: what is on disk then is torn.
    """
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = step

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def torn(stream: Any, data: bytes) -> None:
        if due():
            stream.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        stream.write(data)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keys: Any) -> Any:
            if due():
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keys)

        return wrapped

    preparing._write = torn
    os.fsync, os.rename, os.replace = dying(os.fsync), dying(os.rename), dying(os.replace)  # type: ignore[assignment]
    os.truncate = dying(os.truncate)  # type: ignore[assignment]
    shutil.rmtree = dying(shutil.rmtree)  # type: ignore[assignment]
    try:
        work()
    finally:
        os._exit(0)


def test_samples_are_the_sources_in_order(tmp_path: Path) -> None:
    """Row k of the file is what the kind made of source k; a line of the index says whose."""
    generation = prepare(STUDY, site_in(tmp_path), workers=1)
    samples = np.fromfile(generation / SAMPLES, dtype=np.float32).reshape(-1, 2)
    assert samples.tolist() == [[n + 0.5, n * n] for n in range(8)]
    lines = [json.loads(line) for line in (generation / INDEX).read_text().splitlines()]
    assert [line["participant"] for line in lines] == [f"p{n}" for n in range(8)]
    assert {line["status"] for line in lines} == {"ready"}


def test_what_is_prepared_is_not_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every order of a study begins with this call; the second must cost nothing."""
    site = site_in(tmp_path)
    first = prepare(STUDY, site, workers=1)
    before = content(first)
    with counted(monkeypatch) as names:
        assert prepare(STUDY, site, workers=1) == first
    assert names == []
    assert content(first) == before


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS, "q,30,F,7,7\n"], ["q"]),
        (["q,30,F,7,7\n", *ROWS], ["q"]),
        ([*ROWS[:3], "p3,23,M,99,9\n", *ROWS[4:]], ["p3"]),
        ([*ROWS[:3], *ROWS[4:]], []),
        (ROWS[::-1], []),
        ([row.replace(",M,", ",F,") for row in ROWS], None),
    ],
    ids=["last", "first", "changed", "removed", "reordered", "labels"],
)
def test_a_change_costs_only_what_changed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[str],
    expected: list[str] | None,
) -> None:
    """A thousand scans are not prepared anew for one; the result is that of a fresh start."""
    site = site_in(tmp_path / "old")
    first = prepare(STUDY, site, workers=1)
    site_in(tmp_path / "old", rows)
    with counted(monkeypatch) as names:
        second = prepare(STUDY, site, workers=1)
    assert names == (expected or [])
    assert (second == first) == (expected is None)
    fresh = prepare(STUDY, site_in(tmp_path / "new", rows), workers=1)
    assert content(second) == content(fresh)


def test_a_generation_in_use_is_not_touched(tmp_path: Path) -> None:
    """An agent may have the old samples mapped while the next generation is made."""
    site = site_in(tmp_path)
    mapped = np.memmap(prepare(STUDY, site, workers=1) / SAMPLES, np.float32, "r")
    before = np.array(mapped)
    site_in(tmp_path, ["q,30,F,7,7\n", *ROWS[2:]])
    prepare(STUDY, site, workers=1)
    np.testing.assert_array_equal(mapped, before)


def test_a_kill_at_any_moment_loses_no_complete_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL at every single touch of the disk: the next call ends with undisturbed bytes."""
    rows = [*ROWS, "twin,70,F,1.5,1\n"]  # a duplicate: its first must be remembered over a kill
    undisturbed = content(prepare(STUDY, site_in(tmp_path / "quiet", rows), workers=1))
    step, killed = 1, True
    while killed:
        site = site_in(tmp_path / f"killed-{step}", rows)
        killed = killed_at(step, lambda site=site: prepare(STUDY, site, workers=1))
        folder = prepared_folder(STUDY, site)
        done = len(read_index(folder / "building")) if killed else len(rows)
        if list(folder.glob("generation-*")):
            done = len(rows)
        with counted(monkeypatch) as names:
            generation = prepare(STUDY, site, workers=1)
        assert content(generation) == undisturbed
        assert len(names) == len(rows) - done
        assert sorted(path.name for path in folder.iterdir()) == [generation.name, "lock"]
        step += 1
    assert step > 2 * len(rows) + 5


def test_many_kills_in_a_row_still_come_to_the_end(tmp_path: Path) -> None:
    """A machine that is switched off every evening: each day must bring the work forward."""
    undisturbed = content(prepare(STUDY, site_in(tmp_path / "quiet"), workers=1))
    site = site_in(tmp_path / "busy")
    days = 0
    while killed_at(7, lambda: prepare(STUDY, site, workers=1)):
        days += 1
        assert days < 20
    assert days > 2
    assert content(prepare(STUDY, site, workers=1)) == undisturbed


def test_kills_while_a_change_is_taken_in_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old generation, interrupted one and changed sources at once: reuse must not mix them up."""
    changed = ["q,30,F,7,7\n", *ROWS[2:], "r,31,M,8,8\n"]
    undisturbed = content(prepare(STUDY, site_in(tmp_path / "quiet", changed), workers=1))
    step, killed = 1, True
    while killed:
        site = site_in(tmp_path / f"killed-{step}")
        prepare(STUDY, site, workers=1)
        site_in(tmp_path / f"killed-{step}", ROWS[2:])
        killed = killed_at(step, lambda site=site: prepare(STUDY, site, workers=1))
        site_in(tmp_path / f"killed-{step}", changed)
        with counted(monkeypatch) as names:
            assert content(prepare(STUDY, site, workers=1)) == undisturbed
        assert set(names) <= {"q", "r"}
        step += 1
    assert step > 10


def test_interrupted_work_survives_a_change_of_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine hours of preparing are not lost because one scan arrives that sorts first."""
    site = site_in(tmp_path)
    assert killed_at(11, lambda: prepare(STUDY, site, workers=1))
    done = len(read_index(prepared_folder(STUDY, site) / "building"))
    assert done > 2
    site_in(tmp_path, ["q,30,F,7,7\n", *ROWS])
    with counted(monkeypatch) as names:
        prepare(STUDY, site, workers=1)
    assert len(names) == 1 + len(ROWS) - done


def test_damage_on_disk_is_prepared_anew(tmp_path: Path) -> None:
    """After a power cut the file may have its length but not its bytes."""
    undisturbed = content(prepare(STUDY, site_in(tmp_path / "quiet"), workers=1))
    site = site_in(tmp_path / "power")
    assert killed_at(11, lambda: prepare(STUDY, site, workers=1))
    path = prepared_folder(STUDY, site) / "building" / SAMPLES
    damaged = bytearray(path.read_bytes())
    damaged[9:] = bytes(len(damaged) - 9)
    path.write_bytes(bytes(damaged))
    assert content(prepare(STUDY, site, workers=1)) == undisturbed
    old = prepare(STUDY, site, workers=1)
    (old / SAMPLES).write_bytes(b"\1" * (old / SAMPLES).stat().st_size)
    site_in(tmp_path / "power", [*ROWS, "q,30,F,7,7\n"])
    fresh = prepare(STUDY, site_in(tmp_path / "new", [*ROWS, "q,30,F,7,7\n"]), workers=1)
    assert (prepare(STUDY, site, workers=1) / SAMPLES).read_bytes() == (
        fresh / SAMPLES
    ).read_bytes()


def test_a_full_disk_stops_the_work_and_space_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses to grow the file; what was complete counts when there is room again."""
    undisturbed = content(prepare(STUDY, site_in(tmp_path / "quiet"), workers=1))
    site = site_in(tmp_path / "full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        with pytest.raises(StorageError, match="free space"):
            prepare(STUDY, site, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    done = len(read_index(prepared_folder(STUDY, site) / "building"))
    assert 0 < done < len(ROWS)
    with counted(monkeypatch) as names:
        assert content(prepare(STUDY, site, workers=1)) == undisturbed
    assert len(names) == len(ROWS) - done


def test_two_processes_do_not_prepare_at_once(tmp_path: Path) -> None:
    """The second waits for the first, then finds everything done."""
    site = site_in(tmp_path)
    folder = prepared_folder(STUDY, site)
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=prepare, args=(STUDY, site), kwargs={"workers": 1})
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert not (folder / "building").exists()
    other.join(10)
    assert list(folder.glob("generation-*"))


@pytest.mark.parametrize("name", [SAMPLES, INDEX])
def test_a_bit_that_a_disk_changed_is_prepared_again(tmp_path: Path, name: str) -> None:
    """Prepared once, trained on for years: rot must neither train in silence nor stop the site."""
    site = site_in(tmp_path)
    generation = prepare(STUDY, site, workers=1)
    sound = content(generation)
    for place in range(0, len(sound[name]), 41):
        damaged = bytearray(sound[name])
        damaged[place] ^= 1 << place % 8
        (generation / name).write_bytes(damaged)
        generation = prepare(STUDY, site, workers=1)
        assert content(generation) == sound


@pytest.mark.parametrize("change", [lambda b: b + b"x", lambda b: b[:-1], lambda b: b""])
def test_prepared_samples_of_another_length_are_prepared_again(tmp_path: Path, change: Any) -> None:
    """A copy that broke off, or was appended to."""
    site = site_in(tmp_path)
    generation = prepare(STUDY, site, workers=1)
    sound = content(generation)
    (generation / SAMPLES).write_bytes(change(sound[SAMPLES]))
    assert content(prepare(STUDY, site, workers=1)) == sound


def test_equal_content_under_another_name_is_left_out_and_named(tmp_path: Path) -> None:
    """One person under two names would be in two splits, and judge what they taught."""
    rows = [*ROWS[:3], "twin,70,F,1.5,1\n", *ROWS[3:]]
    generation = prepare(STUDY, site_in(tmp_path / "a", rows), workers=1)
    record = read_index(generation)[3]
    assert (record.status, record.n) == ("duplicate", 0)
    assert "twin\tduplicate\tits prepared content is that of p1" in (
        generation / QUALITY
    ).read_text(encoding="utf-8")
    alone = prepare(STUDY, site_in(tmp_path / "b"), workers=1)
    assert content(generation)[SAMPLES] == content(alone)[SAMPLES]


def test_a_duplicate_takes_over_when_the_first_goes(tmp_path: Path) -> None:
    """Removing the wrong name must not remove the scan."""
    site = site_in(tmp_path, [*ROWS, "twin,70,F,1.5,1\n"])
    prepare(STUDY, site, workers=1)
    site_in(tmp_path, [ROWS[0], *ROWS[2:], "twin,70,F,1.5,1\n"])
    assert read_index(prepare(STUDY, site, workers=1))[-1].status == "ready"


@pytest.mark.parametrize("error", [PermissionError("no"), MemoryError(), ZeroDivisionError()])
def test_a_failure_that_may_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A share that was away for a minute must not cost a scan for ever, nor stop the site."""
    site = site_in(tmp_path)
    original = FeaturesReader.prepare

    def failing(study: Any, source: Source) -> Any:
        if source.participant == "p3":
            raise error
        return original(study, source)

    with monkeypatch.context() as patch:
        patch.setattr(FeaturesReader, "prepare", staticmethod(failing))
        first = prepare(STUDY, site, workers=1)
        assert [record.status for record in read_index(first)].count("failed") == 1
        assert "p3\tfailed" in (first / QUALITY).read_text(encoding="utf-8")
        assert prepare(STUDY, site, workers=1) == first
    second = prepare(STUDY, site, workers=1)
    assert [record.status for record in read_index(second)] == ["ready"] * 8


def test_a_kind_that_breaks_its_promise_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kinds may come from other packages: wrong type, shape, NaN and nothing are refused."""
    wrong = iter(
        [
            np.zeros((1, 2), np.float64),
            np.zeros((1, 3), np.float32),
            np.full((1, 2), np.nan, np.float32),
            np.zeros((0, 2), np.float32),
        ]
    )
    original = FeaturesReader.prepare

    def breaking(study: Any, source: Source) -> Any:
        prepared = original(study, source)
        samples = next(wrong, prepared.samples)
        return type(prepared)(samples=samples)

    monkeypatch.setattr(FeaturesReader, "prepare", staticmethod(breaking))
    records = read_index(prepare(STUDY, site_in(tmp_path), workers=1))
    assert [record.status for record in records] == ["left out"] * 4 + ["ready"] * 4


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    """Processes finish in any order; the file is in the order of the sources."""
    contents = [
        content(prepare(STUDY, site_in(tmp_path / f"w{count}"), workers=count))
        for count in (1, 2, 3, None)
    ]
    assert all(other == contents[0] for other in contents)


class _Dies:
    """A payload that ends the process that receives it, as a fault in a C library would."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_worker_that_dies_costs_only_its_scan() -> None:
    """A segmentation fault on one odd file must not stop a site, nor lose its neighbours."""
    healthy = [
        Source(participant=f"p{n}", scan=f"p{n}", stamp="", row={}, payload=np.float32([n, 1]))
        for n in range(6)
    ]
    deadly = Source(participant="x", scan="x", stamp="", row={}, payload=_Dies())
    outcomes = list(workers.prepare_all(STUDY, [*healthy[:3], deadly, *healthy[3:]], 2))
    assert [outcome.status for outcome in outcomes] == ["ready"] * 3 + ["failed"] + ["ready"] * 3
    assert outcomes[3].notes == ("the process that read it died",)
    assert [float(o.samples[0, 0]) for o in outcomes if o.samples is not None] == [*range(6)]


def test_a_killed_parent_leaves_no_worker_behind(tmp_path: Path) -> None:
    """An agent that is killed every night must not fill the machine with waiting processes."""
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[3])!r}]\n"
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from client.data.workers import end_with_parent\n"
        "context = multiprocessing.get_context('forkserver')\n"
        "pool = ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    try:
        # the worker inherits the pipe: it ends when the last process that holds it does
        assert parent.communicate(timeout=20)[0] == ""
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        raise


def test_progress_is_told_once_a_source(tmp_path: Path) -> None:
    """A bar that ends at 99 % looks like a hang."""
    site = site_in(tmp_path)
    for _ in range(2):
        steps: list[int] = []
        prepare(STUDY, site, workers=1, advance=lambda steps=steps: steps.append(1))
        assert len(steps) == len(ROWS)


def test_another_preparation_has_another_folder(tmp_path: Path) -> None:
    """Two studies with the same data settings share what is prepared; others must not."""
    site = site_in(tmp_path)
    other = study_of({"kind": "features", "columns": ["b", "a"]})
    renamed = STUDY.model_copy(update={"name": "other", "seed": 7})
    assert prepared_folder(STUDY, site) == prepared_folder(renamed, site)
    assert prepared_folder(STUDY, site) != prepared_folder(other, site)


def test_a_site_that_cannot_be_used_at_all_says_so(tmp_path: Path) -> None:
    """An error of the site file is no list of left-out scans."""
    site = site_in(tmp_path)
    (tmp_path / "table.csv").unlink()
    with pytest.raises(DataError, match="does not exist"):
        prepare(STUDY, site, workers=1)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data are not on this machine")
def test_real_scans_are_prepared_alike_by_one_and_two_workers(tmp_path: Path) -> None:
    """Nine whole heads of one site, told from the others by the row filter."""
    study = study_of({"kind": "t1w", "shape": [24, 28, 24], "spacing_mm": 8.0})
    contents = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "site.toml").write_text(
            'name = "here"\nrole = "train"\n[data]\nkind = "t1w"\n'
            f'root = "{SHARED / "t1_three_sites_2mm"}"\nrows = {{site = "ucla"}}\n'
        )
        generation = prepare(study, load_site(folder / "site.toml"), workers=count)
        assert len(read_index(generation)) == 9
        contents.append(content(generation))
    assert contents[0] == contents[1]
