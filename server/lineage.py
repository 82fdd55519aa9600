"""Lineage: which sites made a checkpoint, with what, along all studies that led to it.

One value, written with every checkpoint, taken along by whatever begins from it. It holds names,
counts and fingerprints of whole cohorts; tokens of single scans lie beside it (`server.overlap`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Self

from common.protocol.orders import Hex, Report
from common.sections import Name
from common.settings import Table
from common.study import Study, canonical

# weights: its updates were averaged. constants: the network's constants are made of its sums, and
# harmonisation: so are those that columns are harmonised by. choice: figures on its people chose
# something (`sites.chosen_on`)
Use = Literal["weights", "constants", "harmonisation", "choice"]
_WORDS: Final[Mapping[Use, str]] = {
    "weights": "weights",
    "constants": "settled constants",
    "harmonisation": "harmonisation",
    "choice": "choices",
}


class Part(Table):
    """What one site had in one study. `uses` is empty for one that was asked and gave nothing."""

    site: Name
    uses: tuple[Use, ...] = ()
    participants: int = 0
    scans: int = 0
    cohort: Hex | Literal[""] = ""


class Stage(Table):
    """One study of the chain: `prepared` is the digest of how its scans were prepared."""

    study: Name
    digest: Hex
    model: str
    prepared: Hex
    parts: tuple[Part, ...]


class Lineage(Table):
    """All studies that a checkpoint came of, the first one first."""

    salt: Hex
    stages: tuple[Stage, ...]

    @property
    def contributors(self) -> tuple[str, ...]:
        """Every site of which something went in, sorted."""
        return tuple(sorted({part.site for part in self._parts() if part.uses}))

    @property
    def cohorts(self) -> tuple[str, ...]:
        """Fingerprints of all cohorts that were there, whatever their sites are called."""
        return tuple(sorted({part.cohort for part in self._parts() if part.cohort}))

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(canonical(self.model_dump(mode="json"))).hexdigest()

    def used(self, sites: Iterable[str], use: Use) -> Self:
        """The same after something of `sites` went into the last stage."""
        *before, last = self.stages
        names, held = set(sites), {part.site for part in last.parts}
        parts = [
            part.model_copy(update={"uses": tuple(sorted({*part.uses, use}))})
            if part.site in names
            else part
            for part in (*last.parts, *(Part(site=name) for name in names - held))
        ]
        parts.sort(key=lambda part: part.site)
        stage = last.model_copy(update={"parts": tuple(parts)})
        return self.model_copy(update={"stages": (*before, stage)})

    def told(self) -> list[str]:
        """A sentence for each study and use, first to last."""
        return [
            f"{stage.study} ({stage.model}), {_WORDS[use]} from "
            + ", ".join(_counted(part) for part in stage.parts if use in part.uses)
            for stage in self.stages
            for use in _WORDS
            if any(use in part.uses for part in stage.parts)
        ]

    def _parts(self) -> Iterable[Part]:
        return (part for stage in self.stages for part in stage.parts)


def begun(
    study: Study, model: str, before: Lineage | None, reports: Mapping[str, Report], salt: str
) -> Lineage:
    """The lineage of a model whose training begins with the sites that gave these censuses."""
    parts = [_part(site, report) for site, report in sorted(reports.items())]
    stage = Stage(
        study=study.name,
        digest=study.digest,
        model=model,
        prepared=prepared_of(study),
        parts=tuple(parts),
    )
    stages = before.stages if before is not None else ()
    found = Lineage(salt=salt, stages=(*stages, stage))
    return found.used(study.sites.chosen_on, "choice")


def prepared_of(study: Study) -> str:
    """Digest of how a study's scans are prepared: only what was prepared alike can be compared."""
    agreed = study.data.model_dump(mode="json", exclude={"regions"})
    return hashlib.sha256(canonical([study.kind_name, agreed])).hexdigest()


def _part(site: str, report: Report) -> Part:
    return Part(
        site=site,
        participants=report.participants.get("scans", 0),
        scans=report.support.get("scans", 0),
        cohort=report.cohort,
    )


def _counted(part: Part) -> str:
    known = f" ({part.participants:,} people, {part.scans:,} scans)" if part.scans else ""
    return part.site + known
