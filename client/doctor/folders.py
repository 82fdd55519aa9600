"""Data are to be read and never changed; what the site must not lose is to be written safely."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from client.doctor.finding import Finding, bad, good, note, skipped
from client.site import Site
from common.errors import FolderError
from common.runtime.private_folder import check_own

_MOST_FILES: Final = 500
_MOST_S: Final = 5.0
_SLOW_S: Final = 1.0
_REMOTE: Final = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "gluster", "lustre", "afs")
_VANISHING: Final = ("tmpfs", "ramfs")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")  # the kernel writes a space as \040
# keys of [data] that lead to data; others are looked at if there is something
_HOMES: Final = ("root", "table", "links")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system where it is mounted."""

    place: str
    kind: str
    options: frozenset[str]


def user(site: Site) -> Finding:
    """Whether the user who asks is the one whom the agent runs as."""
    state = existing(site.state)
    owner, me = state.stat().st_uid, os.geteuid()
    if me == 0:
        return note(
            "this is root, who may do everything; what the agent's own user may do is not seen",
            "run the doctor as the user of the agent: sudo -u USER callosum-site doctor ...",
        )
    if owner != me and site.state.exists():
        return note(
            "the state folder belongs to another user than the one who asks",
            "run the doctor as the user of the agent: sudo -u USER callosum-site doctor ...",
        )
    return good("the user who asks is the state folder's own")


def data(site: Site) -> Finding:
    """Data that this user may read and may not change; a bounded number of files is opened."""
    homes = _homes(site)
    if not homes:
        return skipped(
            "the site's kind of data names no file or folder that is known here",
            "callosum-site check --study STUDY reads all of it",
        )
    absent = [home for home in homes if not _seen(home)]
    if absent:
        return bad(
            "{data} does not exist, or this user may not see it",
            "correct [data] in {site_file}, mount the data, or let this user in",
            data=absent[0],
            site_file=site.file,
        )
    return _looked_through(homes, site)


def state(site: Site) -> Finding:
    """Whether what is written to the state folder stays: permissions, fsync, locks, SQLite."""
    names = {"state": site.state, "site_file": site.file}
    if not _is_own(site.state):
        return bad(
            "{state} is or holds a link, or something that is another user's",
            "look who made it; put files themselves there, and give all of it to the agent's user "
            "(chown -R)",
            **names,
        )
    return _written(site, names)


def _written(site: Site, names: dict[str, Path]) -> Finding:
    """Whether what is written stays, tried for real."""
    home = existing(site.state)
    try:
        seconds = _write_for_real(home)
    except (OSError, sqlite3.Error) as error:
        return _not_written(error, names)
    mount = mount_of(home, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    elsewhere = "give folder in {site_file} a place on a local disk"
    if mount.kind in _VANISHING:
        found = f"{{state}} is in memory ({mount.kind}): the ledger would be lost at a restart"
        return bad(found, elsewhere, **names)
    if mount.kind == "overlay":
        return note(
            "{state} is inside a container's own layer: the ledger is lost with the container",
            "mount a volume there",
            **names,
        )
    if mount.kind.startswith(_REMOTE):
        found = f"{{state}} is on a network disk ({mount.kind}): locks and the ledger depend on it"
        return note(found, elsewhere, **names)
    if seconds > _SLOW_S:
        found = f"{{state}} takes {seconds:.1f} s to put one small file on disk"
        return note(found, elsewhere, **names)
    return good(
        f"{{state}} can be written, locked and synced ({mount.kind}, {seconds * 1000:.0f} ms)",
        state=site.state,
    )


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def mount_of(path: Path, mountinfo: str) -> Mount:
    r"""The file system that `path` is on, from the text of /proc/self/mountinfo.

    >>> mount_of(Path("/a/b"), "1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /a ro - nfs4 x:/ rw")
    Mount(place='/a', kind='nfs4', options=frozenset({'ro'}))
    """
    found = Mount("/", "", frozenset())
    for line in mountinfo.splitlines():
        fields, _, system = line.partition(" - ")
        place = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields.split()[4])
        inside = path.absolute().is_relative_to(place)
        # of two mounts in one place the later hides the earlier
        if inside and len(place) >= len(found.place):
            found = Mount(place, system.split()[0], frozenset(fields.split()[5].split(",")))
    return found


def _is_own(state: Path) -> bool:
    """False only where the agent would say so, too; what another user may not see is no finding."""
    try:
        check_own(state)
    except FolderError:
        return bool(state.parent.stat().st_uid != os.geteuid())
    except OSError:
        return True
    return True


def _homes(site: Site) -> list[Path]:
    """Files and folders that the keys of [data] name."""
    homes: list[Path] = []
    for key, entry in site.data.model_dump().items():
        for value in entry if isinstance(entry, tuple) else (entry,):
            if isinstance(value, str) and value:
                place = site.root / value
                if key in _HOMES or ("/" in value and _seen(place)):
                    homes.append(place)
    return homes


def _looked_through(homes: list[Path], site: Site) -> Finding:
    opened = closed = 0
    places: list[Path] = []
    end = time.monotonic() + _MOST_S
    for path in islice((path for home in homes for path in _below(home)), _MOST_FILES):
        opened += 1
        closed += not _readable(path)
        places.append(path)
        if time.monotonic() > end:
            break
    names = {"data": homes[0], "site_file": site.file}
    if closed:
        return bad(
            f"{closed} of {opened} files and folders at {{data}} cannot be read by this user",
            "let this user's group read them (chmod -R g+rX), and nothing more",
            **names,
        )
    if not any(_seen(path) and path.is_file() for path in places):
        return bad("{data} holds no file", "correct [data] in {site_file}", **names)
    text = f"{{data}} can be read ({opened} of its files and folders tried)"
    open_to = sum(os.access(path, os.W_OK, effective_ids=True) for path in (*homes, *places))
    if open_to and os.geteuid() == 0:
        return note(
            f"{text}; this is root, who may also change it",
            "run the agent as a user of its own, or mount the data read-only",
            **names,
        )
    if open_to:
        return bad(
            f"{text}; this user may change or delete {open_to} of them",
            "take the right to write from this user (chmod, or mount the data read-only): "
            "Callosum never needs it",
            **names,
        )
    return good(f"{text}; none can be changed", **names)


def _below(home: Path) -> Iterator[Path]:
    """`home` and all below it, one folder after the other; what cannot be listed is itself told."""
    yield home
    waiting = [home] if _seen(home) and home.is_dir() else []
    while waiting:
        try:
            entries = sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name)
        except OSError:
            continue  # told when it was yielded
        for entry in entries:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))


def _seen(path: Path) -> bool:
    """Whether something is there that this user may look at."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _readable(path: Path) -> bool:
    try:
        if path.is_dir():
            next(os.scandir(path), None)
        else:
            with path.open("rb") as stream:
                stream.read(1)
    except OSError:
        return False
    return True


def _write_for_real(home: Path) -> float:
    """Do in `home` all that ledger and receipts do; return the seconds that one fsync took."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=home) as made:
        file = Path(made) / "file"
        with file.open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stream.write(b"\0" * 65536)
            stream.flush()
            began = time.monotonic()
            os.fsync(stream.fileno())
            seconds = time.monotonic() - began
        file.rename(file.with_name("renamed"))
        with closing(sqlite3.connect(Path(made) / "ledger.sqlite", timeout=2)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("CREATE TABLE proof (number INTEGER)")
            connection.commit()
    return seconds


def _not_written(error: OSError | sqlite3.Error, names: dict[str, Path]) -> Finding:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EROFS:
        remedy = "mount it for writing, or give folder in {site_file} another place"
        return bad("{state} is on a read-only file system", remedy, **names)
    if number in (errno.EACCES, errno.EPERM):
        remedy = "give {state} to the agent's user (chown), with mode 0700"
        return bad("this user may not write to {state}", remedy, **names)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return bad("the disk or quota of {state} is full", "free space there", **names)
    what = os.strerror(number) if number else "SQLite cannot work there"
    remedy = "give folder in {site_file} a place on a local disk"
    return bad(f"{{state}} cannot be written safely: {what}", remedy, **names)
