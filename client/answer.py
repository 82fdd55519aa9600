"""What an order's work comes to, before the egress gate has looked at it.

The gate must know how many people stand behind each number; whoever makes a number says so here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.arrays import Arrays
from common.network.plan import Plan
from common.protocol.orders import Measurement


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of results.csv, and how many people the smallest group has that it rests on.

    An AUC with a single positive is her rank: the gate asks for people in each class.
    """

    row: Measurement
    people: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Numbers and arrays of a report, with how many people stand behind each of them.

    support: samples by group; participants: people by group and by name of a count.
    expected: name, shape and type of every array that may leave with it.
    behind: people behind each array that is a sum, a mean or a fit over people.
    reveals: how many numbers those arrays hold, together, for each number of one person.
    """

    support: dict[str, int] = field(default_factory=dict)
    participants: dict[str, int] = field(default_factory=dict)
    counts: dict[str, tuple[float, ...]] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    arrays: Arrays = field(default_factory=dict)
    expected: Plan = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)
    reveals: int = 1
