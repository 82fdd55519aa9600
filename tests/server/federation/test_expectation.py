"""What a site may answer to an order of a protocol: its own draws, and no number of another name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from common.errors import Refusal
from common.protocol.orders import Measurement, Order, Report
from common.schemes import seed_of_repeat
from server.federation.expectation import Most, most_rows
from server.federation.report_numbers import check_numbers
from server.federation.report_validation import accept

TASK = {
    "name": "dementia", "target": "diagnosis", "repeats": 0,
    "methods": ["linear", "pretrained/frozen"],
}  # fmt: skip
DRAWS = {"name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [50], "repeats": 4}
Told = Callable[..., None]


@pytest.fixture
def tell(federation: Any) -> Told:
    """`tell(metric="auc", repeat=1)`: check a report with one such row."""
    changes = {"finetuning": [TASK], "protocols": [DRAWS], "sites": {"train": ["alpha"]}}
    study = federation(changes).study
    order = Order(
        kind="protocol", study=study.digest, run="ab" * 32, site="alpha", task="draws", k=50,
        init="pretrained", method="frozen", against=("linear",), arrays="0" * 64,
    )  # fmt: skip

    def check(**more: Any) -> None:
        seed = seed_of_repeat(7, "alpha", study.protocols[0], 50, more.get("repeat", 0))
        of_all = more.get("metric", "auc") != "auc"
        row = {
            "phase": "protocol", "task": "draws", "target": "diagnosis", "model": "federated",
            "init": "pretrained", "method": "frozen", "k": 50, "site": "alpha", "role": "train",
            "metric": "auc", "value": 0.7, "n_participants": 10, "n_scans": 10,
            "n_train": 0 if of_all else 50, "seed": 0 if of_all else seed, **more,
        }  # fmt: skip
        report = Report(
            order=order.id, site="alpha", kind="protocol", measurements=(Measurement(**row),)
        )
        check_numbers(study, order, {}, report, Most(study, "alpha", None))

    assert most_rows(study, order) == 4 + 3 + 3
    return check


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"repeat": 3},
        {"value": None},
        {"metric": "auc_median"},
        {"metric": "auc_over_draws", "ci_low": 0.5, "ci_high": 1.0},
        {"metric": "repeats", "value": 4.0},
        {"metric": "auc_minus_linear", "value": -0.2, "p": 0.5},
        {"metric": "auc_minus_linear_sign_flip", "value": -0.2, "p": 0.5},
        {"metric": "auc_minus_linear_within_repeats", "value": 0.0},
    ],
)
def test_what_a_protocol_tells_is_believed(tell: Told, row: Any) -> None:
    """Whatever a sound site says must pass."""
    tell(**row)


@pytest.mark.parametrize(
    "row",
    [
        {"repeat": 4},
        {"seed": 1},
        {"n_train": 51},
        {"metric": "auc_median", "repeat": 1},
        {"metric": "auc_median", "n_train": 50},
        {"metric": "auc_median", "value": 1.1},
        {"metric": "auc_median", "p": 0.5},
        {"metric": "auc_minus_pretrained-full", "value": 0.1},
        {"metric": "auc_minus_linear_within_repeats", "value": -0.1},
        {"metric": "auc_minus_linear_sign_flip", "value": -1.1},
        {"metric": "repeats", "value": -1.0},
        {"metric": "balanced_accuracy"},
        {"k": 60},
    ],
)
def test_what_no_protocol_tells_is_refused(tell: Told, row: Any) -> None:
    """Another draw's seed, a repeat too many, a share above one: nobody's measurement."""
    with pytest.raises(Refusal, match="REPORT_MALFORMED"):
        tell(**row)


CROSS = {
    "name": "dementia",
    "target": "diagnosis",
    "methods": ["linear"],
    "then": ["send", "cross"],
}


@pytest.mark.parametrize(
    ("more", "believed"),
    [
        ({}, True),
        ({"metric": "f1_weighted"}, True),
        ({"value": None}, True),
        ({"model": "tuned-beta"}, False),  # its own, which it told when it was tuned
        ({"model": "tuned-omega"}, False),
        ({"model": "federated"}, False),
        ({"repeat": 1}, False),
        ({"metric": "auc_minus_linear"}, False),
        ({"value": 1.2}, False),
    ],
)  # fmt: skip
def test_a_site_tells_of_others_heads_and_of_each_once(
    federation: Any, more: Any, believed: bool
) -> None:
    """Or a site could fill the matrix with numbers of its own."""
    sites = {"train": ["alpha", "beta"], "heldout": ["omega"]}
    study = federation({"finetuning": [CROSS], "sites": sites}).study
    order = Order(
        kind="cross", study=study.digest, run="ab" * 32, site="beta", task="dementia",
        method="linear", arrays="0" * 64,
    )  # fmt: skip
    row = {
        "phase": "cross", "task": "dementia", "target": "diagnosis", "model": "tuned-alpha",
        "method": "linear", "site": "beta", "role": "train", "metric": "auc", "value": 0.7,
        "n_participants": 10, "n_scans": 10, **more,
    }  # fmt: skip
    report = Report(order=order.id, site="beta", kind="cross", measurements=(Measurement(**row),))
    if believed:
        check_numbers(study, order, {}, report, Most(study, "beta", None))
        return
    with pytest.raises(Refusal, match="REPORT_MALFORMED"):
        check_numbers(study, order, {}, report, Most(study, "beta", None))


HEAD = {
    "linear/diagnosis/centre": np.zeros(4), "linear/diagnosis/scale": np.ones(4),
    "linear/diagnosis/coefficients": np.ones((4, 1)), "linear/diagnosis/intercepts": np.zeros(1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("spoilt", "code"),
    [
        (lambda head: head, ""),
        (lambda _: {}, "ARRAYS_MISNAMED"),
        (lambda head: {**head, "heads.age.bias": np.zeros(1)}, "ARRAYS_MISNAMED"),
        (lambda head: dict(list(head.items())[:3]), "ARRAYS_MISSHAPEN"),
        (lambda head: {n.replace("diagnosis", "age"): one for n, one in head.items()},
         "ARRAYS_MISSHAPEN"),
        (lambda head: {n: one * np.nan for n, one in head.items()}, "NOT_FINITE"),
    ],
    ids=["sound", "nothing", "more", "less", "of another target", "not finite"],
)  # fmt: skip
def test_a_head_that_is_sent_is_the_task_s_whole_head_or_refused(
    federation: Any, spoilt: Any, code: str
) -> None:
    """What one site sends is put together with others' and goes to all: it must end no run."""
    study = federation({"finetuning": [CROSS], "sites": {"train": ["alpha", "beta"]}}).study
    order = Order(
        kind="send", study=study.digest, run="ab" * 32, site="beta", task="dementia",
        method="linear", arrays="0" * 64,
    )  # fmt: skip
    report = Report(order=order.id, site="beta", kind="send")
    if not code:
        accept(study, order, {}, report, spoilt(HEAD))
        return
    with pytest.raises(Refusal, match=code):
        accept(study, order, {}, report, spoilt(HEAD))
