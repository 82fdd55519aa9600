"""Orders that a site must refuse, put to real agents through their sockets: a code and no more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tomli_w import dumps

from client.authority.ledger import read_ledger
from client.authority.receipts import read_receipts
from client.link.caller import ask, unix_address
from common.network.building import arrays_of, build
from common.protocol.code import agreed_digest
from common.protocol.orders import Order, digest_of
from common.protocol.signing import Sealed, read_private_key, seal
from common.protocol.wire import npy_bytes
from common.study import load_study
from tests.conftest import FEATURES, overridden, write_table_site
from tests.deploy.standing import Standing, removed, short_folder, standing, until

pytestmark = pytest.mark.slow  # the quick suite asks the same of a daemon in the test process
HOUR_S = 3600.0


@dataclass
class Asked:
    """Three agents: `alpha` trains, `omega` judges, `narrow` lets hardly anything out."""

    there: Standing
    study: Any
    arrays: dict[str, Any]
    key: Ed25519PrivateKey

    def order(self, site: str, kind: str = "train", **more: Any) -> Order:
        arrays = {} if kind == "census" else self.arrays
        content = {
            "kind": kind,
            "study": self.study.digest,
            "run": "a" * 64,
            "site": site,
            "round": 1 if kind == "train" else 0,
            "arrays": digest_of(arrays),
            **more,
        }
        return Order.model_validate(content)

    def sealed(self, order: Order, *, key: Any = "coordinator", age_s: float = 0.0) -> Sealed:
        signer = self.key if key == "coordinator" else key
        code = agreed_digest(self.study)
        return seal(order, signer, code=code, now=time.time() - age_s, lifetime_s=HOUR_S)

    def put(self, site: str, sealed: Sealed, kind: str = "train") -> tuple[dict[str, Any], Any]:
        address = unix_address(self.there.kits / site / "run" / "agent.sock")
        arrays = {} if kind == "census" else self.arrays
        named = [(name, npy_bytes(array)) for name, array in arrays.items()]
        text, sent = ask(address, None, sealed, named, patience_s=60)
        return json.loads(text), sent


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Iterator[Asked]:
    sites, folder = tmp_path_factory.mktemp("sites"), short_folder()
    policies = {
        "alpha": {"policy": {"orders": ["census", "train"]}},
        "omega": {},
        "narrow": {"policy": {"minimum_cohort": 1000, "largest_report_mb": 0.0001}},
    }
    files = {}
    for name, policy in policies.items():
        role = "heldout" if name == "omega" else "train"
        write_table_site(sites, name, role=role, site=policy)
        files[name] = (role, sites / "sites" / name / "site.toml")

    changes = {"sites.train": ["alpha", "narrow"], "sites.heldout": ["omega"]}
    study_file = sites / "study.toml"
    study_file.write_text(dumps(overridden(FEATURES, changes)))
    study = load_study(study_file)
    with standing(folder, files) as there:
        there.approve(study_file)
        for name in files:
            there.start_agent(name)
        for name in files:
            socket = there.kits / name / "run" / "agent.sock"
            until(socket.exists, 60, f"socket of {name}")
        key = read_private_key(there.hub / "coordinator.key")
        yield Asked(there, study, arrays_of(build(study, seed=0)), key)
    removed(folder)


CASES: dict[str, tuple[str, Callable[[Asked], tuple[str, Sealed, str]]]] = {
    "unsigned": ("UNSIGNED", lambda a: ("alpha", a.sealed(a.order("alpha"), key=None), "train")),
    "wrong key": (
        "SIGNATURE",
        lambda a: ("alpha", a.sealed(a.order("alpha"), key=Ed25519PrivateKey.generate()), "train"),
    ),
    "expired": (
        "EXPIRED",
        lambda a: ("alpha", a.sealed(a.order("alpha"), age_s=2 * HOUR_S), "train"),
    ),
    "not yet": (
        "EXPIRED",
        lambda a: ("alpha", a.sealed(a.order("alpha"), age_s=-2 * HOUR_S), "train"),
    ),
    "unapproved study": (
        "STUDY_UNKNOWN",
        lambda a: ("alpha", a.sealed(a.order("alpha", study="b" * 64)), "train"),
    ),
    "training at a held-out site": (
        "ROLE",
        lambda a: ("omega", a.sealed(a.order("omega")), "train"),
    ),
    "judging at a training site": (
        "ROLE",
        lambda a: ("alpha", a.sealed(a.order("alpha", "evaluate")), "evaluate"),
    ),
    "kind that the policy forbids": (
        "POLICY",
        lambda a: ("alpha", a.sealed(a.order("alpha", "finetune", task="x")), "finetune"),
    ),
    "oversized report": (
        "REPORT_TOO_LARGE",
        lambda a: ("narrow", a.sealed(a.order("narrow")), "train"),
    ),
    "cohort under the minimum": (
        "COHORT_TOO_SMALL",
        lambda a: ("narrow", a.sealed(a.order("narrow", "census")), "census"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_with_its_code_and_nothing_else(asked, case):
    """Nothing is run, nothing is spent, and what leaves is the code alone."""
    code, make = CASES[case]
    site, sealed, kind = make(asked)
    before = spent(asked, site)
    report, sent = asked.put(site, sealed, kind)
    assert report["refusal"] == code
    assert not sent
    assert not report.get("counts")
    assert not report.get("measurements")
    assert not report.get("support")
    assert spent(asked, site) == before == 0
    last = receipts(asked, site)[-1]
    assert last["refusal"] == code
    assert not last["arrays"]
    assert not last["numbers"]


def test_replayed_order_is_refused_and_asking_again_is_not(asked):
    """A stolen hub may keep what it carried and bring it again; the coordinator asks anew."""
    order = asked.order("alpha", "census")
    first = asked.sealed(order)
    answer, _ = asked.put("alpha", first, "census")
    assert answer["refusal"] == ""
    again, sent = asked.put("alpha", first, "census")
    assert again["refusal"] == "REPLAYED"
    assert not sent
    anew, _ = asked.put("alpha", asked.sealed(order), "census")
    assert anew.pop("books")["receipt"] > answer.pop("books")["receipt"]  # a departure of its own
    assert anew == answer


def test_arrays_that_are_not_those_of_the_order_are_refused(asked):
    """The signature covers their digest: whoever carries them can change no number."""
    order = asked.order("alpha")
    address = unix_address(asked.there.kits / "alpha" / "run" / "agent.sock")
    changed = {name: np.array(array) for name, array in asked.arrays.items()}
    next(iter(changed.values())).flat[0] += 1
    named = [(name, npy_bytes(array)) for name, array in changed.items()]
    text, _ = ask(address, None, asked.sealed(order), named, patience_s=60)
    assert json.loads(text)["refusal"] == "ORDER_MALFORMED"


def spent(asked: Asked, site: str) -> int:
    return len(read_ledger(asked.there.state(site) / "ledger.sqlite").exposures)


def receipts(asked: Asked, site: str) -> list[dict[str, Any]]:
    return list(read_receipts(asked.there.state(site) / "receipts"))
