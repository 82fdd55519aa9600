"""One page on which a person at the site sees every prepared scan, and what was left out and why.

It stays at the site: this user's alone (0600), complete in itself, loading and running nothing. The
scans that differ most from the others come first. Pictures are made while the page is written, so
that thousands of scans take no more memory than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from client.contact_sheet.thumbnails import Thumbnail, thumbnail
from client.data.finding import Finding
from client.data.generation import SAMPLES, Record, read_index
from client.data.reader import is_lazy
from client.site import Site
from common.errors import SettingError
from common.printable import printable
from common.runtime.durable import write_atomically
from common.study import Study

NAME: Final = "contact_sheet.html"  # in the prepared folder, unless said otherwise
_ODD: Final = 3.5  # robust deviations from the median (Iglewicz and Hoaglin 1993)
_FEWEST: Final = 8  # scans, for a median to mean something
_PIECES: Final = 500  # of the template that are written at once

_LABELS: Final = {
    "overlap": "overlap with the MNI152 brain (Dice)",
    "likeness": "correlation with MNI152",
    "translation_mm": "shift to MNI152, mm",
    "rotation_degrees": "turn to MNI152, degrees",
    "scaling": "size of MNI152 over its own",
    "foreground_ml": "foreground, ml",
    "brain_ml": "brain, ml",
    "outside_grid": "share outside the grid",
    "contrast_to_noise": "contrast to noise",
    "joint_variation": "joint variation of grey and white",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure on a scan; `odd` if it lies far from those of the other scans."""

    label: str
    value: str
    odd: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A prepared scan on the page."""

    scan: str
    picture: Thumbnail
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


def check_shows(study: Study) -> None:
    """Refuse a kind of data of which no picture can be made.

    Raises
    ------
    SettingError
        If samples are no volumes, or are not kept.
    """
    if study.layout != "volume" or is_lazy(study):
        raise SettingError(
            f'a contact sheet shows prepared volumes; samples of kind "{study.kind_name}" are '
            f"{'made when they are needed' if is_lazy(study) else 'none'}; leave --sheet out"
        )


def write_sheet(
    study: Study, site: Site, generation: Path, findings: Sequence[Finding], path: Path
) -> None:
    """Write the page on what was prepared at a site.

    Raises
    ------
    StorageError
        If it cannot be written; what was there stays.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = printable
    source = (files("client.contact_sheet") / "contact_sheet.html.j2").read_text(encoding="utf-8")
    records = [record for record in read_index(generation) if record.n]
    stream = environment.from_string(source).stream(
        study=study,
        site=site,
        count=len(records),
        odd=_ODD,
        compared=len(records) >= _FEWEST,
        left_out=[finding for finding in findings if finding.left_out],
        noted=_noted(findings, records),
        shown=_shown(study, generation, records),
    )
    stream.enable_buffering(_PIECES)
    # a name that is no UTF-8 was made printable; what a plug-in's reader says may not be
    parts = (piece.encode("utf-8", "backslashreplace") for piece in stream)
    write_atomically(path, parts, mode=0o600)


def _noted(findings: Sequence[Finding], records: Sequence[Record]) -> list[Finding]:
    """What was noted of the data set; notes on a scan stand beside its picture."""
    own = {record.scan for record in records}
    return [finding for finding in findings if not finding.left_out and finding.what not in own]


def _shown(study: Study, generation: Path, records: Sequence[Record]) -> Iterator[Shown]:
    """Every scan's first sample, the oddest scans first."""
    firsts = np.cumsum([0, *(record.n for record in records)])
    shape = (int(firsts[-1]), *study.shape)
    if not records:
        return
    samples: Any = np.memmap(generation / SAMPLES, dtype=study.kind.dtype, mode="r", shape=shape)
    apart = _deviations(records)
    for index in sorted(range(len(records)), key=lambda i: -max(apart[i].values(), default=0.0)):
        record = records[index]
        yield Shown(
            scan=record.scan,
            picture=thumbnail(samples[firsts[index]]),
            figures=tuple(_figures(record, apart[index])),
            notes=record.notes,
        )


def _figures(record: Record, apart: dict[str, float]) -> Iterator[Figure]:
    for name in sorted(record.quality, key=lambda name: -apart.get(name, 0.0)):
        yield Figure(
            label=_LABELS.get(name, name),
            value=f"{record.quality[name]:.4g}",
            odd=apart.get(name, 0.0) > _ODD,
        )


def _deviations(records: Sequence[Record]) -> list[dict[str, float]]:
    """How far each figure lies from the median of all scans, in robust deviations."""
    found: list[dict[str, float]] = [{} for _ in records]
    for name in {name for record in records for name in record.quality}:
        have = [index for index, record in enumerate(records) if name in record.quality]
        values = np.array([records[index].quality[name] for index in have])
        if len(values) < _FEWEST:
            continue
        for index, value in zip(have, _robust(values), strict=True):
            found[index][name] = float(value)
    return found


def _robust(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances from the median over 1.4826 times their median; 0 where most are alike."""
    distances: NDArray[np.float64] = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(distances)
    return distances / spread if spread > 0 else np.zeros_like(distances)
