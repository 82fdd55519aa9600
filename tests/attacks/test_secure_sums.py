"""A coordinator who keeps everything and lies as it likes learns sums, and of no site its update."""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy.stats import chisquare

from client.authority.books import accept
from client.authority.ledger import Ledger
from client.secure_sums.peers import Peers, public_of
from client.service.agent import Agent
from client.service.agent_pool import open_agent
from client.site import load_site
from common.network.building import arrays_of, build, plan_of
from common.protocol.orders import EMPTY, Order, digest_of
from common.secure_sums.masks import Masks
from common.secure_sums.numbers import NUMBERS, row_of
from common.secure_sums.ring import add
from common.secure_sums.rosters import (
    KEYS,
    TOTALS,
    Keys,
    Roster,
    about_keys,
    about_round,
    commitment,
    own_seed,
    pair_seed,
    read_keys,
    slot_of,
)
from common.secure_sums.shares import joined
from common.secure_sums.tables import DEALT, TOLD
from common.seeding import seed_of
from deploy.local import known_to_each_other
from server.secure_sums.unmasking import SpoiltError, Told

SITES = ["alpha", "beta", "delta", "gamma"]  # the threshold is 3, and one may collude
STUDY: dict[str, Any] = {
    "sites": {"train": SITES, "quorum": 3},
    "secure_sums": {"on": True},
    "objective.targets": ["age", "sex"],
    "backbone": {"name": "mlp", "hidden": [200, 200], "dropout": 0.0},
    "splits": {"validation": 0.3},
}
Arrays = Mapping[str, np.ndarray]


@dataclass
class Coordinator:
    """Asks agents what it likes, and keeps all that they answer."""

    agents: dict[str, Agent]
    run: str = "c" * 64
    heard: dict[tuple[str, str, int], Arrays] = field(default_factory=dict)
    attempt: int = 1
    roster: Roster | None = None

    def __post_init__(self) -> None:
        study = self.study = next(iter(self.agents.values())).study
        network = build(study, seed=seed_of(study.seed, "initial"))
        self.plan = plan_of(network, study.aggregation.normalisation)
        self.row = row_of(study, self.plan, tuple(network.weights))
        self.first = arrays_of(network)

    def order(self, kind: str, site: str, arrays: Arrays | None = None, **more: Any) -> Order:
        digest = digest_of(arrays) if arrays else EMPTY
        about = {"study": self.study.digest, "run": self.run, "site": site, "arrays": digest}
        return Order.model_validate({"kind": kind, **about, **more})

    def ask(self, order: Order, arrays: Arrays | None = None) -> str:
        """The code of a refusal, or nothing; what was answered is kept."""
        report, sent = self.agents[order.site].answer(order, dict(arrays or {}))
        if not report.refusal:
            self.heard[order.kind, order.site, order.round] = dict(sent)
        return report.refusal

    def keys(self, site: str) -> Keys:
        order = self.order("keys", site, round=self.attempt)
        assert self.ask(order) == ""
        return read_keys(site, self.heard["keys", site, self.attempt]["keys"])

    def deal(self, keys: Iterable[Keys], to: Iterable[str], totals: int = 1000) -> dict[str, str]:
        """Ask for shares among these keys."""
        listed = sorted(keys, key=lambda each: each.site)
        arrays = {f"{KEYS}{each.site}": each.array for each in listed}
        arrays[TOTALS] = np.full(len(self.row.groups), totals, np.int64)
        names = tuple(each.site for each in listed)
        self.roster = Roster(
            study=self.study.digest, run=self.run, attempt=self.attempt, keys=tuple(listed),
            groups=self.row.groups, totals=(totals,) * len(self.row.groups),
        )  # fmt: skip
        return {
            site: self.ask(
                self.order("shares", site, arrays, round=self.attempt, lineage=names), arrays
            )
            for site in to
        }

    def agree(self) -> None:
        assert set(self.deal([self.keys(site) for site in SITES], SITES).values()) == {""}

    def train_order(self, site: str, number: int = 1, arrays: Arrays | None = None) -> Order:
        whole = self.first if arrays is None else arrays
        moving = {name: whole[name] for name in whole if self.plan[name].travels}
        static = {name: whole[name] for name in whole if not self.plan[name].travels}
        base = digest_of(static) if static else ""
        return self.order("train", site, moving, round=number, base=base)

    def train(self, site: str, number: int = 1, arrays: Arrays | None = None) -> str:
        order = self.train_order(site, number, arrays)
        return self.ask(order, self.first if arrays is None else arrays)

    def unmask_order(
        self, site: str, sites: Iterable[str], number: int = 1
    ) -> tuple[Order, Arrays]:
        slot = slot_of(self.study, "federated", number)
        rows = [
            self.heard["shares", each, self.attempt][DEALT][slot.place, SITES.index(site)]
            for each in SITES
        ]
        arrays = {DEALT: np.stack(rows)}
        lineage = tuple(sorted(sites))
        return self.order("unmask", site, arrays, round=number, lineage=lineage), arrays

    def unmask(self, site: str, sites: Iterable[str], number: int = 1) -> str:
        return self.ask(*self.unmask_order(site, sites, number))

    def told(self, sites: Iterable[str], by: Iterable[str], number: int = 1) -> Told:
        return Told(
            roster=self.roster, slot=slot_of(self.study, "federated", number),
            about=about_round(self.train_order("alpha", number)), summed=sorted(sites),
            shares={each: self.heard["unmask", each, number][TOLD] for each in by},
            places=SITES, fewest=3,
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(module_federation: Callable[..., Any]) -> Any:
    return module_federation(STUDY)


@pytest.fixture
def anew(made: Any, tmp_path: Path) -> Callable[..., Coordinator]:
    """Agents of the same hospitals with nothing answered yet; each call is another start of them."""

    def start(run: str = "c" * 64) -> Coordinator:
        agents = []
        for name in SITES:
            site = load_site(made.sites / name / "site.toml")
            site = site.model_copy(update={"folder": str(tmp_path / name)})
            agents.append(open_agent(made.study, site))
        known = known_to_each_other(made.study, agents)
        return Coordinator({agent.site.name: agent for agent in known}, run)

    return start


@pytest.fixture
def coordinator(anew: Callable[..., Coordinator]) -> Coordinator:
    found = anew()
    found.agree()
    return found


def uniform(numbers: np.ndarray) -> bool:
    counts = np.bincount(np.ascontiguousarray(numbers).view(np.uint8), minlength=256)
    return bool(chisquare(counts).pvalue > 1e-6)


def test_everything_a_coordinator_holds_leaves_every_part_of_the_sum_uniform(
    coordinator: Coordinator,
) -> None:
    """Its whole transcript, used as well as it can be: one drop-out, all unmask answers.

    It takes off every mask that it can make: those of the drop-out with the others, and those that
    each survivor alone had. What is left of every proper set of survivors is uniform, for a mask of
    two of them is in it whose secret nobody told; of all of them together it is the sum.
    """
    there = ["alpha", "beta", "gamma"]
    assert [coordinator.train(site) for site in SITES] == [""] * 4  # the drop-out's came late
    assert [coordinator.unmask(site, there) for site in SITES] == [""] * 4
    seeds = coordinator.told(there, SITES).seeds()
    plan = {"w": coordinator.heard["train", "alpha", 1]}
    largest = max(plan["w"], key=lambda name: plan["w"][name].size)
    left = {}
    for site in there:  # own masks of all, and what each has with the drop-out, one by one
        numbers = np.array(coordinator.heard["train", site, 1][largest]).reshape(-1)
        assert uniform(numbers)
        left[site] = numbers
    told = coordinator.told(there, SITES)
    keys = {each.site: each for each in coordinator.roster.keys}
    for site in there:
        secret = told._secret(keys[site], told._is_own_mask)
        own = own_seed(secret, coordinator.roster.digest, told.about)
        Masks([(own, True)], largest, left[site].dtype).put_on(left[site])
    gone = told._secret(keys["delta"], told._is_mask_key)
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.from_private_bytes(gone)
    for site in there:
        theirs = keys[site].masks[told.slot.place]
        seed = pair_seed(key, theirs, coordinator.roster.digest, told.about)
        Masks([(seed, site < "delta")], largest, left[site].dtype).put_on(left[site])
    for size in (1, 2, 3):
        for some in itertools.combinations(there, size):
            total = np.zeros_like(left["alpha"])
            for site in some:
                add(total, left[site])
            assert uniform(total) == (size < 3), some
    # the late report of the drop-out keeps a mask that nobody told anything of
    assert uniform(coordinator.heard["train", "delta", 1][largest].reshape(-1))
    assert len(seeds) == 3 + 3


def test_two_other_updates_would_have_left_the_very_same_transcript(
    coordinator: Coordinator,
) -> None:
    """Move anything from one site's update to another's, and the mask between them by as much.

    That mask is as likely as any: its secret is never told. So of two sites no transcript says more
    than their sum, and this for every two of those that are added up.
    """
    random = np.random.default_rng(0)
    for one, other in itertools.combinations(SITES, 2):
        update = {site: random.integers(-1000, 1000, 5, dtype=np.int32) for site in SITES}
        moved = random.integers(-(2**31), 2**31, 5, dtype=np.int32)
        mask = random.integers(-(2**31), 2**31, 5, dtype=np.int32)
        sent = [update[one].copy(), update[other].copy()]
        add(sent[0], mask)
        add(sent[1], mask, minus=True)
        again = [update[one].copy(), update[other].copy()]
        add(again[0], moved)
        add(again[1], moved, minus=True)
        shifted = mask.copy()
        add(shifted, moved, minus=True)
        add(again[0], shifted)
        add(again[1], shifted, minus=True)
        assert all((a == b).all() for a, b in zip(sent, again, strict=True))


def test_fewer_answers_than_the_threshold_make_no_secret(coordinator: Coordinator) -> None:
    """Two of three: with them alone neither a mask of its own nor one with others comes about."""
    for site in SITES:
        assert coordinator.train(site) == ""
    for site in ("alpha", "beta", "gamma"):
        assert coordinator.unmask(site, SITES) == ""
    assert len(coordinator.told(SITES, ["alpha", "beta", "gamma"]).seeds()) == 4
    for by in itertools.combinations(("alpha", "beta", "gamma"), 2):
        with pytest.raises(SpoiltError):
            coordinator.told(SITES, by).seeds()


def test_a_site_helps_with_one_sum_of_a_round(coordinator: Coordinator) -> None:
    """Of two sums over sets that differ by a site, the difference is that site's update."""
    for site in SITES:
        assert coordinator.train(site) == ""
    assert coordinator.unmask("alpha", SITES) == ""
    first = coordinator.heard["unmask", "alpha", 1][TOLD].tobytes()
    assert coordinator.unmask("alpha", ["alpha", "beta", "gamma"]) == "SUMS_DECIDED"
    assert coordinator.unmask("alpha", ["beta", "delta", "gamma"]) == "SUMS_DECIDED"
    assert coordinator.unmask("alpha", SITES) == ""  # the same order gets the same answer
    assert coordinator.heard["unmask", "alpha", 1][TOLD].tobytes() == first


@pytest.mark.parametrize("few", [["alpha"], ["beta"], ["alpha", "beta"], []])
def test_no_sum_is_over_fewer_sites_than_the_threshold(
    coordinator: Coordinator, few: list[str]
) -> None:
    """A set of one survivor would be that site's update."""
    for site in SITES:
        assert coordinator.train(site) == ""
    assert coordinator.unmask("alpha", few) == "TOO_FEW_SITES"
    order, arrays = coordinator.unmask_order("alpha", ["alpha", "beta", "gamma"])
    twice = order.model_copy(update={"lineage": ("alpha", "alpha", "beta")})
    assert coordinator.ask(twice, arrays) == "ORDER_MALFORMED"
    strangers = order.model_copy(update={"lineage": ("alpha", "beta", "omega")})
    assert coordinator.ask(strangers, arrays) == "ORDER_MALFORMED"


def test_a_site_that_sent_nothing_is_not_said_to_be_summed(coordinator: Coordinator) -> None:
    """Its own mask's share would go out before anything is under that mask."""
    assert coordinator.unmask("alpha", SITES) == "ORDER_MALFORMED"
    assert coordinator.unmask("alpha", ["beta", "delta", "gamma"]) == ""  # it dropped out


@pytest.mark.parametrize("colluder", [None, *SITES])
def test_lies_about_who_dropped_out_never_give_both_secrets_of_a_site(
    anew: Callable[..., Coordinator], colluder: str | None
) -> None:
    """Other drop-outs are told to each site; one site may be the coordinator's own, and tell all.

    Whoever's masks with others and own mask both came about would stand bare.
    """
    coordinator = anew()
    coordinator.agree()
    for site in SITES:
        assert coordinator.train(site) == ""
    lies = {
        site: [each for each in SITES if each != SITES[(number + 1) % 4]]
        for number, site in enumerate(SITES)
    }
    shares: dict[str, dict[str, dict[int, bytes]]] = {
        site: {"own": {}, "others": {}} for site in SITES
    }
    for teller in SITES:
        assert coordinator.unmask(teller, lies[teller]) == ""
        told = coordinator.heard["unmask", teller, 1][TOLD]
        for place, site in enumerate(SITES):
            which = "own" if site in lies[teller] else "others"
            shares[site][which][SITES.index(teller) + 1] = told[place].tobytes()
    if colluder is not None:  # it knows what was dealt to it, all of it
        summing = coordinator.agents[colluder]._summing(coordinator.order("unmask", colluder))
        order, arrays = coordinator.unmask_order(colluder, SITES)
        for site, pair in zip(SITES, _both(summing, order, arrays), strict=True):
            for which, share in zip(("others", "own"), pair, strict=True):
                shares[site][which][SITES.index(colluder) + 1] = share
    keys = {each.site: each for each in coordinator.roster.keys}
    told_of = coordinator.told(SITES, SITES)
    for site in SITES:
        bare = [
            len(found) >= 3 and right(keys[site], joined(dict(itertools.islice(found.items(), 3))))
            for found, right in (
                (shares[site]["own"], told_of._is_own_mask),
                (shares[site]["others"], told_of._is_mask_key),
            )
        ]
        assert not all(bare), site


def _both(summing: Any, order: Order, arrays: Arrays) -> list[tuple[bytes, bytes]]:
    """What a site that colludes reads of the shares that were dealt to it: both of each."""
    from common.secure_sums.shares import SECRET, line_between, opened

    roster, root = summing._agreed()
    slot = slot_of(summing.study, order.model, order.round)
    found = []
    for place, keys in enumerate(roster.keys):
        line = line_between(root.channel(), keys.channel, roster.digest)
        about = roster.about_shares(slot, keys.site, summing.site.name)
        both = opened(line, about, np.ascontiguousarray(arrays[DEALT][place]).tobytes())
        found.append((both[:SECRET], both[SECRET:]))
    return found


def test_a_key_that_somebody_put_in_is_no_key_of_that_site(
    anew: Callable[..., Coordinator],
) -> None:
    """Who could sit between two sites would know the mask between them."""
    coordinator = anew()
    keys = {site: coordinator.keys(site) for site in SITES}
    mine = Ed25519PrivateKey.generate()
    about = about_keys(coordinator.order("keys", "beta", round=1))
    channel = keys["gamma"].channel
    forged = Keys("beta", public_of(mine), channel, keys["gamma"].masks, keys["gamma"].commitments)
    known = keys["beta"]
    changed = Keys("beta", known.identity, channel, known.masks, known.commitments, known.signature)
    for wrong in (
        forged.signed(mine, about),
        changed,  # signed by beta, for other keys
        changed.signed(mine, about),
        Keys("beta", *(getattr(keys["gamma"], name) for name in Keys.__slots__[1:])),
    ):
        listed = [*(keys[site] for site in SITES if site != "beta"), wrong]
        assert coordinator.deal(listed, ["alpha"]) == {"alpha": "PEERS"}
    other = anew("d" * 64)  # keys that were told for another run
    replayed = [*(keys[site] for site in SITES if site != "beta"), other.keys("beta")]
    assert coordinator.deal(replayed, ["alpha"]) == {"alpha": "PEERS"}
    assert coordinator.deal([keys[site] for site in SITES], ["alpha"]) == {"alpha": ""}


def test_a_site_agrees_with_enough_of_those_it_knows_and_under_its_own_keys(
    anew: Callable[..., Coordinator],
) -> None:
    """Two sites, strangers, or keys that it never told: none of it."""
    coordinator = anew()
    keys = {site: coordinator.keys(site) for site in SITES}
    assert coordinator.deal([keys["alpha"], keys["beta"]], ["alpha"]) == {"alpha": "TOO_FEW_SITES"}
    without = [keys[site] for site in ("beta", "delta", "gamma")]
    assert coordinator.deal(without, ["alpha"]) == {"alpha": "PEERS"}
    agent = coordinator.agents["alpha"]
    peers = Peers(agent.peers.own, {**agent.peers.known, "beta": bytes(32)})
    object.__setattr__(agent, "peers", peers)
    assert coordinator.deal(keys.values(), ["alpha"]) == {"alpha": "PEERS"}
    object.__setattr__(agent, "peers", None)  # nobody introduced it
    assert coordinator.deal(keys.values(), ["alpha"]) == {"alpha": "PEERS"}


def test_an_agreement_is_not_turned_back(coordinator: Coordinator) -> None:
    """A newer one may follow, with keys of its own; the older, or another as new, may not."""
    keys = {site: coordinator.keys(site) for site in SITES}
    three = [keys[site] for site in ("alpha", "beta", "gamma")]
    assert coordinator.deal(three, ["alpha"]) == {"alpha": "SUMS_DECIDED"}
    assert coordinator.deal(keys.values(), ["alpha"], totals=7) == {"alpha": "SUMS_DECIDED"}
    coordinator.attempt = 2
    newer = {site: coordinator.keys(site) for site in SITES}
    assert newer["alpha"].masks != keys["alpha"].masks
    assert coordinator.deal(newer.values(), ["alpha"]) == {"alpha": ""}
    coordinator.attempt = 1
    fewer = [keys[site] for site in ("alpha", "beta", "delta")]
    assert coordinator.deal(fewer, ["alpha"]) == {"alpha": "SUMS_DECIDED"}


@pytest.mark.parametrize("totals", [1, 10**6, 2**50, -5])
def test_totals_that_would_single_a_site_out_are_not_trained_under(
    anew: Callable[..., Coordinator], totals: int
) -> None:
    """Under huge ones the parts of small sites round to nothing, and what is left is one site's."""
    coordinator = anew()
    keys = [coordinator.keys(site) for site in SITES]
    assert coordinator.deal(keys, SITES, totals=totals) == dict.fromkeys(SITES, "")
    if totals > 0:
        assert coordinator.train("alpha") == "ORDER_MALFORMED"
    else:  # nobody weighs anything
        assert coordinator.train("alpha") == ""


def test_the_masks_of_a_round_hide_one_thing(coordinator: Coordinator) -> None:
    """Two reports under one mask would differ by the difference of two updates."""
    for site in SITES:
        assert coordinator.train(site) == ""
    near = {name: array.copy() for name, array in coordinator.first.items()}
    name = next(name for name in near if name.endswith("weight"))
    near[name] += np.float32(1e-4)
    assert coordinator.train("alpha", 2, near) == ""
    sent = coordinator.heard["train", "alpha", 2]
    nearer = {**near, name: near[name] + np.float32(1e-5)}
    assert coordinator.train("alpha", 2, nearer) == "SUMS_DECIDED"
    assert coordinator.train("alpha", 2, near) == ""
    again = coordinator.heard["train", "alpha", 2]
    assert all((sent[each] == again[each]).all() for each in sent)


def test_sites_that_were_given_other_arrays_do_not_add_up(coordinator: Coordinator) -> None:
    """A model under which the others' updates vanish would leave one site's update as the sum.

    What is trained is part of what masks are for: they cancel out among those alone who were given
    the same.
    """
    for site in SITES:
        assert coordinator.train(site) == ""
    near = {name: array.copy() for name, array in coordinator.first.items()}
    name = next(name for name in near if name.endswith("weight"))
    near[name] += np.float32(1e-4)
    other = {**near, name: near[name] + np.float32(1e-5)}
    for site in SITES:
        assert coordinator.train(site, 2, other if site == "alpha" else near) == ""
        assert coordinator.unmask(site, SITES, 2) == ""
    told, keys = coordinator.told(SITES, SITES, 2), coordinator.roster.keys
    plain = coordinator.heard["train", "alpha", 2]
    largest = max(plain, key=lambda each: plain[each].size)
    total = np.zeros(plain[largest].size, plain[largest].dtype)
    for each in keys:  # it takes off each site's own mask, and knows what that was for
        order = coordinator.train_order(each.site, 2, other if each.site == "alpha" else near)
        secret = told._secret(each, told._is_own_mask)
        own = own_seed(secret, coordinator.roster.digest, about_round(order))
        numbers = np.array(coordinator.heard["train", each.site, 2][largest]).reshape(-1)
        Masks([(own, True)], largest, numbers.dtype).put_on(numbers)
        add(total, numbers)
    assert uniform(total)


def test_another_run_of_the_same_study_tells_no_other_sum_of_the_same_updates(
    anew: Callable[..., Coordinator],
) -> None:
    """The first round's updates are the same bits in every run: two sums would differ by a site."""
    first = anew()
    first.agree()
    for site in SITES:
        assert first.train(site) == ""
    for site in SITES:
        assert first.unmask(site, SITES) == ""
    second = anew("d" * 64)
    second.agree()
    for site in SITES:
        assert second.train(site) == ""
    for site in ("alpha", "beta", "gamma"):
        assert second.unmask(site, ["alpha", "beta", "gamma"]) == "SUMS_DECIDED"
        assert second.unmask(site, SITES) == ""  # the same sum says nothing new


def test_a_share_passed_to_another_site_or_of_another_round_is_none(
    coordinator: Coordinator,
) -> None:
    """Each is sealed for one site, about one slot; what does not open is told as nothing."""
    for site in SITES:
        assert coordinator.train(site) == ""
    order, arrays = coordinator.unmask_order("alpha", SITES)
    _, theirs = coordinator.unmask_order("beta", SITES)
    _, later = coordinator.unmask_order("alpha", SITES, 2)
    mixed = {DEALT: np.stack([
        arrays[DEALT][0], theirs[DEALT][1], later[DEALT][2], np.zeros_like(arrays[DEALT][3]),
    ])}  # fmt: skip
    order = order.model_copy(update={"arrays": digest_of(mixed)})
    assert coordinator.ask(order, mixed) == ""
    told = coordinator.heard["unmask", "alpha", 1][TOLD]
    assert told[0].any()
    assert not told[1:].any()


def test_no_order_of_a_secure_study_brings_an_update_without_masks(
    coordinator: Coordinator,
) -> None:
    """Not as another model, nor before an agreement, nor as what tuning trained."""
    fresh = Coordinator(coordinator.agents, "e" * 64)
    assert fresh.train("alpha") == "PEERS"
    for model in ("pooled", "single-alpha", "seed-2"):
        order = coordinator.train_order("alpha").model_copy(update={"model": model})
        assert coordinator.ask(order, coordinator.first) == "ORDER_MALFORMED"
    order = coordinator.train_order("alpha", 3)
    assert coordinator.ask(order, coordinator.first) != ""  # a round that the study has not


def test_a_report_of_a_secure_round_tells_nothing_beside_its_masked_numbers(
    coordinator: Coordinator,
) -> None:
    """Losses, metrics and counts are in the masked row; the time it took is in the open."""
    order = coordinator.train_order("alpha")
    report, sent = coordinator.agents["alpha"].answer(order, dict(coordinator.first))
    assert (report.support, report.participants, report.counts, report.measurements) == (
        {}, {}, {}, (),
    )  # fmt: skip
    assert {str(array.dtype) for array in sent.values()} == {"int32", "int64"}
    numbers = sent[NUMBERS]
    assert (np.abs(numbers.astype(float)) > 2**40).mean() > 0.9  # the true ones are below 2**35


def test_a_site_that_starts_again_has_the_same_secrets_and_decisions(
    anew: Callable[..., Coordinator],
) -> None:
    """All of it is on disk before anything leaves, for its owner alone, and in no log."""
    first = anew()
    first.agree()
    for site in SITES:
        assert first.train(site) == ""
    assert first.unmask("alpha", SITES) == ""
    again = anew()
    again.heard, again.roster = dict(first.heard), first.roster
    assert again.keys("alpha") == read_keys("alpha", first.heard["keys", "alpha", 1]["keys"])
    assert again.train("alpha") == ""
    assert all(
        (again.heard["train", "alpha", 1][name] == array).all()
        for name, array in first.heard["train", "alpha", 1].items()
    )
    assert again.unmask("alpha", ["alpha", "beta", "gamma"]) == "SUMS_DECIDED"
    state = again.agents["alpha"].site.state
    for path in (state / "sums").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_no_secret_is_in_a_log(
    anew: Callable[..., Coordinator], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever reads a log, or is sent one, must not be able to take a mask off."""
    caplog.set_level(logging.DEBUG)
    coordinator = anew()
    coordinator.agree()
    coordinator.train("alpha")
    coordinator.unmask("alpha", ["alpha"])
    root = (
        coordinator.agents["alpha"].site.state / "sums" / coordinator.run / "root.key"
    ).read_bytes()
    assert len(root) == 32
    assert root.hex() not in caplog.text
    assert repr(root) not in caplog.text
    assert commitment(root) != hashlib.sha256(root).digest()


def test_books_that_were_set_back_end_a_sites_part_in_the_sums_that_it_knows(
    anew: Callable[..., Coordinator], tmp_path: Path
) -> None:
    """It has forgotten whose secret it told; asked anew it would tell the other one of the same site.

    The backup is of before the round was unmasked, and a person accepts it.
    """
    coordinator = anew()
    coordinator.agree()
    for site in SITES:
        assert coordinator.train(site) == ""
    site = coordinator.agents["alpha"].site
    shutil.copytree(site.state, tmp_path / "backup")
    assert coordinator.unmask("alpha", SITES) == ""
    shutil.rmtree(site.state)
    shutil.copytree(tmp_path / "backup", site.state)
    with Ledger(site.state / "ledger.sqlite"):
        pass
    assert "its part in the secure sums of 1 runs has ended" in accept(site, None)
    assert coordinator.unmask("alpha", ["alpha", "beta", "gamma"]) == "SUMS_DECIDED"
    assert coordinator.ask(coordinator.order("keys", "alpha", round=2)) == "SUMS_DECIDED"
    fresh = Coordinator(coordinator.agents, "e" * 64)
    assert fresh.ask(fresh.order("keys", "alpha", round=1)) == ""
