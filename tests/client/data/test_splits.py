"""Who trains is decided by the study and by a secret that is drawn once and never lost in silence."""

from __future__ import annotations

import doctest
import hashlib
import hmac
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.data import splits as module
from client.data.splits import FILE, pseudonyms, secret_of, split_of
from client.site import Site
from common.errors import FolderError, QuorumError
from common.kinds.features import Features
from common.protocol.wire import Stored
from common.sections import Splits
from tests.conftest import write_federation

NAMES = [f"sub-{n}" for n in range(20_000)]
PINNED = [
    "train",
    "train",
    "train",
    "train",
    "validation",
    "test",
    "validation",
    "train",
]  # sub-01 to sub-08


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site without a secret in its file, and with a folder for one."""
    data = Features.Site(kind="features", table="t.csv")
    made = Site(name="alpha", role="train", data=data, folder=str(tmp_path / "state"))
    made.state.mkdir()
    return made


# The rule.


@given(st.text(max_size=20), st.text(max_size=9), st.text(max_size=40))
def test_the_rule_is_the_documented_one(participant: str, salt: str, secret: str) -> None:
    """Another hash would mix old and new splits: who once tested would train."""
    text = salt.encode() + b"\0" + participant.encode()
    digest = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    wanted = "test" if place < 0.25 else "validation" if place < 0.25 + 0.5 else "train"
    assert split_of(participant, Splits(salt=salt, test=0.25, validation=0.5), secret) == wanted


def test_the_rule_is_pinned() -> None:
    """What stands here was computed once; sites that are in the middle of a study rely on it."""
    found = [split_of(f"sub-{n:02d}", Splits(), "example") for n in range(1, 9)]
    assert found == PINNED
    assert doctest.testmod(module).failed == 0


def test_splits_have_the_shares_that_the_study_asks_for() -> None:
    """Over 20,000 people within half a percent, independent between salts and between secrets."""
    one = [split_of(name, Splits(), "ours") for name in NAMES]
    counts = Counter(one)
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.15, abs=0.01)
    for splits, secret in ((Splits(salt="other"), "ours"), (Splits(), "theirs")):
        other = [split_of(name, splits, secret) for name in NAMES]
        both = sum(a == b == "test" for a, b in zip(one, other, strict=True))
        assert both / 20_000 == pytest.approx(0.04, abs=0.01)


def test_more_validation_takes_nobody_out_of_test() -> None:
    """Shares may be tuned without moving test participants into training."""
    for name in NAMES[:500]:
        if split_of(name, Splits(), "ours") == "test":
            assert split_of(name, Splits(validation=0.4), "ours") == "test"


def test_a_smaller_share_is_among_every_larger_one() -> None:
    """Else a curve over shares would compare people, not numbers of them; the rest stays put."""
    whole = {name: split_of(name, Splits(), "ours") for name in NAMES}
    before = {name for name, split in whole.items() if split == "train"}
    for share in (0.5, 0.25, 0.1, 0.05):
        now = {name: split_of(name, Splits(share=share), "ours") for name in NAMES}
        trains = {name for name, split in now.items() if split == "train"}
        assert trains < before
        assert len(trains) / 20_000 == pytest.approx(0.65 * share, abs=0.005)
        others = {name: split for name, split in now.items() if split not in ("train", "spared")}
        assert others == {name: split for name, split in whole.items() if split != "train"}
        before = trains


def test_the_whole_share_spares_nobody() -> None:
    """The default must leave every study's people where they were, to the last."""
    for splits in (Splits(), Splits(test=0.0, validation=0.0), Splits(test=0.5, validation=0.44)):
        found = Counter(split_of(name, splits, "ours") for name in NAMES)
        assert found["spared"] == 0


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_of_nobody_or_of_more_than_all_is_refused(share: float) -> None:
    """A study that trains on nobody is a mistake, said before anyone is asked."""
    with pytest.raises(ValidationError, match="share"):
        Splits(share=share)


@pytest.mark.whole
def test_training_and_settled_constants_are_of_the_share_alone(tmp_path: Path) -> None:
    """Whoever is spared is in no number that leaves: counts, columns' means, a task's training."""
    tasks = [{"name": "own", "target": "diagnosis", "methods": ["scratch/full"], "epochs": 1}]
    people = dict.fromkeys(("alpha", "beta", "gamma"), 80)
    changes = {"splits.share": 0.6, "finetuning": tasks}
    federation = write_federation(tmp_path, changes, participants=people)
    cohorts = [federation.agent(name).cohort for name in ("alpha", "beta", "gamma")]
    inside = [cohort.indices("train", federation.study.splits) for cohort in cohorts]
    for cohort, indices in zip(cohorts, inside, strict=True):
        everyone = cohort.indices("train", Splits())
        assert set(indices) < set(everyone)
        assert len(cohort.indices("spared", federation.study.splits)) + len(indices) == len(
            everyone
        )
    run = federation.simulate()
    answered = run.federated.records()[0]["answered"]
    assert [line["participants"]["shared"] for line in answered.values()] == [*map(len, inside)]
    columns = [np.asarray(c.samples)[rows] for c, rows in zip(cohorts, inside, strict=True)]
    settled = Stored(run.federated.final, "model/")["backbone.standardise.mean"]
    np.testing.assert_allclose(settled, np.concatenate(columns).mean(0), rtol=1e-5)


@pytest.mark.whole
def test_a_share_below_the_minimum_cohort_is_declined(tmp_path: Path) -> None:
    """Few people's gradients are theirs: a smaller share must not slip below what a site asks."""
    few = write_federation(tmp_path, {"splits.share": 0.2})
    agent = few.agent("alpha")
    assert len(agent.cohort.indices("train", few.study.splits)) < 10
    with pytest.raises(QuorumError, match="COHORT_TOO_SMALL"):
        few.simulate()


def test_without_the_secret_nobody_can_place_anybody() -> None:
    """Whoever knows salt and names must not be able to choose bounds that single one person out."""
    guessed = [split_of(name, Splits(), "") for name in NAMES]
    kept = [split_of(name, Splits(), "ours") for name in NAMES]
    hits = sum(a == b for a, b in zip(guessed, kept, strict=True)) / 20_000
    assert hits == pytest.approx(0.2**2 + 0.15**2 + 0.65**2, abs=0.01)  # as by chance


# The secret.


def test_a_secret_of_the_sites_own_file_is_the_one(site: Site) -> None:
    """So that the same splits come about again elsewhere; nothing is drawn or written then."""
    assert secret_of(site.model_copy(update={"secret": "in the open"})) == "in the open"
    assert list(site.state.iterdir()) == []


def test_a_secret_is_drawn_once_and_only_its_owner_may_read_it(site: Site, tmp_path: Path) -> None:
    """After a restart the same people must train; whoever reads it can undo the splits."""
    mask = os.umask(0)
    try:
        drawn = secret_of(site)
    finally:
        os.umask(mask)
    path = site.state / FILE
    assert (drawn, secret_of(site)) == (path.read_text(), drawn)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in site.state.iterdir()] == [FILE]  # nothing is left of the drawing
    assert len(bytes.fromhex(drawn)) == 32
    other = site.model_copy(update={"folder": str(tmp_path / "other")})
    assert secret_of(other) != drawn


@pytest.mark.parametrize("content", [b"", b"ab", b"a" * 63, b"\xff" * 64, b"a" * 640])
def test_a_damaged_secret_is_said_and_never_drawn_anew(site: Site, content: bytes) -> None:
    """Another secret would let those train whom every model of before was tested on."""
    (site.state / FILE).write_bytes(content)
    for _ in range(2):
        with pytest.raises(FolderError, match=r"secret (is damaged|cannot be read).*backup"):
            secret_of(site)
    assert (site.state / FILE).read_bytes() == content


def test_a_secret_that_cannot_be_read_is_said(site: Site) -> None:
    """A folder of that name, or one of another user's, is no reason to draw another."""
    (site.state / FILE).mkdir()
    with pytest.raises(FolderError, match="cannot be read"):
        secret_of(site)


def test_processes_that_draw_at_once_agree(site: Site) -> None:
    """The agent starts while somebody approves: both must place people alike, now and later."""
    reader, writer = os.pipe()
    ready, go = os.pipe()
    children = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(ready, 1)  # returns for all of them at the moment when it is closed
            os.write(writer, secret_of(site).encode())
            os._exit(0)
        children.append(child)
    os.close(writer)
    os.close(go)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    with os.fdopen(reader) as stream:
        told = stream.read()
    os.close(ready)
    assert told == secret_of(site) * 8
    assert [each.name for each in site.state.iterdir()] == [FILE]


# Pseudonyms.


@given(st.lists(st.text(max_size=12), max_size=12), st.text(max_size=9))
def test_pseudonyms_keep_people_apart_and_their_order(people: list[str], secret: str) -> None:
    """A site's own records hold them instead of names, and count people by them."""
    found = pseudonyms(people, secret)
    assert len(found) == len(people)
    assert {(a, b) for a, b in zip(people, found, strict=True)} == set(
        dict(zip(people, found, strict=True)).items()
    )
    assert len(set(found)) == len(set(people))
    assert found == pseudonyms(people[::-1], secret)[::-1]
    other: Any = pseudonyms(people, secret + "x")
    assert not set(found) & set(other)
