"""What secure sums cost over plain ones: seconds and bytes, at a site and at the coordinator.

Eight sites of which two drop out after all have put masks on; what is compared is the mean.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from client.secure_sums.peers import Peers, identity_of, public_of
from client.secure_sums.secrets import Safe
from client.secure_sums.summing import Summing
from client.site import load_site
from common.arrays import Arrays, blocks
from common.network.plan import Plan, Rule
from common.protocol.orders import EMPTY, Order
from common.protocol.wire import Stored, write_arrays
from common.runtime.private_folder import own_folder
from common.seams import SHARED
from common.sections import Aggregation
from common.secure_sums.masks import Masks
from common.secure_sums.numbers import row_of
from common.secure_sums.ring import Scale
from common.secure_sums.rosters import KEYS, TOTALS, read_keys
from common.secure_sums.updates import update_of
from common.study import parse_study
from server.federation.aggregation import Contribution, aggregate
from server.secure_sums.unmasking import summed
from tests.bench import deployment
from tests.conftest import FEATURES, overridden, write_table_site

SITES, GONE, ARRAYS, LARGEST, ROUNDS = 8, 2, 50, 8.0, 100
HELD = 1000 * SITES
SCALE = Scale(LARGEST, SITES, np.dtype(np.int32))
Seed = tuple[bytes, bool]


def table() -> str:
    """What is compared works in processes of its own, so that peaks do not mix."""
    rows = []
    for numbers in (3_000_000, 100_000_000):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_measured(Path(folder), numbers))
    about = (
        f"{SITES} sites, {GONE} drop out after masking; numbers in {ARRAYS} arrays, FedAvg; processor seconds "
        "of one thread, least of three, and peak above start"
    )
    head = (
        "| numbers | report, plain, MB | masked, MB | masking at a site, s | plain mean, s (MB) "
        "| sum, unmasked, and mean, s (MB) | furthest from the plain mean |"
    )
    return "\n".join(
        [
            about,
            "",
            head,
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            *_agreeing(),
            "",
            *_deployed(),
        ]
    )


def _plan(numbers: int, dtype: str) -> Plan:
    rule = Rule(shape=(numbers // ARRAYS,), dtype=dtype, group=SHARED, role="parameter", kept=False)
    return {f"layer-{n:02d}": rule for n in range(ARRAYS)}


def _update(site: int, plan: Plan) -> Arrays:
    generator = np.random.default_rng(site)
    return {
        name: (1 + 0.01 * generator.standard_normal(rule.shape, np.float32)).astype(np.float32)
        for name, rule in plan.items()
    }


def _seeds() -> tuple[dict[int, list[Seed]], list[Seed]]:
    """What each site masks with, and what the coordinator takes off."""
    own = [os.urandom(32) for _ in range(SITES)]
    pairs = {(i, j): os.urandom(32) for i in range(SITES) for j in range(i)}

    def of(i: int, j: int) -> Seed:
        return pairs[max(i, j), min(i, j)], i > j

    put_on = {
        i: [(own[i], False), *(of(i, j) for j in range(SITES) if j != i)] for i in range(SITES)
    }
    there = range(GONE, SITES)
    off = [(own[i], True) for i in there]
    off += [(of(i, j)[0], not of(i, j)[1]) for i in there for j in range(GONE)]
    return put_on, off


def _measured(folder: Path, numbers: int) -> str:
    plan = _plan(numbers, "float32")
    start = {name: np.ones(rule.shape, np.float32) for name, rule in plan.items()}
    put_on, off = _seeds()
    masking = []
    for site in range(SITES):
        trained = _update(site, plan)
        write_arrays(folder / f"plain-{site}", trained, {})
        began = time.process_time()
        steps = {
            name: np.concatenate([
                SCALE.encoded(update_of(plan, name, part, trained, start), 1 / SITES)
                for part in blocks(plan[name].shape)
            ])
            for name in plan
        }  # fmt: skip
        for name, array in steps.items():
            Masks(put_on[site], name, array.dtype).put_on(array)
        masking.append(time.process_time() - began)
        write_arrays(folder / f"masked-{site}", steps, {})
        del trained, steps
    means, told = [], []
    for work in (_plain, _secure):
        seconds, peak = min(_apart(work, (folder, numbers, off)) for _ in range(3))
        told.append(f"{seconds:.2f} ({peak:.0f})")
        means.append(Stored(folder / work.__name__))
    apart = max(float(np.abs(means[0][name] - means[1][name]).max()) for name in plan)
    size = [(folder / f"{kind}-0").stat().st_size / 1e6 for kind in ("plain", "masked")]
    return (
        f"| {numbers / 1e6:.0f} M | {size[0]:.1f} | {size[1]:.1f} | {np.median(masking):.2f} "
        f"| {told[0]} | {told[1]} | {apart:.1e} |"
    )


def _apart(work: Callable[..., Any], about: tuple[Any, ...]) -> tuple[float, float]:
    """Seconds and peak of a work in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (work, about))


def _timed(work: Callable[..., Any], about: tuple[Any, ...]) -> tuple[float, float]:
    folder, numbers, off = about
    plan = _plan(numbers, "float32")
    start = {name: np.ones(rule.shape, np.float32) for name, rule in plan.items()}
    before, began = _peak_mb(), time.process_time()
    found = work(folder, plan, start, off)
    seconds, peak = time.process_time() - began, _peak_mb() - before
    write_arrays(folder / work.__name__, found, {})
    return seconds, peak


def _plain(folder: Path, plan: Plan, start: Arrays, _: list[Seed]) -> Arrays:
    sent = [
        Contribution(
            site=str(site), support={SHARED: 1000},
            read=Stored(folder / f"plain-{site}").by_rows().__getitem__,
        )
        for site in range(GONE, SITES)
    ]  # fmt: skip
    return aggregate(plan, start, sent, Aggregation(), {}, 1).arrays


def _secure(folder: Path, plan: Plan, start: Arrays, off: list[Seed]) -> Arrays:
    replies = [Stored(folder / f"masked-{site}").by_rows() for site in range(GONE, SITES)]
    masked = {name: replace(rule, dtype="int32") for name, rule in plan.items()}
    totals = summed(masked, replies, off)

    class Mean:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, part: Any) -> Any:
            change = SCALE.decoded(totals[self.name][part], (SITES - GONE) / SITES)
            return start[self.name][part] + change

    one = Contribution(site="all", support={SHARED: 6000}, read=Mean)
    return aggregate(plan, start, [one], Aggregation(), {}, 1).arrays


def _peak_mb() -> float:
    # what getrusage says begins with the memory of whoever started this process
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def _deployed(rounds: int = 8) -> Iterator[str]:
    """Rounds over a hub, three nodes and three agents, as `make bench deployment` stands them up."""
    yield "| hub, three nodes, three agents, 3 M | first round, s | median, s | longest, s |"
    yield "|---|---|---|---|"
    for name, changes in (("plain", {}), ("secure", {"secure_sums": {"on": True}})):
        seconds, _, _ = deployment.run(deployment.SIZES["3 M"][0], rounds, changes)
        yield f"| {name} | {seconds[0]:.1f} | {median(seconds):.1f} | {max(seconds):.1f} |"


def _agreeing() -> Iterator[str]:
    """Keys and shares for all rounds of a run, by the sites' own code."""
    names = [f"site-{n}" for n in range(SITES)]
    study = parse_study(
        overridden(FEATURES, {
            "sites.train": names, "secure_sums": {"on": True}, "pretraining.rounds": ROUNDS,
        }),
        Path("study.toml"),
    )  # fmt: skip
    plan = _plan(ARRAYS, "float32")
    row = row_of(study, plan, ("age", "sex"))
    with tempfile.TemporaryDirectory() as folder:
        sites = {}
        for name in names:
            write_table_site(Path(folder), name)
            sites[name] = load_site(Path(folder) / "sites" / name / "site.toml")
            own_folder(sites[name].state)
        own = {name: identity_of(site) for name, site in sites.items()}
        known = {name: public_of(key) for name, key in own.items()}
        summing = {
            name: Summing(
                site=site, study=study, plan=plan, row=row, peers=Peers(own[name], known),
                safe=Safe(site.state, "c" * 64),
            )
            for name, site in sites.items()
        }  # fmt: skip
        about = {"study": study.digest, "run": "c" * 64, "arrays": EMPTY, "round": 1}
        order = {name: Order.model_validate({"kind": "keys", "site": name, **about})
                 for name in names}  # fmt: skip
        began = time.process_time()
        keys = {name: one.keys(order[name]).arrays["keys"] for name, one in summing.items()}
        keys_s = (time.process_time() - began) / SITES
        arrays = {f"{KEYS}{name}": read_keys(name, array).array for name, array in keys.items()}
        arrays[TOTALS] = np.full(len(row.groups), HELD, np.int64)
        shares = order[names[0]].model_copy(update={"kind": "shares", "lineage": tuple(names)})
        began = time.process_time()
        dealt = summing[names[0]].shares(shares, arrays).arrays["shares"]
        shares_s = time.process_time() - began
    yield (
        f"Before the first of {ROUNDS} rounds, at each site: keys in {keys_s:.2f} s, "
        f"{keys[names[0]].nbytes / 1e3:.1f} kB out; shares in {shares_s:.2f} s, "
        f"{sum(a.nbytes for a in arrays.values()) / 1e3:.1f} kB in, {dealt.nbytes / 1e3:.1f} kB out. "
        f"In each round, to unmask: {dealt[0].nbytes / 1e3:.2f} kB in, {32 * SITES / 1e3:.2f} kB out."
    )
