"""What a site has prepared, as it lies on its disk: all samples in one file that maps into memory.

    prepared/<digest>/            one folder for each data setting that a study asked for
        lock                      held by the one process that writes
        generation-00000003/      complete, never edited (an agent may have it mapped); the
                                  highest number is the one in use
            samples.bin           all samples, back to back, in the order of the sources
            measures.bin          float32 measures for the linear rival, likewise
            index.jsonl           one `Record` a source
            quality.tsv           what is odd or left out, for people
            scan_quality.tsv      figures on each scan, where the reader has any, for people
        building/                 the next generation, while it grows; resumed after any crash
        interrupted/              an earlier `building` whose sources have changed; reused from

A record is written after its samples, so whatever moment a process dies at, the complete lines of
the index describe samples that are there; what is beyond them is cut off on resuming. Hashes in the
records say whether the bytes are still what was written, and one in each line whether the record
is: all are compared when the data are opened, and what a disk has changed is prepared again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.data.reader import reader_of
from client.site import Site
from common.protocol.bounded_json import parsed
from common.study import Study, canonical

_VERSION: Final = 2  # of the files below and of what preparing means; a change prepares anew
_SEAL: Final = "sealed"  # in a line of the index: SHA-256 of its other entries

SAMPLES: Final = "samples.bin"
MEASURES: Final = "measures.bin"
INDEX: Final = "index.jsonl"
QUALITY: Final = "quality.tsv"
FIGURES: Final = "scan_quality.tsv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one source; `n` samples of it are kept.

    status: "ready"; "left out" (for good, until the file changes); "duplicate" (of an earlier
    one); "failed" (for a reason that may pass, so it is tried again the next time).
    """

    participant: str
    scan: str
    stamp: str
    n: int
    status: str
    notes: tuple[str, ...] = ()
    sha256: str = ""
    measures: int = 0  # numbers for the linear rival beside each sample
    measures_sha256: str = ""
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    quality: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What must agree for a record to stand for a source."""
        return (self.participant, self.scan, self.stamp)


def prepared_folder(study: Study, site: Site) -> Path:
    """Where a site keeps what it prepared for studies with this kind and these data settings."""
    agreed = {
        "version": _VERSION,
        "reader version": getattr(reader_of(study.kind_name), "version", 1),
        # regional measures are read anew each time, from a table: no sample depends on them
        "data": study.data.model_dump(mode="json", exclude={"regions"}),
    }
    return site.state / "prepared" / hashlib.sha256(canonical(agreed)).hexdigest()[:16]


def current_generation(folder: Path) -> Path | None:
    """The complete generation in use, if there is one."""
    # complete from birth: a folder gets this name only when nothing is left to do in it
    return max(folder.glob("generation-*"), default=None)


def read_index(generation: Path) -> list[Record]:
    """The complete records of an index; a torn last line and whatever follows it are ignored."""
    try:
        lines = (generation / INDEX).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    records: list[Record] = []
    for line in lines:
        try:
            fields = parsed(line)
            if fields.pop(_SEAL) != _seal(fields):
                break
            records.append(Record(**{**fields, "notes": tuple(fields["notes"])}))
        except (ValueError, TypeError, KeyError, AttributeError):
            break
    return records


def line_of(record: Record) -> bytes:
    """A record's line in the index."""
    fields = asdict(record)
    text = json.dumps({**fields, _SEAL: _seal(fields)}, ensure_ascii=False)
    # a plug-in's reader may name files as the file system gives them
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _seal(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields)).hexdigest()


def bytes_of_sample(study: Study) -> int:
    """Bytes of one sample."""
    row: int = math.prod(study.shape) * np.dtype(study.kind.dtype).itemsize
    return row


def intact_records(generation: Path, row: int) -> list[Record]:
    """The longest beginning of an index whose samples are all there, byte for byte."""
    records: list[Record] = []
    if not ((generation / SAMPLES).is_file() and (generation / MEASURES).is_file()):
        return records
    samples, measures = (generation / name for name in (SAMPLES, MEASURES))
    with samples.open("rb") as first, measures.open("rb") as second:
        for record in read_index(generation):
            content, measured = first.read(record.n * row), second.read(bytes_of_measures(record))
            if not is_intact(record, content, measured):
                break
            records.append(record)
    return records


def is_intact(record: Record, content: bytes, measures: bytes) -> bool:
    """Whether samples and measures are those that a record was written for."""
    if record.n and hashlib.sha256(content).hexdigest() != record.sha256:
        return False
    return not record.measures or hashlib.sha256(measures).hexdigest() == record.measures_sha256


def bytes_of_measures(record: Record) -> int:
    """Bytes of a record's measures."""
    return record.n * record.measures * np.dtype(np.float32).itemsize
