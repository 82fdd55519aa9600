"""Kill an agent at its n-th durable step, ask again, and compare what left and what was spent.

Run as `python killed_agent.py FEDERATION WORK [PLACE ...]`, in a process of its own: it answers
once, so that all is imported and warm, and each further agent is a fork with a copy of its site. A
step is a statement that changes the ledger, or the moment before or after an fsync, a rename or a
cut. PLACE is a regular expression for steps, whose first match is killed; without any, every step
is, and a fine-tuning follows the round. A private study draws its noise anew in every process, so
its answers are compared by order, and each order must have left with one alone. Prints JSON: the steps of a calm agent, how many were
killed, and the faults found.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.authority import ledger as client_ledger
from client.authority.books import check_books
from client.authority.ledger import read_ledger
from client.authority.receipts import read_receipts, verify
from client.authority.records import digest_of_answer, open_records
from client.data.cohort import open_cohort
from client.service import agent as client_agent
from client.service.agent import Agent
from client.site import load_site
from common.network.building import arrays_of, build, plan_of
from common.privacy.cost import cost_of
from common.protocol.orders import Books, Order, digest_of
from common.seeding import seed_of
from common.study import load_study

torch.set_num_threads(1)  # before any work: a pool of threads does not survive a fork

KILLED = -signal.SIGKILL
Step = Callable[[str], None]


class Hospital:
    """A fresh copy of the site `alpha`, and the orders that it is asked to answer."""

    def __init__(self, federation: Path, work: Path, most: int) -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(federation, work)
        self.work = work
        self.study = load_study(work / "study.toml")
        self.site = load_site(work / "sites" / "alpha" / "site.toml")
        network = build(self.study, seed=seed_of(self.study.seed, "initial"))
        self.arrays = arrays_of(network)
        plan = plan_of(network, self.study.aggregation.normalisation)
        moving = {name: array for name, array in self.arrays.items() if plan[name].travels}
        static = {name: array for name, array in self.arrays.items() if name not in moving}
        common = {
            "study": self.study.digest,
            "run": "c" * 64,
            "site": "alpha",
            "arrays": digest_of(moving),
            "base": digest_of(static),
        }
        tuned = {"task": "dementia", "init": "pretrained", "method": "full"}
        self.orders = [
            Order.model_validate({**common, "kind": "train", "round": 1}),
            Order.model_validate({**common, "kind": "finetune", **tuned}),
        ][:most]

    def ask(self) -> None:
        """Be the agent: open the records, answer every order, note each answer as handed over."""
        cohort = open_cohort(self.study, self.site)
        with open_records(self.site) as records:
            agent = Agent(self.site, self.study, cohort, records=records)
            for order in self.orders:
                nonce = secrets.token_hex(16)
                check_books(records.ledger, self.seen())  # what an envelope would tell
                records.ledger.present(nonce, order.id, 0.0)
                report, sent = agent.answer(order, self.arrays)
                line = f"{order.id} {report.refusal or digest_of_answer(report, sent)}\n"
                handle = os.open(self.work / "handed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(handle, line.encode())
                os.close(handle)
                if report.books is not None:
                    (self.work / "seen").write_text(report.books.model_dump_json())
                records.ledger.close(nonce)

    def asked(self, seen: Step | None = None) -> int:
        """`ask` in a child, with `seen` called at every durable step; its exit code."""
        child = os.fork()
        if child == 0:
            log = os.open(self.work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 2)
            try:
                if self.study.privacy.is_private:
                    _draw_anew()
                if seen:
                    _watch(seen, self.work)
                self.ask()
            except BaseException:  # noqa: BLE001  the child must not return into the parent's loop
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def seen(self) -> Books | None:
        """The books of the last answer that was handed over, as a hub would have seen them."""
        path = self.work / "seen"
        return Books.model_validate_json(path.read_text()) if path.exists() else None

    def told(self, lines: Iterable[str]) -> list[str]:
        """Answers as they are compared: by digest, or by order where noise is drawn anew."""
        drawn = self.study.privacy.is_private
        return sorted(line.partition(" ")[0] if drawn else line for line in lines)

    @property
    def steps(self) -> set[int]:
        """Noised steps of the one round, if it has any; forty people, of whom these train."""
        if not self.study.privacy.is_private:
            return set()
        cohort = open_cohort(self.study, self.site)
        return {cost_of(self.study, len(cohort.indices("train", self.study.splits))).steps}

    def handed(self) -> list[str]:
        """Each answer that was handed over, by order and digest."""
        path = self.work / "handed"
        return path.read_text().splitlines() if path.exists() else []

    def faults(self, wanted: list[str]) -> list[str]:
        """What does not hold after the site was asked until it answered."""
        state, found = self.site.state, []
        if self.told(set(self.handed())) != self.told(wanted):
            found.append(f"answers are {self.handed()}, not {wanted}")
        private = {each.cost.steps for each in read_ledger(state / "ledger.sqlite").private}
        if private != self.steps:
            found.append(f"{private} noised steps were paid for, not {self.steps}")
        spent = [each.order for each in read_ledger(state / "ledger.sqlite").exposures]
        if sorted(spent) != sorted(order.id for order in self.orders):
            found.append(f"spent for {spent}")
        receipted = [f"{r['order']} {r['content']}" for r in read_receipts(state / "receipts")]
        found += [
            f"{line} left {self.handed().count(line)} times: {receipted}"
            for line in set(self.handed())
            if receipted.count(line) < self.handed().count(line)
        ]
        with open_records(self.site) as records:
            seen, stop = self.seen(), records.ledger.stopped()
            found += [f"stopped: {stop.why}"] if stop is not None else []
            found += (
                [records.ledger.disowned(seen)] if seen and records.ledger.disowned(seen) else []
            )
        verdict = verify(state / "receipts", lambda: read_ledger(state / "ledger.sqlite").head)
        return found + [f"{fault.place}: {fault.what}" for fault in verdict.faults]


def _draw_anew() -> None:
    """Add noise of this process's own, so that a second draw is another answer."""
    plain = client_agent.train_round

    def noisy(*things, **more):
        done = plain(*things, **more)
        random = np.random.default_rng()
        arrays = {
            name: array + random.normal(scale=1e-3, size=array.shape).astype(array.dtype)
            for name, array in done.answer.arrays.items()
        }
        return replace(done, answer=replace(done.answer, arrays=arrays))

    client_agent.train_round = noisy


def _watch(seen: Step, work: Path) -> None:
    """Call `seen` around each durable step of this process, named so that it is the same anew."""

    def named(target: object) -> str:
        path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
        path = os.path.relpath(path, work)
        return re.sub(r"\.\d+\.[0-9a-f]{8}\.tmp", ".tmp", path)

    for name, which in (("fsync", 0), ("replace", 1), ("truncate", 0)):
        plain = getattr(os, name)

        def watched(*things, plain=plain, name=name, which=which):
            what = f"{name} {named(things[which])}"
            seen(f"before {what}")
            result = plain(*things)
            seen(f"after {what}")
            return result

        setattr(os, name, watched)
    connected = client_ledger._connected

    def traced(path: Path):
        connection = connected(path)
        connection.set_trace_callback(at)
        return connection

    def at(text: str) -> None:
        if not text.startswith("SELECT"):  # what only reads leaves the disk as the step before did
            seen(f"at {' '.join(text.split())[:40]}")

    client_ledger._connected = traced


def main(federation: Path, work: Path, places: list[str]) -> dict[str, object]:
    """Every kill asked for, each from a fresh start; what went wrong, in words."""
    most = 1 if places else 2
    Hospital(federation, work, most).ask()
    calm = Hospital(federation, work, most)
    note = calm.work / "steps"

    def write(step: str) -> None:
        with note.open("a") as stream:
            stream.write(step + "\n")

    if calm.asked(write) != 0:
        return {"faults": [f"the calm agent fails: {(work / 'log.txt').read_text()}"]}
    wanted, steps = calm.handed(), note.read_text().splitlines()
    faults = calm.faults(wanted)
    kills = list(range(len(steps)))
    if places:
        hits = {place: [n for n, s in enumerate(steps) if re.search(place, s)] for place in places}
        faults += [f"no step matches {place}" for place, found in hits.items() if not found]
        kills = [found[0] for found in hits.values() if found]
    for number in kills:
        hospital, passed = Hospital(federation, work, most), iter(range(len(steps)))
        code = hospital.asked(
            lambda _, passed=passed, number=number: (
                os.kill(os.getpid(), signal.SIGKILL) if next(passed) == number else None
            )
        )
        where = f"killed at step {number} ({steps[number]})"
        if code != KILLED:
            faults.append(f"{where}: ended with {code}: {(work / 'log.txt').read_text()}")
        elif hospital.asked() != 0:
            faults.append(f"{where}: asking again fails: {(work / 'log.txt').read_text()}")
        else:
            faults += [f"{where}: {fault}" for fault in hospital.faults(wanted)]
    return {"steps": steps, "kills": len(kills), "faults": faults}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])))
