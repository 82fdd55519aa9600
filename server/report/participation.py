"""Who took part in a run, who holds what, and what it cost: the run's own records as table rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from common.errors import DamagedError
from common.study import Study
from server.checkpoints import Branch
from server.report import findings
from server.report.findings import Census, Record
from server.run import Run
from server.run_files import read_json

_MOST_ROUNDS: Final = 100  # rows of the participation table; longer runs show what went wrong

_MOST_SITES: Final = 24  # that have a column each in it
_MOST_NAMED: Final = 6


class _Held(TypedDict):
    role: str
    refused: str
    held: dict[str, int]


_CENSUS: Final = TypeAdapter(dict[str, _Held])


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLine:
    """One round in the participation table: what became of the request to each site."""

    number: int
    degraded: bool
    sites: dict[str, str]
    answered: int
    others: str
    seconds: float
    megabytes: float


def participation(
    study: Study,
    records: Sequence[Record],
    census: Census,
) -> dict[str, Any]:
    """A row a round, a column a site; of a long run only the rounds in which something failed."""
    named = {site for record in records for site in (*record["answered"], *record["refused"])}
    sites = [*study.sites.train, *sorted(named - set(study.sites.train))]
    chosen = records
    if len(records) > _MOST_ROUNDS:
        chosen = [r for r in records if r["degraded"] or r["refused"]][:_MOST_ROUNDS]
    return {
        "sites": sites if len(sites) <= _MOST_SITES else [],
        "asked": len(sites),
        "rounds": [_round_line(record, sites, census) for record in chosen],
        "left_out": len(records) - len(chosen),
        "codes": _codes(records),
    }


def _round_line(record: Record, sites: Sequence[str], census: Census) -> RoundLine:
    answered, refused = record["answered"], record["refused"]
    became = {}
    for site in sites:
        if site in answered:
            became[site] = "answered"
        elif site in refused:
            became[site] = findings.status(refused[site])
        else:
            code = census.get(site, {}).get("refused", "")
            became[site] = f"not asked: {code} at the census" if code else "not asked"
    return RoundLine(
        number=record["round"],
        degraded=bool(record["degraded"]),
        sites=became if len(sites) <= _MOST_SITES else {},
        answered=len(answered),
        others=_others(became),
        seconds=float(record["seconds"]),
        megabytes=_megabytes(record),
    )


def _others(became: Mapping[str, str]) -> str:
    """Those that did not answer, by name, and why."""
    told = [f"{site}: {what}" for site, what in became.items() if what != "answered"]
    more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return "; ".join(told[:_MOST_NAMED]) + more


def _codes(records: Sequence[Record]) -> list[tuple[str, str]]:
    found = {code for record in records for code in record["refused"].values()}
    return [(code, findings.said(code)) for code in sorted(found)]


def _megabytes(record: Record) -> float:
    return sum(int(line["bytes"]) for line in record["answered"].values()) / 1e6


def holdings(study: Study, census: Census) -> list[dict[str, Any]]:
    """Role, scans and labels of each site, or why it took no part."""
    return [
        {
            "site": site,
            "role": {"train": "training", "heldout": "held out"}.get(line["role"], line["role"]),
            "scans": line["held"].get("scans"),
            "labels": [line["held"].get(f"labels/{name}") for name in study.targets],
            "refused": line["refused"],
            "sentence": findings.said(line["refused"]) if line["refused"] else "",
        }
        for site, line in census.items()
    ]


def traffic(model: str, finished: Sequence[Record]) -> dict[str, Any]:
    """Bytes received for one model and seconds waited, in all and by the round."""
    megabytes = sum(_megabytes(record) for record in finished)
    seconds = [float(record["seconds"]) for record in finished]
    rounds = max(len(finished), 1)
    return {
        "model": model,
        "rounds": len(finished),
        "megabytes": megabytes,
        "megabytes_a_round": megabytes / rounds,
        "seconds": sum(seconds),
        "seconds_a_round": sum(seconds) / rounds,
        "longest": max(seconds, default=0.0),
    }


def traffic_by_site(study: Study, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rounds answered, bytes sent and seconds worked by each training site."""
    found = []
    for site in study.sites.train:
        lines = [record["answered"][site] for record in records if site in record["answered"]]
        found.append({
            "site": site,
            "answered": len(lines),
            "of": len(records),
            "megabytes": sum(int(line["bytes"]) for line in lines) / 1e6,
            "seconds": sum(float(line["seconds"]) for line in lines),
        })  # fmt: skip
    return found


def census(run: Run) -> dict[str, dict[str, Any]]:
    """What every site said that it holds; nothing before they were asked."""
    path = run.folder / "census.json"
    found = read_json(path) if path.exists() else {}
    try:
        _CENSUS.validate_python(found)
    except ValidationError:
        raise DamagedError(f"{path} makes no sense; the run's own command writes it anew") from None
    return found


def records(branch: Branch) -> list[dict[str, Any]]:
    """Records of a model's finished rounds, or `FolderError`."""
    return branch.records()
