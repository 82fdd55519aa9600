"""Overlaps are counted between sites, across studies, and told without a name of anybody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.protocol.tokens import tokens_of
from server.lineage import Lineage, Part, Stage
from server.overlap import Held, copies, findings, held_before, seen_with, took_part

HEX = "a" * 64


def held(site: str, scans: str, *, cohort: str = "", key: str = "", **more: Any) -> Held:
    """A site with a scan for each letter of `scans`; without any, it gives no tokens."""
    arrays = tokens_of(list(scans), [f"{site}-{one}" for one in scans], "salt", key)
    told = {"study": "tiny", "prepared": "p", "arrays": arrays if scans else None, **more}
    return Held(site=site, cohort=cohort or f"{site}:{scans}", **told)


def lineage(prepared: str = HEX) -> Lineage:
    parts = (Part(site="birch", uses=("weights",), cohort="b" * 64), Part(site="cedar"))
    stage = Stage(study="clips", digest=HEX, model="federated", prepared=prepared, parts=parts)
    return Lineage(salt=HEX, stages=(stage,))


@pytest.mark.parametrize(
    ("scans", "told"),
    [("abc", "3 of its 3 scans, of 3 people"), ("ab", "2 of its 2"), ("abcd", "3 of its 4"),
     ("xyza", "1 of its 4"), ("xyz", "")],
)  # fmt: skip
def test_any_shared_scan_is_enough(scans: str, told: str) -> None:
    """A cohort less one, or with one more, has another fingerprint and the same people."""
    found = took_part(held("elm", scans), (), [held("birch", "abc")])
    assert told in found
    assert bool(found) == bool(told)


def test_a_contributor_by_name_is_one_whatever_it_holds_now() -> None:
    """Its people of today may be those of then, in another preparation."""
    assert took_part(held("elm", "xyz"), ("elm",), []) == "elm contributed"


def test_without_tokens_whole_cohorts_are_compared() -> None:
    """A site whose policy gives none is no stranger to its own copy."""
    found = took_part(held("elm", "", cohort="same"), (), [held("birch", "abc", cohort="same")])
    assert "all of them" in found
    assert not took_part(held("elm", ""), (), [held("birch", "")])


def test_of_judges_with_the_same_scans_the_first_counts() -> None:
    """A judge, its copy and its copy less one would weigh three times."""
    found = copies([held("elm", "abc"), held("psi", "abc"), held("chi", "bc"), held("phi", "xy")])
    assert set(found) == {"psi", "chi"}
    assert "with elm" in found["chi"]


def test_a_copy_of_a_copy_alone_counts() -> None:
    """What hangs on a judge that counts nowhere has not been counted yet."""
    found = copies([held("elm", "ab"), held("psi", "bc"), held("chi", "cd")])
    assert set(found) == {"psi"}


def test_doubles_among_training_sites_are_told_by_counts() -> None:
    """Before training, when something can still be done."""
    [told] = findings([held("alpha", "abc"), held("beta", "cxy"), held("gamma", "z")], [], [], {})
    assert told.startswith("beta shares 1 of its 3 scans, of 1 people, with alpha")


def test_what_cannot_be_compared_is_said() -> None:
    """A guard that did not look must not read like one that found nothing."""
    told = list(findings([held("alpha", "ab", key="k")], [held("elm", "ab"), held("psi", "")], [],
                         {"psi": "POLICY"}))  # fmt: skip
    assert any("psi gives no tokens of its scans (POLICY)" in text for text in told)
    assert any("alpha and of elm are made with different keys" in text for text in told)


def test_an_earlier_study_with_other_preparation_is_named() -> None:
    """The same scan at another spacing is another content; names alone are left."""
    here = [held("alpha", "ab")]
    told = list(findings(here, [], held_before(lineage(), {}), {}))
    assert any("clips were prepared in another way" in text for text in told)
    alike = [replace(each, prepared="p") for each in held_before(lineage(), {})]
    [told] = findings(here, [], alike, {})
    assert "no tokens of birch are known from clips" in told


def test_tokens_of_a_lineage_are_found_again() -> None:
    """What is written beside a checkpoint is what a later judge is held against."""
    seen = seen_with({}, 0, [held("birch", "abc")])
    before = held_before(lineage(), seen)
    assert [each.arrays is not None for each in before] == [True, False]
    assert "with birch" in took_part(held("elm", "c"), (), before)


def test_a_person_with_another_scan_is_found_by_an_identifier() -> None:
    """Scanned at two hospitals: no scan is shared, and yet the judge's people trained."""
    of = {"birch": ["1", "2"], "elm": ["2", "3"]}
    birch, elm = (
        replace(held(site, "x"), arrays=tokens_of([site], [site], "salt", "key", numbers))
        for site, numbers in of.items()
    )
    assert took_part(elm, (), [birch]) == (
        "elm shares 1 of its 2 people with birch, by identifiers that both keep"
    )
    told = list(findings([birch, elm, held("cedar", "y", key="key")], [], [], {}))
    assert told[0].startswith("elm shares 1 of its 2 people")
    assert "people of cedar have no identifiers" in told[1]
