"""Who trains, chooses and tests: decided by the study's salt and by a secret of the site's own.

Without the secret, a coordinator who knows how participants are called could choose bounds that
move one person from one split to another, and take the difference of two studies.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from client.site import Site
from common.errors import FolderError
from common.runtime.durable import sync_folder, write_secret
from common.sections import Splits

Split = Literal["train", "validation", "test", "spared"]  # spared: beyond `splits.share`
FILE: Final = "secret"  # below the site's folder; belongs into its backup
_BYTES: Final = 32


def split_of(participant: str, splits: Splits, secret: str) -> Split:
    """Which split a participant is in, wherever and whenever the question is asked.

    The first 8 bytes of HMAC-SHA-256(secret, salt 0 participant) are read as a fraction of 2**64:
    below `test` is test, below `test + validation` is validation, of the rest the lowest `share` is
    train, so that a smaller share is among every larger one, and the others are spared. No one
    else's presence matters, so a participant stays where they are as a site grows.

    >>> [split_of(f"sub-{n:02d}", Splits(), "example") for n in (4, 5, 6)]
    ['train', 'validation', 'test']
    """
    text = f"{splits.salt}\0{participant}".encode()
    digest = hmac.digest(secret.encode(), text, "sha256")
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < splits.test:
        return "test"
    kept = splits.test + splits.validation
    if fraction < kept:
        return "validation"
    # at the default no sum is made: rounding must spare nobody
    trains = splits.share == 1.0 or fraction < kept + splits.share * (1 - kept)
    return "train" if trains else "spared"


def secret_of(site: Site) -> str:
    """The site's secret: its file's `secret`, else what was drawn here once and is kept.

    Raises
    ------
    FolderError
        If what is kept cannot be read; another secret would let test participants train.
    """
    return site.secret or _kept(site.state / FILE)


def pseudonyms(participants: Sequence[str], secret: str) -> list[str]:
    """Participants' names as the site's own records hold them; nobody else can make these.

    >>> pseudonyms(["sub-01"], "example")[0][:12]
    '3548c15e2edd'
    """
    of = {
        name: hashlib.sha256(f"{secret}\0pseudonym\0{name}".encode()).hexdigest()
        for name in set(participants)
    }
    return [of[name] for name in participants]


def _kept(path: Path) -> str:
    if not path.exists():
        drawn = path.with_name(f".{FILE}.{secrets.token_hex(4)}.tmp")
        write_secret(drawn, secrets.token_hex(_BYTES).encode())
        with suppress(FileExistsError):  # another process was first: its secret holds
            os.link(drawn, path)
        drawn.unlink()
        sync_folder(path.parent)
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{path} cannot be read: {error}; put its backup in its place") from None
    if len(found) != 2 * _BYTES:
        raise FolderError(f"{path} is damaged; put its backup in its place")
    return found
