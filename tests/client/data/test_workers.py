"""Preparing in several processes works, or goes on in one, wherever it is asked for."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.data import workers
from client.data.generation import read_index
from client.data.prepare import prepare
from client.doctor import capacity
from client.site import load_site

ROOT = Path(__file__).parents[3]
PREPARE = """
import sys
from pathlib import Path
from client.data.prepare import prepare, read_index
from client.site import load_site
from common.study import load_study
if __name__ == "__main__":
    study, site = load_study(Path(sys.argv[1])), load_site(Path(sys.argv[2]))
    print(*{record.status for record in read_index(prepare(study, site, workers=2))})
"""


def test_a_long_name_of_the_temporary_folder_ends_nothing(
    federation: Callable[..., Any], tmp_path: Path
) -> None:
    """A job's folder on a cluster: the kernel takes 107 bytes for the path of a socket."""
    made = federation()
    long = tmp_path / ("x" * 110)
    long.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PREPARE)
    done = subprocess.run(
        [sys.executable, program, made.study_file, made.sites / "alpha" / "site.toml"],
        env=os.environ | {"TMPDIR": str(long), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ready\n", "")
    assert not list(long.iterdir())


def test_where_no_process_can_be_started_one_prepares_alone(
    federation: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No shared memory, too many open files, no place for a socket: slower, and no end."""
    made = federation()
    site = load_site(made.sites / "alpha" / "site.toml")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse)
    caplog.set_level("WARNING", "callosum.site")
    generation = prepare(made.study, site, workers=2)
    assert {record.status for record in read_index(generation)} == {"ready"}
    assert "(Too many open files); this one prepares alone" in caplog.text


def test_the_longest_folder_leaves_room_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is the kernel's, less what Python puts behind it."""
    name = "x" * (workers._LONGEST - len(os.fsencode(tmp_path)) - 1)
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert workers.socket_folder() == folder
    place = Path(tempfile.mkdtemp(prefix="pymp-"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(tempfile.mktemp(prefix="listener-", dir=place))
    monkeypatch.setattr(tempfile, "tempdir", str(folder) + "x")
    assert workers.socket_folder() in map(Path, workers._SHORT)


def test_the_doctor_finds_what_cannot_be_cured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long TMPDIR where nothing else can be written."""
    monkeypatch.setattr(workers, "_SHORT", ())
    monkeypatch.setattr(workers, "_LONGEST", 1)
    found = capacity.temporary()
    assert found.state == "note"
    assert "too long for a socket" in found.found
    assert "TMPDIR" in found.remedy
