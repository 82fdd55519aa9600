"""Secure sums over real processes: kits, a hub, eight agents and nodes, of which two are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.authority.ledger import read_ledger
from common.protocol.wire import open_arrays
from tests.deploy.standing import read_json, removed, short_folder, standing, until
from tests.deploy.test_secure_sums import EIGHT, SECURE, STEADY, dropping_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
GONE = ("site-c", "site-f")
LONG: dict[str, Any] = {
    "pretraining.local_epochs": 200, "pretraining.batch_size": 4,
    "pretraining.learning_rate": 0.001, "sites.time_limit_s": 60.0,
}  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    made = short_folder()
    yield made
    removed(made)


def model(run: Path) -> dict[str, Any]:
    with open_arrays(run / "checkpoints" / "final.safetensors") as file:
        return {name: array for name, array in file.all().items() if name.startswith("model/")}


def spent(state: Path) -> int:
    path = state / "ledger.sqlite"
    return len(read_ledger(path).exposures) if path.exists() else 0


def test_two_agents_killed_in_a_round_change_no_number_of_the_sum(
    federation: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of the other six is the plain mean to 1e-6, and the two are in the next one again.

    They are killed while all train for round 2, so that masks with them are in every report.
    """
    made = federation(STEADY | LONG | SECURE)
    with monkeypatch.context() as patch:
        dropping_out(patch, {2: GONE})
        plain = type(made)(made.folder, made.base, STEADY | LONG).simulate("plain")
    files = {name: ("train", made.sites / name / "site.toml") for name in EIGHT}
    with standing(folder, files) as there:
        number = there.introduce()
        assert number in there.command("callosum-site", "identity", "--kit", there.kits / EIGHT[0])
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub, "--detach")
        run = there.hub / "runs" / "tiny"
        until(lambda: all(spent(there.state(s)) == 2 for s in GONE), 600, "round 2 at work")
        assert not (run / "rounds/0002/summed.json").exists()
        for site in GONE:
            os.kill(there.started[f"agent-{site}"].pid, signal.SIGKILL)
            there.started[f"agent-{site}"].wait()
        until((run / "rounds/0002/record.json").exists, 400, "round 2")
        for site in GONE:
            there.start_agent(site)
        until(lambda: read_json(run / "state.json").get("state") == "finished", 600, "the end")
        records = [read_json(run / f"rounds/{n:04d}/record.json") for n in (1, 2, 3)]
        assert [record["sum"]["sites"] for record in records] == [8, 6, 8]
        assert sorted(records[1]["refused"]) == sorted(GONE)
        print([round(record["seconds"], 1) for record in records], "s a round")
        ours, theirs = model(run), model(plain.folder)
        assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs) < 1e-6
        for site in EIGHT:
            there.command("callosum-site", "receipts", "verify", "--kit", there.kits / site)
