"""An agent with ledger and receipts that dies at any durable write, and is asked again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.authority.records import open_records
from client.secure_sums.peers import Peers
from client.service.agent import Agent
from client.service.agent_pool import open_agent
from client.site import load_site
from common.arrays import Arrays
from common.protocol.orders import Order, Report
from common.protocol.wire import open_arrays
from common.secure_sums.numbers import plan_of_masked
from deploy.local import known_to_each_other
from server.secure_sums.means import means_of
from server.secure_sums.unmasking import summed
from tests.attacks.test_secure_sums import SITES, Coordinator

STUDY: dict[str, Any] = {
    "sites": {"train": SITES, "quorum": 3},
    "secure_sums": {"on": True},
    "objective.targets": ["age", "sex"],
    "backbone": {"name": "linear"},
    "splits": {"validation": 0.3},
}


class Killed(BaseException):
    """What no `except Exception` of an agent catches, as a power cut."""


class Restarting:
    """The agent of `alpha`, which is stood up again, from its disk alone, whenever it was killed."""

    def __init__(self, agent: Agent, peers: Peers) -> None:
        self._first, self._peers = agent, peers
        self.study, self.site, self.starts = agent.study, agent.site, 0
        self._start()

    def _start(self) -> None:
        self.records = open_records(self.site)
        self.starts += 1
        self.agent = Agent(
            self.site, self.study, self._first.cohort, records=self.records, peers=self._peers
        )

    def answer(self, order: Order, arrays: Arrays) -> tuple[Report, Arrays]:
        try:
            return self.agent.answer(order, arrays)
        except Killed:
            self.records.ledger.shut()
            self._start()
            return self.agent.answer(order, arrays)


def killing(monkeypatch: pytest.MonkeyPatch, number: int, when: str, state: Path) -> list[str]:
    """Die before or after the n-th rename below `state`; every one that was seen."""
    seen: list[str] = []
    plain = Path.replace

    def watched(self: Path, target: Path) -> Path:
        mine = state in Path(target).parents
        if mine:
            seen.append(Path(target).name)
        if mine and len(seen) == number and when == "before":
            raise Killed
        made = plain(self, target)
        if mine and len(seen) == number and when == "after":
            raise Killed
        return made

    monkeypatch.setattr(Path, "replace", watched)
    return seen


def one_round(made: Any, folder: Path) -> tuple[Coordinator, Restarting]:
    """Agree, train, unmask without `delta`; asked in a new agent at each death."""
    agents = []
    for name in SITES:
        site = load_site(made.sites / name / "site.toml")
        site = site.model_copy(update={"folder": str(folder / name)})
        agents.append(open_agent(made.study, site))
    known = {a.site.name: a for a in known_to_each_other(made.study, agents)}
    restarting = Restarting(known["alpha"], known["alpha"].peers)
    known["alpha"] = restarting  # type: ignore[assignment]
    coordinator = Coordinator(known)
    return coordinator, restarting


def check(coordinator: Coordinator, folder: Path) -> None:
    there = ["alpha", "beta", "gamma"]
    coordinator.agree()
    assert [coordinator.train(site) for site in there] == [""] * 3
    assert [coordinator.unmask(site, there) for site in there] == [""] * 3
    # asked once more, as after a lost reply: the same bits
    first = dict(coordinator.heard)
    assert coordinator.train("alpha") == coordinator.unmask("alpha", there) == ""
    for kind in ("train", "unmask"):
        one, again = first[kind, "alpha", 1], coordinator.heard[kind, "alpha", 1]
        assert all((one[name] == again[name]).all() for name in one)
    assert coordinator.unmask("alpha", ["alpha", "beta", "delta"]) == "SUMS_DECIDED"
    study, told = coordinator.study, coordinator.told(there, there)
    masked = plan_of_masked(study, coordinator.plan, coordinator.row)
    totals = summed(masked, [coordinator.heard["train", s, 1] for s in there], told.seeds())
    means, sums = means_of(
        study, coordinator.plan, coordinator.roster, coordinator.row, coordinator.first, totals, 3
    )
    kept = {}
    for site in there:
        [path] = (folder / site).rglob("report-0001.safetensors")
        with open_arrays(path) as file:
            kept[site] = file.all()
    for name, array in kept["alpha"].items():
        group = coordinator.plan[name].group
        assert sums.support[group] > 0
        low = np.min([each[name] for each in kept.values()], axis=0)
        high = np.max([each[name] for each in kept.values()], axis=0)
        mean = means.read(name)[...]
        assert (low - 1e-6 <= mean).all()
        assert (mean <= high + 1e-6).all()
        assert mean.shape == array.shape


@pytest.mark.timeout(900)
def test_killed_at_any_write_a_site_goes_on_with_the_same_secrets(
    module_federation: Callable[..., Any], tmp_path: Path
) -> None:
    """Ledger, receipts, secrets, decisions and kept answers: none is ahead of what left."""
    made = module_federation(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        calm, alpha = one_round(made, tmp_path / "calm")
        seen = killing(patch, 0, "", tmp_path / "calm" / "alpha")
        check(calm, tmp_path / "calm")
        alpha.records.ledger.shut()
    assert {"root.key", "roster.safetensors", "masked-0001-federated-00001.json"} < set(seen)
    for number in range(1, len(seen) + 1):
        for when in ("before", "after"):
            folder = tmp_path / "killed"
            with pytest.MonkeyPatch.context() as patch:
                coordinator, alpha = one_round(made, folder)
                killing(patch, number, when, folder / "alpha")
                check(coordinator, folder)
                assert alpha.starts == 2, (number, when)
                alpha.records.ledger.shut()
            shutil.rmtree(folder)
