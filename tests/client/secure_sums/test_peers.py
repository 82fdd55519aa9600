"""Whom a site sums with is what its people agreed to: a number that all sites read to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.authority import approvals
from client.authority.consent import consent
from client.authority.records import open_records
from client.cli import app
from client.secure_sums.peers import line_of_identity, number_of, peers_of, take_up
from client.service.agent_pool import open_agent
from client.site import Site, load_site
from common.errors import SettingError
from common.protocol.orders import EMPTY, Order
from common.runtime.private_folder import own_folder

NAMES = ["alpha", "beta", "gamma"]


@pytest.fixture
def made(federation: Callable[..., Any]) -> Any:
    return federation({"secure_sums": {"on": True}})


def sites_of(made: Any) -> dict[str, Site]:
    found = {name: load_site(made.sites / name / "site.toml") for name in NAMES}
    for site in found.values():
        own_folder(site.state)
    return found


def listed(made: Any, sites: dict[str, Site], **lines: str) -> Path:
    """Everybody's list, as a coordinator puts it together."""
    path: Path = made.folder / "peers.toml"
    told = {name: line_of_identity(site) for name, site in sites.items()} | lines
    path.write_text("[sites]\n" + "\n".join(told[name] for name in sorted(told)) + "\n")
    return path


def test_sites_that_know_the_same_identities_read_the_same_number(made: Any) -> None:
    """Six groups of five digits, which two people can compare by telephone."""
    sites = sites_of(made)
    file = listed(made, sites)
    numbers = {take_up(site, file).number(NAMES) for site in sites.values()}
    assert len(numbers) == 1
    number = numbers.pop()
    assert [len(group) for group in number.split()] == [5] * 6
    assert number_of(sites["alpha"], made.study) == number
    forged = 'beta = "' + "ab" * 32 + '"'
    assert take_up(sites["alpha"], listed(made, sites, beta=forged)).number(NAMES) != number


def test_a_list_without_this_sites_own_identity_is_not_taken_up(made: Any) -> None:
    """It is of another consortium, or somebody put himself in this site's place."""
    sites = sites_of(made)
    with pytest.raises(SettingError, match=r"callosum-site identity --peers FILE"):
        peers_of(sites["alpha"])
    for line in ('alpha = "' + "ab" * 32 + '"', ""):
        with pytest.raises(SettingError, match=line_of_identity(sites["alpha"])):
            take_up(sites["alpha"], listed(made, sites, alpha=line))
    broken = made.folder / "broken.toml"
    broken.write_text('[sites]\nalpha = "none"\n')
    with pytest.raises(SettingError, match="sites.alpha"):
        take_up(sites["alpha"], broken)


def test_the_identity_is_its_owners_alone_and_stays(made: Any) -> None:
    """A second one would make this site a stranger to the others."""
    site = sites_of(made)["alpha"]
    line = line_of_identity(site)
    assert line_of_identity(site) == line
    assert (site.state / "identity.key").stat().st_mode & 0o777 == 0o600


def test_a_secure_study_is_approved_with_the_number_of_its_peers(made: Any) -> None:
    """What is agreed to is who the others are, not that there are some."""
    sites = sites_of(made)
    site = sites["alpha"]
    told = "\n".join(consent(site, made.study).lines)
    assert "refused with PEERS until it is mended" in told
    with pytest.raises(SettingError, match="callosum-site identity"):
        approvals.approve(site, made.study_file, 0)
    number = take_up(site, listed(made, sites)).number(NAMES)
    told = "\n".join(consent(site, made.study).lines)
    assert f"number of the identities of alpha, beta, gamma: {number}" in told
    assert "sums over 2 or more of 3 sites" in told
    assert "summed: arrays of the network" in told
    assert "no number may change by more than 8 in a round (UPDATE_TOO_LARGE)" in told
    assert approvals.approve(site, made.study_file, 0).peers == number


def test_an_agent_refuses_peers_that_nobody_agreed_to(made: Any) -> None:
    """A list that was exchanged after the approval, however it came there, is none that was read."""
    sites = sites_of(made)
    site = sites["alpha"]
    take_up(site, listed(made, sites))
    approvals.approve(site, made.study_file, 0)
    order = Order(
        kind="keys", study=made.study.digest, run="c" * 64, site="alpha", round=1, arrays=EMPTY
    )
    with open_records(site) as records:
        agent = open_agent(made.study, site, records=records)
        assert agent.answer(order, {})[0].refusal == ""
        forged = 'beta = "' + "ab" * 32 + '"'
        take_up(site, listed(made, sites, beta=forged))
        again = order.model_copy(update={"round": 2})
        assert agent.answer(again, {})[0].refusal == "PEERS"
        (site.state / "peers.toml").unlink()
        assert agent.answer(again, {})[0].refusal == "PEERS"


def test_a_study_without_secure_sums_knows_no_such_orders(federation: Callable[..., Any]) -> None:
    """Nothing of it is answered where nobody agreed to it."""
    made = federation()
    agent = made.agent("alpha")
    for kind in ("keys", "shares", "unmask"):
        order = Order(
            kind=kind, study=made.study.digest, run="c" * 64, site="alpha", round=1, arrays=EMPTY
        )
        assert agent.answer(order, {})[0].refusal == "ORDER_MALFORMED"


def test_the_command_shows_the_line_and_takes_up_the_list(made: Any) -> None:
    """What a person at the site does, and reads to the others."""
    sites = sites_of(made)
    own = ["identity", "--site", str(sites["alpha"].file)]
    shown = CliRunner().invoke(app, own)
    assert shown.exit_code == 0
    assert line_of_identity(sites["alpha"]) in shown.stdout
    taken = CliRunner().invoke(app, [*own, "--peers", str(listed(made, sites))])
    number = number_of(sites["alpha"], made.study)
    assert f"number of all 3: {number}" in " ".join(taken.stdout.split())
    assert number in " ".join(CliRunner().invoke(app, own).stdout.split())


def test_a_site_that_judges_needs_to_know_nobody(federation: Callable[..., Any]) -> None:
    """It puts no mask on anything; asking it for identities would only keep judges away."""
    made = federation({
        "secure_sums": {"on": True},
        "sites": {"train": NAMES, "heldout": ["omega"]},
        "objective.targets": ["age"],
    })  # fmt: skip
    site = load_site(made.sites / "omega" / "site.toml")
    own_folder(site.state)
    assert approvals.approve(site, made.study_file, 0).peers == ""
    assert "PEERS" not in "\n".join(consent(site, made.study).lines)


def test_a_site_may_train_where_sums_alone_are_seen(federation: Callable[..., Any]) -> None:
    """Its own policy; whoever approves another study reads that it will be declined."""
    made = federation(site={"policy.secure_sums_only": True})
    agent = made.agent("alpha")
    order = Order(
        kind="train", study=made.study.digest, run="c" * 64, site="alpha", round=1, arrays=EMPTY
    )
    assert agent.answer(order, {})[0].refusal == "POLICY"
    told = "\n".join(consent(agent.site, made.study).lines)
    assert "refused with POLICY: train, whose updates are seen" in told
    secure = type(made)(made.folder, made.base, {"secure_sums": {"on": True}})
    assert secure.agent("alpha").answer(
        order.model_copy(update={"study": secure.study.digest}), {}
    )[0].refusal != "POLICY"  # fmt: skip
    assert "updates are seen" not in "\n".join(consent(agent.site, secure.study).lines)
