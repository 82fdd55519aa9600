"""What travels with an order: the arrays that change, and those that a site may hold already."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from common.network.plan import Plan
from common.protocol.orders import EMPTY, digest_of

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Part(Mapping[str, NDArray[Any]]):
    """Some of a mapping's arrays, read where they lie."""

    whole: Arrays
    names: Mapping[str, None]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise KeyError(name)
        return self.whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Parcel:
    """The arrays that an order is about, in up to two sets, each named by its digest.

    arrays: digest of those that sites train, or of all where there is no plan.
    base: digest of the others, which are the same in every order of a run; empty without any.
    """

    arrays: str = EMPTY
    base: str = ""
    sets: Mapping[str, Arrays] = ()  # type: ignore[assignment]

    @property
    def digests(self) -> dict[str, str]:
        """What an order says of it."""
        return {"arrays": self.arrays, "base": self.base}


NOTHING = Parcel(EMPTY, "", {})


def parcel_of(arrays: Arrays, plan: Plan, base: str | None = None) -> Parcel:
    """`arrays` in a parcel; `base` is the digest of what never moves, if it is known already."""
    moving = Part(arrays, {name: None for name in arrays if _moves(name, plan)})
    static = Part(arrays, {name: None for name in arrays if not _moves(name, plan)})
    digest = digest_of(moving)
    if base is None:
        base = digest_of(static) if static else ""
    sets: dict[str, Arrays] = {digest: moving}
    if base:
        sets[base] = static
    return Parcel(digest, base, sets)


def together(parcels: Iterable[Parcel]) -> Parcel:
    """The sets of several orders; each order names its own."""
    sets: dict[str, Arrays] = {}
    for parcel in parcels:
        sets |= parcel.sets
    return Parcel(EMPTY, "", sets)


def on_base(arrays: Arrays, below: Parcel) -> Parcel:
    """`arrays` in a parcel, with all of another as the base that they stand on."""
    digest = digest_of(arrays)
    whole: Arrays = ChainMap(*below.sets.values())  # type: ignore[arg-type]  # read where they lie
    base = digest_of(whole) if whole else ""
    return Parcel(digest, base, {digest: arrays, **({base: whole} if base else {})})


def _moves(name: str, plan: Plan) -> bool:
    return name not in plan or plan[name].travels
