"""Kills at random moments of a deployment: any process, any moment, the same bits at the end."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.chaos.hurts import Fault
from tests.conftest import write_federation
from tests.deploy.standing import Standing, read_json, removed, short_folder, standing, until

_LONG: Final = {
    "objective.targets": ["age"],
    "sites.train": ["alpha", "beta"],
    "pretraining.rounds": 40,
    "pretraining.local_epochs": 40,
    "pretraining.batch_size": 4,
    "sites.time_limit_s": 900.0,
}


def deployment_kills(folder: Path, random: Random, count: int) -> Iterator[Fault]:
    """One consortium, one long run, `count` kills; what was killed and is a service starts again."""
    made = write_federation(folder / "deployment", _LONG)
    here = made.simulate()
    wanted = _sha(here.folder / "checkpoints" / "final.safetensors")
    place = short_folder()
    sites = {name: ("train", made.sites / name / "site.toml") for name in _LONG["sites.train"]}
    try:
        with standing(place, sites) as there:
            there.stand(made.study_file)
            there.command("callosum", "run", made.study_file, "--hub", there.hub, "--detach")
            run = there.hub / "runs" / "tiny"
            until(lambda: list(run.glob("rounds/*/record.json")), 300, "first round")
            for _ in range(count):
                time.sleep(random.uniform(0.0, 6.0))
                if _is_over(run):
                    yield "the run was over before all kills; give it more rounds"
                    return
                yield _killed(there, random)
            until(lambda: _is_over(run), 900, "end of the run")
            same = _sha(run / "checkpoints" / "final.safetensors") == wanted
            yield "" if same else f"another model after {count} kills"
            for site in there.roles:
                there.command("callosum-site", "receipts", "verify", "--kit", there.kits / site)
    finally:
        removed(place)


def _killed(there: Standing, random: Random) -> Fault:
    victims: dict[str, Callable[[], Any]] = {
        "hub": there.start_hub,
        **{f"agent-{site}": lambda s=site: there.start_agent(s) for site in there.roles},
        **{f"node-{site}": lambda s=site: there.start_node(s) for site in there.roles},
    }
    name = random.choice(sorted(victims))
    process = there.started[name]
    sign = random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    os.killpg(process.pid, sign)
    process.wait(60)
    victims[name]()
    return ""


def _is_over(run: Path) -> bool:
    return read_json(run / "state.json").get("state") in ("finished", "failed")


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
