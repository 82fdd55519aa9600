"""The first door lets in what is signed, fresh, approved and allowed, and says why of all else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.authority import approvals
from client.authority.admission import Admission
from client.authority.approvals import approve, pause, study_of
from client.authority.ledger import Ledger
from client.site import Site, load_site
from common.errors import SENTENCES, Refusal, StorageError
from common.protocol.code import agreed_digest
from common.protocol.orders import PROTOCOL, Order
from common.protocol.signing import CLOCK_TOLERANCE_S, Sealed, seal

MONDAY_NOON = datetime.fromisoformat("2024-01-01T12:00").timestamp()  # local, as a site's hours are
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
OF_TRAINING = ("settle", "train", "finetune", "judge", "explain", "send", "linear")


@dataclass(frozen=True)
class Asking:
    """An order on its way to a site, before it is sealed, and the site as it is then."""

    site: Site
    order: dict[str, Any]
    code: str = ""
    key: Any = KEY
    now: float = MONDAY_NOON
    lifetime_s: float = 3600.0
    changes: dict[str, Any] = field(default_factory=dict)  # of the envelope

    def sealed(self) -> Sealed:
        order = Order.model_validate(self.order)
        sealed = seal(order, None, code=self.code, now=MONDAY_NOON, lifetime_s=self.lifetime_s)
        text = json.dumps({**json.loads(sealed.text), **self.changes})
        signature = self.key.sign(b"callosum order 1\0" + text.encode()).hex() if self.key else ""
        return Sealed(text, signature)

    def policy(self, **changes: Any) -> Asking:
        policy = self.site.policy.model_copy(update=changes)
        return replace(self, site=self.site.model_copy(update={"policy": policy}))


@pytest.fixture
def asking(federation):
    """A training order that its site would take."""
    made = federation({"sites": {"train": ["alpha"], "heldout": ["omega"]}})
    site = load_site(made.sites / "alpha" / "site.toml")
    approve(site, made.study_file, report_bytes=2_000_000)
    order = {
        "kind": "train", "study": made.study.digest, "run": "c" * 64, "site": "alpha", "round": 1,
        "arrays": "d" * 64,
    }  # fmt: skip
    return Asking(site, order, agreed_digest(made.study))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def admit(ledger):
    """Bring an order to the door of its site."""

    def bring(asking: Asking, sealed: Sealed | None = None) -> Any:
        site = asking.site
        door = Admission(
            site, [KEY.public_key()], ledger, lambda digest: approvals.study_of(site, digest)
        )
        return door.admit(sealed or asking.sealed(), asking.now)

    return bring


def refusal(admit: Any, *things: Any) -> str:
    with pytest.raises(Refusal) as caught:
        admit(*things)
    assert caught.value.code in SENTENCES
    return caught.value.code


def with_order(asking: Asking, **changes: Any) -> Asking:
    return replace(asking, order={**asking.order, **changes})


def replayed(asking: Asking, ledger: Ledger) -> Asking:
    nonce = "9" * 32
    envelope = json.loads(asking.sealed().text)
    ledger.present(nonce, Order.model_validate(envelope["order"]).id, 0.0)
    ledger.close(nonce)
    return replace(asking, changes={**asking.changes, "nonce": nonce})


def spent(asking: Asking, ledger: Ledger) -> Asking:
    ledger.spend(Order.model_validate({**asking.order, "round": 77}), "tiny")
    return asking.policy(most_exposures=1)


def paused(asking: Asking, ledger: Ledger) -> Asking:
    pause(asking.site, "audit")
    return asking


# Each spoils one thing, in the documented order of checks.
CHECKS = {
    "UNSIGNED": lambda asking, ledger: replace(asking, key=None),
    "SIGNATURE": lambda asking, ledger: replace(asking, key=asking.key and OTHER),
    "EXPIRED": lambda asking, ledger: replace(
        asking, now=asking.now + asking.lifetime_s + CLOCK_TOLERANCE_S + 1
    ),
    "REPLAYED": replayed,
    "STUDY_UNKNOWN": lambda asking, ledger: with_order(asking, study="0" * 64),
    "CODE": lambda asking, ledger: replace(asking, changes={**asking.changes, "code": "0" * 64}),
    "ROLE": lambda asking, ledger: replace(
        asking, site=asking.site.model_copy(update={"role": "heldout"})
    ),
    "POLICY": lambda asking, ledger: asking.policy(orders=("census",)),
    "PAUSED": paused,
    "HOURS": lambda asking, ledger: asking.policy(hours=("Mon-Fri 19:00-07:00",)),
    "REPORT_TOO_LARGE": lambda asking, ledger: asking.policy(largest_report_mb=1.9),
    "PRIVACY_SPENT": spent,
}


def test_an_order_that_is_all_right_is_let_in(asking, admit):
    """The control: a door that is always shut would pass every other test here."""
    envelope = admit(asking)
    assert envelope.order == Order.model_validate(asking.order)
    at_its_limits = asking.policy(
        largest_report_mb=2.0, most_exposures=1, hours=("Mon 11:00-13:00", "Sun 10:00-11:00")
    )
    admit(at_its_limits)


@pytest.mark.parametrize("code", CHECKS)
def test_each_fault_has_its_code(asking, admit, ledger, code):
    """The coordinator's screen shows the code; a wrong one sends people looking elsewhere."""
    assert refusal(admit, CHECKS[code](asking, ledger)) == code


@pytest.mark.parametrize("first", list(CHECKS)[:-1])
def test_the_first_fault_of_the_documented_order_is_told(asking, admit, ledger, first):
    """Who may not ask at all must not learn what the site has approved, allows or has spent."""
    codes = list(CHECKS)
    later = codes[codes.index(first) + 1 :]
    order = [first, *later]
    for code in reversed(order):  # spoil the whole rest, then this one
        if {first, code} != {"UNSIGNED", "SIGNATURE"}:  # one has no signature, or a wrong one
            asking = CHECKS[code](asking, ledger)
    assert refusal(admit, asking) == first


def test_both_of_two_keys_are_trusted(asking, ledger):
    """While a new key replaces the old, orders of either are on their way."""
    keys = [KEY.public_key(), OTHER.public_key()]
    door = Admission(asking.site, keys, ledger, lambda digest: study_of(asking.site, digest))
    for key in (KEY, OTHER):
        door.admit(replace(asking, key=key).sealed(), asking.now)


def test_a_word_changed_after_signing_is_refused(asking, admit):
    """The courier and the hub see every order; neither may change a letter."""
    sealed = asking.sealed()
    changed = Sealed(sealed.text.replace('"round": 1', '"round": 2'), sealed.signature)
    assert changed.text != sealed.text
    assert refusal(admit, asking, changed) == "SIGNATURE"


def test_the_same_delivery_is_let_in_until_it_is_answered(asking, admit, ledger):
    """An agent killed at work gets the very same message again from Flower."""
    sealed = asking.sealed()
    envelope = admit(asking, sealed)
    admit(asking, sealed)
    ledger.close(envelope.nonce)
    assert refusal(admit, asking, sealed) == "REPLAYED"
    admit(asking)  # the same order under a new number


def test_an_order_for_another_site_is_refused(asking, admit):
    """Signed, fresh and approved, but not for us: the hub sent it to the wrong door."""
    assert refusal(admit, with_order(asking, site="beta")) == "ORDER_MALFORMED"


def test_a_model_that_no_run_of_the_study_has_is_refused(asking, admit):
    """Caps are by model: one name more would be as many askings more."""
    for model in ("single-alpha", "pooled", "pooled-linear", "other"):
        assert refusal(admit, with_order(asking, model=model)) == "ORDER_MALFORMED"
    admit(with_order(asking, model="federated"))


@pytest.mark.parametrize("kind", OF_TRAINING)
def test_a_held_out_site_contributes_to_nothing(asking, admit, kind):
    """Neither by its own word nor by the study's, whichever is stricter."""
    own = replace(asking, site=asking.site.model_copy(update={"role": "heldout"}))
    own = own.policy(orders=("census", *OF_TRAINING, "evaluate"))
    assert refusal(admit, with_order(own, kind=kind)) == "ROLE"
    named = asking.site.model_copy(update={"name": "omega"})
    by_study = with_order(replace(asking, site=named), kind=kind, site="omega")
    assert refusal(admit, by_study) == "ROLE"


def test_a_held_out_site_learns_for_itself_alone_and_where_the_study_says_so(federation, admit):
    """A protocol sends figures; one that the study gives to training sites is none of a judge's."""
    task = {"name": "dementia", "target": "diagnosis", "methods": ["linear"], "repeats": 0}
    drawn = {"task": "dementia", "scheme": "folds", "repeats": 1}
    made = federation({
        "sites": {"train": ["alpha"], "heldout": ["omega"]}, "finetuning": [task],
        "protocols": [{**drawn, "name": "shots", "at": "heldout"}, {**drawn, "name": "draws"}],
    })  # fmt: skip
    run = {"kind": "protocol", "study": made.study.digest, "run": "c" * 64, "arrays": "d" * 64}
    for name, own, others in (("omega", "shots", "draws"), ("alpha", "draws", "shots")):
        site = load_site(made.sites / name / "site.toml")
        approve(site, made.study_file, report_bytes=2_000_000)
        order = {**run, "site": name, "method": "linear"}
        asking = Asking(site, {**order, "task": own}, agreed_digest(made.study))
        admit(asking)
        assert refusal(admit, with_order(asking, task=others)) == "ROLE"
        recast = {"train": "heldout", "heldout": "train"}[site.role]
        other = site.model_copy(update={"role": recast})
        for task_ in (own, others):  # its own file, or the study, whichever is stricter
            assert refusal(admit, with_order(replace(asking, site=other), task=task_)) == "ROLE"


def test_a_training_site_judges_nothing(asking, admit):
    """Neither by its own word nor where the study lists it among those that train."""
    assert refusal(admit, with_order(asking, kind="evaluate")) == "ROLE"
    changed = replace(asking, site=asking.site.model_copy(update={"role": "heldout"}))
    assert refusal(admit, with_order(changed, kind="evaluate")) == "ROLE"


def test_a_site_in_the_lineage_does_not_judge(asking, admit):
    """Whoever contributed to the arrays cannot be their judge."""
    judge = asking.site.model_copy(update={"name": "omega", "role": "heldout"})
    order = with_order(replace(asking, site=judge), kind="evaluate", site="omega")
    admit(with_order(order, lineage=("alpha",)))
    assert refusal(admit, with_order(order, lineage=("alpha", "omega"))) == "ROLE"


def test_hours_are_the_sites_own_clock(asking, admit):
    """Seven in the evening is when the ward's machine is free, not when UTC says so."""
    nights = asking.policy(hours=("Mon-Fri 19:00-07:00",))
    for hours, open_ in ((6.99, False), (7, False), (18.99, False), (19, True), (30.99, True)):
        moment = datetime.fromisoformat("2024-01-01") + timedelta(hours=hours)
        asked = replace(nights, now=moment.timestamp(), lifetime_s=7 * 86400.0)
        asked = replace(asked, changes={"issued": MONDAY_NOON - 86400.0})
        if open_:
            admit(asked)
        else:
            assert refusal(admit, asked) == "HOURS", hours


def test_what_was_spent_for_costs_nothing_more(asking, admit, ledger):
    """The answer is on disk; asking again after a crash must not fail at the cap."""
    asking = asking.policy(most_exposures=1)
    ledger.spend(Order.model_validate(asking.order), "tiny")
    admit(asking)
    assert refusal(admit, with_order(asking, round=2)) == "PRIVACY_SPENT"
    admit(with_order(asking, kind="census", round=0))  # counts train on nobody


def test_sizes_are_asked_of_training_alone(asking, admit):
    """A census is small whatever the network."""
    small = asking.policy(largest_report_mb=0.5)
    admit(with_order(small, kind="census", round=0))
    assert refusal(admit, small) == "REPORT_TOO_LARGE"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"order": {"protocol": PROTOCOL - 1}}, "CODE"),
        ({"order": {"protocol": PROTOCOL + 1}}, "CODE"),
        ({"code": "0" * 64, "novelty": 1}, "CODE"),
        ({"novelty": 1}, "ORDER_MALFORMED"),
        ({"order": {"kind": "dig"}}, "ORDER_MALFORMED"),
        ({"order": []}, "ORDER_MALFORMED"),
        ({"code": 3}, "ORDER_MALFORMED"),
    ],
)
def test_another_version_is_told_from_nonsense(asking, admit, changes, code):
    """A coordinator that was updated first, or not yet, reads "software differs", not "malformed"."""
    content = json.loads(asking.sealed().text)
    order = changes.get("order", {})
    merged = {**content["order"], **order} if isinstance(order, dict) else order
    asking = replace(asking, changes={**changes, "order": merged})
    assert refusal(admit, asking) == code


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"order"', "[" * 100_000])
def test_signed_nonsense_is_malformed(asking, admit, text):
    """Even a trusted key may sign what no program can read; the door must not fall over."""
    signature = KEY.sign(b"callosum order 1\0" + text.encode()).hex()
    assert refusal(admit, asking, Sealed(text, signature)) == "ORDER_MALFORMED"


def test_a_full_disk_is_a_refusal(asking, admit, ledger, monkeypatch):
    """What cannot be noted cannot be recognised when it comes again."""

    def full(*_):
        raise StorageError("ledger.sqlite cannot be written")

    monkeypatch.setattr(ledger, "present", full)
    assert refusal(admit, asking) == "DISK_FULL"


def test_refused_orders_spend_nothing(asking, admit, ledger):
    """An order that is not carried out has cost nobody anything."""
    for code, spoil in CHECKS.items():
        if code != "PRIVACY_SPENT":
            refusal(admit, spoil(asking, ledger))
            if code == "PAUSED":
                approvals.resume(asking.site)
    assert ledger.exposures() == 0


def test_no_check_builds_a_network(asking, admit, monkeypatch):
    """Orders are checked while another trains; drawing weights would seed that one's dropout."""

    def forbidden(*_, **__):
        raise AssertionError

    monkeypatch.setattr("torch.manual_seed", forbidden)
    admit(asking)
