"""What the coordinator last saw of each site's books, kept across runs: `KITS/hub/runs/.books`.

A site whose state folder was restored from a backup, or runs twice, tells something that its
earlier books contradict. It is stopped for every run, and the others go on, until a person has
spoken with the site and accepts it again. A file is replaced whole before its report counts; the
hub's runs take turns by a lock. Where sites and coordinator are one process nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from common.errors import Refusal, SettingError
from common.protocol.books import apart, fallen
from common.protocol.orders import Books, Order, Report
from common.runtime.durable import storage_checked, write_atomically
from common.runtime.locks import lock
from common.settings import Table

_log = getLogger("callosum.server")
_KEPT: Final = 64  # reports of several runs overtake each other, by a few receipts
_NOBODY: Final = "0" * 32  # where a page was lost: no state folder has this id
BOOKS: Final = "BOOKS"


class Page(Table):
    """One site: its books as they were seen, first to last; why and since when it is stopped."""

    seen: tuple[Books, ...] = ()
    stopped: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteBooks:
    """The pages below `folder`; None keeps and checks nothing."""

    folder: Path | None = None
    _told: dict[str, Books | None] = field(default_factory=dict)  # by order, when it was sealed

    def stops(self, site: str) -> bool:
        """Whether nothing is asked of this site until a person decides."""
        return self.folder is not None and bool(self.page(site).stopped)

    def told(self, order: Order) -> Books | None:
        """What the order's envelope is to say of the site's books."""
        if self.folder is None:
            return None
        seen = self.page(order.site).seen
        self._told[order.id] = seen[-1] if seen else None
        return self._told[order.id]

    def take(self, order: Order, report: Report) -> None:
        """Keep the books of a sound report, or stop its site and refuse with BOOKS.

        They must have grown since the order was sealed, whatever came from other runs meanwhile.
        """
        if self.folder is None:
            return
        books, told = report.books, self._told.pop(order.id, None)
        if books is None or not books.receipt:
            raise Refusal("REPORT_MALFORMED", f"{report.site} sends no books")
        with self._alone():
            page = self.page(order.site)
            why = page.stopped or _contradiction(told, page.seen, books)
            if why:
                self._halt(order.site, page, why)
                raise Refusal(BOOKS, why)
            seen = sorted({*page.seen, books}, key=lambda each: each.receipt)
            self._write(order.site, page.model_copy(update={"seen": tuple(seen[-_KEPT:])}))

    def stop(self, site: str, why: str) -> None:
        """Ask nothing of a site that says so itself; what it was stopped for before stays."""
        if self.folder is None:
            return
        with self._alone():
            self._halt(site, self.page(site), why)

    def accept(self, site: str, exposures: int | None = None) -> Books:
        """End a site's history: another begins, with no fewer `exposures` than were ever seen.

        Raises
        ------
        SettingError
            If nothing is known of the site.
        """
        with self._alone():
            page = self.page(site)
            if page == Page():
                known = ", ".join(self.sites()) or "nobody"
                raise SettingError(f"nothing was seen of {site}; known: {known}")
            highest = max((books.exposures for books in page.seen), default=0)
            count = highest if exposures is None else exposures
            state = page.seen[-1].state if page.seen else _NOBODY
            # a count that cannot be right was told by somebody whose steps are not believed either
            steps = page.seen[-1].private if page.seen and count >= highest else ()
            ended = Books(state=state, exposures=count, private=steps, receipt=0, hash="0" * 64)
            self._write(site, Page(seen=(ended,)))
            return ended

    def sites(self) -> list[str]:
        """Every site of which something was seen."""
        return sorted(path.stem for path in self._place.glob("*.json"))

    def page(self, site: str) -> Page:
        """One site's page; one that cannot be read stops that site and no other."""
        path = self._path(site)
        try:
            return Page.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Page()
        except (OSError, ValidationError) as error:
            what = type(error).__name__
            return Page(stopped=f"{path} cannot be read ({what}); put its newest backup there")

    def _halt(self, site: str, page: Page, why: str) -> None:
        if page.stopped:
            return
        stopped = {"stopped": why, "since": time.time()}
        self._write(site, page.model_copy(update=stopped))
        _log.error("%s is stopped: %s; callosum books --accept %s --hub KIT", site, why, site)

    @property
    def _place(self) -> Path:
        assert self.folder is not None  # whoever keeps nothing asks for nothing
        return self.folder

    def _path(self, site: str) -> Path:
        return self._place / f"{site}.json"

    def _write(self, site: str, page: Page) -> None:
        write_atomically(self._path(site), page.model_dump_json(indent=1).encode() + b"\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Several runs of one hub may hear of one site at once."""
        place = self._place / ".lock"
        with storage_checked(place):
            self._place.mkdir(parents=True, exist_ok=True)
            handle = place.open("a")
        with handle:
            remedy = "give the hub's kit a place on a local disk"
            lock(handle, place, wait=True, remedy=remedy)
            yield


def _contradiction(told: Books | None, seen: tuple[Books, ...], books: Books) -> str:
    against = [fallen(told, books)] if told is not None else []
    against += [apart(each, books) for each in (*seen, *([told] if told is not None else []))]
    return next((why for why in against if why), "")
