"""When two statements of a site's books cannot be of one site that goes on: a backup, or a clone.

Books only grow: exposures and receipts are added, and none is taken away or written anew. A folder
restored from a backup has fewer than were seen. A cloned one has the id and the history of the
original up to the copy; from there on each writes receipts of its own, so that the same number has
another hash. That is why a report tells the receipt of its own departure, and not the one before,
which would be the same for both.

Where they contradict each other a person decides at the site and another at the coordinator: the
history is ended, and the folder goes on under a new id, with no fewer exposures.
"""

from __future__ import annotations

from common.privacy.cost import steps_in
from common.protocol.orders import Books


def fallen(earlier: Books, later: Books) -> str:
    """Why `later` cannot be what became of `earlier`, or nothing.

    `later` may be how the books stand: orders that are paid for and not answered yet count in it.

    >>> books = Books(state="a" * 32, exposures=8, receipt=52, hash="b" * 64)
    >>> fallen(books, books.model_copy(update={"exposures": 6, "receipt": 40}))
    '6 exposures after 8'
    """
    ended, same = earlier.receipt == 0, later.state == earlier.state
    told = later.state[:8]
    steps = [steps_in(books.private) for books in (earlier, later)]
    faults = (
        (ended and same, f"state folder {told}, whose history a person has ended"),
        (not ended and not same, f"state folder {told} after {earlier.state[:8]}"),
        (
            later.exposures < earlier.exposures,
            f"{later.exposures} exposures after {earlier.exposures}",
        ),
        (steps[1] < steps[0], f"{steps[1]} private steps after {steps[0]}"),
        (
            not ended and later.receipt < earlier.receipt,
            f"receipt {later.receipt} after {earlier.receipt}",
        ),
    )
    return next((what for is_so, what in faults if is_so), "")


def apart(one: Books, other: Books) -> str:
    """Why two reports cannot be of the same books, whichever was made first, or nothing.

    Reports of different runs may arrive in another order than they left in; their receipts tell.
    """
    earlier, later = sorted((one, other), key=lambda books: books.receipt)
    twice = earlier.receipt == later.receipt and earlier != later
    return fallen(earlier, later) or (f"two receipts with number {later.receipt}" if twice else "")
