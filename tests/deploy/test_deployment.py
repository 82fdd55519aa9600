"""The deployment as real processes on loopback: the same bits as in one process, and a closed door."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.standing import Standing, read_json, removed, short_folder, standing

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CHANGES = {
    "objective.targets": ["age"],
    "sites.heldout": ["omega"],
    "sites.time_limit_s": 300.0,
    "evaluation.head": False,
    "finetuning": [
        {
            "name": "dementia",
            "target": "diagnosis",
            "inits": ["transfer"],
            "epochs": 2,
            "learning_rates": [0.01],
        }
    ],
}


@pytest.fixture
def folder() -> Iterator[Path]:
    made = short_folder()
    yield made
    removed(made)


def files_of(made: Any) -> dict[str, tuple[str, Path]]:
    study = made.study
    roles = dict.fromkeys(study.sites.train, "train") | dict.fromkeys(
        study.sites.heldout, "heldout"
    )
    return {name: (role, made.sites / name / "site.toml") for name, role in roles.items()}


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs_nginx
def test_whole_study_through_the_door_has_the_bits_of_one_process(federation, folder):
    """What was shown in a simulation holds at the sites; only the fleet's paths pass nginx."""
    made = federation(CHANGES)
    here = made.simulate()
    with standing(folder, files_of(made), nginx=True) as there:
        there.stand(made.study_file)
        said = there.command("callosum", "run", made.study_file, "--hub", there.hub)
        run = there.hub / "runs" / "tiny"
        assert sha(run / "checkpoints" / "final.safetensors") == sha(
            here.folder / "checkpoints" / "final.safetensors"
        )
        assert (run / "results.csv").read_text() == (here.folder / "results.csv").read_text()
        assert read_json(run / "state.json")["state"] == "finished"
        assert "round 2 of 2" in said
        assert not any(record["degraded"] for record in records(run))
        door_is_closed(there)
        for site in there.roles:
            there.command("callosum-site", "receipts", "verify", "--kit", there.kits / site)


def records(run: Path) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(run.glob("rounds/*/record.json"))]


def door_is_closed(there: Standing) -> None:
    """The control API answers on the hub's own machine and nowhere else."""
    context = ssl.create_default_context(cafile=str(there.hub / "ca.crt"))
    for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/health", "/docs"):
        inside = status(f"https://127.0.0.1:{there.port}{path}", context)
        assert inside not in (404, 0), (path, inside)
        assert status(f"https://127.0.0.1:{there.door}{path}", context) == 404
    fleet = "/v1/fleet/activate-node"
    assert status(f"https://127.0.0.1:{there.door}{fleet}", context) not in (404, 0)


def status(url: str, context: ssl.SSLContext) -> int:
    request = urllib.request.Request(url, data=b"", method="POST")
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
