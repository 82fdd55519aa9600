"""Orders and reports: all that a site can be asked for and answer, as data and never as code.

An order's id is a digest of its content, so asking again after a crash is the same order, and a
site that answered it sends the same report without working twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError

from common.errors import SENTENCES, Refusal
from common.privacy.cost import Cost, read_spent
from common.protocol.bounded_json import MOST_ROWS, fault_of, table_of, told
from common.sections import Name
from common.settings import Table
from common.study import canonical

PROTOCOL: Final = 3  # raised when either end would misread the other

OrderKind = Literal[
    "census",
    "overlap",
    "settle",
    "keys",
    "shares",
    "train",
    "unmask",
    "finetune",
    "protocol",
    "judge",
    "explain",
    "send",
    "cross",
    "linear",
    "evaluate",
]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Init = Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9_-]{0,30})?$")]  # becomes a folder
MethodName = Annotated[str, Field(pattern=r"^([a-z][a-z0-9-]{0,30})?$")]
Model = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,80}$")]  # becomes a folder
Count = Annotated[int, Field(ge=0, le=2**53)]


class Order(Table):
    """One request to one site.

    census: how many scans, participants and labels are there.
    overlap: a keyed token of each scan, by which scans that two sites share are counted.
    settle: sums over the training scans that the network's constants are made of.
    keys, shares: tell public keys for secure sums; deal out shares of the secrets behind them.
    train: train the given arrays for one round; the report holds the trained arrays, under masks
        where the study sums in secret.
    unmask: tell what takes the masks off the sum over the sites in `lineage`, and off no other.
    finetune: learn `task` by one method; the report holds measurements, the site keeps the models.
    protocol: learn by one way of the protocol `task` from `k`, anew in each of its repeats; the
        report holds measurements.
    judge, explain, send: measure a tuned model anew, map what it looks at, hand it over.
    cross: measure the heads that other sites handed over, which came with the order.
    linear: fit penalised linear models to regional measures; the report holds their coefficients.
    evaluate: judge the given arrays as `model`; the report holds measurements.
    """

    protocol: Literal[3] = PROTOCOL
    kind: OrderKind
    study: Hex = Field(description="Digest of the study.")
    run: Hex = Field(description="Name of the run, drawn when it was opened.")
    site: Name
    round: Annotated[int, Field(ge=0, le=10_000)] = 0
    model: Model = "federated"
    task: str = ""
    init: Init = Field("", description="What tuning begins from (`common.comparisons`).")
    method: MethodName = ""
    k: Count = Field(
        0, description="Training participants to learn from; 0: all. Of a protocol: its size."
    )
    repeat: Count = Field(0, description="Which of the kept models is meant.")
    lineage: tuple[Name, ...] = Field(
        (),
        description="Sites that contributed to the arrays; of secure sums, those that add up.",
        fail_fast=True,
    )
    against: tuple[Model, ...] = Field(
        (), description="Models judged earlier, to compare with.", max_length=1000, fail_fast=True
    )
    arrays: Hex = Field(description="Digest of the arrays that the order is about.")
    base: Hex | Literal[""] = Field(
        "", description="Digest of those besides that no site ever sends: they travel once."
    )

    @property
    def id(self) -> str:
        """Digest of all of the above."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()


class Measurement(Table):
    """One number with its n, as it will stand in results.csv."""

    phase: Label
    task: str = ""
    target: Label
    model: Label
    init: str = ""
    method: str = ""
    k: Count = Field(0, description="Participants learnt from, where a study asks for so many.")
    site: Name
    role: Literal["train", "heldout"]
    metric: Label
    value: float | None = Field(description="None where too few participants stand behind it.")
    ci_low: float | None = None
    ci_high: float | None = None
    p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Of a difference: that two models are equal, where enough people say."
    )
    n_participants: Count
    n_scans: Count
    repeat: Count = 0
    n_train: Count = Field(0, description="Of a protocol: images that were learnt from.")
    seed: Count = Field(0, description="Of a protocol: what a repeat's draws come from.")


def _is_spent(word: str) -> str:
    read_spent(word)
    return word


class Books(Table):
    """A site's books at one departure: what both ends compare (`common/protocol/books.py`)."""

    state: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] = Field(
        description="Id of the state folder, drawn when its ledger was made."
    )
    exposures: Count = Field(description="Orders that learnt from participants, over all studies.")
    private: tuple[Annotated[str, AfterValidator(_is_spent)], ...] = Field(
        (),
        max_length=64,
        description="Noised steps that participants were drawn for, over all studies: study, "
        "noise, rate, delta, steps.",
    )
    receipt: Count = Field(
        description="Number of the receipt of this very departure; 0: a person ended this history."
    )
    hash: Hex = Field(description="Its hash, which stands on all receipts before it.")


class Report(Table):
    """A site's answer to one order; the arrays travel beside it."""

    protocol: Literal[3] = PROTOCOL
    order: Hex
    site: Name
    kind: OrderKind
    round: Annotated[int, Field(ge=0, le=10_000)] = 0
    refusal: str = Field("", description="A code of `common.errors.SENTENCES`, or nothing.")
    support: dict[Label, Count] = Field(
        {},
        description="Scans behind the arrays, by group; in a census, all that are held. 0 where "
        "too few people hold them.",
    )
    participants: dict[Label, Count] = Field(
        {}, description="People behind each group of `support` and each entry of `counts`."
    )
    counts: dict[Label, tuple[float, ...]] = Field({}, description="Mergeable sums, by name.")
    measurements: tuple[Measurement, ...] = ()
    cohort: Hex | Literal[""] = Field("", description="Fingerprint of the site's prepared data.")
    cost: Cost | None = Field(
        None, description="Of a round of private training: what it cost each participant."
    )
    holds: tuple[Hex, ...] = Field(
        (), description="Those of the order's digests that need not be sent to this site again."
    )
    seconds: float = Field(0.0, ge=0, le=1e9)
    books: Books | None = Field(None, description="Added at departure, no part of the answer.")


EMPTY: Final = hashlib.sha256().hexdigest()  # digest of no arrays


def refuse(order: Order, code: str) -> Report:
    """The report that declines `order`; nothing but the code leaves."""
    return Report(order=order.id, site=order.site, kind=order.kind, round=order.round, refusal=code)


class Declined(Table):
    """An answer to an order that could not even be read, or was not passed on: a code alone."""

    refusal: str


def declined(code: str) -> str:
    """The text of an answer that names no order."""
    return Declined(refusal=code).model_dump_json()


def read_report(text: str | bytes, most_rows: int = MOST_ROWS) -> Report:
    """A report from its JSON text, or `Refusal` with the code that fits."""
    table = table_of(text, Report.model_fields, Measurement.model_fields, most_rows)
    if table.keys() == {"refusal"}:
        raise Refusal(_code(table["refusal"]))
    try:
        rows = tuple(Measurement.model_validate(row) for row in table.get("measurements", ()))
        report = Report.model_validate({**table, "measurements": rows})
    except ValidationError as error:  # of one row, or of all else: never more than some thousands
        plain = error.errors(include_url=False, include_context=False, include_input=False)
        places = {str(fault["loc"][0]) for fault in plain if fault["loc"]}
        if any(fault["loc"] == ("protocol",) for fault in plain) and type(table["protocol"]) is int:
            raise Refusal(
                "CODE", "a site of another version refuses in a form of its own"
            ) from None
        finite = all(fault["type"] != "finite_number" for fault in plain)
        counted = bool(places) and places <= {"support", "participants"}
        code = "SUPPORT" if counted else "REPORT_MALFORMED"
        raise Refusal(code if finite else "NOT_FINITE", fault_of(error)) from None
    if report.refusal:
        _code(report.refusal)
    return report


def _code(refusal: object) -> str:
    if not isinstance(refusal, str) or refusal not in SENTENCES:
        raise Refusal("REPORT_MALFORMED", f"unknown code {told(refusal)}")
    return refusal


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and bytes of named arrays, in name order."""
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        hasher.update(canonical([name, array.dtype.str, list(array.shape)]))
        hasher.update(array.data)
    return hasher.hexdigest()
