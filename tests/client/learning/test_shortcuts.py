"""Whether features give a person's site away is asked for in sums, and told in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.authority.admission import check_model
from common.errors import Refusal
from common.network.building import arrays_of, build
from common.protocol.orders import Order, digest_of
from common.seeding import seed_of
from server import site_findings
from server.run_files import read_json
from tests.client.learning.test_harmonisation import move

SHORTCUTS: dict[str, Any] = {
    "backbone": {"name": "linear", "harmonisation": "combat"},
    "objective": {"name": "ridge", "targets": ["age"]},
    "pretraining": {"rounds": 0},
    "splits": {"validation": 0.4, "test": 0.0},
    "evaluation": {"shortcuts": 4, "head": False, "baselines": False},
}


@pytest.mark.parametrize("few", [False, True])
def test_a_scanner_shows_before_harmonisation_and_no_more_after(federation: Any, few: bool) -> None:
    """What ComBat is for, measured: the site is read off raw columns, and off harmonised ones by luck."""
    site = {"policy": {"sums_of_few": True}} if few else None
    people = dict.fromkeys(("alpha", "beta", "gamma"), 150)
    made = federation(SHORTCUTS, participants=people, site=site)
    for name in ("beta", "gamma"):
        move(made.sites / name / "table.csv")
    move(made.sites / "gamma" / "table.csv")
    run = made.simulate()
    (text,) = [
        one for one in site_findings.kept(run.folder) if one.startswith("features give away")
    ]
    after, before = text.split("; before training, of ")
    assert "100% of people" in before
    assert "beyond what luck gives" in before
    assert "within what luck gives (chance is 33% of 3 sites" in after
    assert read_json(run.folder / "census.json")["alpha"]["refused"] == ""


def test_networks_that_are_trained_are_asked_twice(federation: Any) -> None:
    """As drawn and as trained: what training made of the scanner is the difference."""
    made = federation({
        "splits": {"validation": 0.4, "test": 0.0}, "evaluation": {"shortcuts": 3},
    }, site={"policy": {"sums_of_few": True}})  # fmt: skip
    run = made.simulate()
    assert {path.name for path in (run.folder / "shortcuts").iterdir()} == {
        "shortcuts-before", "shortcuts-after",
    }  # fmt: skip
    assert any("before training, of" in text for text in site_findings.kept(run.folder))


def test_weights_that_the_seed_does_not_draw_give_no_sums(federation: Any) -> None:
    """A crafted layer that fires for one person returns her row in a sum."""
    made = federation({
        "splits": {"validation": 0.4, "test": 0.0}, "evaluation": {"shortcuts": 3},
    }, site={"policy": {"sums_of_few": True}})  # fmt: skip
    agent = made.agent("alpha")
    arrays = arrays_of(build(made.study, seed=seed_of(made.study.seed, "initial")))

    def answered(sent: Any, **keys: Any) -> str:
        order = Order.model_validate({
            "kind": "settle", "study": made.study.digest, "run": "c" * 64, "site": "alpha",
            "model": "shortcuts-before", "arrays": digest_of(sent), **keys,
        })  # fmt: skip
        return agent.answer(order, sent)[0].refusal

    base = {name: array for name, array in arrays.items() if "standardise" in name}
    moving = {name: array for name, array in arrays.items() if name not in base}
    sets = {"base": digest_of(base), "arrays": digest_of(moving)}
    assert answered(arrays, **sets) == ""
    assert answered(arrays, **sets, round=2) == "ORDER_MALFORMED"
    crafted = {name: np.where(array == array.max(), 1e6, array) if name == "backbone.layers.0.weight"
               else array for name, array in moving.items()}  # fmt: skip
    told = {"base": digest_of(base), "arrays": digest_of(crafted)}
    assert answered({**base, **crafted}, **told) == "ORDER_MALFORMED"


def test_no_other_study_is_asked_for_them(federation: Any) -> None:
    """A site approves what its study says, and these sums are a part of it."""
    study = federation({}).study
    order = Order.model_validate({
        "kind": "settle", "study": study.digest, "run": "c" * 64, "site": "alpha",
        "model": "shortcuts-after", "arrays": "d" * 64,
    })  # fmt: skip
    with pytest.raises(Refusal, match="has no model"):
        check_model(study, order)
