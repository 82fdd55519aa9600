"""Which differences of a page may be called better or worse: all of them judged together.

Of a hundred models that are equal, five differ at 5 % each. A page's p-values are therefore
adjusted together (Holm 1979), whatever they depend on; and a site tells none where too few people
stand behind it (`client/learning/intervals.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LEVEL: Final = 0.05


def holm(p: Sequence[float]) -> list[float]:
    """p-values that may each be compared with a level that holds for all together (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda place: p[place])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[place]))
        found[place] = highest
    return found
