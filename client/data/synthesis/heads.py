"""Renders T1-weighted heads when they are asked for, prepared as a scan on that grid would be."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import numpy as np

from client.data.anatomy import grid
from client.data.reader import Found, Prepared, Source
from client.data.synthesis.anatomy import Anatomy, Volume, build_anatomy
from client.data.synthesis.people import Hospital, People, draw_people, draw_scanner, scan
from client.data.synthesis.volumes import Volumes, modes, volumes_of
from common.kinds.synthetic_t1w import SyntheticT1w

COLUMNS: Final = ("age", "sex", "ventricle_volume", "brain_volume")
_MEASURED: Final = frozenset(COLUMNS[2:])
_building = threading.Lock()  # loader threads ask at once, and one of them is to build


class Person(NamedTuple):
    """Whom a source is of: a site's seed, a number, and how much scanners differ."""

    seed: int
    number: int
    strength: float


class SyntheticT1wReader:
    """A head for each number from 0, whatever else is rendered; the site's seed says of whom."""

    lazy: ClassVar[bool] = True

    @staticmethod
    def find(
        study: SyntheticT1w.Study, site: SyntheticT1w.Site, root: Path, columns: frozenset[str]
    ) -> Found:
        """One source a person, with what is known of her."""
        return Found(
            sources=tuple(
                _source(Person(site.seed, number, study.strength), columns)
                for number in range(site.people)
            ),
            columns=COLUMNS,
        )

    @staticmethod
    def prepare(study: SyntheticT1w.Study, source: Source) -> Prepared:
        """The head on the study's grid: (1, X, Y, Z) float16, the same each time."""
        anatomy = _anatomy(study.shape, study.spacing_mm)
        hospital, people = _drawn(source.payload)
        head = scan(anatomy, hospital, people, 0)
        return Prepared(samples=_placed(head, anatomy, study).astype(np.float16)[None])


def _source(person: Person, columns: frozenset[str]) -> Source:
    name = f"synthetic-{person.seed}-{person.number:06d}"
    _, people = _drawn(person)
    row = {"age": f"{people.age[0]:.1f}", "sex": "male" if people.male[0] else "female"}
    if columns & _MEASURED:
        measured = _measured(person)
        row["ventricle_volume"] = f"{measured.ventricles_ml:.2f}"
        row["brain_volume"] = f"{measured.brain_ml:.1f}"
    stamp = f"{person.seed}-{person.number}"
    return Source(participant=name, scan=name, stamp=stamp, row=row, payload=person)


def _drawn(person: Person) -> tuple[Hospital, People]:
    """A hospital of one, with a scanner of its own."""
    hospital = Hospital(
        name=str(person.number), participants=1, seed=person.seed, strength=person.strength
    )
    return hospital, draw_people(hospital, modes())


@lru_cache(maxsize=1 << 20)
def _measured(person: Person) -> Volumes:
    hospital, people = _drawn(person)
    return volumes_of(people.head(0), draw_scanner(hospital))


def _placed(head: Volume, anatomy: Anatomy, study: SyntheticT1w.Study) -> Volume:
    """Normalised as `T1wReader.prepare` does with a scan that lies on the study's grid already."""
    inside = grid.foreground(head)
    if study.align == "centre":
        centre = grid.head_centre(inside, anatomy.affine)
        target = grid.grid_affine(study.shape, study.spacing_mm, centre)
        head = grid.resampled(head, anatomy.affine, target, study.shape)
        mask = inside.astype(np.float32)
        inside = grid.resampled(mask, anatomy.affine, target, study.shape) > 0.5
    return grid.normalised(head, inside, study.intensity)


def _anatomy(shape: tuple[int, int, int], spacing_mm: float) -> Anatomy:
    with _building:
        return _built(shape, spacing_mm)


@lru_cache(maxsize=4)
def _built(shape: tuple[int, int, int], spacing_mm: float) -> Anatomy:
    return build_anatomy(spacing_mm, shape)
