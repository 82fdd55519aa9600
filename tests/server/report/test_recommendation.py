"""Which method to use is decided by paired differences alone, and often it is undecided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.protocol.orders import Measurement
from common.study import Study, parse_study
from server.report.answer import answer
from server.report.comparisons import comparisons
from server.report.paired_tables import paired_tables
from server.report.recommendation import Choice, choices, in_short, size
from tests.server.report.test_gains import TABLES, judged, row, tuned

STUDY: Study = parse_study(TABLES, Path("trial.toml"))


def chosen(*rows: Measurement) -> list[Choice]:
    return choices(STUDY, comparisons(STUDY, rows), paired_tables(STUDY, rows))


def opening(*rows: Measurement) -> str:
    found = answer(STUDY, comparisons(STUDY, rows), paired_tables(STUDY, rows), "95 %")
    return " ".join(sentence for parts in found for sentence in parts)


def rival(model: str, apart: float, p: float | None, **more: Any) -> list[Measurement]:
    """A model so far from the federated network, which has 5.0."""
    return [row("mae", 5.0 + apart, model=model, **more),
            row("mae_minus_federated", apart, model=model, p=p, **more)]  # fmt: skip


def test_a_method_that_beats_all_others_is_named() -> None:
    """The one case in which a page may say what to do."""
    [one] = chosen(*judged(2, 2), *rival("pooled-linear", 1.5, 1e-6),
                   *rival("training-median", 9.0, 1e-6))  # fmt: skip
    assert one.answer == "the federated model"
    assert in_short([one]) == "For age use the federated model."
    assert "A linear model of all sites and the training median did worse" in one.sentence


def test_a_simple_rival_that_beats_the_network_is_named_against_it() -> None:
    """The page is no advertisement: what the network loses to is what should be used."""
    [one] = chosen(*judged(2, 2), *rival("pooled-linear", -1.5, 1e-6),
                   *rival("training-median", 9.0, 1e-6))  # fmt: skip
    assert one.answer == "a linear model of all sites"
    assert set(one.beaten) == {"the federated model", "the training median"}


def test_what_is_not_told_apart_is_undecided() -> None:
    """A better value alone is no reason."""
    [one] = chosen(*judged(2, 2), *rival("pooled-linear", -1.5, 0.2))
    assert (one.answer, len(one.left)) == ("", 2)
    assert in_short([one]) == "Undecided for age."
    assert "undecided, between the federated model and a linear model" in one.sentence


def test_a_rival_that_only_the_network_was_compared_with_is_not_left_aside() -> None:
    """Linear beats the network; that the median does not differ from it says nothing of the two."""
    [one] = chosen(*rival("pooled-linear", -1.5, 1e-6), *rival("training-median", 0.1, 0.9),
                   row("mae", 5.0))  # fmt: skip
    assert one.answer == ""
    assert one.left == ("a linear model of all sites", "the training median")


def test_too_few_people_leave_nobody_aside_however_large_the_difference() -> None:
    """Without a p there is a number and no finding."""
    [one] = chosen(row("mae", 5.0), *rival("training-median", 90.0, None))
    assert one.answer == ""
    assert "too few people to tell" in one.sentence


def test_p_values_are_adjusted_before_anything_is_left_aside() -> None:
    """One difference at .03 is a finding; among three it is none."""
    rows = [row("mae", 5.0), *rival("training-median", 3.0, 0.03)]
    assert chosen(*rows)[0].answer == "the federated model"
    more = [*rival("pooled-linear", 0.1, 0.9), *rival("training-mean", 0.1, 0.9)]
    assert len(chosen(*rows, *more)[0].left) == 4


def test_data_in_one_place_and_single_sites_are_no_choice_of_a_consortium() -> None:
    """The pooled network needs what a consortium has not; joining is judged by itself."""
    [one] = chosen(*judged(-2, -2), *rival("pooled", -4.0, 1e-6),
                   *rival("training-median", 9.0, 1e-6))  # fmt: skip
    assert one.answer == "the federated model"


def test_ways_of_tuning_are_chosen_by_their_pairs_at_each_number_of_people() -> None:
    """With ten people linear may win, with a hundred the network; each has its own answer."""
    few = tuned("all", 0.8, "linear", "pretrained-full", k=10).model_copy(update={"p": 1e-4})
    many = tuned("all", -0.8, "linear", "pretrained-full", k=100).model_copy(update={"p": 1e-4})
    ten, hundred = chosen(few, many)
    assert (ten.subject, ten.answer) == ("dementia learnt from 10 people", "linear")
    assert (hundred.subject, hundred.answer) == ("dementia learnt from 100 people",
                                                 "pretrained full")  # fmt: skip


def test_the_size_of_the_consortium_is_said_where_it_is_known() -> None:
    """An answer for four hospitals is none for forty."""
    held = {"amber": {"held": {"scans": 40}}, "birch": {"held": {"scans": 1960}}}
    assert size(STUDY, held) == "2 training hospitals with 2,000 scans"
    assert size(STUDY, {}) == "2 training hospitals"


def test_the_answer_tells_a_loss_as_plainly_as_a_gain() -> None:
    """The first sentence is what a reader takes away."""
    text = opening(*judged(-2.0, -1.0), *rival("pooled-linear", -1.5, 1e-6))
    assert "Training together is better than a hospital alone in 0 of 2 paired comparisons" in text
    assert "worse in 2" in text
    assert "worse than the strongest simple rival, the pooled linear model" in text
    assert "together minus it is +1.50 (0.75 to 2.00), adjusted p below 0.001" in text


def test_the_strongest_simple_rival_is_the_one_with_the_best_value() -> None:
    """To be better than the weakest is easy."""
    text = opening(row("mae", 5.0), *rival("training-median", 2.0, 1e-6),
                   *rival("training-mean", 4.0, 1e-6))  # fmt: skip
    assert "better than the strongest simple rival, the median of the training sites" in text


def test_transfer_is_told_against_scratch_by_its_paired_difference() -> None:
    """Whether pretraining helps is decided, undecided, or too few people say; three sentences."""

    def told(value: float, p: float | None) -> str:
        return opening(tuned("all", value).model_copy(update={"p": p}))

    assert "network is better than training from scratch." in told(0.6, 0.001)
    assert "network is worse than training from scratch." in told(-0.8, 0.001)
    assert "Whether starting from the shared network is better" in told(0.1, 0.4)
    assert "Too few people were tested to say whether" in told(0.6, None)
