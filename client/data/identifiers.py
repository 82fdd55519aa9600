"""Identifiers that people keep from hospital to hospital, where the site file names their column.

They never leave: of each a token is made with the sites' own key (`common.protocol.tokens`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from client.data.finding import Finding
from client.data.reader import find_sources
from client.site import Site
from common.study import Study

_MISSING: Final = frozenset({"", "n/a", "na", "nan", "none", "-9999"})


def identifiers(study: Study, site: Site, people: Iterable[str]) -> list[str]:
    """The identifiers of `people`, sorted: one of each who has one."""
    known, wanted = dict(reversed(_known(study, site))), set(people)
    return sorted({known[participant] for participant in known.keys() & wanted})


def odd_identifiers(study: Study, site: Site) -> Iterator[Finding]:
    """What a person at the site should know: none at all, one of two people, two of one."""
    if not site.person_column:
        return
    known = _known(study, site)
    if not known:
        problem = f'no row holds one in column "{site.person_column}"'
        yield Finding(what="person_column", problem=problem, error=True)
    for names in _several((identifier, who) for who, identifier in known):
        problem = f"{', '.join(names)} have one identifier: one person, who may train and test"
        yield Finding(what="person_column", problem=problem)
    for several in _several(known):
        problem = f"{len(several)} identifiers are of one participant; the first one counts"
        yield Finding(what="person_column", problem=problem)


def same(identifier: str) -> str:
    """One spelling for all sites: no case, no spaces, dots or hyphens.

    >>> same(" 943-476 5919 ") == same("943.4765919")
    True
    """
    text = unicodedata.normalize("NFKC", identifier).casefold()
    if text.strip() in _MISSING:
        return ""
    return "".join(letter for letter in text if letter.isalnum())


def _known(study: Study, site: Site) -> list[tuple[str, str]]:
    """Participant and identifier of each source that has one."""
    if not site.person_column:
        return []
    pairs = [
        (source.participant, same(source.row.get(site.person_column, "")))
        for source in find_sources(study, site).sources
    ]
    return [(participant, identifier) for participant, identifier in pairs if identifier]


def _several(pairs: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    """The second halves, sorted, of pairs whose first halves are equal, where they differ."""
    found: dict[str, set[str]] = {}
    for first, second in pairs:
        found.setdefault(first, set()).add(second)
    yield from (sorted(each) for each in found.values() if len(each) > 1)
