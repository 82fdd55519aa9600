"""A coordinator who asks cleverly, with what is allowed: what leaves a site all the same."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.authority import approvals
from client.authority.consent import consent
from client.authority.records import open_records
from client.service.agent_pool import open_agent
from client.site import Policy, load_site
from common.arrays import Arrays
from common.errors import SettingError
from common.metrics import figures
from common.network.building import arrays_of, build, plan_of
from common.protocol.orders import Order, Report, digest_of
from common.seeding import seed_of
from server.federation.parcel import parcel_of
from tests.conftest import FEATURES, Federation

RUNS = [f"{number:064x}" for number in range(20)]
Write = Callable[..., Federation]


@dataclass
class Asked:
    """One site as a coordinator meets it: an agent with its books."""

    agent: Any

    def __call__(
        self, kind: str, arrays: Arrays | None = None, **more: Any
    ) -> tuple[Report, Arrays]:
        study, given = self.agent.study, arrays or {}
        plan = plan_of(build(study, seed=0), study.aggregation.normalisation)
        parcel = parcel_of(given, plan if set(given) == set(plan) else {})
        order = Order.model_validate({
            "kind": kind, "study": study.digest, "run": RUNS[0], "site": self.agent.site.name,
            **parcel.digests, **more,
        })  # fmt: skip
        return self.agent.answer(order, given)

    @property
    def drawn(self) -> Arrays:
        """What the study's seed begins with."""
        study = self.agent.study
        return arrays_of(build(study, seed=seed_of(study.seed, "initial")))


@pytest.fixture
def site(federation: Write) -> Iterator[Callable[..., Asked]]:
    """`site("alpha", {study changes}, policy={...}, **federation)` stands one site up."""
    opened = []

    def stand(
        name: str, changes: dict[str, Any] | None = None, *,
        policy: dict[str, Any] | None = None, **more: Any,
    ) -> Asked:  # fmt: skip
        made = federation(changes, site={"policy": policy or {}}, **more)
        own = load_site(made.sites / name / "site.toml")
        records = open_records(own)
        opened.append(records)
        return Asked(open_agent(made.study, own, records=records))

    yield stand
    for records in opened:
        records.ledger.shut()


JUDGED = {
    "sites.heldout": ["omega"],
    "targets": {"age": FEATURES["targets"]["age"]},  # logistic regression takes most of the time
    "objective.targets": ["age"],
    "evaluation": {"bootstrap": 100, "head": False},
}
TOLD_APART = {
    **JUDGED,
    "targets": {"sex": FEATURES["targets"]["sex"]},
    "objective.targets": ["sex"],
}


def saying(asked: Asked, age: float) -> Arrays:
    """Crafted arrays that predict one age for everybody: its error has a kink at every label."""
    target = asked.agent.study.targets["age"]
    return {
        name: np.full_like(array, (age - target.centre) / target.scale if "bias" in name else 0.0)
        if name.startswith("heads.age")
        else array
        for name, array in asked.drawn.items()
    }


def significant(value: float) -> int:
    """Significant figures of a number as it was sent."""
    return len(f"{value!r}".replace(".", "").lstrip("-0").partition("e")[0].rstrip("0"))


def test_no_order_names_a_constant() -> None:
    """126 orders that differed in it alone gave all forty ages of a site to thirteen digits."""
    assert "constants" not in Order.model_fields
    with pytest.raises(ValidationError):
        Order.model_validate({
            "kind": "evaluate", "study": RUNS[0], "run": RUNS[0], "site": "a",
            "arrays": RUNS[0], "constants": {"age": 50.0},
        })  # fmt: skip


def test_a_model_of_a_run_is_judged_by_one_set_of_arrays(site: Any) -> None:
    """Each further set would be another equation about the same people."""
    asked = site("omega", JUDGED)
    first, _ = asked("evaluate", saying(asked, 40.0))
    assert not first.refusal
    refusals = [asked("evaluate", saying(asked, 40.0 + n))[0].refusal for n in range(1, 6)]
    assert refusals == ["PRIVACY_SPENT"] * 5
    again, _ = asked("evaluate", saying(asked, 40.0))
    assert again.measurements == first.measurements  # the very same order costs nothing more


def test_new_runs_do_not_ask_for_ever(site: Any) -> None:
    """A run is a number that a coordinator draws; the cap is the study's."""
    asked = site("omega", JUDGED)
    found = [
        asked("evaluate", saying(asked, 40.0 + number), run=run)[0].refusal
        for number, run in enumerate(RUNS)
    ]
    assert found == [""] * 3 + ["PRIVACY_SPENT"] * (len(RUNS) - 3)


def test_a_study_has_the_models_that_it_names_and_no_others(site: Any) -> None:
    """Names of models are free; each new one would be three more questions."""
    asked = site("omega", JUDGED)
    for model in ("federated-2", "single-alpha", "pooled", "x-linear"):
        report, _ = asked("evaluate", asked.drawn, model=model)
        assert report.refusal == "ORDER_MALFORMED"


def test_what_is_judged_leaves_in_three_figures_and_without_sums(site: Any) -> None:
    """Exact sums, and histograms of crafted scores, gave forty whole rows in 200 orders."""
    asked = site("omega", JUDGED)
    report, arrays = asked("evaluate", saying(asked, 41.7))
    assert report.counts == {}
    assert arrays == {}
    values = [v for row in report.measurements for v in (row.value, row.ci_low, row.ci_high)]
    known = [value for value in values if value is not None]
    assert len(known) > 5
    assert max(map(significant, known)) <= 3


def test_kinks_of_an_error_drown_in_three_figures() -> None:
    """Even if somebody let all 126 questions through, their answers are not the ages."""
    ages = np.sort(np.random.default_rng(4).uniform(20, 80, 40))
    steps = np.arange(15.0, 85.0, 0.5)
    exact = np.array([np.abs(ages - step).mean() for step in steps])
    rounded = np.array([figures(value) for value in exact])

    def found(errors: np.ndarray) -> int:
        """How many ages the second differences put into their half year, and nowhere else."""
        counted = np.diff(errors, 2) / 0.5 * len(ages) / 2
        held = np.array(
            [np.clip(1 - np.abs(ages - step) / 0.5, 0, 1).sum() for step in steps[1:-1]]
        )
        return int((np.abs(counted - held) < 0.25)[held > 0.5].sum())

    assert found(exact) > 25
    assert found(rounded) < found(exact) / 2


@pytest.mark.parametrize("positives", [1, 9])
def test_a_metric_over_a_rare_class_stays(site: Any, positives: int) -> None:
    """An AUC with one positive is her rank; a recall of one class of one is her prediction."""
    asked = site("omega", TOLD_APART)
    sex = asked.agent.cohort.labels["sex"]
    sex[:] = 0.0
    sex[:positives] = 1.0
    report, _ = asked("evaluate", asked.drawn)
    told = [row for row in report.measurements if row.target == "sex"]
    assert told
    assert all((row.value, row.n_participants, row.n_scans) == (None, 0, 0) for row in told)


def test_a_census_tells_of_no_label(site: Any) -> None:
    """`label/diagnosis (23, 1)` was somebody's diagnosis."""
    asked = site("alpha")
    diagnosis = asked.agent.cohort.labels["diagnosis"]
    diagnosis[:] = np.nan
    diagnosis[:9] = 1.0
    report, _ = asked("census")
    assert report.counts == {}
    assert report.support["labels/diagnosis"] == report.participants["labels/diagnosis"] == 0
    assert report.support["labels/age"] == 40


def test_a_target_that_one_person_holds_does_not_move_its_head(site: Any) -> None:
    """The gradient of that head is her features."""
    asked = site("alpha", {"aggregation.weight": "participants", "pretraining.rounds": 1})
    training = asked.agent.cohort.indices("train", asked.agent.study.splits)
    age = asked.agent.cohort.labels["age"]
    age[np.setdiff1d(np.arange(len(age)), training[:9])] = np.nan
    given = asked.drawn
    report, sent = asked("train", given, round=1)
    assert not report.refusal
    assert report.support["labels/age"] == report.participants["labels/age"] == 0
    assert "loss/age" not in report.counts
    for name in sent:
        if name.startswith("heads.age"):
            np.testing.assert_array_equal(sent[name], given[name])


def test_twelve_volumes_of_one_person_are_one_person(site: Any) -> None:
    """She passed a minimum of ten by herself."""
    asked = site("alpha", policy={"minimum_cohort": 1})
    cohort = asked.agent.cohort
    agent = replace(
        asked.agent,
        cohort=replace(cohort, participants=tuple(f"p{i % 9}" for i in range(len(cohort)))),
    )
    for kind, more in (("train", {"round": 1}), ("settle", {})):
        given = asked.drawn if kind == "train" else constants_of(asked)
        report, sent = Asked(agent)(kind, given, **more)
        assert report.refusal in {"COHORT_TOO_SMALL", "NO_DATA"}
        assert (report.support, report.counts, sent) == ({}, {}, {})


def constants_of(asked: Asked) -> Arrays:
    """The arrays that a settling order is about."""
    return {name: array for name, array in asked.drawn.items() if ".standardise." in name}


@pytest.mark.parametrize("people", [2, 11, 19])
def test_sums_stay_unless_far_more_people_stand_behind_than_they_tell(
    site: Any, people: int
) -> None:
    """Sums and squares of two people's columns are both of their rows."""
    asked = site("alpha", {"splits": {"validation": 0.0, "test": 0.0}},
                 policy={"minimum_cohort": 1}, participants={"alpha": people})  # fmt: skip
    assert asked("settle", constants_of(asked))[0].refusal == "COHORT_TOO_SMALL"


def test_sums_over_enough_people_leave(site: Any) -> None:
    """Else nobody could standardise anything."""
    asked = site("alpha", {"splits": {"validation": 0.0, "test": 0.0}}, participants={"alpha": 20})
    report, sent = asked("settle", constants_of(asked))
    assert not report.refusal
    assert sent


def test_a_study_that_leaves_one_training_participant_is_not_trained(site: Any) -> None:
    """Forty are there, and one of them would be the whole update."""
    asked = site("alpha", {"splits": {"validation": 0.54, "test": 0.4}})
    left = asked.agent.cohort.indices("train", asked.agent.study.splits)
    assert len(left) < 10
    assert asked("train", asked.drawn, round=1)[0].refusal == "COHORT_TOO_SMALL"


def test_arrays_of_a_coordinators_own_making_are_not_trained(site: Any) -> None:
    """A layer whose neurons fire for one person each returned seventeen of twenty-three rows."""
    asked = site("alpha")
    crafted = {
        name: np.linspace(-9, 9, array.size).reshape(array.shape).astype(array.dtype)
        if array.ndim == 2 and "backbone" in name
        else array
        for name, array in asked.drawn.items()
    }
    assert any(not np.array_equal(crafted[name], asked.drawn[name]) for name in crafted)
    assert asked("train", crafted, round=1)[0].refusal == "ORDER_MALFORMED"
    report, sent = asked("train", asked.drawn, round=1)
    assert not report.refusal
    # nor in the second round, nor by a site that is asked for the first time in the second
    assert asked("train", crafted, round=2)[0].refusal == "ORDER_MALFORMED"
    huge = {name: 1e4 * array for name, array in crafted.items()}
    assert asked("train", huge, round=2, run=RUNS[1])[0].refusal == "ORDER_MALFORMED"
    assert not asked("train", {**asked.drawn, **sent}, round=2)[0].refusal
    # nor are they tuned, where this site knows what it had sent
    tuned = asked("finetune", crafted, task="none", init="pretrained", method="full")
    assert tuned[0].refusal == "ORDER_MALFORMED"


def test_arrays_that_nobody_trains_stay_what_they_were(site: Any) -> None:
    """An imprint layer may as well lie in a frozen base, or in the constants of a standardiser."""
    asked = site("alpha")
    given = asked.drawn
    report, sent = asked("train", given, round=1)
    assert not report.refusal
    moved = {**given, **sent, "backbone.standardise.mean": np.full(4, 1e3, np.float32)}
    assert asked("train", moved, round=2)[0].refusal == "ORDER_MALFORMED"


def test_what_was_kept_is_held_against_the_policy_of_today(site: Any) -> None:
    """A site that asks for more people behind each number means yesterday's answers as well."""
    asked = site("alpha", {"splits": {"validation": 0.0, "test": 0.0}}, participants={"alpha": 20})
    assert not asked("settle", constants_of(asked))[0].refusal
    policy = asked.agent.site.policy.model_copy(update={"minimum_support": 11})
    stricter = replace(asked.agent, site=asked.agent.site.model_copy(update={"policy": policy}))
    report, sent = Asked(stricter)("settle", constants_of(asked))
    assert (report.refusal, sent) == ("COHORT_TOO_SMALL", {})


def test_limits_are_set_before_anybody_thinks_of_them() -> None:
    """A default of no limit is nobody's decision."""
    policy = Policy()
    assert min(policy.most_exposures, policy.most_judgements, policy.largest_update_norm,
               policy.largest_drift) > 0  # fmt: skip


def test_two_studies_that_differ_by_a_hair_are_not_both_approved(federation: Write) -> None:
    """The difference of two updates is about whoever changed from one split to the other."""
    made = federation()
    own = load_site(made.sites / "alpha" / "site.toml")
    approvals.approve(own, made.study_file, 0)
    near = replace(made, changes={"name": "near", "splits": {"validation": 0.17, "test": 0.2}})
    with pytest.raises(SettingError, match=r"differ by \d of this site's people"):
        approvals.approve(own, near.study_file, 0)
    approvals.revoke(own, "tiny")  # what was answered before stays answered
    with pytest.raises(SettingError, match=r"differ by \d of this site's people"):
        approvals.approve(own, near.study_file, 0)
    same = replace(made, changes={"name": "same", "pretraining.rounds": 3})
    approvals.approve(own, same.study_file, 0)
    far = replace(made, changes={"name": "far", "splits": {"salt": "quite another"}})
    approvals.approve(own, far.study_file, 0)


def test_who_trains_does_not_follow_from_names_and_salt(federation: Write) -> None:
    """A coordinator who could compute the splits would choose bounds around one person."""
    made = federation()
    file = made.sites / "alpha" / "site.toml"
    file.write_text(file.read_text().replace('secret = "in the open"\n', ""))
    own, study = load_site(file), made.study
    first = open_agent(study, own).cohort
    again = open_agent(study, load_site(file)).cohort
    assert (
        first.indices("train", study.splits).tolist()
        == again.indices("train", study.splits).tolist()
    )
    (own.state / "secret").unlink()
    other = open_agent(study, own).cohort
    assert (
        first.indices("train", study.splits).tolist()
        != other.indices("train", study.splits).tolist()
    )


def add_people(file: Path, people: int, first: int = 0) -> None:
    """More rows like the first ones, of people numbered from `first`."""
    with file.open() as stream:
        rows = list(csv.reader(stream))
    with file.open("a", newline="") as stream:
        csv.writer(stream).writerows(
            [f"new-{first + number}", *map(str, np.random.default_rng(first + number).normal(size=4)),
             *rows[1 + number][5:]]
            for number in range(people)
        )  # fmt: skip


def test_two_censuses_do_not_single_out_who_joined_between(federation: Write) -> None:
    """The second census less the first was one person's diagnosis; newcomers wait for others."""
    made = federation()
    own, table = load_site(made.sites / "alpha" / "site.toml"), made.sites / "alpha" / "table.csv"
    told: list[str] = []
    with open_records(own) as records:

        def counted(run: str) -> Report:
            agent = open_agent(made.study, own, records=records, tell=told.append)
            return Asked(agent)("census", run=run)[0]

        first = counted(RUNS[0])
        add_people(table, 3)
        second = counted(RUNS[1])
        assert second.participants == first.participants == {**first.participants, "scans": 40}
        assert (second.support, second.cohort) == (first.support, first.cohort)
        assert "3 participants have come" in told[-1]
        add_people(table, 12, first=3)
        assert counted(RUNS[2]).participants["scans"] == 55


def test_nor_who_left(federation: Write) -> None:
    """Whoever withdrew is gone at once; that she is gone is not told until others are, too."""
    made = federation()
    own, table = load_site(made.sites / "alpha" / "site.toml"), made.sites / "alpha" / "table.csv"
    with open_records(own) as records:
        assert not Asked(open_agent(made.study, own, records=records))("census")[0].refusal
        table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
        fewer = open_agent(made.study, own, records=records)
        assert len(fewer.cohort) == 39
        report, _ = Asked(fewer)("census", run=RUNS[1])
        assert (report.refusal, report.support) == ("COHORT_TOO_SMALL", {})


def test_consent_warns_of_steps_that_are_nearly_somebodys_row(federation: Write) -> None:
    """One step over everybody is a sum that crafted arrays take apart; one scan is one person."""
    made = federation({"pretraining.batch_size": 1})
    own = load_site(made.sites / "alpha" / "site.toml")
    assert any("steps of one scan" in line for line in consent(own, made.study, 40).lines)
    full = replace(made, changes={"pretraining.batch_size": 64})
    assert any("one step over all" in line for line in consent(own, full.study, 40).lines)
    plain = replace(made, changes={})
    assert not any("WARNING" in line for line in consent(own, plain.study, 40).lines)


def test_consent_says_how_often_models_can_be_judged(federation: Write) -> None:
    """Whoever approves should know how many questions that allows."""
    made = federation(JUDGED)
    own = load_site(made.sites / "omega" / "site.toml")
    assert any("3 models in 3 runs, 9 orders" in line for line in consent(own, made.study).lines)


def test_digests_name_what_was_asked(site: Any) -> None:
    """The attacks above are refused for what they ask, not for a wrong digest."""
    asked = site("alpha")
    plan = plan_of(build(asked.agent.study, seed=0), "average")
    moving = {name: array for name, array in asked.drawn.items() if plan[name].travels}
    assert parcel_of(asked.drawn, plan).arrays == digest_of(moving)
