"""What a hospital types about its own authority, and what it reads then."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from client import cli
from client.authority.approvals import approved, paused, study_of
from client.authority.books import check_books
from client.authority.consent import consent
from client.authority.records import Records, open_records
from client.authority.spendings import Asked
from client.data.cohort import open_cohort
from client.data.prepare import prepare
from client.site import Site, load_site
from common.errors import Refusal, SettingError
from common.network.building import arrays_of, build, plan_of
from common.privacy.accounting import epsilon
from common.privacy.cost import Cost, cost_of
from common.protocol.orders import Books, Order, digest_of, refuse
from common.seeding import seed_of

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`callosum-site WORDS`, with what a person types at the question."""
    level = logging.getLogger("callosum.site").level

    def command(*words: object, typed: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["callosum-site", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        logging.getLogger("callosum.site").setLevel(level)
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out + written.err

    return command


@dataclass(frozen=True)
class Hospital:
    made: Any
    file: Path

    @property
    def site(self) -> Site:
        return load_site(self.file)

    @property
    def study(self) -> Path:
        return self.made.study_file

    def order(self, **changes: Any) -> Order:
        return Order.model_validate({
            "kind": "census", "study": self.made.study.digest, "run": "c" * 64, "site": "alpha",
            "arrays": "d" * 64, **changes,
        })  # fmt: skip

    def edit(self, **policy: Any) -> None:
        lines = [f"{key} = {json.dumps(value)}" for key, value in policy.items()]
        self.file.write_text(
            self.file.read_text() + "\n[policy]\nminimum_cohort = 9\n" + "\n".join(lines) + "\n"
        )


@pytest.fixture
def hospital(federation: Any) -> Hospital:
    made = federation(
        {
            "sites": {"train": ["alpha", "beta"], "heldout": ["omega"]},
            "objective.targets": ["age"],
            "comparisons": {"single_site": True, "pooled": False},
            "finetuning": [
                {
                    "name": "dementia",
                    "target": "diagnosis",
                    "methods": ["pretrained/frozen", "scratch/full"],
                }
            ],
        },
        lacks={"alpha": ("sex",)},
    )
    return Hospital(made, made.sites / "alpha" / "site.toml")


@pytest.fixture
def kit(hospital: Hospital) -> Path:
    """The same site as a kit."""
    folder = hospital.made.folder / "kits" / "alpha"
    (folder / "agent").mkdir(parents=True)
    (folder / "kit.toml").write_text(
        'name = "alpha"\nrole = "train"\nconsortium = "tests"\nhub = "hub.example.org:443"\n'
        "expires = 2030-01-01\n"
    )
    text = hospital.file.read_text().replace("table.csv", str(hospital.file.parent / "table.csv"))
    (folder / "agent" / "site.toml").write_text(text)
    return folder


COMMANDS = [
    ["studies"],
    ["pause", "--reason", "audit"],
    ["resume"],
    ["ledger"],
    ["books"],
    ["models"],
    ["receipts"],
    ["receipts", "verify"],
    ["revoke", "tiny"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_needs_a_kit_or_a_site_and_not_both(run, hospital, kit, words):
    """Working on another site than one believes would be worse than an error."""
    code, text = run(*words)
    assert (code, "neither is given" in text) == (2, True)
    code, text = run(*words, "--kit", kit, "--site", hospital.file)
    assert (code, "both are given" in text) == (2, True)


def test_a_study_is_shown_and_approved_after_a_yes(run, hospital):
    """Nobody approves what they were not shown."""
    code, text = run("approve", hospital.study, "--site", hospital.file, typed="y\n")
    assert code == 0
    for words in (
        "study tiny, digest",  # the study in words
        "this site: alpha, contributes to the weights",
        "targets held: age from column age, diagnosis from column diagnosis",
        "targets not held: sex",
        "MB travel from each site in each round",
        "leaves once (census)",
        "leaves before the first round of each model (settle): sums over all training scans",
        "backbone.standardise.deviation, backbone.standardise.mean",
        "leaves in each round (train): 8 arrays",
        "leaves after fine-tuning dementia (pretrained/frozen, scratch/full)",
        "no arrays; the tuned models stay here",
        "training orders in one run: 6 (2 rounds, 2 for a model of this site alone, 2 of fine-t",
        "limit: 1000 over all studies and runs (policy.most_exposures), 1000 left",
        "hours: always",
        "Does alpha approve this?",
        "approved: tiny",
    ):
        assert words in text, words
    assert study_of(hospital.site, hospital.made.study.digest) is not None


@pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("\n", 1), ("", 130)])
def test_anything_but_a_yes_approves_nothing(run, hospital, typed, code):
    """Enter alone, a no, and a script that has nobody to ask."""
    ended, _ = run("approve", hospital.study, "--site", hospital.file, typed=typed)
    assert ended == code
    assert approved(hospital.site) == []


def test_the_policys_consequences_are_said(run, hospital):
    """A limit that one learns of in round seven has cost six rounds."""
    hospital.edit(
        most_exposures=4,
        largest_report_mb=0.0001,
        orders=["census", "train"],
        hours=["Mon-Fri 19:00-07:00"],
    )
    with open_records(hospital.site) as records:
        records.spend(hospital.order(kind="train", round=9), "earlier", hospital.site.policy)
    code, text = run("approve", hospital.study, "--site", hospital.file, "--yes")
    assert code == 0
    assert "limit: 4 over all studies and runs (policy.most_exposures), 3 left" in text
    assert "after 3 the site refuses with PRIVACY_SPENT" in text
    assert "refused with REPORT_TOO_LARGE: train" in text
    assert "refused with POLICY: finetune, overlap, settle (policy.orders)" in text
    assert "hours: Mon-Fri 19:00-07:00" in text
    assert "fewer than 9 participants" in text


def test_what_may_be_asked_of_tuned_models_is_said(hospital):
    """Weights that were tuned on one hospital's patients are more than any average of many."""
    task = hospital.made.changes["finetuning"][0]
    task |= {"then": ["judge", "explain", "send"], "participants": [5, 10]}
    hospital.made.changes["start"] = {
        "study": "clips", "contributors": ["zeta"], "arrays": "0" * 64
    }  # fmt: skip
    lines = "\n".join(consent(hospital.site, hospital.made.study).lines)
    for words in (
        "begins from clips (backbone), to which zeta contributed",
        "a map of where the tuned networks of dementia look, the mean over test participants",
        "ALL THAT TUNING TRAINED for dementia",
        "8 (2 rounds, 2 for a model of this site alone, 4 of fine-tuning)",
        "refused with POLICY: explain, send (policy.orders)",
    ):
        assert words in lines, words


def test_a_judge_is_told_what_it_lets_out(hospital):
    """A held-out site sends numbers and no arrays, and is told so."""
    judge = load_site(hospital.made.sites / "omega" / "site.toml")
    lines = "\n".join(consent(judge, hospital.made.study).lines)
    assert "judges the result and never contributes" in lines
    assert "no arrays" in lines
    assert "in three figures" in lines
    assert "limit: each of 5 models in 3 runs, 15 orders at most (policy.most_judgements)" in lines
    assert "settle" not in lines
    assert "training orders" not in lines
    free = judge.model_copy(
        update={"policy": judge.policy.model_copy(update={"most_judgements": 0})}
    )
    lines = "\n".join(consent(free, hospital.made.study).lines)
    assert "limit: none (policy.most_judgements is 0)" in lines


@pytest.mark.parametrize(
    ("size", "scans", "words"),
    [
        (1, 40, "WARNING: steps of one scan each"),
        (16, 40, ""),
        (40, 40, "WARNING: a step takes 40 scans and this site has 40"),
        (64, 40, "WARNING: a step takes 64 scans and this site has 40"),
        (64, 0, ""),  # how many there are is not known
    ],
)
def test_steps_that_tell_of_single_people_are_warned_of(hospital, size, scans, words):
    """Of one scan, an update is her row; of all, a sum that crafted arrays take apart."""
    hospital.made.changes["pretraining.batch_size"] = size
    lines = "\n".join(consent(hospital.site, hospital.made.study, scans).lines)
    assert words in lines
    assert ("WARNING" in lines) == bool(words)


def test_a_site_that_can_have_no_part_approves_nothing(hospital):
    """Roles that contradict the study are refused here, where somebody can mend them."""
    study, site = hospital.made.study, hospital.site
    other = site.model_copy(update={"name": "gamma"})
    with pytest.raises(SettingError, match='role of gamma is "train"; tiny does not name it'):
        consent(other, study)
    with pytest.raises(SettingError, match="wants alpha to train"):
        consent(site.model_copy(update={"role": "heldout"}), study)
    with pytest.raises(SettingError, match='role of omega is "train"; tiny holds it out'):
        consent(site.model_copy(update={"name": "omega"}), study)
    data = site.data.model_copy(update={"kind": "t1w"})
    with pytest.raises(SettingError, match=r'data\.kind is "t1w"'):
        consent(site.model_copy(update={"data": data}), study)
    judge = site.model_copy(update={"name": "gamma", "role": "heldout"})
    assert "the study does not name it" in consent(judge, study).lines[0]


def test_a_study_that_cannot_be_built_is_not_approved(run, hospital):
    """The coordinator's mistake is found by the first site that looks."""
    odd = hospital.made.folder / "odd.toml"
    odd.write_text(hospital.study.read_text().replace("[targets.sex]", "[targets.training]"))
    code, text = run("approve", odd, "--site", hospital.file, "--yes")
    assert code == 3
    assert "targets.training has a name that PyTorch keeps for itself" in text
    assert approved(hospital.site) == []


def test_studies_are_listed_and_revoked(run, hospital):
    """A list of what one agreed to, and a way out of it."""
    run("approve", hospital.study, "--site", hospital.file, "--yes")
    digest = hospital.made.study.digest
    code, text = run("studies", "--site", hospital.file)
    assert code == 0
    assert "tiny" in text
    assert digest[:12] in text
    code, text = run("studies", "--site", hospital.file, "--json")
    [found] = json.loads(text)
    assert (found["digest"], found["name"], found["revoked"]) == (digest, "tiny", "")
    code, text = run("revoke", "tiny", "--site", hospital.file)
    assert code == 0
    assert json.loads(run("studies", "--site", hospital.file, "--json")[1]) == []
    assert run("revoke", "tiny", "--site", hospital.file)[0] == 3


def test_a_kit_is_a_site(run, hospital, kit):
    """In a hospital nobody types the way to a site file."""
    code, _ = run("approve", hospital.study, "--kit", kit, "--yes")
    assert code == 0
    assert len(approved(load_site(kit / "agent" / "site.toml"))) == 1
    code, text = run("check", "--study", hospital.study, "--kit", kit)
    assert code == 0
    assert "40 participants" in text
    code, text = run("studies", "--kit", kit.parent)
    assert code == 3
    assert "kit.toml" in text


def test_pause_and_resume(run, hospital):
    """One word stops everything, and the reason is there for whoever comes next."""
    code, text = run("pause", "--site", hospital.file, "--reason", "audit")
    assert (code, "alpha is paused" in text) == (0, True)
    assert paused(hospital.site).reason == "audit"
    assert "goes on" in run("resume", "--site", hospital.file)[1]
    assert "was not paused" in run("resume", "--site", hospital.file)[1]
    assert run("pause", "--site", hospital.file)[0] == 2


def worked(hospital: Hospital, records: Records) -> None:
    """A round, the same round again, and a refusal."""
    from client.service.agent import Agent

    study, site = hospital.made.study, hospital.site
    prepare(study, site)
    agent = Agent(site, study, open_cohort(study, site), records=records)
    network = build(study, seed=seed_of(study.seed, "initial"))
    arrays, plan = arrays_of(network), plan_of(network, study.aggregation.normalisation)
    moving = {name: array for name, array in arrays.items() if plan[name].travels}
    static = {name: array for name, array in arrays.items() if name not in moving}
    digests = {"arrays": digest_of(moving), "base": digest_of(static)}
    order = hospital.order(kind="train", round=1, **digests)
    for _ in range(2):
        report, _ = agent.answer(order, arrays)
        assert report.refusal == ""
    declined = hospital.order()
    records.decline(declined, "tiny", refuse(declined, "PAUSED"))
    records.decline_unread("UNSIGNED", 20)


def test_the_ledger_and_the_receipts_are_shown_while_the_agent_works(run, hospital):
    """Open records: a person reads them whenever they like."""
    assert "spent: 0" in run("ledger", "--site", hospital.file)[1]
    assert json.loads(run("receipts", "--site", hospital.file, "--json")[1]) == []
    assert "0 receipts are whole" in run("receipts", "verify", "--site", hospital.file)[1]
    with open_records(hospital.site) as records:
        worked(hospital, records)
        code, text = run("ledger", "--site", hospital.file)
        assert code == 0
        assert "spent: 1 over all studies and runs; 999 of 1000 left" in text
        code, text = run("ledger", "--site", hospital.file, "--json")
        told = json.loads(text)
        assert (told["spent"], told["most"], told["left"]) == (1, 1000, 999)
        assert told["exposures"][0]["answered"] is True
        code, text = run("receipts", "--site", hospital.file)
        assert code == 0
        rows = [line for line in text.splitlines() if "train" in line and "tiny" in line]
        assert len(rows) == 2
        assert "PAUSED" in text
        assert "UNSIGNED" in text
        code, text = run("receipts", "--site", hospital.file, "--last", "1", "--json")
        [last] = json.loads(text)
        assert (last["refusal"], last["number"]) == ("UNSIGNED", 4)
        code, text = run("receipts", "verify", "--site", hospital.file)
        assert (code, "4 receipts are whole; the hash of number 4" in text) == (0, True)


def test_books_are_accepted_after_a_yes_and_with_the_agent_stopped(run, hospital):
    """Who accepts says that no copy runs; both counts are on the screen before the question."""
    assert "without an id yet" in run("books", "--site", hospital.file)[1]
    seen = Books(state="f" * 32, exposures=8, receipt=52, hash="e" * 64)
    with open_records(hospital.site) as records:
        worked(hospital, records)
        with pytest.raises(Refusal):
            check_books(records.ledger, seen)
        code, text = run("books", "--site", hospital.file, "--accept", "--yes")
        assert (code, "another process holds" in text) == (5, True)
    code, text = run("books", "--site", hospital.file, "--accept", typed="\n")
    assert code == 1
    for words in (
        "exposures 1;",
        "STOPPED since",
        "has seen 8 exposures, receipt 52",
        "other copy",
    ):
        assert words in text
    code, text = run("books", "--site", hospital.file, "--accept", typed="y\n")
    assert (code, "goes on from 8 exposures, 7 of them taken over" in text) == (0, True)
    assert "STOPPED" not in run("books", "--site", hospital.file)[1]
    assert "spent: 8 (7 taken over) over all" in run("ledger", "--site", hospital.file)[1]
    told = json.loads(run("ledger", "--site", hospital.file, "--json")[1])
    assert (told["spent"], told["taken_over"], len(told["exposures"])) == (8, 7, 1)
    assert run("books", "--site", hospital.file, "--accept", "--yes", "--exposures", "9")[0] == 0
    assert "exposures 9, 8 of them taken over" in run("books", "--site", hospital.file)[1]


def test_tuned_models_are_shown(run, hospital):
    """They stay at the hospital, so somebody there should know what they are and how good."""
    from client.service.agent import Agent

    assert json.loads(run("models", "--site", hospital.file, "--json")[1]) == []
    study, site = hospital.made.study, hospital.site
    prepare(study, site)
    order = hospital.order(
        kind="finetune", task="dementia", init="scratch", method="full", arrays=digest_of({})
    )
    assert Agent(site, study, open_cohort(study, site)).answer(order, {})[0].refusal == ""
    code, text = run("models", "--site", hospital.file)
    assert code == 0
    for words in ("tuned models kept at alpha", "dementia", "scratch", "full", "auc"):
        assert words in text, words
    [found] = json.loads(run("models", "--site", hospital.file, "--json")[1])
    assert (found["task"], found["init"], found["method"]) == ("dementia", "scratch", "full")
    assert found["model"]["chosen"] in (0, 1)
    assert len(found["model"]["grid"][0]["history"]) == 8


def test_what_is_left_of_a_limit_is_shown(run, hospital):
    """The number that decides whether the next study is possible."""
    hospital.edit(most_exposures=3)
    with open_records(hospital.site) as records:
        records.spend(hospital.order(kind="train"), "tiny", hospital.site.policy)
    assert "2 of 3 left" in run("ledger", "--site", hospital.file)[1]
    told = json.loads(run("ledger", "--site", hospital.file, "--json")[1])
    assert (told["most"], told["left"]) == (3, 2)


def test_receipts_that_were_changed_end_in_code_5(run, hospital):
    """A script that runs it every night acts on the code; a person needs the place."""
    with open_records(hospital.site) as records:
        for number in range(3):
            order = hospital.order(round=number)
            records.decline(order, "tiny", refuse(order, "PAUSED"))
    [file] = (hospital.site.state / "receipts").glob("*.jsonl")
    file.write_text(file.read_text().replace('"round": 1', '"round": 7'))
    for words in (("verify", "--site", hospital.file), ("--site", hospital.file, "verify")):
        code, text = run("receipts", *words)
        assert code == 5
        assert f"{file.name}, line 2: receipt 2 was changed after it was written" in text
        assert "receipts of alpha were changed or lost; faults: 1" in text


def test_a_lost_ledger_is_noticed(run, hospital):
    """Without it, what was spent is not known, and receipts could be cut off unseen."""
    with open_records(hospital.site) as records:
        worked(hospital, records)
    (hospital.site.state / "ledger.sqlite").unlink()
    code, text = run("receipts", "verify", "--site", hospital.file)
    assert code == 5
    assert "the ledger knows receipts up to 0 only" in text
    with pytest.raises(Exception, match="the ledger is not the newest"):
        open_records(hospital.site)


def test_rich_markup_in_a_name_is_shown_as_it_is(run, hospital):
    """A file called [red] must not colour the list, nor vanish from it."""
    odd = hospital.made.folder / "[red]study.toml"
    odd.write_text(hospital.study.read_text())
    run("approve", odd, "--site", hospital.file, "--yes")
    found = run("studies", "--site", hospital.file)[1]
    assert "[red]study.toml" in "".join(found.split()).replace("│", "")


PRIVATE = {
    "unit": "participant", "people_per_step": 8, "noise": 2.0, "epsilon": 3.0, "delta": 1e-4,
}  # fmt: skip


@pytest.fixture
def private(hospital: Hospital) -> Hospital:
    hospital.made.changes["privacy"] = PRIVATE
    hospital.made.changes["aggregation"] = {"normalisation": "groupnorm"}
    return hospital


def spend(hospital: Hospital, *rounds: int) -> Cost:
    """Private rounds as the agent enters them; what one costs."""
    cost = cost_of(hospital.made.study, 26)
    asked = Asked(cost=cost, people=26, study_cap=0.0, site_cap=0.0)
    with open_records(hospital.site) as records:
        for number in rounds:
            order = hospital.order(kind="train", round=number)
            records.spend(order, "tiny", hospital.site.policy, asked)
    return cost


def test_what_a_private_study_would_cost_is_said_before_a_yes(run, private):
    """Epsilon of a run, the caps, and that there is less left than a run asks for."""
    code, text = run("approve", private.study, "--site", private.file, typed="n\n")
    assert code == 1
    for words in (
        "privacy would cost in one run: epsilon ",
        "at delta 0.0001, in 4 orders of 4 steps, where about 26 of 40 participants train",
        "limit: epsilon 3 for this study; over all studies policy.epsilon sets no limit, nothing so",
    ):
        assert words in text, words
    spend(private, 1, 2)
    private.edit(epsilon=1.5)
    _, text = run("approve", private.study, "--site", private.file, typed="n\n")
    assert "that is more than is left: after some orders the site declines" in text
    assert "policy.epsilon is 1.5" in text


def test_the_ledger_says_what_privacy_was_spent_and_what_that_means(run, private):
    """In words for whoever answers for the participants: spent, left, unit, and what is left out."""
    cost = spend(private, 1, 2)
    run("approve", private.study, "--site", private.file, "--yes")
    with open_records(private.site) as records:
        records.spend(private.order(kind="finetune"), "tiny", private.site.policy)
    private.edit(epsilon=5.0)
    code, text = run("ledger", "--site", private.file)
    assert code == 0
    spent = epsilon([cost, cost], cost.delta)
    words = " ".join(text.replace("│", " ").split())
    for told in (
        f"{2 * cost.steps} 2 0.3077 0.0001 {spent:.3g} {3 - spent:.3g} of 3",
        f"private training, all studies: epsilon {spent:.3g} at delta 0.0001",
        f"policy.epsilon leaves {5 - spent:.3g} of 5",
        "unit: one participant, with all of her scans and labels",
        "neighbours: two data sets, one of which holds one participant more than the other",
        "not covered: measurements, losses and counts",
        "WITHOUT A BOUND besides: 1 training orders on the same people",
    ):
        assert told in words, told
    code, text = run("ledger", "--site", private.file, "--json")
    [one] = json.loads(text)["private"]
    assert one["epsilon"] == spent
    assert one["cap"] == 3.0


def test_a_ledger_without_private_orders_speaks_of_no_epsilon(run, hospital):
    """A zero would read as a promise."""
    with open_records(hospital.site) as records:
        records.spend(hospital.order(kind="train", round=1), "tiny", hospital.site.policy)
    _, text = run("ledger", "--site", hospital.file)
    assert "epsilon" not in text
