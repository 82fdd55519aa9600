"""Which sites hold the same scans: counted from tokens, told in counts and names of sites alone.

Tokens of scans (`common.protocol.tokens`) stay in the run folder, and lie beside checkpoints in
`seen.safetensors`: STAGE/SITE/ARRAY, by the stages of the checkpoint's lineage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.arrays import Arrays
from common.protocol.orders import Report
from common.protocol.tokens import KEY, PEOPLE, PERSONS, SCANS
from common.protocol.wire import Stored
from common.settings import Table
from common.study import Study
from server.lineage import Lineage, prepared_of
from server.run_files import read_json, write_json

FILE: Final = "overlap.json"


class Overlaps(Table):
    """What a run folder says of overlaps: sentences, and judges that hold scans of earlier ones."""

    findings: tuple[str, ...] = ()
    copies: Mapping[str, str] = Field({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The scans of one site, now or in an earlier study: `arrays` are tokens, if it gave any."""

    site: str
    cohort: str
    study: str
    prepared: str
    arrays: Mapping[str, NDArray[Any]] | None

    @property
    def key(self) -> int | None:
        """Which key its tokens are made with."""
        return int(self.arrays[KEY][0]) if self.arrays is not None else None

    @property
    def tokens(self) -> NDArray[Any]:
        """All tokens by which it can be compared."""
        return np.concatenate([self._of(SCANS), self._of(PERSONS)])

    @property
    def by_identifiers(self) -> bool:
        """Whether its people can be found under other scans, too."""
        return len(self._of(PERSONS)) > 0

    def _of(self, name: str) -> NDArray[Any]:
        return (self.arrays or {}).get(name, np.empty(0, dtype=np.int64))

    def shares(self, other: Held) -> str:
        """How much of this is the other's, in words; "" where nothing is known to be.

        >>> from dataclasses import replace
        >>> tokens = {"scans": np.array([1, 2]), "people": np.array([0, 0]), "key": np.array([0])}
        >>> held = Held(site="elm", cohort="", study="a", prepared="", arrays=tokens)
        >>> held.shares(replace(held, site="birch"))
        'elm shares 2 of its 2 scans, of 1 people, with birch'
        """
        mine, theirs = self._of(SCANS), other._of(SCANS)
        shared = np.isin(mine, theirs, assume_unique=True)
        if number := int(shared.sum()):
            people = len(np.unique(self._of(PEOPLE)[shared]))
            return (
                f"{self.site} shares {number:,} of its {len(mine):,} scans, of {people:,} people, "
                f"with {other.site}"
            )
        mine, theirs = self._of(PERSONS), other._of(PERSONS)
        if number := int(np.isin(mine, theirs, assume_unique=True).sum()):
            return (
                f"{self.site} shares {number:,} of its {len(mine):,} people with {other.site}, by "
                "identifiers that both keep"
            )
        if self.cohort and self.cohort == other.cohort:
            return f"{self.site} holds the scans of {other.site}, all of them and no others"
        return ""


def held_now(study: Study, reports: Mapping[str, Report], folder: Path) -> dict[str, Held]:
    """What each site that answered the census holds; its tokens from `folder`, if it gave them."""
    found = {}
    for site, report in sorted(reports.items()):
        path = folder / f"{site}.safetensors"
        found[site] = Held(
            site=site,
            cohort=report.cohort,
            study=study.name,
            prepared=prepared_of(study),
            arrays=Stored(path).all() if path.exists() else None,
        )
    return found


def held_before(lineage: Lineage, seen: Mapping[str, NDArray[Any]]) -> list[Held]:
    """What the sites of a lineage held."""
    return [
        Held(
            site=part.site,
            cohort=part.cohort,
            study=stage.study,
            prepared=stage.prepared,
            arrays=_tokens(seen, f"{number:04d}/{part.site}/"),
        )
        for number, stage in enumerate(lineage.stages)
        for part in stage.parts
    ]


def seen_with(
    before: Mapping[str, NDArray[Any]], stage: int, held: Iterable[Held]
) -> Mapping[str, NDArray[Any]]:
    """Tokens of a lineage's earlier stages and of the sites of its newest."""
    here: Arrays = {
        f"{stage:04d}/{each.site}/{name}": array
        for each in held
        for name, array in (each.arrays or {}).items()
    }
    return {**before, **here}


def took_part(judge: Held, names: Iterable[str], others: Iterable[Held]) -> str:
    """Why a site may not judge what `names` made of the scans that `others` held; or nothing."""
    if judge.site in names:
        return f"{judge.site} contributed"
    for other in others:
        if shared := judge.shares(other):
            return shared
    return ""


def copies(judges: Sequence[Held]) -> dict[str, str]:
    """Judges that hold scans of an earlier one, each with how it does: every scan counts once."""
    found: dict[str, str] = {}
    for number, judge in enumerate(judges):
        counted = [each for each in judges[:number] if each.site not in found]
        if shared := took_part(judge, (), counted):
            found[judge.site] = shared
    return found


def findings(trainers: Sequence[Held], judges: Sequence[Held], lineage: Sequence[Held],
             codes: Mapping[str, str]) -> Iterator[str]:  # fmt: skip
    """What is shared among those that train, and what cannot be compared, a sentence each."""
    for one, other in _pairs(trainers):
        if shared := one.shares(other):
            yield (
                f"{shared}: they are learnt from twice, and one person may train at one site and "
                "test at the other"
            )
    for each in (*trainers, *judges):
        if each.arrays is None:
            yield (
                f"{each.site} gives no tokens of its scans ({codes.get(each.site, 'NO_ANSWER')}): "
                "it is compared by its name and as a whole cohort alone"
            )
    yield from _incomparable([*trainers, *judges], lineage)


def keep(folder: Path, found: Overlaps) -> None:
    """Write what was found into a run folder."""
    write_json(folder / FILE, found.model_dump(mode="json"))


def kept(folder: Path) -> Overlaps:
    """What a run folder says of overlaps; nothing where nobody has looked."""
    path = folder / FILE
    return Overlaps.model_validate(read_json(path)) if path.exists() else Overlaps()


def _incomparable(now: Sequence[Held], lineage: Sequence[Held]) -> Iterator[str]:
    keys: dict[int, list[str]] = {}
    for each in now:
        if each.key is not None:
            keys.setdefault(each.key, []).append(each.site)
    if len(keys) > 1:
        parts = " and of ".join(", ".join(sites) for sites in keys.values())
        yield (
            f"tokens of {parts} are made with different keys: scans that they share are not seen; "
            "sites agree on one overlap_key"
        )
    if 0 < sum(each.by_identifiers for each in now) < len(now):
        names = ", ".join(each.site for each in now if not each.by_identifiers)
        yield f"people of {names} have no identifiers here: another scan of one is not seen"
    prepared = {each.prepared for each in now}
    for study in dict.fromkeys(each.study for each in lineage):
        whose = [each for each in lineage if each.study == study and each.cohort]
        if whose and prepared and not {each.prepared for each in whose} & prepared:
            yield (
                f"scans of {study} were prepared in another way: judges are compared with its "
                "sites by their names alone"
            )
        elif without := sorted({each.site for each in whose if each.arrays is None}):
            yield (
                f"no tokens of {', '.join(without)} are known from {study}: judges are compared "
                "with them by name and as whole cohorts alone"
            )


def _pairs(held: Sequence[Held]) -> Iterator[tuple[Held, Held]]:
    """Those that may share something, the later one first: all that have a token twice."""
    if not held:
        return
    found, times = np.unique(np.concatenate([each.tokens for each in held]), return_counts=True)
    twice = found[times > 1]
    cohorts = [each.cohort for each in held]
    some = [
        each for each in held if np.isin(each.tokens, twice).any() or cohorts.count(each.cohort) > 1
    ]
    for number, later in enumerate(some):
        yield from ((later, earlier) for earlier in some[:number])


def _tokens(seen: Mapping[str, NDArray[Any]], prefix: str) -> Mapping[str, NDArray[Any]] | None:
    found = {
        name: seen[f"{prefix}{name}"]
        for name in (SCANS, PEOPLE, KEY, PERSONS)
        if f"{prefix}{name}" in seen
    }
    return found if found.keys() >= {SCANS, PEOPLE, KEY} else None
