"""A site's prepared samples with participants and labels: what training and judging read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.data.dictionary import contradictions
from client.data.finding import Finding
from client.data.generation import (
    MEASURES,
    SAMPLES,
    Record,
    current_generation,
    prepared_folder,
    read_index,
)
from client.data.labels import read_labels
from client.data.lazy import Lazy
from client.data.measures import read_measures
from client.data.reader import Source, find_sources, inspected, is_lazy
from client.data.splits import Split, secret_of, split_of
from client.site import Site
from common.errors import DataError
from common.seams import Layout
from common.sections import Splits
from common.study import Study, canonical


class Samples(Protocol):
    """(N, *shape) samples: mapped from disk, in memory, or made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, chosen: Any, /) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """Some of `samples`, in the order of `indices`, read where they lie."""

    samples: Samples
    indices: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (len(self), *self.samples.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self.samples.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, chosen: Any, /) -> NDArray[Any]:
        return self.samples[self.indices[chosen]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """N samples of a site; every field runs along them.

    samples: (N, *shape), the kind's dtype, mapped from disk and read-only.
    participants, scans: (N,) whose sample and which scan.
    labels: (N,) float32 for every target of the study, NaN where unknown; regression in the
        study's unit, neither centred nor scaled; classes as index.
    layout: what the axes of a sample are.
    measures: (N, R) floating numbers for the linear model, prepared or from a table of the site's,
        NaN rows where missing; None without any.
    contents: SHA-256 of the content of each sample's scan.
    secrets: (N,) the secret of the site that each sample is of, which with a study's salt decides
        who trains.
    """

    samples: Samples
    layout: Layout
    participants: tuple[str, ...]
    scans: tuple[str, ...]
    labels: Mapping[str, NDArray[np.float32]]
    measures: NDArray[np.floating[Any]] | None
    findings: tuple[Finding, ...]
    contents: tuple[str, ...]
    secrets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.participants)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted contents: equal for equal scans, under whatever names.

        Tells a coordinator that a held-out folder is a training folder under another name.
        """
        joined = "\n".join(sorted(set(self.contents)))
        return hashlib.sha256(joined.encode()).hexdigest()

    def indices(self, split: Split, splits: Splits) -> NDArray[np.int64]:
        """Positions of the samples whose participant is in `split`, ascending."""
        whose = list(zip(self.participants, self.secrets, strict=True))
        of = {(name, secret): split_of(name, splits, secret) for name, secret in set(whose)}
        inside = [index for index, key in enumerate(whose) if of[key] == split]
        return np.asarray(inside, dtype=np.int64)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Cohort:
        """The cohort of these samples, in this order; they stay where they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            samples=Chosen(self.samples, chosen),
            participants=tuple(self.participants[index] for index in chosen),
            scans=tuple(self.scans[index] for index in chosen),
            labels={name: values[chosen] for name, values in self.labels.items()},
            measures=None if self.measures is None else self.measures[chosen],
            contents=tuple(self.contents[index] for index in chosen),
            secrets=tuple(self.secrets[index] for index in chosen),
        )

    def labelled(self) -> dict[str, int]:
        """Number of samples with a label, by target."""
        return {name: int(np.isfinite(values).sum()) for name, values in self.labels.items()}


def open_cohort(study: Study, site: Site) -> Cohort:
    """Map what `prepare` made, and read labels and regions anew from the site's tables.

    Raises
    ------
    DataError
        If the site is not prepared for this study, or its scans changed since.
    """
    if is_lazy(study):
        return _unprepared(study, site)
    try:
        return _open(study, site)
    except FileNotFoundError:  # a newer generation replaced the one just found
        return _open(study, site)


def empty_cohort(study: Study) -> Cohort:
    """The cohort of a site that cannot use anything it has; it can still decline orders."""
    return Cohort(
        samples=np.empty((0, *study.shape), dtype=study.kind.dtype),
        layout=study.layout,
        participants=(),
        scans=(),
        labels={name: np.empty(0, dtype=np.float32) for name in study.targets},
        measures=None,
        findings=(),
        contents=(),
        secrets=(),
    )


def _open(study: Study, site: Site) -> Cohort:
    generation = current_generation(prepared_folder(study, site))
    if generation is None:
        raise DataError(f"{site.name} is not prepared for {study.name}; prepare it first")
    found = find_sources(study, site)
    records = read_index(generation)
    sources = _matched(records, found.sources, site)
    kept = [(record, source) for record, source in zip(records, sources, strict=True) if record.n]
    scans = _repeated((record.scan for record, _ in kept), kept)
    labels = read_labels(study.targets, site.targets, list(_rows(kept)), scans, found.columns)
    tabled, unread, _ = read_measures(study, site, scans)
    return Cohort(
        samples=_map(generation, len(scans), study),
        layout=study.layout,
        participants=_repeated((record.participant for record, _ in kept), kept),
        scans=scans,
        labels=labels.values,
        measures=_held(tabled, scans, [record for record, _ in kept], generation),
        findings=(
            *found.findings,
            *_left_out(records),
            *_unlike_measures([record for record, _ in kept]),
            *contradictions(study.targets, site.targets, found.dictionary),
            *labels.findings,
            *unread,
        ),
        contents=_repeated((record.sha256 for record, _ in kept), kept),
        secrets=(secret_of(site),) * len(scans),
    )


def _unprepared(study: Study, site: Site) -> Cohort:
    """The cohort of a reader that makes its samples when they are asked for."""
    found = find_sources(study, site)
    usable, odd = inspected(study, found.sources)
    kept = [(source.n, source) for source in usable]
    rows = [source.row for n, source in kept for _ in range(n)]
    scans = tuple(source.scan for n, source in kept for _ in range(n))
    labels = read_labels(study.targets, site.targets, rows, scans, found.columns)
    agreed = study.data.model_dump(mode="json")
    stamps = [hashlib.sha256(canonical([agreed, source.stamp])).hexdigest() for source in usable]
    return Cohort(
        samples=Lazy(study, usable),
        layout=study.layout,
        participants=tuple(source.participant for n, source in kept for _ in range(n)),
        scans=scans,
        labels=labels.values,
        measures=None,
        findings=(*found.findings, *odd, *labels.findings),
        contents=tuple(stamp for stamp, source in zip(stamps, usable, strict=True)
                       for _ in range(source.n)),
        secrets=(secret_of(site),) * len(scans),
    )  # fmt: skip


def _matched(records: list[Record], sources: Sequence[Source], site: Site) -> Sequence[Source]:
    keys = [(source.participant, source.scan, source.stamp) for source in sources]
    if [record.key for record in records] != keys:
        raise DataError(f"the scans of {site.name} changed since they were prepared; prepare again")
    return sources


def _repeated(values: Iterable[str], kept: Sequence[tuple[Record, Source]]) -> tuple[str, ...]:
    """Each value as often as its scan has samples."""
    pairs = zip(values, kept, strict=True)
    return tuple(value for value, (record, _) in pairs for _ in range(record.n))


def _rows(kept: Sequence[tuple[Record, Source]]) -> Iterable[Mapping[str, str]]:
    """Cells by column for each sample: its participant's, overlaid by its own."""
    for record, source in kept:
        for index in range(record.n):
            own = {column: cells[index] for column, cells in record.labels.items()}
            yield {**source.row, **own} if own else source.row


def _map(generation: Path, count: int, study: Study) -> NDArray[np.generic]:
    dtype = np.dtype(study.kind.dtype)
    if count == 0:
        return np.empty((0, *study.shape), dtype=dtype)
    path = generation / SAMPLES
    needed = count * int(np.prod(study.shape)) * dtype.itemsize
    if path.stat().st_size != needed:
        raise DataError(f"{path} has {path.stat().st_size} bytes, its index says {needed}")
    return np.memmap(path, dtype=dtype, mode="r", shape=(count, *study.shape))


def _held(
    tabled: NDArray[np.float64] | None,
    scans: Sequence[str],
    records: Sequence[Record],
    generation: Path,
) -> NDArray[np.floating[Any]] | None:
    """Measures of every sample: from the site's own table if it has one, else as prepared."""
    widths = {record.measures for record in records}
    if tabled is not None or len(widths) != 1 or not any(widths):
        return tabled
    shape = (len(scans), widths.pop())
    return np.memmap(generation / MEASURES, dtype=np.float32, mode="r", shape=shape)


def _unlike_measures(records: Sequence[Record]) -> Iterable[Finding]:
    """One finding where scans have different numbers of measures: then none can be used."""
    widths: dict[int, str] = {}
    for record in records:
        widths.setdefault(record.measures, record.scan)
    if len(widths) > 1:
        told = ", ".join(f"{scan} has {n}" for n, scan in sorted(widths.items())[:3])
        problem = f"not all scans have as many ({told}); the linear rival goes without"
        yield Finding(what="measures", problem=problem, left_out=False)


def _left_out(records: Sequence[Record]) -> Iterable[Finding]:
    for record in records:
        if record.notes:
            left_out = record.status != "ready"
            yield Finding(what=record.scan, problem="; ".join(record.notes), left_out=left_out)
