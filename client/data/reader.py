"""Where a site's files become samples: what a data kind's reader must offer, and which is whose.

The agreement's half of a kind (settings, shape, dtype, layout) is in `common.kinds`, because both
ends know it; the reader is here, because it meets the data. A package outside Callosum offers its
own by the entry point group `callosum.readers`, or puts both halves into one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding, Findings, Join
from client.site import Site
from common import catalogue
from common.errors import ScanError, SettingError, reason
from common.study import Study

_OURS: Final = {
    "bold": "client.data.functional.bold:BoldReader",
    "connectome": "client.data.readers.connectome:ConnectomeReader",
    "features": "client.data.readers.features:FeaturesReader",
    "synthetic-t1w": "client.data.synthesis.heads:SyntheticT1wReader",
    "synthetic-video": "client.data.synthesis.motion:SyntheticVideoReader",
    "t1w": "client.data.readers.t1w:T1wReader",
    "video": "client.data.readers.video:VideoReader",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One thing on a site's disk that becomes samples: a scan, a run, a row of a table.

    `scan` names it for people (never leaves the site); `stamp` changes when its content may have;
    `row` holds the site's columns of labels as text; `payload` is whatever the reader needs to read
    it and must survive a trip to a worker process. `n` counts its samples where the reader is lazy.
    `states` are labels that its samples will have, each once, by column, as far as that is known
    before they are made: what `check` counts.
    """

    participant: str
    scan: str
    stamp: str
    row: Mapping[str, str]
    payload: Any = None
    n: int = 1
    states: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a reader found at a site: usable sources in a stable order, and what was wrong.

    joins: what was matched with what. columns: all that labels may be read from, of tables and of
    samples; empty where only the samples will tell.
    dictionary: what the data set itself says of a column (participants.json), as read.
    """

    sources: tuple[Source, ...]
    findings: tuple[Finding, ...] = ()
    joins: tuple[Join, ...] = ()
    columns: tuple[str, ...] = ()
    dictionary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The samples of one source: (n, *shape) in the kind's dtype, with notes on quality.

    labels: labels that belong to a sample rather than to a participant, as text by the site's
        column name (the cognitive state of a volume, say); each list has n entries.
    measures: (n, R) numbers for the linear rival, kept beside the samples; the same R for every
        source of a study. None where the reader has none: then a table is its own measures, a
        volume is averaged in coarse blocks, and other layouts have no linear rival.
    quality: figures on the source by name, by which a person at the site finds the odd ones. They
        are kept beside the samples and never leave; where one cannot be told it is left out.
    """

    samples: NDArray[np.generic]
    notes: tuple[str, ...] = ()
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    measures: NDArray[np.floating[Any]] | None = None
    quality: Mapping[str, float] = field(default_factory=dict)


class Reader(Protocol):
    """How files become samples; the same code at every site, told apart by settings alone.

    `find` is given the site's columns that labels are read from; a source's `row` holds these, and
    nothing more of a table that may have thousands.

    Four things may be left out. `version` is raised when the same settings come to mean other
    samples. `lazy` says that samples are made whenever they are needed and never kept on disk;
    they must be the same each time. `inspect(study, source)` gives notes from a header alone, or
    raises `ScanError`. `regions(study, site, root)` gives measures by scan that a site holds in a
    table of its own; they take the place of prepared ones.
    """

    version: ClassVar[int]
    lazy: ClassVar[bool]

    @staticmethod
    def find(study: Any, site: Any, root: Path, columns: frozenset[str]) -> Found: ...

    @staticmethod
    def prepare(study: Any, source: Source) -> Prepared: ...

    @staticmethod
    def inspect(study: Any, source: Source) -> tuple[str, ...]: ...

    @staticmethod
    def regions(
        study: Any, site: Any, root: Path
    ) -> Iterator[tuple[str, NDArray[np.float64]] | Finding]: ...


def find_sources(study: Study, site: Site) -> Found:
    """What a site has for a study, by names and tables alone.

    Raises
    ------
    DataError
        If the site's folder or table cannot be used at all.
    """
    columns = frozenset(column.column for column in site.targets.values() if column.column)
    columns |= {site.person_column} - {""}
    return reader_of(study.kind_name).find(study.data, site.data, site.root, columns)


def participants_of(study: Study, site: Site) -> frozenset[str]:
    """Everyone of whom the site has something for a study."""
    return frozenset(source.participant for source in find_sources(study, site).sources)


def is_lazy(study: Study) -> bool:
    """Whether samples are made whenever they are needed, and never kept on disk."""
    return bool(getattr(reader_of(study.kind_name), "lazy", False))


def inspected(study: Study, sources: tuple[Source, ...]) -> tuple[list[Source], list[Finding]]:
    """Sources whose headers are sound, and what headers tell, where the reader looks at them."""
    inspect = getattr(reader_of(study.kind_name), "inspect", None)
    usable: list[Source] = []
    findings = Findings()
    for source in sources:
        try:
            notes = inspect(study.data, source) if inspect else ()
        except ScanError as error:
            findings.append(Finding(what=source.scan, problem=str(error), left_out=True))
            continue
        except OSError as error:
            problem = f"cannot be read: {reason(error)}"
            findings.append(Finding(what=source.scan, problem=problem, left_out=True))
            continue
        usable.append(source)
        findings.extend(Finding(what=source.scan, problem=note, left_out=False) for note in notes)
    return usable, list(findings.told())


def reader_of(kind: str) -> Reader:
    """The reader of a data kind.

    Raises
    ------
    SettingError
        If none is installed at this site.
    """
    if kind in _OURS:
        module, _, attribute = _OURS[kind].partition(":")
        return cast("Reader", getattr(import_module(module), attribute))
    for point in entry_points(group="callosum.readers"):
        if point.name == kind:
            try:
                return cast("Reader", point.load())
            except (ImportError, AttributeError) as error:
                raise SettingError(f'"{kind}" ({point.value}) cannot be loaded: {error}') from None
    both = catalogue.load("kinds", kind)
    if not hasattr(both, "find"):
        raise SettingError(f'kind "{kind}" is installed without a reader (callosum.readers)')
    return cast("Reader", both)
