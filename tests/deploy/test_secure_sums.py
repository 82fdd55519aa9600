"""Whole federations whose updates are summed in secret: the plain mean, whoever drops out or lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.secure_sums.summing import Summing
from common.errors import QuorumError
from common.protocol.orders import Order, refuse
from common.protocol.wire import array_record, open_arrays, pack_report, unpack_order
from deploy.local_grid import LocalGrid
from server.report.page import write_report
from tests.deploy.test_kill import killed_run

EIGHT = [f"site-{letter}" for letter in "abcdefgh"]
# no batch statistics and no momentum: else one bit of difference grows from round to round
STEADY: dict[str, Any] = {
    "sites": {"train": EIGHT, "quorum": 6},
    "objective.targets": ["age", "sex"],
    "backbone": {"name": "linear"},
    "pretraining": {
        "rounds": 3, "learning_rate": 0.1, "optimiser": "sgd", "momentum": 0.0, "batch_size": 16,
        "schedule": "constant", "gradient_clip": 0.0,
    },
}  # fmt: skip
SECURE = {"secure_sums": {"on": True}}
GONE = {1: ("site-b", "site-g"), 2: ("site-a", "site-b"), 3: ()}
Made = Callable[..., Any]


def arrays(run: Any, name: str = "final") -> dict[str, Any]:
    with open_arrays(run.folder / "checkpoints" / f"{name}.safetensors") as file:
        return {name: array for name, array in file.all().items() if name.startswith("model/")}


def record(run: Any, number: int) -> dict[str, Any]:
    return json.loads((run.folder / f"rounds/{number:04d}/record.json").read_text())


def furthest(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def refusing(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[Order], bool]) -> None:
    """Let sites decline some orders, as one that is paused does."""
    plain = LocalGrid._answer

    def instead(self: LocalGrid, message: Message) -> Message:
        order, _ = unpack_order(message.content)
        if not refuses(order):
            return plain(self, message)
        content = pack_report(refuse(order, "PAUSED"), array_record({}))
        return Message(content, reply_to=message)

    monkeypatch.setattr(LocalGrid, "_answer", instead)


def dropping_out(monkeypatch: pytest.MonkeyPatch, gone: Mapping[int, tuple[str, ...]]) -> None:
    """Sites that are off in some rounds: they neither train nor help to unmask."""
    refusing(
        monkeypatch,
        lambda order: order.kind in ("train", "unmask") and order.site in gone.get(order.round, ()),
    )


def test_secure_sums_equal_the_plain_mean_with_eight_sites_and_two_drop_outs(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the coordinator does not see changes nothing of what it learns: to 1e-6, every round.

    Sites that were out in one round are in the next again; two in three rounds were not the same.
    """
    dropping_out(monkeypatch, GONE)
    plain = module_federation(STEADY).simulate()
    secure = module_federation(STEADY | SECURE).simulate()
    assert furthest(arrays(plain), arrays(secure)) < 1e-6
    for number, gone in GONE.items():
        one, other = record(plain, number), record(secure, number)
        assert sorted(one["answered"]) == sorted(other["answered"])
        assert sorted(other["refused"]) == sorted(gone)
        assert other["degraded"] == bool(gone)
        for what in ("loss", "validation_loss"):
            assert other[what] == pytest.approx(one[what], rel=1e-6)
        for target, metrics in one["validation"].items():
            assert other["validation"][target] == pytest.approx(metrics, rel=1e-6)
        assert other["update_norm"] == pytest.approx(one["update_norm"], abs=1e-6)
        together = {
            group: sum(line["support"][group] for line in one["answered"].values())
            for group in ("shared", "labels/age", "labels/sex")
        }
        assert other["sum"]["support"] == together
        assert all(line["support"] == {} for line in other["answered"].values())


def test_statistics_of_layers_are_those_of_all_samples_together(module_federation: Made) -> None:
    """A variance is the mean of the sites' and that of their means besides, though none is seen."""
    changes = {
        "sites": {"train": EIGHT}, "pretraining.rounds": 1,
        "backbone": {"name": "mlp", "hidden": [6], "dropout": 0.0},
    }  # fmt: skip
    lacks = {"site-c": ("sex",), "site-d": ("age",)}
    plain = module_federation(changes, lacks=lacks).simulate()
    secure = module_federation(changes | SECURE, lacks=lacks).simulate()
    one, other = arrays(plain), arrays(secure)
    assert any(name.endswith("running_var") for name in one)
    assert furthest(one, other) < 1e-6
    labels = record(secure, 1)["sum"]["support"]
    assert labels["labels/sex"] < labels["shared"] > labels["labels/age"]  # two sites lack one


def test_the_sum_has_the_same_bits_in_whatever_order_sites_answer(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole numbers: no order, and no other masks, changes what comes out."""
    first = module_federation(STEADY | SECURE).simulate()
    plain = LocalGrid.pull_messages

    def last_first(self: LocalGrid, wanted: Any) -> Any:
        self._waiting = dict(reversed(self._waiting.items()))
        return plain(self, wanted)

    monkeypatch.setattr(LocalGrid, "pull_messages", last_first)
    again = module_federation(STEADY | SECURE).simulate()
    assert furthest(arrays(first), arrays(again)) == 0.0


def test_fewer_sites_than_the_threshold_are_never_added_up(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round waits, told by name; when one site is back, the same command goes on."""
    made = module_federation(STEADY | SECURE)
    with monkeypatch.context() as patch:
        dropping_out(patch, {2: ("site-a", "site-b", "site-c")})
        with pytest.raises(QuorumError, match="5 of 8 sites answered, the quorum is 6"):
            made.simulate()
        assert not (made.folder / "run/rounds/0002/summed.json").exists()
    with monkeypatch.context() as patch:
        dropping_out(patch, {2: ("site-a", "site-b")})
        resumed = made.simulate()
    assert record(resumed, 2)["sum"]["sites"] == 6
    with monkeypatch.context() as patch:
        dropping_out(patch, {2: ("site-a", "site-b")})
        calm = module_federation(STEADY | SECURE).simulate()
    assert furthest(arrays(calm), arrays(resumed)) == 0.0


def test_sites_that_die_after_they_sent_are_unmasked_by_the_others(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of eight have sent, two of these die; the two that were late hold shares as well."""
    off = {"train": ("site-a", "site-b"), "unmask": ("site-g", "site-h")}
    refusing(monkeypatch, lambda order: order.round == 2 and order.site in off.get(order.kind, ()))
    secure = module_federation(STEADY | SECURE).simulate()
    assert record(secure, 2)["sum"] == record(secure, 2)["sum"] | {"sites": 6, "spoilt": ""}
    monkeypatch.undo()
    dropping_out(monkeypatch, {2: ("site-a", "site-b")})
    wanted = module_federation(STEADY | SECURE).simulate()
    assert furthest(arrays(wanted), arrays(secure)) == 0.0


def test_a_round_whose_survivors_were_settled_keeps_them(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes back while the sum waits is not in it: each site answers for one sum alone."""
    made = module_federation(STEADY | SECURE)
    with monkeypatch.context() as patch:
        off = {"train": ("site-a", "site-b"), "unmask": ("site-c", "site-d", "site-e")}
        refusing(patch, lambda order: order.round == 2 and order.site in off.get(order.kind, ()))
        with pytest.raises(QuorumError, match="5 sites told what takes the masks off"):
            made.simulate()
    resumed = made.simulate()
    assert record(resumed, 2)["refused"] == {"site-a": "PAUSED", "site-b": "PAUSED"}
    assert record(resumed, 3)["sum"]["sites"] == 8


def test_a_site_that_deals_out_nonsense_costs_one_round_and_is_left_out(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its masks cannot be taken off any sum; without it the others agree anew, and go on."""
    split = Summing._split

    def nonsense(self: Summing, *about: Any) -> list[bytes]:
        honest = split(self, *about)
        return honest if self.site.name != "site-c" else [bytes(reversed(s)) for s in honest]

    monkeypatch.setattr(Summing, "_split", nonsense)
    made = module_federation(STEADY | SECURE)
    run = made.simulate()
    assert "the masks of site-c cannot be taken off" in record(run, 1)["sum"]["spoilt"]
    assert record(run, 1)["degraded"]
    assert record(run, 1)["update_norm"] == 0.0
    for number in (2, 3):
        assert record(run, number)["sum"]["spoilt"] == ""
        assert sorted(record(run, number)["answered"]) == [s for s in EIGHT if s != "site-c"]


def test_a_site_that_tells_wrong_shares_is_not_believed(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of the other seven make each secret; what was committed to says which six."""
    calm = module_federation(STEADY | SECURE).simulate()
    unmask = Summing.unmask

    def lying(self: Summing, *about: Any) -> Any:
        answer = unmask(self, *about)
        if self.site.name == "site-a":
            answer.arrays["told"] = answer.arrays["told"] ^ 1
        return answer

    monkeypatch.setattr(Summing, "unmask", lying)
    run = module_federation(STEADY | SECURE).simulate()
    assert not any(record(run, number)["sum"]["spoilt"] for number in (1, 2, 3))
    assert furthest(arrays(calm), arrays(run)) == 0.0


def test_a_site_that_sends_noise_spoils_the_round_and_nothing_else(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say who it was; a sum that no honest sites have is seen, and changes nothing."""
    steps = Summing._steps

    def noise(self: Summing, roster: Any, root: Any, slot: Any, *more: Any) -> Any:
        found = steps(self, roster, root, slot, *more)
        if self.site.name == "site-c" and slot.round == 2:
            random = np.random.default_rng(1)
            return {
                name: random.integers(-(2**31), 2**31, array.shape, dtype=array.dtype)
                for name, array in found.items()
            }
        return found

    monkeypatch.setattr(Summing, "_steps", noise)
    run = module_federation(STEADY | SECURE).simulate()
    assert [bool(record(run, number)["sum"]["spoilt"]) for number in (1, 2, 3)] == [
        False, True, False,
    ]  # fmt: skip
    assert furthest(arrays(run, "0001"), arrays(run, "0002")) == 0.0


def test_an_update_beyond_the_studys_limit_stays_at_its_site(
    module_federation: Made,
) -> None:
    """Never cut off in silence: a code, and the round goes on without the site."""
    changes = STEADY | {"secure_sums": {"on": True, "largest_update": 0.02}}
    with pytest.raises(QuorumError, match="UPDATE_TOO_LARGE"):
        module_federation(changes).simulate()


def test_private_rounds_are_summed_in_secret_as_well(module_federation: Made) -> None:
    """Noise is added at each site before its masks; costs are told, losses of training are not."""
    changes = STEADY | SECURE | {
        "privacy": {"unit": "participant", "people_per_step": 16, "noise": 0.5, "epsilon": 0.0},
        "aggregation.normalisation": "groupnorm",
        "splits": {"validation": 0.3},
    }  # fmt: skip
    run = module_federation(changes, participants=dict.fromkeys(EIGHT, 60)).simulate()
    for number in (1, 2, 3):
        found = record(run, number)
        assert found["loss"] == {}
        assert found["validation_loss"]
        assert all(line["cost"]["noise"] == 0.5 for line in found["answered"].values())
    assert record(run, 3)["validation_loss"]["age"] < record(run, 1)["validation_loss"]["age"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_at_every_write_changes_no_bit_of_the_sum(
    federation: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keys, shares, masked reports, who is summed, what unmasks: each may be the last thing written."""
    made = federation({
        **STEADY, **SECURE, "sites": {"train": ["alpha", "beta", "gamma"], "quorum": 2},
        "pretraining.rounds": 2, "evaluation.baselines": False,
    })  # fmt: skip
    found = killed_run(made, tmp_path_factory.mktemp("killed") / "work", [], 1700)
    assert found["faults"] == []
    assert any(path.endswith("summed.json") for path in found["renames"])
    assert found["kills"] == 2 * len(found["renames"])


STEPS = {
    "secret drawn, no key told": r"after:sites/beta/.*/sums/.*/root\.key",
    "keys of one site": r"after:^run/sums/0001/keys/beta",
    "roster, nobody asked for shares": r"after:^run/sums/0001/roster\.json",
    "roster, at the site": r"after:sites/beta/.*/roster\.safetensors",
    "shares dealt out, not told": r"after:sites/beta/.*/shares/",
    "masked, not told": r"after:sites/beta/.*/masked-0001-federated-00001",
    "a masked report": r"after:^run/rounds/0001/replies/beta",
    "settled, nobody asked": r"after:^run/rounds/0001/summed\.json",
    "decided at a site, not told": r"after:sites/beta/.*/unmasked-federated-00001",
    "half of what unmasks": r"after:^run/rounds/0001/unmask/beta",
    "unmasked, no checkpoint": r"after:^run/rounds/0001/record\.json",
}


@pytest.mark.timeout(600)
def test_kill_in_every_step_of_a_secure_round_changes_no_bit(
    federation: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same, once in each step."""
    made = federation({
        **STEADY, **SECURE, "sites": {"train": ["alpha", "beta", "gamma"]},
        "pretraining.rounds": 2, "evaluation.baselines": False,
    })  # fmt: skip
    work: Path = tmp_path_factory.mktemp("killed") / "work"
    found = killed_run(made, work, list(STEPS.values()), 540)
    assert found["faults"] == []
    assert found["kills"] == len(STEPS)


def test_a_site_with_another_identity_than_the_list_keeps_nobody_else_out(
    module_federation: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All others would refuse a roster with it; where the coordinator has the list, it is not in one."""
    from client.secure_sums.peers import identity_of, public_of
    from client.site import load_site
    from server.federation.exchange import Exchange

    made = module_federation(STEADY | SECURE | {"pretraining.rounds": 1})
    known = {
        name: public_of(identity_of(load_site(made.sites / name / "site.toml"))) for name in EIGHT
    }
    wrong = {**known, "site-d": bytes(32)}
    monkeypatch.setattr(
        Exchange, "identities", property(lambda _: wrong, lambda _, value: None), raising=False
    )
    run = made.simulate()
    assert sorted(record(run, 1)["answered"]) == [site for site in EIGHT if site != "site-d"]
    assert "site-d tells another identity" in capsys.readouterr().err


def test_members_of_an_ensemble_and_models_of_some_targets_are_summed_too(
    module_federation: Made,
) -> None:
    """One agreement holds for all rounds of all models, and each has masks of its own."""
    changes = STEADY | {
        "sites": {"train": EIGHT[:4], "quorum": 3},
        "comparisons": {
            "single_site": False, "pooled": False, "ensemble": 2, "targets": {"age-only": ["age"]},
        },
        "pretraining.rounds": 2,
    }  # fmt: skip
    lacks = {"site-a": ("age",)}
    plain = module_federation(changes, lacks=lacks).simulate()
    secure = module_federation(changes | SECURE, lacks=lacks).simulate()
    for model in ("seed-2", "age-only"):
        both = []
        for run in (plain, secure):
            with open_arrays(run.comparison(model).final) as file:
                both.append({n: a for n, a in file.all().items() if n.startswith("model/")})
        assert furthest(*both) < 1e-6
    assert len(list((secure.folder / "sums").iterdir())) == 1
    page = write_report(secure).read_text()
    assert "Sums were secure" in page
    assert "saw sums over at least 3 of 4 sites" in page
    assert "under masks, which only their sum sheds" in page
