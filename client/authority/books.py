"""Books that were set back, or are kept twice: found by what the coordinator last saw of them.

A state folder that was restored from a backup has forgotten what was spent since, and of a folder
and its copy neither knows what the other spends. Each envelope says what the coordinator last saw
of this site's books. If these books never told that, nothing is carried out until a person here
has decided.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from client.authority.approvals import user_name
from client.authority.ledger import Account, Ledger, read_copy, read_ledger
from client.secure_sums.secrets import end_all
from client.site import Site
from common.errors import Refusal
from common.protocol.orders import Books

REMEDY: Final = (
    "put the newest backup of the state folder in its place, end every copy of this site that "
    "runs elsewhere, then: callosum-site books --accept --kit KIT"
)


def check_books(ledger: Ledger, seen: Books | None) -> None:
    """Refuse with BOOKS while a person must decide; `seen` may be what makes it necessary."""
    why = ledger.disowned(seen) if seen is not None else ""
    if seen is not None and why:
        ledger.stop(seen, why)
    stop = ledger.stopped()
    if stop is not None:
        raise Refusal("BOOKS", f"these books are not those that were seen: {stop.why}; {REMEDY}")


def account_of(site: Site) -> Account:
    """How the site's ledger stands, read beside the agent that may be writing it."""
    return read_ledger(site.state / "ledger.sqlite")


def standing(account: Account) -> Iterator[str]:
    """How the books stand, in lines for whoever decides about them."""
    taken = f", {account.taken_over} of them taken over" if account.taken_over else ""
    yield f"state folder {account.state or 'without an id yet'}"
    yield f"exposures {account.spent}{taken}; last receipt {account.head.number}"
    if account.stop is not None:
        seen = account.stop.seen
        yield f"STOPPED since {account.stop.time}: {account.stop.why}"
        which = f", receipt {seen.receipt} of state folder {seen.state}" if seen.receipt else ""
        yield f"the coordinator has seen {seen.exposures} exposures{which}"


def accept(site: Site, exposures: int | None, copy: Path | None = None) -> str:
    """Decide that this folder goes on: under a new id, and from the count that was seen.

    `exposures` replaces that count where it cannot be right; the ledger's own never falls. What the
    ledger of a `copy` spent by itself is added. A person who knows that the folder was set back or
    copied need not wait until an order shows it.

    Raises
    ------
    FolderError
        If the agent runs: it holds the ledger. If the copy's cannot be read.
    """
    other = read_copy(copy) if copy is not None else None
    with Ledger(site.state / "ledger.sqlite") as ledger:
        stop = ledger.stopped()
        count = exposures if exposures is not None else stop.seen.exposures if stop else 0
        more = ledger.go_on(user_name(), count, other)
        books, ended = ledger.books(), end_all(site.state)
        sums = f"; its part in the secure sums of {ended} runs has ended" if ended else ""
        return (
            f"{site.name} goes on from {books.exposures} exposures, {more} of them taken over, as "
            f"state folder {books.state}{sums}; start the agent, and ask the coordinator for: "
            f"callosum books --accept {site.name} --hub KIT"
        )
