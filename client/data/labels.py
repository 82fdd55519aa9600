"""A site's cells become the study's labels: natural units, class indices, NaN for unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.data.finding import Finding, Findings
from client.data.tables import nearest, number, plain
from client.site import Column
from common.column_units import figures, in_words
from common.errors import DataError, SettingError
from common.sections import Target

_MOST_SCALES: Final = 8.0  # of a study between its centre and a site's mean: children are 4 away
_MOST_TIMES: Final = 10.0  # months are 12 times as many as years; a kindergarten's 6 are 1/8 of 50
_MOST_HINTS: Final = 20  # each compares a cell with all of a target's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels by target, each (N,) float32 in the order of the rows, and cells that made none.

    Regression: the study's unit, neither centred nor scaled. Binary and categorical: index into
    the target's classes. NaN where the label is not known.
    """

    values: dict[str, NDArray[np.float32]]
    findings: tuple[Finding, ...]


class Refused(NamedTuple):
    """How many entries of a column made no label, and why the first did not."""

    number: int
    first: str


def read_labels(
    targets: Mapping[str, Target],
    columns: Mapping[str, Column],
    rows: Sequence[Mapping[str, str]],
    names: Sequence[str],
    known: Sequence[str] = (),
) -> Labels:
    """Labels of every target of the study, all NaN where the site has no column for it.

    `rows` are the cells of each sample by column, `names` what to call it in a finding, `known`
    all columns of the site's tables, or nothing where only samples will tell. A mapped target
    without a single label is an error among the findings, with the likeliest reason; the others
    go on.

    Raises
    ------
    DataError
        If the site's tables have no such column.
    SettingError
        If `codes` leads to a class that the study does not have, or `value` to no label.
    """
    values = {name: np.full(len(rows), np.nan, dtype=np.float32) for name in targets}
    findings = Findings(_strangers(targets, columns))
    held = known or _columns(rows)
    for name, target in targets.items():
        column = columns.get(name)
        if column is None:
            continue
        words = vocabulary(name, target, column)
        if column.value:
            values[name][:] = _value(name, target, column, words)
            continue
        if rows and held and held.count(column.column) != 1:
            raise DataError(
                f'targets.{name}.column is "{column.column}"; the site\'s table has no such column,'
                f" or has it twice, or a feature uses it; {nearest(column.column, held)}"
            )
        values[name], refused = _read_column(name, column, target, words, rows, names, findings)
        findings.extend(_far_off(name, target, values[name]))
        if held:
            findings.extend(_lost(name, column, values[name], rows, refused))
    return Labels(values=values, findings=findings.told())


def _read_column(
    name: str,
    column: Column,
    target: Target,
    words: Mapping[str, int],
    rows: Sequence[Mapping[str, str]],
    names: Sequence[str],
    findings: Findings,
) -> tuple[NDArray[np.float32], Refused]:
    """(N,) labels, and the entries that made none though they are not known to be missing."""
    values = np.full(len(rows), np.nan, dtype=np.float32)
    missing = {plain(entry) for entry in column.missing}
    complained: set[tuple[str, str]] = set()
    refused = Refused(0, "")
    for index, row in enumerate(rows):
        cell = row.get(column.column, "").strip()
        if not cell or plain(cell) in missing:
            continue
        told = (names[index], cell) in complained
        hints = not told and len(findings) < _MOST_HINTS
        values[index], problem = _label(cell, target, column, words, hints=hints)
        if problem:
            first = refused.first or problem.removesuffix("; label left out")
            refused = Refused(refused.number + 1, first)
        if problem and not told:
            complained.add((names[index], cell))
            what = f'{names[index]}, column "{column.column}"'
            findings.append(Finding(what=what, problem=f"{name}: {problem}"))
    return values, refused


def _lost(
    name: str,
    column: Column,
    values: NDArray[np.float32],
    rows: Sequence[Mapping[str, str]],
    refused: Refused,
) -> Iterator[Finding]:
    """The error of a promised target that nobody has, or few who could, and its likely reason."""
    known = int(np.isfinite(values).sum())
    problem = ""
    if not known:
        if refused.number:
            reason = f"no entry of its column can be used: {refused.first}"
        elif not any(column.column in row for row in rows):
            reason = "no row of a table says it of these scans (see what else was found)"
        elif any(row.get(column.column, "").strip() for row in rows):
            reason = f"every entry of its column means: not known ({', '.join(column.missing[:8])})"
        else:
            reason = "its column is empty"
        problem = f"none of {len(rows)} samples has a label ({column.place}): {reason}"
    elif refused.number > known:
        problem = (
            f"only {known} of {known + refused.number} entries ({column.place}) can be used; the "
            f"first of the others: {refused.first}"
        )
    if problem:
        yield Finding(what=f"targets.{name}", problem=problem, error=True)


def _far_off(name: str, target: Target, values: NDArray[np.float32]) -> Iterator[Finding]:
    """One finding if a site's mean cannot well be in the study's unit: ages in months, say.

    Only a study that says where its values lie can be compared with.
    """
    known = values[~np.isnan(values)].astype(np.float64)
    if target.kind != "regression" or not len(known) or not target.centre:
        return
    mean = float(known.mean())
    scales = abs(mean - target.centre) / target.scale
    times = max(abs(mean), 1e-9) / abs(target.centre)
    if scales > _MOST_SCALES or (scales > 2 and max(times, 1 / times) >= _MOST_TIMES):
        unit = f" {target.unit}" if target.unit else ""
        yield Finding(
            what=f"targets.{name}",
            problem=(
                f"the labels' mean is {figures(mean)}, the study's centre {figures(target.centre)}"
                f"{unit} ({in_words(times)}); targets.{name}.factor converts another unit"
            ),
        )


def _value(name: str, target: Target, column: Column, words: Mapping[str, int]) -> float:
    """The label that every sample of the site has."""
    label, problem = _label(column.value, target, column, words)
    if problem:
        raise SettingError(f"targets.{name}.value: {problem.removesuffix('; label left out')}")
    return label


def vocabulary(name: str, target: Target, column: Column) -> dict[str, int]:
    """The site's words, each with the index of the study's class; empty for regression.

    Raises
    ------
    SettingError
        If `codes` names a class that the study lacks, or is given for a number.
    """
    if target.kind == "regression":
        if column.codes:
            raise SettingError(f"targets.{name}.codes is set, but the study's {name} is a number")
        return {}
    words = {plain(word): index for index, word in enumerate(target.classes)}
    if not column.codes:
        return words
    for code, word in column.codes.items():
        if word not in target.classes:
            raise SettingError(
                f'targets.{name}.codes: {code} stands for "{word}", which is no class of the '
                f"study; {nearest(word, target.classes)}"
            )
    found = {plain(code): target.classes.index(word) for code, word in column.codes.items()}
    for code, word in column.codes.items():
        if found[plain(code)] != target.classes.index(word):
            raise SettingError(f"targets.{name}.codes: {code} and {plain(code)} are one code")
    return found


def _label(
    cell: str, target: Target, column: Column, words: Mapping[str, int], *, hints: bool = True
) -> tuple[float, str]:
    """The label, NaN with a reason where the cell makes none."""
    if target.kind != "regression":
        if plain(cell) in words:
            return float(words[plain(cell)]), ""
        hint = f"; {nearest(cell, list(words))}" if hints else ""
        return float("nan"), f'"{cell[:40]}" is no known code{hint}; label left out'
    value = number(cell)
    if value is None:
        comma = "; write the decimal point as ." if number(cell.replace(",", ".")) else ""
        return float("nan"), f'"{cell[:40]}" is not a number{comma}; label left out'
    scaled = value * column.factor
    if not target.low <= scaled <= target.high:
        span = f"{target.low:g} to {target.high:g} {target.unit}".strip()
        unit = _other_unit(scaled, target)
        return float("nan"), f"{scaled:g} is outside {span}{unit}; label left out"
    return scaled, ""


def _other_unit(value: float, target: Target) -> str:
    """A factor that would bring a value into the target's range, if it is a usual one."""
    years = (("months", 1 / 12), ("days", 1 / 365.25)) if target.unit.startswith("year") else ()
    for unit, factor in (*years, ("thousands", 1000.0), ("thousandths", 1 / 1000)):
        if target.low <= value * factor <= target.high:
            return f" (if it is in {unit}, set factor = {factor:.5g})"
    return ""


def _columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Every column of any row, in order of first appearance."""
    known: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= known.keys():
            known.update(dict.fromkeys(row))
    return list(known)


def _strangers(targets: Mapping[str, Target], columns: Mapping[str, Column]) -> Iterator[Finding]:
    for name in columns:
        if name not in targets:
            yield Finding(
                what=f"targets.{name}",
                problem=f"the study has no such target; {nearest(name, list(targets))}",
            )
