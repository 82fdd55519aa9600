"""What a study may ask of secure sums, and what its threshold really promises."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from common.errors import SettingError
from common.explain import explain
from common.secure_sums.settings import SecureSums
from common.study import Study, parse_study
from tests.conftest import FEATURES, overridden

SECURE: dict[str, Any] = {
    "secure_sums": {"on": True},
    "sites.train": ["alpha", "beta", "gamma", "delta"],
}


def study_of(**changes: Any) -> Study:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return parse_study(overridden(FEATURES, {**SECURE, **dotted}), Path("study.toml"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sites__train": ["alpha", "beta"]}, "sites.train has 2"),
        ({"pretraining__rounds": 0}, "pretraining.rounds is 0"),
        ({"secure_sums": {"on": True, "threshold": 2}}, "3 to 4, 3 by default"),
        ({"secure_sums": {"on": True, "threshold": 5}}, "3 to 4, 3 by default"),
        ({"sites__quorum": 2}, "sites.quorum is 2 and secure_sums.threshold 3"),
        ({"comparisons__single_site": True}, "comparisons.single_site = false"),
        ({"comparisons__pooled": True}, "comparisons.pooled = false"),
        ({"pretraining__rounds": 10_000, "sites__train": [f"s{n}" for n in range(200)]}, "keys"),
        (
            {"finetuning": [{"name": "sick", "target": "diagnosis", "then": ["send"]}]},
            "finetuning.0.then has send",
        ),
    ],
)
def test_what_needs_the_reports_of_single_sites_is_refused(changes: Any, told: str) -> None:
    """Each would show one site's update, or could not be made of sums; the key to change is named."""
    with pytest.raises(SettingError, match=told):
        study_of(**changes)


def test_the_same_is_allowed_without_secure_sums() -> None:
    """The table is off by default, and then asks nothing of the others."""
    off = {"secure_sums": {"on": False, "threshold": 2}}
    assert not study_of(**off, comparisons__single_site=True, sites__quorum=1).secure_sums.on


def test_a_study_says_what_its_sums_hide_and_what_not() -> None:
    """Who approves reads the threshold, how many may lie, and every item that is not covered."""
    told = explain(study_of())
    assert "sums over 3 or more of 4 sites" in told
    assert "summed: arrays of the network" in told
    assert "not covered: numbers of scans, people and labels (census)" in told
    both = explain(
        study_of(privacy={"unit": "participant"}, aggregation={"normalisation": "groupnorm"})
    )
    assert "noised, summed: arrays of the network" in both
    assert "what a private round cost, and so how many train" in both


@pytest.mark.parametrize(("sites", "fewest"), [(3, 2), (4, 3), (5, 3), (5, 4), (6, 4)])
@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_no_lie_about_drop_outs_gets_below_what_is_promised(
    sites: int, fewest: int, colluders: int
) -> None:
    """Against every way to tell each honest site which others are left out: a game played out.

    A site's own mask falls once `fewest` places gave that share, its masks with others once as many
    gave the other one; colluders give both. Whoever lost both stands bare, and no sum is over fewer
    honest sites than `hidden_among` says.
    """
    sums = SecureSums(threshold=fewest)
    honest = range(sites - colluders)
    worst, bare = len(honest), False
    most_out = sites - fewest
    lies = [
        frozenset(out)
        for number in range(most_out + 1)
        for out in itertools.combinations(honest, number)
    ]
    for told in itertools.combinations_with_replacement(lies, len(honest)):
        out = [colluders + sum(site in lie for lie in told) for site in honest]
        summed = [colluders + sum(site not in lie for lie in told) for site in honest]
        bare |= any(o >= fewest and s >= fewest for o, s in zip(out, summed, strict=True))
        alone = [site for site in honest if out[site] < fewest]
        if all(summed[site] >= fewest for site in alone):
            worst = min(worst, len(alone))
    if colluders <= sums.colluders(sites):
        assert not bare
        assert worst >= sums.hidden_among(sites, colluders)
    else:
        assert bare or worst <= 1


def test_the_promise_is_exact_for_the_default_of_eight() -> None:
    """Two thirds of eight are six: three may lie along, and sums stay over two honest ones."""
    sums = SecureSums()
    assert [sums.hidden_among(8, c) for c in range(4)] == [6, 5, 3, 2]
    assert sums.colluders(8) == 3
