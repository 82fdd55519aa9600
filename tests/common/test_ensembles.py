"""Models that differ in their seed alone, and the mean of what they say at a site held out."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.authority.admission import check_model
from client.authority.consent import consent
from common.errors import Refusal, SettingError
from common.protocol.orders import EMPTY, Order
from common.protocol.wire import Stored
from common.study import load_study

SEVERAL = {"comparisons": {"single_site": False, "pooled": False, "ensemble": 3}}


def rows(run: Any) -> dict[tuple[str, str, str, str], float]:
    with (run.folder / "results.csv").open() as stream:
        return {
            (row["site"], row["model"], row["target"], row["metric"]): float(row["value"])
            for row in csv.DictReader(stream)
            if row["value"] and row["phase"] == "evaluate"
        }


@pytest.fixture(scope="module")
def made(module_federation: Any) -> Any:
    """Two rounds of three models."""
    return module_federation({**SEVERAL, "pretraining.rounds": 2, "sites.heldout": ["omega"]})


@pytest.fixture(scope="module")
def run(made: Any) -> Any:
    return made.simulate()


@pytest.mark.whole
def test_an_ensemble_says_the_mean_of_what_its_members_say(made: Any, run: Any) -> None:
    """Measured by hand from the predictions that the held-out site keeps."""
    judge = made.agent("omega")
    age, folder = judge.cohort.labels["age"], judge.site.state / "runs" / run.id[:16]
    said = [
        Stored(folder / "predictions" / f"{model}.safetensors")["age"]
        for model in run.study.comparisons.members
    ]
    wanted = np.abs(np.mean(said, axis=0) - age).mean()
    found = rows(run)
    assert found["omega", "ensemble", "age", "mae"] == pytest.approx(wanted, rel=6e-3)
    assert ("omega", "ensemble", "age", "mae_minus_federated") in found
    assert ("omega", "ensemble", "sex", "auc") in found


@pytest.mark.whole
def test_members_differ_and_the_first_is_the_studys_own(made: Any, run: Any) -> None:
    """Members by one seed would be one model three times; asking for more must not change it."""
    finals = {
        model: (run.federated if model == "federated" else run.comparison(model)).final
        for model in run.study.comparisons.members
    }
    weights = [np.concatenate([a.ravel() for a in Stored(path, "model/").check().values()])
               for path in finals.values()]  # fmt: skip
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(weights))
    assert Path(finals["seed-2"]).parent.parent.name == "seed-2"


@pytest.mark.whole
def test_a_seed_that_the_study_does_not_name_is_refused_at_the_site(made: Any, run: Any) -> None:
    """A member's first arrays are its own seed's: the study's are another model's."""
    study, agent = run.study, made.agent("alpha")
    about = {"kind": "evaluate", "study": study.digest, "run": run.id, "arrays": EMPTY}
    order = Order.model_validate({**about, "site": "alpha", "model": "seed-4"})
    with pytest.raises(Refusal, match="no model seed-4"):
        check_model(study, order)
    first = Stored(run.federated.final, "model/").check()
    with pytest.raises(Refusal, match="from what the seed draws"):
        agent._assembling(order).check_first(first, study.as_trained("seed-2"))


@pytest.mark.whole
def test_a_site_that_has_not_heard_all_members_judges_no_mean(made: Any, run: Any) -> None:
    """A mean of two in place of three would be another model under the same name."""
    judge = made.agent("omega")
    order = Order(
        kind="evaluate", study=run.study.digest, run="0" * 64, site="omega", model="ensemble",
        arrays=EMPTY,
    )  # fmt: skip
    report, _ = judge.answer(order, {})
    assert report.refusal == "NO_DATA"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comparisons.ensemble": 1}, "of 2 models at least"),
        (
            {
                **SEVERAL,
                "backbone": {"name": "linear"},
                "objective": {"name": "ridge"},
                "pretraining": {"rounds": 0},
            },
            "the same by every seed",
        ),
    ],
)
def test_ensembles_of_one_model_are_refused(
    federation: Any, changes: dict[str, Any], words: str
) -> None:
    """They would cost time, and say what a single model says."""
    with pytest.raises(SettingError, match=words):
        load_study(federation(changes).study_file)


@pytest.mark.whole
def test_a_site_reads_how_often_it_would_train(made: Any) -> None:
    """Every member costs its people as many exposures as the first."""
    agent = made.agent("alpha")
    text = "\n".join(consent(agent.site, agent.study).lines)
    assert "4 for models by other seeds" in text
