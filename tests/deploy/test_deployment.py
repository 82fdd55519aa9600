"""The deployment as real processes on loopback: the same bits as in one process, and a closed door."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.cli.build import build_fab_from_disk

from deploy.hub.control import Control
from tests.deploy.standing import (
    PROGRAMS,
    Standing,
    read_json,
    removed,
    short_folder,
    standing,
    until,
)

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CHANGES = {
    "objective.targets": ["age"],
    "sites.train": ["alpha", "beta"],
    "sites.heldout": ["omega"],
    "sites.time_limit_s": 300.0,
    "evaluation.head": False,
    "finetuning": [
        {
            "name": "dementia",
            "target": "diagnosis",
            "methods": ["pretrained/full"],
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
        there.command("callosum-site", "receipts", "verify", "--kit", there.kits / "alpha")


WAYS = {
    "sites.train": ["alpha", "beta"],
    "sites.heldout": ["omega"],
    "sites.time_limit_s": 300.0,
    "splits": {"validation": 0.2, "test": 0.4},
    "evaluation.head": False,
    "comparisons": {"single_site": True, "pooled": True, "targets": {"age-only": ["age"]}},
    "finetuning": [
        {"name": "dementia", "target": "diagnosis", "epochs": 1, "learning_rates": [0.01],
         "methods": ["age-only/frozen", "single-site/full", "pooled/frozen", "linear"],
         "then": ["send", "cross"]},
        {"name": "few", "target": "diagnosis", "methods": ["age-only/frozen"], "repeats": 0},
    ],
    "protocols": [
        {"name": "shots", "task": "few", "scheme": "folds", "folds": 3, "repeats": 1,
         "at": "heldout"},
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_tuning_begins_from_and_ends_in_crosses_the_wire(federation, folder):
    """Models of some targets, a site's own, heads from elsewhere, and a judge that learns."""
    orders = ["census", "overlap", "settle", "train", "finetune", "protocol", "send", "cross",
              "evaluate"]  # fmt: skip
    made = federation(
        WAYS,
        participants=dict.fromkeys(("alpha", "beta", "omega"), 100),
        site={"policy.orders": orders},
    )
    here = made.simulate()
    with standing(folder, files_of(made)) as there:
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub, timeout=600)
        run = there.hub / "runs" / "tiny"
        for model in ("age-only", "single-alpha"):
            final = Path("comparisons", model, "checkpoints", "final.safetensors")
            assert sha(run / final) == sha(here.folder / final)
        pooled = ("pooled", "pooled-linear")  # they are in one place in a simulation alone
        ours, theirs = (
            [line for line in (of / "results.csv").read_text().splitlines()
             if not set(line.split(",")) & set(pooled) and "minus_pooled" not in line]
            for of in (run, here.folder)
        )  # fmt: skip
        assert ours == theirs
        assert {line.split(",")[0] for line in ours} >= {"cross", "protocol", "finetune"}


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


LONG = {
    "objective.targets": ["age"],
    "pretraining.rounds": 6,
    "pretraining.local_epochs": 1000,
    "pretraining.batch_size": 4,
    "sites.time_limit_s": 900.0,
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_process_may_be_killed_in_the_middle_of_a_round(federation, folder):
    """kill -9 of each in turn: the same bits, no site trains twice on one order's account."""
    made = federation(LONG)
    here = made.simulate()
    with standing(folder, files_of(made)) as there:
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub, "--detach")
        run = there.hub / "runs" / "tiny"
        victims = {
            2: ("hub", lambda: there.started["hub"].pid),
            3: ("ServerApp", lambda: there.process("hub", "flwr-serverapp")),
            4: ("SuperNode", lambda: there.process("node-alpha", "flower-supernode")),
            5: ("courier", lambda: there.process("node-beta", "client.courier.executor")),
            6: ("agent", lambda: there.started["agent-gamma"].pid),
        }
        for number, (name, pid) in victims.items():
            until(lambda n=number: at_work(there, run, n), 300, f"round {number} at work")
            killed = time.monotonic()
            os.kill(pid(), signal.SIGKILL)
            if name == "hub":
                there.started["hub"].wait()
                there.start_hub()
            elif name == "agent":
                there.started["agent-gamma"].wait()
                there.start_agent("gamma")
            until(lambda n=number: len(records(run)) >= n, 400, f"end of round {number}")
            print(f"{name}: killed in round {number}, done {time.monotonic() - killed:.0f} s later")
        until(lambda: read_json(run / "state.json").get("state") == "finished", 120, "end")
        assert sha(run / "checkpoints" / "final.safetensors") == sha(
            here.folder / "checkpoints" / "final.safetensors"
        )
        assert not any(record["degraded"] for record in records(run))
        for site in there.roles:
            kit = there.kits / site
            account = json.loads(there.command("callosum-site", "ledger", "--kit", kit, "--json"))
            assert account["spent"] == LONG["pretraining.rounds"], site
            there.command("callosum-site", "receipts", "verify", "--kit", kit)


def at_work(there: Standing, run: Path, number: int) -> bool:
    """Whether all sites are training for this round: each has written its cost, none answered."""
    progress = read_json(run / "progress.json")
    if progress.get("round") != number or progress.get("answered"):
        return False
    return all(spent(there.state(site)) == number for site in there.roles)


def spent(state: Path) -> int:
    from client.authority.ledger import read_ledger

    path = state / "ledger.sqlite"
    return len(read_ledger(path).exposures) if path.exists() else 0


FOREIGN_CLIENT = """
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
Path("{marker}").write_text("foreign code ran when it was imported")
app = ClientApp()
@app.train()
def train(message, context):
    Path("{marker}").write_text("foreign code ran")
    stolen = Path("{table}").read_text()
    return Message(RecordDict({{"stolen": ConfigRecord({{"table": stolen}})}}), reply_to=message)
"""
FOREIGN_SERVER = """
import json
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    nodes = json.loads(context.run_config["nodes"])
    record = RecordDict({{"callosum": ConfigRecord({{"json": "{{}}"}}), "arrays": ArrayRecord()}})
    sent = [Message(record, node, "train") for node in nodes.values()]
    replies = list(grid.send_and_receive(sent, timeout=120))
    said = [str(reply.content) if reply.has_content() else str(reply.error) for reply in replies]
    Path(context.run_config["run"]).write_text(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_foreign_bundle_runs_no_line_at_a_site_and_learns_nothing(federation, folder):
    """Whoever reaches Flower's control API can send code; at a hospital it must find no reader."""
    made = federation({"objective.targets": ["age"]})
    marker, said = folder / "marker", folder / "said.json"
    table = made.sites / "alpha" / "table.csv"
    with standing(folder, files_of(made)) as there:
        there.stand(made.study_file)
        foreign = folder / "foreign"
        values = {"marker": marker, "table": table}
        for room, text in (("client", FOREIGN_CLIENT), ("server", FOREIGN_SERVER)):
            (foreign / room).mkdir(parents=True)
            (foreign / room / "__init__.py").write_text("")
            (foreign / room / "app.py").write_text(text.format(**values))
        (foreign / "pyproject.toml").write_text(
            until(
                lambda: (
                    (there.hub / "app" / "pyproject.toml").exists()
                    and (there.hub / "app" / "pyproject.toml").read_text()
                ),
                60,
                "staged bundle",
            )
        )
        bundle = build_fab_from_disk(foreign)
        control = until(lambda: connected(there, 3), 90, "three nodes online")
        nodes = {str(node): node for node in control.nodes().values()}
        control.start(bundle, {"run": str(said), "nodes": json.dumps(nodes), "key": ""})
        replies = until(lambda: read_list(said), 180, "replies")
        control.close()
        assert len(replies) == 3
        assert all("UNSIGNED" in reply for reply in replies)
        assert not marker.exists()
        people = table.read_text().splitlines()[1].split(",")[0]
        assert not any(people in reply for reply in replies)
        for site in there.roles:
            assert spent(there.state(site)) == 0


def connected(there: Standing, number: int) -> Control | None:
    try:
        control = Control.at(f"127.0.0.1:{there.port}", there.hub / "ca.crt")
        if len(control.online()) == number:
            return control
        control.close()
    except httpx.HTTPError:
        pass
    return None


def read_list(path: Path) -> list[str]:
    return json.loads(path.read_text()) if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_path_in_an_exception_stays_in_the_sites_own_log(federation, folder):
    """A patient's name in a folder's name is what an exception says first."""
    patient = "sub-jane-doe"
    made = federation(
        {"objective.targets": ["age"], "sites.quorum": 2, "sites.time_limit_s": 60.0},
    )
    file = made.sites / "alpha" / "site.toml"
    file.write_text(f'folder = "{patient}"\n' + file.read_text())
    with standing(folder, files_of(made)) as there:
        state = there.kits / "alpha" / "agent" / patient
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub, "--detach")
        run = there.hub / "runs" / "tiny"
        name = read_json(run / "provenance.json")["run"]
        damaged = state / "runs" / name[:16] / "federated" / "own-0000.safetensors"
        damaged.parent.mkdir(parents=True)
        damaged.write_text("training reads this, and says its whole path")
        said = there.command("callosum", "run", made.study_file, "--hub", there.hub)
        assert all(record["refused"] == {"alpha": "SITE_FAILED"} for record in records(run))
        assert len(records(run)) == 2
        log = (state / "agent.log").read_text()
        assert f"{damaged} is damaged" in log
        assert patient not in said
        told = [*there.hub.rglob("*"), *(there.kits / "alpha" / "courier").rglob("*")]
        told += [folder / "hub.out", folder / "node-alpha.out"]
        for path in told:
            assert patient not in path.name
            if path.is_file():
                assert patient.encode() not in path.read_bytes(), path
        receipts = b"".join(path.read_bytes() for path in (state / "receipts").glob("*"))
        assert patient.encode() not in receipts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_site_that_is_cut_off_in_mid_transfer_costs_those_two_minutes(federation, folder):
    """A VPN that drops is the usual case; it must cost its own length and nothing else."""
    cut_s = 120
    made = federation(
        {
            "objective.targets": ["age"],
            "backbone.hidden": [3000, 3000],
            "pretraining.rounds": 3,
            "pretraining.optimiser": "sgd",
            "sites.time_limit_s": 900.0,
        }
    )
    here = made.simulate()
    with standing(folder, files_of(made)) as there:
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub, "--detach")
        run = there.hub / "runs" / "tiny"
        until(lambda: len(records(run)) == 1, 300, "first round")
        plain = records(run)[0]["seconds"]
        supernode = there.process("node-alpha", "flower-supernode")
        until(lambda: spent(there.state("alpha")) == 2, 120, "alpha at work in round 2")
        until(lambda: sending(supernode), 60, "alpha sending its report")
        os.kill(supernode, signal.SIGSTOP)
        time.sleep(cut_s)
        os.kill(supernode, signal.SIGCONT)
        until(lambda: read_json(run / "state.json").get("state") == "finished", 400, "end")
        seconds = [record["seconds"] for record in records(run)]
        print(f"rounds of {seconds} s; alpha was cut off for {cut_s} s in the second")
        assert not any(record["degraded"] for record in records(run))
        assert seconds[1] < cut_s + 2 * plain + 30
        assert sha(run / "checkpoints" / "final.safetensors") == sha(
            here.folder / "checkpoints" / "final.safetensors"
        )


def sending(pid: int) -> bool:
    """Whether a process has sent more than 5 MB since this was first asked."""
    text = Path(f"/proc/{pid}/io").read_text()
    written = int(text.split("wchar: ")[1].split()[0])
    first = _written.setdefault(pid, written)
    return written > first + 5_000_000


_written: dict[int, int] = {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_wheel_in_an_empty_folder_federates(federation, folder):
    """Hospitals install a package; nothing may need the checkout that it was made from."""
    made = federation({"objective.targets": ["age"]})
    here = made.simulate()
    programs = installed(folder)
    where = "import common, deploy; print(common.__file__, deploy.__file__)"
    found = subprocess.check_output([programs / "python", "-c", where], cwd=folder, text=True)
    assert str(Path.cwd()) not in found
    with standing(folder / "stand", files_of(made), programs=programs) as there:
        there.stand(made.study_file)
        there.command("callosum", "run", made.study_file, "--hub", there.hub)
        run = there.hub / "runs" / "tiny"
        assert sha(run / "checkpoints" / "final.safetensors") == sha(
            here.folder / "checkpoints" / "final.safetensors"
        )


def installed(folder: Path) -> Path:
    """Programs of a fresh environment with our wheel; what it depends on is borrowed from here."""
    run = partial(subprocess.run, check=True, capture_output=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, Path(__file__).parents[2]])
    run([sys.executable, "-m", "venv", folder / "venv"])
    programs = folder / "venv" / "bin"
    packages = Path(pytest.__file__).parents[1]
    here = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (here / "borrowed.pth").write_text(f"{packages}\n")
    wheel = next(folder.glob("callosum-*.whl"))
    run([programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel])
    for program in ("flower-superlink", "flower-superexec", "flower-supernode", "flwr-serverapp"):
        text = (PROGRAMS / program).read_text().splitlines(keepends=True)
        (programs / program).write_text(f"#!{programs / 'python'}\n" + "".join(text[1:]))
        (programs / program).chmod(0o755)
    (folder / "stand").mkdir()
    return programs
