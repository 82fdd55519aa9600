"""What protocols found, as tables and as sentences: nothing is said that intervals do not carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.protocol.orders import Measurement
from common.study import parse_study
from server.report.protocols import ProtocolTable, html, protocol_tables, sentences
from tests.conftest import FEATURES, overridden

TASK = {
    "name": "dementia", "target": "diagnosis", "repeats": 0,
    "methods": ["linear", "scratch/full", "pretrained/full"],
    "learning_rates": [1e-3, 1e-2, 3e-2], "weight_decays": [0.0, 1e-3, 1e-2],
}  # fmt: skip
DRAWS = {
    "name": "draws", "task": "dementia", "scheme": "resampled", "sizes": [100, 300],
    "repeats": 20,
}  # fmt: skip
LIKE_THE_PAPER = {
    ("linear", 100): 0.95, ("scratch-full", 100): 0.72, ("pretrained-full", 100): 0.86,
    ("linear", 300): 0.90, ("scratch-full", 300): 0.85, ("pretrained-full", 300): 0.92,
}  # fmt: skip


def row(way: str, size: int, metric: str, value: float | None, **more: Any) -> Measurement:
    init, _, method = way.rpartition("-")
    return Measurement(
        **{
            "phase": "protocol", "task": "draws", "target": "diagnosis", "model": "federated",
            "init": init, "method": method, "k": size, "site": "alpha", "role": "train",
            "metric": metric, "value": value, "n_participants": 60, "n_scans": 60, **more,
        }
    )  # fmt: skip


def rows(
    medians: dict[tuple[str, int], float], *, width: float = 0.02, p: float = 0.01
) -> list[Any]:
    """Medians with intervals, and differences of each way and those before it."""
    found = []
    for (way, size), value in medians.items():
        ends = {"ci_low": value - width, "ci_high": value + width}
        found += [
            row(way, size, "auc_median", value),
            row(way, size, "auc_over_draws", value, **ends),
            row(way, size, "repeats", 20.0),
        ]
    ways = ("linear", "scratch-full", "pretrained-full")
    for size in (100, 300):
        for n, way in enumerate(ways):
            for rival in ways[:n]:
                apart = medians[way, size] - medians[rival, size]
                ends = {"ci_low": apart - width, "ci_high": apart + width}
                found += [
                    row(way, size, f"auc_minus_{rival}", apart, p=p, **ends),
                    row(way, size, f"auc_minus_{rival}_sign_flip", apart, p=p),
                ]
    return found


def table(told: list[Any], **more: Any) -> ProtocolTable:
    """The only one."""
    changes = {"finetuning": [TASK], "protocols": [{**DRAWS, **more}]}
    study = parse_study(overridden(FEATURES, changes), Path("study.toml"))
    [found] = protocol_tables(study, told)
    return found


def test_ways_stand_by_size_with_the_mean_s_interval() -> None:
    """The shape of the paper's table, with what the paper lacks."""
    lines = table(rows(LIKE_THE_PAPER)).lines
    assert lines[0] == ["linear", "0.950 (0.930 to 0.970)", "0.900 (0.880 to 0.920)"]
    assert [line[0] for line in lines] == ["linear", "scratch full", "pretrained full"]


def test_p_values_of_signs_are_adjusted_over_sizes() -> None:
    """Two sizes are two chances to be right by luck."""
    found = table(rows(LIKE_THE_PAPER, p=0.03))
    assert found.flips(("pretrained-full", "linear")) == {100: 0.06, 300: 0.06}
    assert (
        found.differences[1][1]
        == "\N{MINUS SIGN}0.090 (\N{MINUS SIGN}0.110 to \N{MINUS SIGN}0.070); p 0.060"
    )


def test_a_shape_like_the_papers_is_said_to_be() -> None:
    """Linear ahead at 100 images, transfer from 300 on, and over scratch everywhere."""
    told = " ".join(sentences(table(rows(LIKE_THE_PAPER))))
    assert "As in Leonardsen et al. (2025)" in told
    assert "linear over pretrained full at 100 (0.950 against 0.860)" in told
    assert "pretrained full over linear at 300 (0.920 against 0.900)" in told
    assert "Other than" not in told


def test_a_shape_that_differs_is_said_to() -> None:
    """A reader who expects the paper's crossover must be told that it is not here."""
    turned = {**LIKE_THE_PAPER, ("pretrained-full", 300): 0.80}
    told = " ".join(sentences(table(rows(turned))))
    other = told.partition("Other than")[2]
    assert "pretrained full over linear at 300 (0.800 against 0.900)" in other
    assert "pretrained full over scratch full at 300 (0.800 against 0.850)" in other


def test_a_verdict_is_adjusted_for_the_whole_page() -> None:
    """Twenty comparisons at 5 % each are one that is wrong."""
    sure = sentences(table(rows(LIKE_THE_PAPER, p=0.001)))
    assert any(
        text.startswith("Told apart of 6 comparisons")
        and "pretrained full ahead of linear at 300" in text
        for text in sure
    )
    unsure = sentences(table(rows(LIKE_THE_PAPER, p=0.02)))
    assert "Told apart of 6 comparisons, adjusted for the whole page: none." in unsure
    assert any(text.startswith("By signs of repeats alone") for text in unsure)


def test_too_few_people_are_said_to_be() -> None:
    """Without a p-value of its own there is no verdict, whatever the signs say."""
    told = [one.model_copy(update={"p": None}) if one.metric.endswith(("-linear", "-scratch-full")) or one.metric in
            ("auc_minus_linear", "auc_minus_scratch-full") else one for one in rows(LIKE_THE_PAPER, p=1e-3)]  # fmt: skip
    assert "Too few people judge for a verdict on any two ways." in sentences(table(told))


def test_repeats_that_say_nothing_are_counted_aloud() -> None:
    """A median of eleven repeats is none of twenty."""
    told = rows(LIKE_THE_PAPER)
    told = [one if one.metric != "repeats" or one.k != 100 else one.model_copy(update={"value": 11.0})
            for one in told]  # fmt: skip
    assert any("At 100 11 of 20 repeats say anything" in t for t in sentences(table(told)))


def test_shuffled_labels_are_held_against_chance() -> None:
    """A way whose interval leaves out a half has seen something that it should not have."""
    fair = dict.fromkeys(LIKE_THE_PAPER, 0.51)
    [told] = sentences(table(rows(fair), shuffled=True))
    assert "6 of 6 intervals cover chance (0.50)." in told
    [told] = sentences(table(rows({**fair, ("linear", 300): 0.9}), shuffled=True))
    assert "5 of 6 intervals cover chance (0.50); not linear at 300." in told


def test_the_page_shows_what_others_wrote_and_never_obeys_it() -> None:
    """A protocol's rows come from sites."""
    page = html([table(rows(LIKE_THE_PAPER))])
    assert page.count("<table") == 2
    assert "0.950 (0.930 to 0.970)" in page
    assert html([]) == ""


def test_a_number_that_was_withheld_is_no_zero() -> None:
    """Too few people stood behind it."""
    told = [row("linear", 100, "auc_median", None, n_participants=0, n_scans=0)]
    assert table(told).lines[0][1] == "withheld (n < minimum)"
    assert table(told).lines[1][1] == "no result"
