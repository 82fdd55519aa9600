"""Whoever shares the machine: links planted in a site's state, a wide umask, tables elsewhere."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.authority.approvals import approve, pause
from client.authority.records import open_records
from client.data.tables import open_table
from client.service.agent_pool import open_agent
from client.site import load_site
from common.errors import DataError, FolderError
from common.runtime.private_folder import check_own, own_folder

ROOT = Path(__file__).parents[2]
COMMANDS = (
    ("check", "--study", "{study}"),
    ("prepare", "--study", "{study}"),
    ("approve", "{study}", "--yes"),
    ("studies",),
    ("pause", "--reason", "a new scanner"),
    ("resume",),
    ("ledger",),
    ("models",),
    ("receipts",),
    ("revoke", "tiny"),
)


def command(made: Any, *words: str) -> subprocess.CompletedProcess[str]:
    """`callosum-site WORDS --site ...` under a umask that closes nothing."""
    words = tuple(word.format(study=made.study_file) for word in words)
    program = "import os; os.umask(0); from client.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words, "--site", made.sites / "alpha" / "site.toml"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip


def open_to_others(state: Path) -> list[str]:
    return [str(path) for path in (state, *state.rglob("*")) if path.lstat().st_mode & 0o077]


@pytest.mark.slow
def test_no_command_opens_the_state_to_others(federation: Callable[..., Any]) -> None:
    """Scans' names and prepared brains lie there; an administrator's umask must not decide."""
    made = federation()
    state = made.sites / "alpha" / ".callosum"
    for words in COMMANDS:
        done = command(made, *words)
        assert done.returncode == 0, (words, done.stderr)
        assert not state.exists() or open_to_others(state) == [], words
    assert len(list(state.rglob("*"))) > 5


def test_what_the_library_writes_is_the_users_alone(federation: Callable[..., Any]) -> None:
    """The same in one process: prepared data, approvals, a pause, and a state made before."""
    made = federation()
    site = load_site(made.sites / "alpha" / "site.toml")
    before = os.umask(0)
    try:
        site.state.mkdir(mode=0o777)
        (site.state / "old").write_text("from a version that left it open")
        open_agent(made.study, site)
        approve(site, made.study_file, 1000)
        pause(site, "a new scanner")
    finally:
        os.umask(before)
    assert open_to_others(site.state) == []
    assert site.state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("planted", [".callosum", "runs", "prepared/x/building", "ledger.sqlite"])
def test_a_link_in_the_state_is_not_followed(
    federation: Callable[..., Any], tmp_path: Path, planted: str
) -> None:
    """It would have the agent write where the planter may not, or read what is not its own."""
    made = federation()
    state = made.sites / "alpha" / ".callosum"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = state if planted == ".callosum" else state / planted
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(FolderError, match="is a link or no file"):
        open_agent(made.study, load_site(made.sites / "alpha" / "site.toml"))
    done = command(made, "studies")
    assert (done.returncode, "is a link" in done.stderr) == (5, True)
    assert list(elsewhere.iterdir()) == []


def test_a_pipe_in_the_state_does_not_hold_anyone_up(tmp_path: Path) -> None:
    """Opening a pipe for reading waits for ever."""
    own_folder(tmp_path / "state")
    os.mkfifo(tmp_path / "state" / "paused")
    with pytest.raises(FolderError, match="paused is a link or no file"):
        check_own(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given", [".", "studies", "studies/a.json"])
def test_what_belongs_to_another_user_is_not_believed(tmp_path: Path, given: str) -> None:
    """Whoever owns an approval, or the folder that it lies in, could write one."""
    state = tmp_path / "state"
    (state / "studies").mkdir(parents=True)
    (state / "studies" / "a.json").touch()
    os.chown(state / given, 12345, 12345)
    with pytest.raises(FolderError, match=r"belongs to user 12345.*chown"):
        check_own(state)


def test_a_new_state_folder_is_closed_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made open and closed afterwards, it could be entered in between."""
    modes = []
    plain = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, **more: Any) -> None:
        modes.append(mode)
        plain(self, mode, **more)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    own_folder(tmp_path / "state")
    assert modes[-1] == 0o700


def test_a_wide_run_folder_stays_wide(tmp_path: Path, federation: Callable[..., Any]) -> None:
    """Only a site's state is closed: a coordinator's group reads results as it did."""
    made = federation({"pretraining.rounds": 1})
    before = os.umask(0o022)
    try:
        run = made.simulate()
    finally:
        os.umask(before)
    assert (run.folder / "results.csv").stat().st_mode & 0o777 == 0o644
    assert open_to_others(made.sites / "alpha" / ".callosum") == []


def test_records_are_the_users_alone(federation: Callable[..., Any]) -> None:
    """The agent sets its umask; its ledger, lock and receipts are closed by it."""
    site = load_site(federation().sites / "alpha" / "site.toml")
    own_folder(site.state)
    before = os.umask(0o077)  # as `serve` does
    try:
        with open_records(site):
            assert open_to_others(site.state) == []
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["table.csv", "participants.tsv", "deep/table.csv"])
def test_a_table_that_is_a_link_out_is_not_read(tmp_path: Path, name: str) -> None:
    """A link in a data set from elsewhere would turn any readable file into labels and findings."""
    secret = tmp_path / "secret.csv"
    secret.write_text("participant_id,age\na,1\n")
    home = tmp_path / "data"
    (home / name).parent.mkdir(parents=True)
    (home / name).symlink_to(secret)
    with pytest.raises(DataError, match=r"is a link out of .*not followed"):
        open_table(home / name, home)


def test_a_table_linked_inside_its_data_set_is_read(tmp_path: Path) -> None:
    """git-annex keeps content so, in a folder of the data set's own."""
    annex = tmp_path / "data" / ".git" / "annex"
    annex.mkdir(parents=True)
    (annex / "key").write_text("participant_id,age\na,1\n")
    table = tmp_path / "data" / "phenotype" / "table.csv"
    table.parent.mkdir()
    table.symlink_to(annex / "key")
    assert open_table(table, tmp_path / "data").columns == ("participant_id", "age")


def test_participants_and_sessions_are_confined_like_scans(
    brains: Callable[..., Any], tmp_path: Path
) -> None:
    """They stand beside the scans; labels from a file outside the data set are not theirs."""
    import shutil

    from client.data.reader import find_sources

    made = brains()
    folder = tmp_path / "amber"
    shutil.copytree(made.sites / "amber", folder)
    site = load_site(folder / "site.toml")
    home = site.root / site.data.root
    outside = tmp_path / "outside.tsv"
    (home / "participants.tsv").rename(outside)
    (home / "participants.tsv").symlink_to(outside)
    found = find_sources(made.study, site)
    assert all(source.row == {} for source in found.sources)
    assert any("is a link out of" in finding.problem for finding in found.findings)


LAUNCH = """
import os
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from deploy.hub.superexec import launch
launch(None, ExecutionSpec(
    task_type=TaskType.SERVER_APP, runtime_api_address="127.0.0.1:1", token="{token}",
    insecure=True, root_certificates_path=None, runtime_dependency_install=False,
    parent_pid=os.getpid(), suppress_output=False, task_id=1,
))
"""


def test_the_serverapps_token_is_on_no_command_line(tmp_path: Path) -> None:
    """Whoever lists processes would read it, and could speak to SuperLink as that run."""
    out = tmp_path / "out"
    fake = tmp_path / "flwr-serverapp"
    read = 'while [ "$1" != --token-file ]; do shift; done; echo "token $(cat $2)"'
    fake.write_text(f'#!/bin/sh\n(echo "line $@"; {read}) > {out}.new; mv {out}.new {out}\n')
    fake.chmod(0o755)
    program = LAUNCH.format(token="se" + "cret")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment)
    until = time.monotonic() + 20
    while not out.exists() and time.monotonic() < until:
        time.sleep(0.05)
    line, token = out.read_text().splitlines()
    assert "secret" not in line
    assert token == "token secret"
    assert "--parent-pid" in line


def test_flowers_serverapp_still_takes_its_token_from_a_file() -> None:
    """What stands on Flower's private parts must fail here when they change."""
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

    shown = subprocess.run(
        [Path(sys.executable).parent / "flwr-serverapp", "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    source = inspect.getsource(SubprocessExecutor.launch)
    assert "--token-file" in shown
    for part in ("--token", "--insecure", "--root-certificates", "--parent-pid", "suppress_output"):
        assert part in source
    assert source.count("append(") + source.count("extend(") == 4  # else it has learnt something
