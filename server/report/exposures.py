"""How often each site's people were learnt from or judged on: what there is to say of privacy.

Where no noise is added to what sites send, there is no formal bound to tell; what a site's policy
caps, and its ledger counts, are these orders. Private rounds have one besides (`privacy.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.report.findings import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Orders of one run that a site answered, by what they did with its people."""

    site: str
    summed: int
    rounds: int
    tuned: int
    judged: int


# reports of a run's folder, by what was done with people
_SUMMED: Final = ("settle/*", "comparisons/*/settle/*", "labels", "shortcuts/*/*", "linear")
_TUNED: Final = ("finetuning/*/*", "protocols/*/*")
_JUDGED: Final = ("evaluation/*", "cross/*/*")


def exposures(
    folder: Path, branches: Mapping[str, Sequence[Record]], sites: Iterable[str]
) -> list[Exposure]:
    """One for each site, in the order given; then for others that answered, as pooled data do."""
    rounds = Counter(
        site for records in branches.values() for record in records for site in record["answered"]
    )
    summed, tuned, judged = (_answers(folder, places) for places in (_SUMMED, _TUNED, _JUDGED))
    named = dict.fromkeys([*sites, *sorted({*summed, *rounds, *tuned, *judged})])
    return [
        Exposure(
            site=site, summed=summed[site], rounds=rounds[site], tuned=tuned[site],
            judged=judged[site],
        )
        for site in named
    ]  # fmt: skip


def _answers(folder: Path, places: Iterable[str]) -> Counter[str]:
    return Counter(file.stem for place in places for file in folder.glob(f"{place}/*.safetensors"))
