"""Scans that a site holds twice, and what its tables then say of one person twice over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding
from client.data.generation import Record, current_generation, prepared_folder, read_index
from client.site import Site
from common.sections import Target
from common.study import Study


def repeats(
    study: Study,
    site: Site,
    scans: Sequence[str],
    labels: Mapping[str, NDArray[np.float32]],
) -> Iterator[Finding]:
    """A finding for each scan that is another one under a second name; none before preparing.

    scans: (N,) which scan each row of labels is of. labels: (N,) by target, NaN where unknown.
    The second one is left out, so the labels of the first are those that are learnt.
    """
    generation = current_generation(prepared_folder(study, site))
    if generation is None:
        return
    records = read_index(generation)
    first = {r.sha256: r for r in reversed(records) if r.status == "ready" and r.sha256}
    places = {scan: index for index, scan in reversed(list(enumerate(scans)))}
    for record in records:
        other = first.get(record.sha256)
        if record.status == "duplicate" and other is not None:
            yield _finding(study.targets, record, other, labels, places)


def _finding(
    targets: Mapping[str, Target],
    record: Record,
    other: Record,
    labels: Mapping[str, NDArray[np.float32]],
    places: Mapping[str, int],
) -> Finding:
    whose = "" if record.participant == other.participant else ", which is another person's"
    told = f"it is the scan {other.scan} once more{whose}"
    if record.scan in places and other.scan in places:
        here, there = places[record.scan], places[other.scan]
        pairs = {name: (values[here], values[there]) for name, values in labels.items()}
        apart = [
            f"{name} is {_word(targets[name], mine)} here and {_word(targets[name], theirs)} there"
            for name, (mine, theirs) in pairs.items()
            if np.isfinite([mine, theirs]).all() and mine != theirs
        ]
        told += f"; its labels contradict: {', '.join(apart)}" if apart else ""
    return Finding(what=record.scan, problem=told, left_out=True)


def _word(target: Target, value: np.float32) -> str:
    if target.kind == "regression":
        return f"{value:g} {target.unit}".strip()
    return target.classes[int(value)]
