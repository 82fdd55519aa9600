"""Several federated models of one study that differ in their seed alone, and the mean of them.

A network's error is partly that of its first weights and of the order of its samples; the mean of
what several say has less of both.
"""

from __future__ import annotations

from typing import Final

ENSEMBLE: Final = "ensemble"  # the mean of what its members say
SEEDED: Final = "seed-"  # beginning of the names of further members
_FIRST: Final = "federated"


def members(number: int) -> tuple[str, ...]:
    """Names of the models that an ensemble of so many is made of, the study's own first.

    >>> members(3), members(0)
    (('federated', 'seed-2', 'seed-3'), ())
    """
    return (_FIRST, *(f"{SEEDED}{n}" for n in range(2, number + 1))) if number else ()
