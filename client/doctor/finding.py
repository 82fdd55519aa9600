"""What one check of the doctor found, in words for the site and in words that may be mailed.

A text names what identifies a site (paths, hosts, authorities, a person's words) by a place in
braces, never by itself; the page that is shared fills each place with a general word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from common.errors import CallosumError

State = Literal["good", "note", "bad", "skipped"]

# what stands for each place on a page that leaves the site
PUBLIC: Final[Mapping[str, str]] = {
    "agent": "its socket",
    "ca": "the kit's ca.crt",
    "data": "the data folder",
    "file": "a file",
    "folder": "a folder",
    "host": "the hub",
    "issuer": "an authority that is not the consortium's",
    "kit": "KIT",
    "mount": "a mount",
    "number": "(not shared)",
    "proxy": "a proxy",
    "reason": "(the reason is on the site's own page)",
    "site_file": "site.toml",
    "state": "the state folder",
    "study_file": "study.toml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the page: what a check found, and what to do about it.

    found, remedy: sentences with places such as ``{data}``; names: what stands in these places at
    the site. Literal braces are written twice.
    """

    state: State
    found: str
    remedy: str = ""
    names: Mapping[str, object] = field(default_factory=dict)
    check: str = ""

    def __post_init__(self) -> None:
        """Refuse a place without a general word, and a trouble without a remedy."""
        unknown = set(self.names) - set(PUBLIC)
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))} would have no name on a shared page")
        if self.state in ("note", "bad") and not self.remedy:
            raise ValueError(f"what is to be done about: {self.found}")

    def texts(self, *, share: bool) -> tuple[str, str]:
        """What was found and what to do, for the site's own eyes or to be shared."""
        words = {name: PUBLIC[name] if share else value for name, value in self.names.items()}
        return self.found.format_map(words), self.remedy.format_map(words)


class CannotTellError(CallosumError):
    """A check depends on what another check has found to be wrong; its message names no place."""


def good(found: str, **names: object) -> Finding:
    """All is well."""
    return Finding(state="good", found=found, names=names)


def note(found: str, remedy: str, **names: object) -> Finding:
    """Works, but somebody should know."""
    return Finding(state="note", found=found, remedy=remedy, names=names)


def bad(found: str, remedy: str, **names: object) -> Finding:
    """Stops the site from taking part, now or soon, or leaves a door open."""
    return Finding(state="bad", found=found, remedy=remedy, names=names)


def skipped(found: str, remedy: str = "", **names: object) -> Finding:
    """Was not looked at."""
    return Finding(state="skipped", found=found, remedy=remedy, names=names)


def literal(text: str) -> str:
    """Text from elsewhere, such as a card's name, so that its braces name no place."""
    return text.replace("{", "{{").replace("}", "}}")


def size(n_bytes: float) -> str:
    """Bytes as people read them.

    >>> size(612), size(1536), size(256e6), size(3.2e12)
    ('612 bytes', '1.5 kB', '256 MB', '3.2 TB')
    """
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    value, units = n_bytes / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 100 else f"{value:.1f} {units[0]}"
