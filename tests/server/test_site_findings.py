"""Sites whose data are unlike the others' are named, and nobody is accused without a majority."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from server import site_findings


def sums(mean: list[float], seed: int, n: int = 40) -> dict[str, Any]:
    x = np.random.default_rng(seed).normal(mean, np.abs(mean) * 0.12, (n, len(mean)))
    return {
        "backbone.standardise/sum": x.sum(0),
        "backbone.standardise/squares": np.square(x).sum(0),
        "backbone.standardise/n": np.array(float(n)),
    }


def found(**sites: list[float]) -> list[str]:
    study: Any = SimpleNamespace(data=SimpleNamespace(columns=("hipp", "thick", "icv")))
    told = {site: sums(mean, number) for number, (site, mean) in enumerate(sites.items())}
    return site_findings.unlike_columns(study, told)


MM = [3500.0, 2.5, 1.5e6]
CM = [3.5, 2.5, 1.5e3]


def test_the_one_site_in_cm3_is_named_with_its_columns_and_the_factor() -> None:
    """Nobody else can see it: each site's own column looks as it always did."""
    (text,) = found(s1=MM, s2=CM, s3=MM, s4=MM)
    assert text.startswith("s2 may count in other units than the others: column hipp has a mean of")
    assert "elsewhere about 3," in text
    assert "1/9" in text or "1/1,0" in text
    assert "mm3 against cm3" in text
    assert "; icv has" in text
    assert "thick" not in text


def test_of_two_sites_neither_is_accused() -> None:
    """Which of them is right neither knows."""
    (text,) = found(s1=MM, s2=CM)
    assert text.startswith("the sites may count in different units: column hipp has means of s1 3,")
    assert ", s2 3." in text
    assert found(a=MM, b=MM, c=CM, d=CM)[0].startswith("the sites may count in different units")


def test_sites_of_one_unit_are_left_in_peace() -> None:
    """And one site alone has nobody to be compared with."""
    assert found(s1=MM, s2=[3200.0, 2.4, 1.4e6], s3=[2900.0, 2.2, 1.6e6]) == []
    assert found(s1=MM) == []


def test_sums_of_other_kinds_are_not_compared() -> None:
    """A tangent space's sums are no columns."""
    study: Any = SimpleNamespace(data=SimpleNamespace())
    of = {"backbone.tangent/sum": np.zeros((3, 3)), "backbone.tangent/n": np.array(4.0)}
    assert site_findings.unlike_columns(study, {"a": of, "b": of}) == []


def test_a_site_in_other_units_is_told_at_both_ends(module_federation: Any, caplog: Any) -> None:
    """Log, run folder, page and `show` at the coordinator; at the site its own log, in the round."""
    made = module_federation({"pretraining.rounds": 1, "comparisons.single_site": False})
    table = made.sites / "beta" / "table.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for number, line in enumerate(lines[1:]):
        line[2] = str(1000 * (5 + number % 7))
    table.write_text("\n".join(",".join(line) for line in lines))
    run = made.simulate()
    (text,) = json.loads((run.folder / "columns.json").read_text())["findings"]
    assert text.startswith("beta may count in other units than the others: column volume has")
    assert site_findings.kept(run.folder) == [text]
    own = [record.getMessage() for record in caplog.records if record.name == "callosum.site"]
    assert any(line.startswith("beta: column volume: its mean is 8,1") for line in own)
    from server.report.page import write_report

    assert "beta may count in other units" in write_report(run).read_text()
