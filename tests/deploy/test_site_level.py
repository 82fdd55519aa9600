"""Whole sites hidden: each update cut down as one, noise shared by the sites, under their masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from client.secure_sums.summing import Summing
from common.errors import QuorumError
from common.privacy.accounting import epsilon
from common.privacy.cost import Cost
from common.privacy.site_level import deviation
from common.protocol.wire import open_arrays
from server.report.page import write_report
from tests.deploy.test_secure_sums import EIGHT, STEADY, arrays, dropping_out, furthest, record

HIDDEN: dict[str, Any] = {
    **STEADY,
    "secure_sums": {"on": True, "largest_update": 100.0},
    "aggregation.normalisation": "groupnorm",
    "privacy": {"unit": "site", "noise": 0.0, "epsilon": 0.0, "clip": 90.0},
    "pretraining.rounds": 1,
}
Made = Callable[..., Any]


def updates(run: Any, sites: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """What each site trained in the first round, from its own disk."""
    found = {}
    start = arrays(run, "0000")
    for site in sites:
        [path] = (run.folder.parent / "sites" / site).rglob("report-0001.safetensors")
        with open_arrays(path) as file:
            found[site] = {
                f"model/{name}": array.astype(np.float64) - start[f"model/{name}"]
                for name, array in file.all().items()
            }
    return found


def moved(run: Any) -> dict[str, np.ndarray]:
    start = arrays(run, "0000")
    return {name: array.astype(np.float64) - start[name] for name, array in arrays(run).items()}


def mean(of: Mapping[str, Mapping[str, np.ndarray]], factors: Mapping[str, float]) -> Any:
    names = next(iter(of.values()))
    return {
        name: sum(factors[site] * update[name] for site, update in of.items()) / len(of)
        for name in names
    }


def length(update: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(array)) for array in update.values())))


def test_without_noise_and_with_a_long_clip_it_is_the_plain_mean_of_sites(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit in which the mechanism vanishes; of those who answered, each alike."""
    dropping_out(monkeypatch, {1: ("site-b", "site-g")})
    run = module_federation(HIDDEN).simulate()
    there = [site for site in EIGHT if site not in ("site-b", "site-g")]
    wanted = mean(updates(run, there), dict.fromkeys(there, 1.0))
    found = {name: moved(run)[name] for name in wanted}
    assert furthest(found, wanted) < 1e-6


def test_each_update_is_cut_down_as_a_whole(module_federation: Made) -> None:
    """No site moves the sum by more than the clip, whatever it trained."""
    clip = 0.02
    run = module_federation(HIDDEN | {"privacy.clip": clip}).simulate()
    own = updates(run, EIGHT)
    lengths = {site: length(update) for site, update in own.items()}
    assert max(lengths.values()) > clip
    wanted = mean(own, {site: min(1.0, clip / each) for site, each in lengths.items()})
    found = {name: moved(run)[name] for name in wanted}
    assert furthest(found, wanted) < 1e-6
    assert length(found) <= clip * (1 + 1e-6)


def test_the_noise_of_the_fewest_is_whole_and_of_all_is_more(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 6 of 8 sites the sum has noise of at least noise times clip, to within chance.

    Each gives so much that five are enough: one of the six may be the coordinator's own.
    """
    changes = HIDDEN | {
        "backbone": {"name": "mlp", "hidden": [200], "dropout": 0.0},
        "pretraining.learning_rate": 1e-6,
        "privacy": {"unit": "site", "noise": 2.0, "epsilon": 0.0, "clip": 1.0},
    }
    made = module_federation(changes)
    assert deviation(made.study) == pytest.approx(2.0 / np.sqrt(5))
    dropping_out(monkeypatch, {1: ("site-b", "site-g")})
    run = made.simulate()
    drawn = np.concatenate([
        array.reshape(-1) for name, array in moved(run).items() if array.any()
    ]) * 6  # of the sum  # fmt: skip
    assert drawn.size > 1000
    spread = drawn.std() / (2.0 * np.sqrt(6 / 5))
    assert abs(spread - 1) < 4 / np.sqrt(2 * drawn.size)
    assert abs(drawn.mean()) < 4 * drawn.std() / np.sqrt(drawn.size)


def test_a_round_that_is_asked_again_has_the_same_noise(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two draws on one update would give it away, half by half; two runs have other noise."""
    noisy = HIDDEN | {"privacy": {"unit": "site", "noise": 1.0, "epsilon": 0.0, "clip": 1.0}}
    made = module_federation(noisy)
    run = made.simulate()
    first = arrays(run)
    shutil.rmtree(run.folder / "rounds")
    for path in (run.folder / "checkpoints").glob("final*"):
        path.unlink()
    again = made.simulate()
    assert furthest(first, arrays(again)) == 0.0
    other = made.simulate("other")
    assert furthest(first, arrays(other)) > 0.01


def test_epsilon_is_of_replacing_a_site_over_all_rounds(
    module_federation: Made,
) -> None:
    """Noise counts half, for the site and each of its people; the report says what was spent."""
    privacy = {"unit": "site", "noise": 8.0, "epsilon": 0.0, "clip": 0.5, "delta": 1e-3}
    run = module_federation(HIDDEN | {"privacy": privacy, "pretraining.rounds": 3}).simulate()
    cost = record(run, 3)["answered"]["site-a"]["cost"]
    assert cost == {"noise": 4.0, "rate": 1.0, "steps": 1, "delta": 1e-3}
    page = write_report(run).read_text()
    wanted = epsilon([Cost(noise=4.0, rate=1.0, steps=3, delta=1e-3)], 1e-3)
    assert f"{wanted:.3g}</td>" in page
    assert "Rounds of training hid each site as a whole" in page
    assert "noised, summed" in page


def test_a_site_declines_what_its_study_may_not_cost(module_federation: Made) -> None:
    """The cap of the study is checked before any work, as for participants."""
    privacy = {"unit": "site", "noise": 2.0, "epsilon": 3.0, "clip": 1.0, "delta": 1e-3}
    made = module_federation(HIDDEN | {"privacy": privacy, "pretraining.rounds": 5})
    one = epsilon([Cost(noise=1.0, rate=1.0, steps=1, delta=1e-3)], 1e-3)
    assert one > 3.0
    with pytest.raises(QuorumError, match="BUDGET_EXHAUSTED"):
        made.simulate()


def test_no_site_is_in_the_sum_without_its_noise(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is masked is the noised update, and nothing else of the round's arrays is sent."""
    seen: list[Any] = []
    steps = Summing._steps

    def watched(self: Summing, *about: Any) -> Any:
        found = steps(self, *about)
        seen.append({name: array.copy() for name, array in found.items()})
        return found

    monkeypatch.setattr(Summing, "_steps", watched)
    noisy = HIDDEN | {"privacy": {"unit": "site", "noise": 1.0, "epsilon": 0.0, "clip": 1.0}}
    run = module_federation(noisy | {"pretraining.learning_rate": 1e-9}).simulate()
    assert len(seen) == 8
    assert all(array.any() for each in seen for array in each.values())
    told = json.loads((run.folder / "rounds/0001/record.json").read_text())
    assert told["sum"]["spoilt"] == ""
