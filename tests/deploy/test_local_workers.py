"""Sites that work in several processes give the same bits as in one, and outlive each of them."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.service.agent import Agent
from common.errors import CallosumError
from common.protocol.orders import Order, Report
from deploy import local
from deploy.local_workers import workers_for
from tests.conftest import Federation

Make = Callable[..., Federation]


def digests(folder: Path) -> dict[str, str]:
    """What a run came to: its models and its measurements."""
    found = [*folder.rglob("final.safetensors"), folder / "results.csv"]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(found)
    }


def simulated(made: Federation, out: str, workers: int | None) -> dict[str, str]:
    folder = made.folder / out
    local.simulate(made.study_file, made.sites, folder, workers=workers)
    return digests(folder)


def test_bits_do_not_depend_on_how_many_processes_work(
    federation: Make, everything: dict[str, Any]
) -> None:
    """Federated rounds, rivals, tasks and judges, whoever did them and in whatever order."""
    made = federation(everything)
    alone = simulated(made, "one", 1)
    assert len(alone) == 6  # federated, three single sites, pooled; and results
    assert simulated(made, "three", 3) == alone
    assert simulated(made, "all", None) == alone


def test_orders_of_several_sites_are_worked_on_elsewhere(
    federation: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else nothing is gained; and no site's orders overlap each other."""
    work = Agent._work

    def noted(agent: Agent, order: Order, arrays: Any) -> Any:
        mark = tmp_path / f"{agent.site.name}.busy"
        mark.touch(exist_ok=False)
        answer = work(agent, order, arrays)
        mark.unlink()
        (tmp_path / f"{os.getpid()}.pid").touch()
        return answer

    monkeypatch.setattr(Agent, "_work", noted)
    simulated(federation(), "run", 2)
    assert not list(tmp_path.glob("*.busy"))
    pids = {path.stem for path in tmp_path.glob("*.pid")}
    assert len(pids) == 2
    assert str(os.getpid()) not in pids


def dying(monkeypatch: pytest.MonkeyPatch, note: Path, times: int) -> None:
    """Kill the process that is asked to train, the first so many times."""
    answer = Agent.answer

    def killed(agent: Agent, order: Order, arrays: Any) -> tuple[Report, Any]:
        deaths = len(list(note.glob("*.dead")))
        if order.kind == "train" and deaths < times:
            (note / f"{os.getpid()}.dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(agent, order, arrays)

    monkeypatch.setattr(Agent, "answer", killed)


def test_a_process_that_dies_leaves_its_order_to_the_others(
    federation: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine short of memory kills one; the run comes to the same."""
    made = federation()
    wanted = simulated(made, "calm", 1)
    dying(monkeypatch, tmp_path, 1)
    assert simulated(made, "shaken", 3) == wanted
    assert len(list(tmp_path.glob("*.dead"))) == 1


def test_a_run_whose_processes_all_die_says_so_and_goes_on_when_asked_again(
    federation: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It must neither wait for ever nor lose what was done."""
    made = federation()
    wanted = simulated(made, "calm", 1)
    with monkeypatch.context() as patch:
        dying(patch, tmp_path, 2)
        with pytest.raises(CallosumError, match="all processes of this run died"):
            simulated(made, "shaken", 2)
    assert simulated(made, "shaken", 2) == wanted


def test_sites_that_ask_for_more_threads_stay_in_one_process(federation: Make) -> None:
    """Bits depend on threads, which more processes must not change unasked."""
    made = federation(site={"device.threads": 2})
    assert workers_for([made.agent(name) for name in ("alpha", "beta")]) == 1
