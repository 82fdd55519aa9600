"""What is odd about a site's data, as far as its counts and sums tell: no labels, another unit.

Said when it is found, kept in the run folder, shown on the page. Nobody is left out for it: what is
right at a hospital only that hospital can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.column_units import Columns, apart, factors, figures, in_words, named
from common.study import Study
from server.run_files import read_json, write_json

_FILE: Final = "columns.json"
_MOST_COLUMNS: Final = 3  # spelt out in a sentence
_MOST_SITES: Final = 6
_MOST_NUMBERS: Final = 1 << 22  # columns times sites that are compared: the first of a wider table


def without_labels(study: Study, census: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Training sites that hold no label of what is learnt; `census` is what `census.json` holds."""
    targets = tuple(study.pretraining_targets)
    for site in study.sites.train if study.learns_from_labels else ():
        held = census.get(site, {}).get("held", {})
        if held and not any(held.get(f"labels/{name}") for name in targets):
            yield (
                f"{site} holds {held.get('scans', 0)} scans and no label of "
                f"{' or '.join(targets)}, or of too few people: nothing enters their loss there, "
                "and the site weighs nothing for them"
            )


def imputed(census: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Sites with scans that lack columns; `census` is what `census.json` holds."""
    for site, told in census.items():
        lacking = told.get("held", {}).get("incomplete", 0)
        if lacking:
            yield (
                f"{site}: {lacking} of {told['held']['scans']} scans lack columns; the training "
                "sites' mean stands in for them (data.missing_columns)"
            )


def shortcuts(before: str, after: str) -> str:
    """One sentence on how well features tell sites apart."""
    text = f"features give away the site of {after}"
    return f"{text}; before training, of {before}" if before else text


def never_measured(study: Study, sums: Mapping[str, Mapping[str, NDArray[Any]]]) -> Iterator[str]:
    """Training sites that have some columns of nobody, or of too few to add up."""
    names = getattr(study.data, "columns", ())
    for site in sorted(sums):
        for place in (name for name in sums[site] if name.endswith("/n_known")):
            known = sums[site][place]
            lacking = np.flatnonzero(known == 0)
            told = ", ".join(named(names, number, len(known)) for number in lacking[:_MOST_COLUMNS])
            more = ", ..." if len(lacking) > _MOST_COLUMNS else ""
            if len(lacking):
                yield f"{len(lacking)} of {len(known)} columns imputed at {site}: {told}{more}"


def unlike_columns(study: Study, sums: Mapping[str, Mapping[str, NDArray[Any]]]) -> list[str]:
    """Sites whose columns cannot well be in the other sites' units, from each site's sums.

    The site whose column is of middle size speaks for all, if more than half are like it; else
    nobody can say who is wrong.
    """
    places = {name.removesuffix("/n") for of in sums.values() for name in of if name.endswith("/n")}
    found: list[str] = []
    most = _MOST_NUMBERS // max(1, len(sums))
    for place in sorted(places):
        columns = {site: Columns.of_sums(sums[site], place, most) for site in sorted(sums)}
        known = {site: each for site, each in columns.items() if each is not None}
        if len(known) > 1 and len({each.mean.shape for each in known.values()}) == 1:
            found += _compared(getattr(study.data, "columns", ()), known)
    return found


def keep(folder: Path, found: Sequence[str]) -> None:
    """Keep the findings about columns in a run folder."""
    write_json(folder / _FILE, {"findings": list(found)})


def kept(folder: Path) -> list[str]:
    """The findings about columns of a run, none if nothing was compared."""
    path = folder / _FILE
    found = read_json(path).get("findings") if path.exists() else []
    return [str(text) for text in found] if isinstance(found, list) else []


def _compared(names: Sequence[str], columns: Mapping[str, Columns]) -> Iterator[str]:
    sites = list(columns)
    sizes_SF = np.stack([each.size for each in columns.values()])
    middle_F = np.argsort(sizes_SF, axis=0, kind="stable")[(len(sites) - 1) // 2]
    speaks = Columns(
        _of(middle_F, [each.mean for each in columns.values()]),
        _of(middle_F, [each.deviation for each in columns.values()]),
    )
    odd_SF = np.stack([apart(each, speaks) for each in columns.values()])
    agreed_F = 2 * (~odd_SF).sum(axis=0) > len(sites)
    for number, site in enumerate(sites):
        places = np.flatnonzero(odd_SF[number] & agreed_F)
        if len(places):
            yield _alone(site, names, columns[site], speaks, places)
    places = np.flatnonzero(odd_SF.any(axis=0) & ~agreed_F)
    if len(places):
        yield _divided(names, columns, places)


def _of(chosen_F: NDArray[np.int64], values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Of each column the value of the site that is chosen for it."""
    found: NDArray[np.float64] = np.take_along_axis(np.stack(values), chosen_F[None], axis=0)[0]
    return found


def _alone(
    site: str,
    names: Sequence[str],
    own: Columns,
    others: Columns,
    places: NDArray[np.int64],
) -> str:
    count, times = len(own.mean), factors(own, others)
    told = [
        f"{named(names, place, count)} has a mean of {figures(own.mean[place])}, elsewhere about "
        f"{figures(others.mean[place])} ({in_words(times[place])})"
        for place in places[:_MOST_COLUMNS]
    ]
    return f"{site} may count in other units than the others: column {_joined(told, places)}"


def _divided(
    names: Sequence[str], columns: Mapping[str, Columns], places: NDArray[np.int64]
) -> str:
    told = []
    for place in places[:_MOST_COLUMNS]:
        means = [f"{site} {figures(each.mean[place])}" for site, each in columns.items()]
        more = ", ..." if len(means) > _MOST_SITES else ""
        sizes = [float(each.size[place]) for each in columns.values()]
        times = max(sizes) / min(sizes) if min(sizes) else 0.0
        name = named(names, place, len(next(iter(columns.values())).mean))
        told.append(
            f"{name} has means of {', '.join(means[:_MOST_SITES])}{more} (the largest is "
            f"{in_words(times)})"
        )
    return f"the sites may count in different units: column {_joined(told, places)}"


def _joined(told: Sequence[str], places: NDArray[np.int64]) -> str:
    more = len(places) - len(told)
    return "; ".join(told) + (f"; and {more} more columns" if more else "")
