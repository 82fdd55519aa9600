"""A site's records: what it spent and answered (ledger) and what left it (receipts), together.

Whatever leaves is entered first. The one exception is a code without anything else, when the disk
is full: then no receipt can be written, and the site's own log says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from client.authority import receipts
from client.authority.ledger import JUDGING, SPENDING, Ledger
from client.authority.receipts import Receipts
from client.authority.spendings import Asked
from client.site import Policy, Site
from common.arrays import Arrays
from common.errors import Refusal
from common.protocol.orders import Order, Report, digest_of
from common.study import canonical


@dataclass(frozen=True, slots=True)
class Records:
    """The ledger and the receipts of one site, open for writing."""

    ledger: Ledger
    receipts: Receipts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.shut()

    def spend(
        self, order: Order, study_name: str, policy: Policy, asked: Asked | None = None
    ) -> bool:
        """Record what `order` costs before it is worked on; whether it costs anything more.

        `Refusal("PRIVACY_SPENT")` if the policy's cap is reached and this order is not among those;
        `BUDGET_EXHAUSTED` if it is private and what it is `asked` for is more than is left.
        """
        self._check_books()
        if order.kind in SPENDING:
            return self.ledger.spend(order, study_name, policy.most_exposures, asked)
        if order.kind == JUDGING:
            return self.ledger.judge(order, study_name, policy.most_judgements)
        return False

    def depart(self, order: Order, study_name: str, report: Report, arrays: Arrays) -> Report:
        """Enter an answer; what this returns may leave: the same, with the books as they stand.

        `Refusal("SITE_FAILED")` if another answer to this order was entered before.
        """
        self._check_books()
        bare = report.model_copy(update={"books": None})  # it may have left before
        digest = digest_of_answer(bare, arrays)
        self.ledger.answered(order.id, digest)
        books = self.receipts.tell(receipts.departure(order, study_name, bare, arrays, digest))
        return report.model_copy(update={"books": books})

    def contradict(self, order: Order, report: Report, arrays: Arrays) -> bool:
        """Whether another answer than this was entered for `order`."""
        entered = self.ledger.answer(order.id)
        return entered is not None and entered != digest_of_answer(report, arrays)

    def decline(self, order: Order, study_name: str, report: Report) -> None:
        """Enter a refusal; it is no answer, so the same order may be answered later."""
        self.receipts.append(receipts.departure(order, study_name, report, {}, ""))

    def _check_books(self) -> None:
        """An order that was let in before the books were stopped costs nothing and stays here."""
        stop = self.ledger.stopped()
        if stop is not None:
            raise Refusal("BOOKS", stop.why)

    def decline_unread(self, code: str, size: int) -> None:
        """Enter a refusal of something that is no order, of `size` bytes."""
        self.receipts.append(receipts.bare_refusal(code, size))


def open_records(site: Site) -> Records:
    """Open a site's records; one process at a time can.

    Raises
    ------
    FolderError
        If another process has them, or they contradict each other.
    """
    ledger = Ledger(site.state / "ledger.sqlite")
    try:
        return Records(ledger, Receipts(site.state / "receipts", ledger))
    except BaseException:
        ledger.shut()
        raise


def digest_of_answer(report: Report, arrays: Arrays) -> str:
    """SHA-256 of all that an answer tells; how long it took, what is held and the books are not."""
    kept = {"cost"} if report.cost is None else set[str]()  # as it was before there was any
    told = report.model_dump(mode="json", exclude={"seconds", "holds", "books", *kept})
    return hashlib.sha256(canonical([told, digest_of(arrays)])).hexdigest()
