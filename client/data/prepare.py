"""Each scan is prepared once and kept, whatever moment a process dies at.

A generation (`client.data.generation`) grows as `building`; when it is complete, it gets the name
that puts it in use. What has not changed is lent by the generation before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import IO, Any, Self

from client.data.finding import Finding
from client.data.generation import (
    FIGURES,
    INDEX,
    MEASURES,
    QUALITY,
    SAMPLES,
    Record,
    bytes_of_measures,
    bytes_of_sample,
    current_generation,
    intact_records,
    is_intact,
    line_of,
    prepared_folder,
    read_index,
)
from client.data.reader import Source, find_sources
from client.data.workers import Outcome, prepare_all
from client.site import LOCAL_DISK, Site
from common.printable import csv_cell
from common.runtime.durable import storage_checked, sync_folder, write_atomically
from common.runtime.locks import lock
from common.runtime.private_folder import as_folder, make_folder
from common.study import Study

_log = getLogger("callosum.site")


Recorded = tuple[Record, bytes, bytes]  # with the bytes of its samples and of its measures


def prepare(
    study: Study,
    site: Site,
    *,
    workers: int | None = None,
    advance: Callable[[], None] | None = None,
) -> Path:
    """Prepare whatever is new or changed at a site; return the folder of the complete generation.

    The same sources give the same bytes, whatever the number of `workers` (None: as many as cores
    where it pays) and however often the work was interrupted. `advance` is called once a source.

    Raises
    ------
    DataError
        If the site's folder or table cannot be used at all; single scans are left out instead.
    StorageError
        If the disk is full. What is done is kept, and the same call resumes.
    """
    folder = prepared_folder(study, site)
    with storage_checked(folder):
        make_folder(folder)
    with _alone(folder):
        found = find_sources(study, site)
        keys = [(source.participant, source.scan, source.stamp) for source in found.sources]
        current = current_generation(folder)
        records = read_index(current) if current else []
        same = [record.key for record in records] == keys
        if (
            current is None
            or not same
            or not _sound(current, records, bytes_of_sample(study))
            or _recovered(study, found.sources, records, workers)
        ):
            current = _build(study, found.sources, folder, workers, advance)
            records = read_index(current)
        elif advance:
            for _ in records:
                advance()
        _write_quality(current, records, found.findings)
        _write_figures(current, records)
        for other in (*folder.glob("generation-*"), folder / "interrupted", folder / "building"):
            if other != current:
                shutil.rmtree(other, ignore_errors=True)
        return current


def _sound(generation: Path, records: Sequence[Record], row: int) -> bool:
    """Whether all samples and measures of a generation are what was written, and nothing else."""
    intact = intact_records(generation, row)
    sizes = [(generation / name).stat().st_size for name in (SAMPLES, MEASURES)] if intact else []
    wanted = [sum(r.n for r in records) * row, sum(bytes_of_measures(r) for r in records)]
    if records and (len(intact) != len(records) or sizes != wanted):
        _log.error("%s is no longer what was written; what has changed is prepared again",
                   generation)  # fmt: skip
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process prepares here; the lock ends with the process that holds it."""
    with storage_checked(folder):
        handle = as_folder(os.fspath(folder / "lock"), os.O_RDWR | os.O_CREAT)
    try:
        lock(handle, folder, wait=True, remedy=LOCAL_DISK)
        yield
    finally:
        os.close(handle)


def _build(
    study: Study,
    sources: Sequence[Source],
    folder: Path,
    workers: int | None,
    advance: Callable[[], None] | None,
) -> Path:
    """Grow `building` to one record a source, then make it the generation in use."""
    with storage_checked(folder):
        growing = _Growing(study, sources, folder)
    with growing:
        todo = [source for source in sources[growing.done :] if not growing.lends(source)]
        with closing(prepare_all(study, todo, workers)) as outcomes:
            for index, source in enumerate(sources):
                if index >= growing.done:
                    lent = growing.lends(source)
                    growing.add(
                        *(growing.lent(source) if lent else _record(source, next(outcomes)))
                    )
                if advance:
                    advance()
        return growing.finish()


def _recovered(
    study: Study, sources: Sequence[Source], records: Sequence[Record], workers: int | None
) -> bool:
    """Whether any source that failed for a passing reason can be prepared now."""
    pairs = zip(sources, records, strict=True)
    failed = [source for source, record in pairs if record.status == "failed"]
    return any(outcome.status != "failed" for outcome in prepare_all(study, failed, workers))


def _record(source: Source, outcome: Outcome) -> Recorded:
    """The record of a freshly prepared source, and the bytes of its samples and measures."""
    content = b"" if outcome.samples is None else outcome.samples.tobytes()
    measures = b"" if outcome.measures is None else outcome.measures.tobytes()
    record = Record(
        participant=source.participant,
        scan=source.scan,
        stamp=source.stamp,
        n=0 if outcome.samples is None else len(outcome.samples),
        status=outcome.status,
        notes=outcome.notes,
        sha256=hashlib.sha256(content).hexdigest() if content else "",
        measures=0 if outcome.measures is None else outcome.measures.shape[1],
        measures_sha256=hashlib.sha256(measures).hexdigest() if measures else "",
        labels=outcome.labels,
        quality=outcome.quality,
    )
    return record, content, measures


class _Growing:
    """The generation under construction: what it holds already, and what older ones can lend."""

    def __init__(self, study: Study, sources: Sequence[Source], folder: Path) -> None:
        self.study = study
        self.folder = folder
        self.building = folder / "building"
        self._row = bytes_of_sample(study)
        self._ready: dict[str, str] = {}  # content -> scan
        self.done = self._resume(sources)
        self._lent: dict[tuple[str, str, str], tuple[Record, Path, int, int]] = {}
        for old in (folder / "interrupted", current_generation(folder)):
            if old is not None:
                self._lend(old)

    def __enter__(self) -> Self:
        with storage_checked(self.building):
            self._samples = _appended(self.building / SAMPLES)
            self._measures = _appended(self.building / MEASURES)
            self._index = _appended(self.building / INDEX)
        return self

    def __exit__(self, *_: object) -> None:
        self._samples.close()
        self._measures.close()
        self._index.close()

    def add(self, record: Record, content: bytes, measures: bytes) -> None:
        """Append one source: first what it became, then the line that makes it count."""
        first = self._ready.get(record.sha256) if record.status == "ready" else None
        if first is not None:
            problem = f"its prepared content is that of {first}"
            record = _changed(
                record, n=0, measures=0, status="duplicate", notes=(*record.notes, problem)
            )
            content = measures = b""
        elif record.status == "ready":
            self._ready[record.sha256] = record.scan
        line = line_of(record)
        with storage_checked(self.building):
            _write(self._samples, content)
            _write(self._measures, measures)
            _write(self._index, line)

    def lends(self, source: Source) -> bool:
        """Whether an older generation holds what an unchanged source became."""
        return (source.participant, source.scan, source.stamp) in self._lent

    def lent(self, source: Source) -> Recorded:
        """That record and its samples; prepared anew if the disk no longer holds them intact."""
        record, old, *places = self._lent[source.participant, source.scan, source.stamp]
        content = _read(old / SAMPLES, places[0], record.n * self._row)
        measures = _read(old / MEASURES, places[1], bytes_of_measures(record))
        if is_intact(record, content, measures):
            return record, content, measures
        return _record(source, next(prepare_all(self.study, [source], 1)))

    def finish(self) -> Path:
        """Make the complete generation durable, then give it the name that puts it in use."""
        old = current_generation(self.folder)
        number = int(old.name.rpartition("-")[2]) + 1 if old else 1
        complete = self.folder / f"generation-{number:08d}"  # so many that names sort as numbers
        with storage_checked(self.folder):
            os.fsync(self._samples.fileno())
            os.fsync(self._measures.fileno())
            os.fsync(self._index.fileno())
            sync_folder(self.building)
            self.building.rename(complete)
            sync_folder(self.folder)
        return complete

    def _resume(self, sources: Sequence[Source]) -> int:
        """Keep the intact beginning of `building` if it is that of `sources`; return its length."""
        make_folder(self.building)
        records = intact_records(self.building, self._row)
        keys = [(source.participant, source.scan, source.stamp) for source in sources]
        retried = [record.status == "failed" for record in records]
        if any(retried) or [record.key for record in records] != keys[: len(records)]:
            shutil.rmtree(self.folder / "interrupted", ignore_errors=True)
            self.building.rename(self.folder / "interrupted")
            make_folder(self.building)
            return 0
        _cut(self.building / INDEX, self._length_of(records))
        _cut(self.building / SAMPLES, self._bytes_of(records))
        _cut(self.building / MEASURES, sum(bytes_of_measures(record) for record in records))
        self._ready = {r.sha256: r.scan for r in reversed(records) if r.status == "ready"}
        return len(records)

    def _lend(self, generation: Path) -> None:
        samples = measures = 0
        for record in read_index(generation):
            if record.status in ("ready", "left out"):
                self._lent[record.key] = (record, generation, samples, measures)
            samples += record.n * self._row
            measures += bytes_of_measures(record)

    def _bytes_of(self, records: Sequence[Record]) -> int:
        return sum(record.n for record in records) * self._row

    def _length_of(self, records: Sequence[Record]) -> int:
        """Bytes of the first lines of the index, one for each of `records`."""
        path = self.building / INDEX
        if not path.is_file():
            return 0
        lines = path.read_bytes().split(b"\n")[: len(records)]
        return sum(len(line) + 1 for line in lines)


def _read(path: Path, offset: int, count: int) -> bytes:
    """Bytes of a file; fewer where it is short or gone."""
    if not count:
        return b""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(count)
    except FileNotFoundError:
        return b""


def _changed(record: Record, **changes: Any) -> Record:
    return Record(**{**asdict(record), **changes})


def _appended(path: Path) -> IO[bytes]:
    return open(path, "ab", buffering=0, opener=as_folder)


def _cut(path: Path, length: int) -> None:
    with _appended(path) as stream:
        stream.truncate(length)


def _write(stream: IO[bytes], content: bytes) -> None:
    """Write all of `content`: an unbuffered file may take it in parts, as on a disk that fills."""
    view = memoryview(content)
    while view:
        view = view[stream.write(view) :]


def _write_quality(
    generation: Path, records: Sequence[Record], findings: Sequence[Finding]
) -> None:
    """The human's table: everything that is odd or left out, one line each."""
    lines: list[tuple[str, ...]] = [("scan", "status", "problem")]
    lines += [(f.what, f.grade, f.problem) for f in findings]
    for record in records:
        if record.status != "ready" or record.notes:
            status = "noted" if record.status == "ready" else record.status
            lines.append((record.scan, status, "; ".join(record.notes)))
    _write_table(generation / QUALITY, lines)


def _write_figures(generation: Path, records: Sequence[Record]) -> None:
    """Figures on each scan that became samples, where the reader has any; they stay here."""
    names = sorted({name for record in records for name in record.quality})
    if not names:
        return
    lines: list[tuple[str, ...]] = [("scan", *names)]
    for record in records:
        if record.status == "ready":
            figures = (record.quality.get(name) for name in names)
            cells = ("n/a" if figure is None else f"{figure:g}" for figure in figures)
            lines.append((record.scan, *cells))
    _write_table(generation / FIGURES, lines)


def _write_table(path: Path, lines: Sequence[tuple[str, ...]]) -> None:
    text = "".join("\t".join(_one_line(cell) for cell in line) + "\n" for line in lines)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text.encode())


def _one_line(text: str) -> str:
    return csv_cell(" ".join(text.split()))
