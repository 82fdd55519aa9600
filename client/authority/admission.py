"""The first door: every check of an order that needs neither its arrays nor the site's data.

In this order: signature, expiry, replay, study, code, role, policy, books, privacy left. What an
order asks of the prepared data is checked by the agent, which has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.authority import approvals
from client.authority.books import check_books
from client.authority.ledger import SPENDING, Ledger
from client.hours import open_at
from client.site import Site
from common.comparisons import model_of
from common.errors import Refusal, StorageError
from common.label_sums import BASELINES
from common.protocol.bounded_json import parsed
from common.protocol.code import agreed_digest
from common.protocol.orders import PROTOCOL, Order
from common.protocol.signing import Envelope, Sealed, unseal
from common.site_shortcuts import MODELS as SHORTCUTS
from common.study import Study

# about tuned models, all but the last about a site's own
TUNING = ("finetune", "protocol", "judge", "explain", "send", "cross")
_OF_TRAINING = ("settle", "keys", "shares", "train", "unmask", "linear", *TUNING)
ROLES = dict.fromkeys(_OF_TRAINING, "train") | {"evaluate": "heldout"}


@dataclass(frozen=True, slots=True)
class Admission:
    """What one site lets in.

    keys: the coordinator's, any of which may have signed.
    study_of: the approved study of a digest, or None.
    """

    site: Site
    keys: Sequence[Ed25519PublicKey]
    ledger: Ledger
    study_of: Callable[[str], Study | None]

    def admit(self, sealed: Sealed, now: float) -> Envelope:
        """What was signed, if it may be carried out at Unix time `now`; else `Refusal`."""
        envelope = self._unsealed(sealed, now)
        order = envelope.order
        if order.site != self.site.name:
            raise Refusal("ORDER_MALFORMED", f"the order is for {order.site}")
        try:
            self.ledger.present(envelope.nonce, order.id, envelope.expires)
        except StorageError as error:
            raise Refusal("DISK_FULL", str(error)) from error
        study = self.study_of(order.study)
        if study is None:
            raise Refusal("STUDY_UNKNOWN", f"study {order.study} is not approved")
        if envelope.code != agreed_digest(study):
            raise Refusal("CODE", f"theirs is {envelope.code}, ours {agreed_digest(study)}")
        check_role(self.site, study, order)
        _check_place(self.site, study, order)
        check_kind(self.site, order)
        check_sums(self.site, study, order)
        check_model(study, order)
        self._check_policy(order, now)
        check_books(self.ledger, envelope.seen)
        self._check_privacy(order)
        return envelope

    def _unsealed(self, sealed: Sealed, now: float) -> Envelope:
        try:
            return unseal(sealed, self.keys, now=now)
        except Refusal as refusal:
            # the signature was checked first: a trusted coordinator of another version
            if refusal.code == "ORDER_MALFORMED" and self._is_foreign(sealed.text):
                raise Refusal("CODE", refusal.detail) from None
            raise

    def _is_foreign(self, text: str) -> bool:
        """Whether a signed text that is no envelope of ours says that it is of another version."""
        try:
            content = parsed(text)
            code, order = content.get("code"), content["order"]
            protocol, study = order.get("protocol", PROTOCOL), self.study_of(str(order["study"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        differs = isinstance(code, str) and study is not None and code != agreed_digest(study)
        return bool(protocol != PROTOCOL or differs)

    def _check_policy(self, order: Order, now: float) -> None:
        pause = approvals.paused(self.site)
        if pause is not None:
            raise Refusal("PAUSED", f"since {pause.since}: {pause.reason}")
        policy = self.site.policy
        if not open_at(policy.hours, datetime.fromtimestamp(now)):  # noqa: DTZ006  local time
            raise Refusal("HOURS", f"policy.hours is {', '.join(policy.hours)}")
        if order.kind == "train":
            approval = approvals.approval_of(self.site, order.study)
            size = approval.report_bytes if approval is not None else 0
            if size > policy.largest_report_bytes:
                raise Refusal("REPORT_TOO_LARGE", f"arrays of this study have {size:,} bytes")

    def _check_privacy(self, order: Order) -> None:
        """The ledger checks again when it spends: other orders may come first."""
        most = self.site.policy.most_exposures
        if not most or order.kind not in SPENDING or self.ledger.is_spent(order.id):
            return
        if self.ledger.exposures() >= most:
            raise Refusal("PRIVACY_SPENT", f"policy.most_exposures is {most}")


def role_for(study: Study, order: Order) -> str | None:
    """The role of the sites that an order is for; None if it is for all."""
    protocol = study.protocol(order.task) if order.kind == "protocol" else None
    return ROLES.get(order.kind) if protocol is None else protocol.at


def check_role(site: Site, study: Study, order: Order) -> None:
    """Refuse what the site's role excludes, whatever anyone asks.

    What a held-out site learns from its own people stays there: a protocol sends figures alone.
    """
    if (role_for(study, order) or site.role) != site.role:
        raise Refusal("ROLE", f"this site's role is {site.role}")
    if site.role == "heldout" and site.name in order.lineage:
        raise Refusal("ROLE", "this held-out site is in the model's lineage")


def check_start(site: Site, study: Study, fingerprint: str) -> None:
    """Refuse to judge what came of this site's own scans, under whatever name they were used."""
    start = study.start
    if site.role == "heldout" and site.name in study.sites.chosen_on:
        raise Refusal("ROLE", f"{study.name} was chosen by this held-out site's figures")
    if start is None or site.role != "heldout":
        return
    if site.name in start.contributors or fingerprint in start.cohorts:
        raise Refusal("ROLE", f"this held-out site is in the lineage of {start.study}")


def check_model(study: Study, order: Order) -> None:
    """Refuse a model that no run of the study has: each may be judged so often, and no more."""
    summed = {BASELINES, *(SHORTCUTS if study.evaluation.shortcuts else ())}
    if order.model not in study.models and (order.kind != "settle" or order.model not in summed):
        raise Refusal("ORDER_MALFORMED", f"{study.name} has no model {order.model}")
    begun = model_of(order.init, order.site)
    if order.kind in TUNING and order.model != begun:
        raise Refusal("ORDER_MALFORMED", f"what begins from {order.init} is of model {begun}")


def check_sums(site: Site, study: Study, order: Order) -> None:
    """Refuse to train where single updates are seen, if the site's policy wants sums alone."""
    if order.kind == "train" and site.policy.secure_sums_only and not study.secure_sums.on:
        raise Refusal("POLICY", f"policy.secure_sums_only, and {study.name} has no secure sums")


def check_kind(site: Site, order: Order) -> None:
    """Refuse kinds of order that the site's policy does not list."""
    if order.kind not in site.policy.orders:
        raise Refusal("POLICY", f"{order.kind} is not among policy.orders")


def _check_place(site: Site, study: Study, order: Order) -> None:
    """Refuse to train for a study that holds this site out, or to judge where it trains."""
    wanted = role_for(study, order)
    if wanted == "train" and site.name not in study.sites.train:
        raise Refusal("ROLE", f"{study.name} does not list this site among those that train")
    if wanted == "heldout" and site.name in study.sites.train:
        raise Refusal("ROLE", f"{study.name} lists this site among those that train")
