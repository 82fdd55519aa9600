"""The report says what the run's files say, says what is missing, and is safe to send by mail."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from common.errors import FolderError
from server.report.comparisons import BEST_SINGLE, MEAN_OF_SINGLES, comparisons
from server.report.page import Picture, format_tables, write_report
from server.report.paired_tables import paired_tables
from server.report.tables import UNDEFINED, WITHHELD, digits_of, read_results, sentence
from server.report.task_tables import task_tables
from server.results import write_results
from server.run import Run, read_run
from server.run_files import write_json
from tests.server.report.made_up_run import (
    STUDY,
    TRAIN,
    census,
    finished,
    pictures,
    put_record,
    record,
    row,
    rows,
    start,
    tuned,
    withheld,
)

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; open elements must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.words).append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def attributes(self, name: str) -> list[str]:
        return [found[name] or "" for _, found in self.tags if name in found]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return write_report(run).read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def read(run: Run) -> Page:
    return Page(write_report(run).read_text())


def test_a_page_asks_for_nothing_from_outside(run: Run) -> None:
    """It is opened from mail in hospitals: an outside address would tell who reads it, and fail."""
    text = write_report(run, pictures()).read_text()
    page = Page(text)
    assert not page.open
    assert "//" not in re.sub(r"data:[\w/;=+-]+;base64,[\w+/=]+", "", text)
    loaded = page.attributes("src") + page.attributes("srcset") + page.attributes("data")
    assert all(address.startswith("data:image/png;base64,") for address in loaded)
    for _, found in page.tags:
        address = found.get("href") or "#"
        files = ("data:image/svg+xml;base64,", "data:text/csv;charset=utf-8;base64,")
        assert address.startswith(files if "download" in found else "#")
    everywhere = [*page.styles, *page.attributes("style"), *page.attributes("clip-path")]
    for css in everywhere:
        assert "@import" not in css
        assert all(place.startswith("#") for place in re.findall(r"url\(\s*['\"]?([^)]*)", css))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]


def test_every_reference_inside_the_page_leads_somewhere_once(page: Page) -> None:
    """Figures made one by one must not share ids, or one would borrow the other's axis."""
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    wanted = {href[1:] for href in page.attributes("href") if href.startswith("#")}
    wanted |= {text for found in page.attributes("clip-path") for text in
               re.findall(r"url\(#([^)]*)\)", found)}  # fmt: skip
    wanted |= {
        word
        for found in page.attributes("aria-labelledby") + page.attributes("aria-describedby")
        for word in found.split()
    }
    assert wanted <= set(ids)


def test_tables_and_figures_can_be_read_aloud(page: Page) -> None:
    """Header cells say what they head; every figure has words."""
    assert all("scope" in found for tag, found in page.tags if tag == "th")
    figures = [found for tag, found in page.tags if tag == "svg" and "aria-hidden" not in found]
    assert len(figures) >= 4
    assert all(found.get("role") == "img" for found in figures)
    named = {found.get("id") for tag, found in page.tags if tag in ("title", "desc")}
    for found in figures:
        assert {found["aria-labelledby"], found["aria-describedby"]} <= named
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1


def test_figures_stay_small_and_name_no_font_file_or_white_ground(text: str) -> None:
    """A white rectangle would glare in dark mode; a large figure would not travel by mail."""
    figures = re.findall(r'<svg [^>]*role="img".*?</svg>', text, flags=re.DOTALL)
    assert max(len(figure.encode()) for figure in figures) < 60_000
    for figure in figures:
        assert "#ffffff" not in figure
        assert "currentColor" in figure
        assert "DejaVu" not in figure
        assert not re.search(r"#0102|#0a0b", figure)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, run: Run) -> None:
    """Two colleagues must be able to compare pages by digest, wherever the folder lies."""
    first = write_report(run, pictures()).read_bytes()
    assert write_report(run, pictures()).read_bytes() == first
    shutil.copytree(run.folder, tmp_path / "elsewhere")
    assert write_report(read_run(tmp_path / "elsewhere"), pictures()).read_bytes() == first


def test_numbers_on_the_page_are_those_of_results_csv(run: Run, text: str) -> None:
    """A page that rounds, recomputes or mixes up rows would be quoted wrongly."""
    shown = {float(value) for value in re.findall(r'<data value="([^"]*)">', text)}
    with (run.folder / "results.csv").open() as stream:
        for line in csv.DictReader(stream):
            for column in ("value", "ci_low", "ci_high"):
                if line[column]:
                    assert float(line[column]) in shown, line
    for value, rounded in re.findall(r'<data value="([^"]*)">([^<]*)</data>', text):
        number = float(rounded.replace("\N{MINUS SIGN}", "-"))
        places = len(rounded.partition(".")[2])
        assert abs(number - float(value)) <= 0.5 * 10**-places + 1e-12


def test_each_model_stands_in_its_own_row_with_its_n(text: str) -> None:
    """The federated row must hold the federated number, not merely some row."""
    for found in rows():
        if found.phase == "evaluate" and found.metric in ("mae", "auc"):
            table = re.search(
                rf'<table data-site="elm" data-target="{found.target}".*?</table>', text, re.DOTALL
            )
            assert table
            line = re.search(
                rf'<tr data-model="{re.escape(found.model)}".*?</tr>', table[0], re.DOTALL
            )
            assert line
            assert f'<data value="{found.value!r}">' in line[0]
            assert f'<td class="n">{found.n_participants}' in line[0]
            assert f'<td class="n">{found.n_scans}</td>' in line[0]
            assert ("small n" in line[0]) == (found.n_participants < 50)


def test_the_mean_and_the_best_of_single_sites_match_a_naive_oracle(run: Run) -> None:
    """The two rows that the page makes itself, by hand."""
    [age, _] = comparisons(run.study, read_results(run))
    lines = {line.model: line for line in age.lines}
    singles = [lines[f"single-{site}"] for site in TRAIN]
    values = [line.cell.value or 0 for line in singles]
    assert lines[MEAN_OF_SINGLES].cell.value == pytest.approx(fmean(values), abs=1e-12)
    assert lines[MEAN_OF_SINGLES].cell.low is None
    apart = lines[MEAN_OF_SINGLES].difference
    assert apart is not None
    assert apart.value == pytest.approx(fmean(values) - 5.123456789, abs=1e-12)
    assert lines[BEST_SINGLE].cell == singles[values.index(min(values))].cell
    assert "birch" in lines[BEST_SINGLE].title


def test_the_best_auc_is_the_highest(tmp_path: Path) -> None:
    """For an error less is more; for an AUC it is not."""
    run = start(tmp_path / "run")
    found = [row(f"single-{site}", value, target="sex", metric="auc")
             for site, value in zip(TRAIN, (0.6, 0.9, 0.7), strict=True)]  # fmt: skip
    [sex] = comparisons(run.study, found)
    assert [line.cell.value for line in sex.lines if line.model == BEST_SINGLE] == [0.9]


def test_a_missing_single_site_leaves_the_mean_without_a_value(tmp_path: Path) -> None:
    """The mean over those that happen to be there would be another number under the same name."""
    run = start(tmp_path / "run")
    found = [row("single-amber", 7.0), row("single-birch", None), row("single-cedar", 9.0)]
    [age] = comparisons(run.study, found)
    lines = {line.model: line for line in age.lines}
    assert lines[MEAN_OF_SINGLES].cell.value is None
    assert lines[BEST_SINGLE].cell.value == 7.0


@pytest.mark.parametrize(
    ("target", "metric", "apart", "p", "verdict"),
    [
        ("age", "mae", 1.0, 0.01, "federated better"),
        ("age", "mae", -1.0, 0.01, "federated worse"),
        ("age", "mae", 0.1, 0.05, "not distinguishable"),
        ("age", "mae", 1.0, None, "too few people"),
        ("sex", "auc", 0.1, 0.01, "federated worse"),
        ("sex", "auc", -0.1, 0.01, "federated better"),
    ],
)
def test_a_verdict_needs_a_p_value_below_one_in_twenty(
    tmp_path: Path, target: str, metric: str, apart: float, p: float | None, verdict: str
) -> None:
    """The direction of better turns with the metric; where a site told no p there is none."""
    run = start(tmp_path / "run")
    names = {"target": target}
    found = [
        row("federated", 0.8, metric=metric, **names),
        row("pooled", 0.9, metric=metric, **names),
        row("pooled", apart, metric=f"{metric}_minus_federated", p=p, **names),
    ]
    [comparison] = comparisons(run.study, found)
    assert [line.verdict for line in comparison.lines] == ["", verdict]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('[evaluation]\nstatistics = "reestimated"', True),
        ('[aggregation]\nnormalisation = "silobn"', True),
        ('[evaluation]\nstatistics = "reestimated"\n[aggregation]\nnormalisation = "groupnorm"',
         False),
        ("", False),
    ],
    ids=["reestimated", "silobn", "groupnorm", "shared"],
)  # fmt: skip
def test_statistics_of_the_judged_scans_are_admitted(
    tmp_path: Path, change: str, *, said: bool
) -> None:
    """A model `as it comes` that has looked at all scans of its judge is not quite as it came."""
    run = start(tmp_path / "run", STUDY + change)
    write_results(run, rows())
    text = write_report(run).read_text()
    assert ("statistics estimated anew on the judged scans" in text) == said
    assert ("estimated normalisation statistics anew, on the very scans" in text) == said


def test_verdicts_are_adjusted_for_all_differences_of_the_run(tmp_path: Path) -> None:
    """One p of .02 is a finding; as one of three it is none, and one of .001 still is."""
    run = start(tmp_path / "run")

    def verdicts(*ps: float) -> list[str]:
        found = [row("federated", 8.0)]
        for site, p in zip(TRAIN, ps, strict=False):
            found += [row(f"single-{site}", 9.0),
                      row(f"single-{site}", 1.0, metric="mae_minus_federated", p=p)]  # fmt: skip
        [age] = comparisons(run.study, found)
        return [line.verdict for line in age.lines if line.difference and not line.is_made_here]

    assert verdicts(0.02) == ["federated better"]
    assert verdicts(0.02, 0.9, 0.9) == ["not distinguishable"] * 3
    assert verdicts(0.02, 0.001, 0.9) == [
        "federated better", "federated better", "not distinguishable"
    ]  # fmt: skip
    assert verdicts(0.03, 0.001, 0.9)[:2] == ["not distinguishable", "federated better"]


def test_the_summary_tells_the_finding_and_the_degraded_rounds(page: Page) -> None:
    """What a busy reader takes away is the first paragraph."""
    assert "MAE in years for age is 5.1 (95\xa0% interval 4.6 to 5.7; 60" in "".join(page.words)
    assert "not distinguishable from the pooled model's" in page.text
    assert "lower (better) than amber, birch and cedar" in page.text
    assert "2 rounds were DEGRADED" in page.text
    assert "round 2: cedar refused NOT_FINITE; round 3: amber no answer" in page.text


def test_the_sum_of_heldout_sites_is_no_site(tmp_path: Path) -> None:
    """`all` in results.csv stands for every held-out site at once, and the page says so."""
    run = finished(tmp_path / "run")
    write_results(run, [*rows(), row("federated", 5.5, site="all")])
    text = read(run).text
    assert "age at all held-out sites together" in text
    assert "At all," not in text


def test_withheld_cells_say_so_and_give_no_n(run: Run, text: str, page: Page) -> None:
    """The n that was too small is what the site wanted to keep to itself."""
    cell = re.search(r'<td data-site="cedar" data-method="pretrained full">.*?</td>', text)
    assert cell
    assert "withheld (n &lt; minimum)" in cell[0]
    assert not re.search(r"\d", Page(cell[0]).text)
    assert "2 values are withheld" in page.text
    assert WITHHELD in format_tables(run)


def test_participation_is_told_in_words(page: Page) -> None:
    """Colour alone would leave out one man in twelve, and everyone who prints."""
    assert "refused NOT_FINITE" in page.text
    assert "no answer" in page.text
    assert page.text.count("DEGRADED") >= 3
    assert "An array or number is infinite or not a number." in page.text


def test_checkpoints_are_named_by_their_digest(page: Page) -> None:
    """The page must be tied to the very weights it is about."""
    assert hashlib.sha256(b"weights").hexdigest() in page.text


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>${{7*7}}'


def test_nothing_from_a_file_becomes_markup(tmp_path: Path) -> None:
    """Site names, codes and model names come from other people's machines."""
    run = finished(tmp_path / "run")
    line = record(1)["answered"]["amber"]
    put_record(run, record(1, answered={HOSTILE: line}, refused={"birch": HOSTILE},
                           degraded=True, loss={HOSTILE: 1.0}))  # fmt: skip
    write_json(run.folder / "census.json", {**census(amber=HOSTILE), HOSTILE: census()["birch"]})
    with (run.folder / "results.csv").open("a") as stream:
        table = csv.writer(stream, lineterminator="\n")
        numbers = [1, 0, 2, 0.5, 60, 60, 0, 0, 0]
        table.writerow(
            ["evaluate", "", "age", HOSTILE, "", "", 0, "elm", "heldout", "mae", *numbers]
        )
        table.writerow(["finetune", "dementia", "diagnosis", "federated", HOSTILE, HOSTILE, 3,
                        "amber", "train", "auc", *numbers])  # fmt: skip
    picture = Picture(site=HOSTILE, caption=HOSTILE, slices=(np.zeros((3, 4)),))
    text = write_report(run, [picture]).read_text()
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [found for _, found in page.tags if "onerror" in found]
    assert "alert(1)" in page.text
    assert "{{7*7}}" in text


def test_a_damaged_table_is_named_with_its_line(tmp_path: Path) -> None:
    """A cut-off results.csv must not become a page with fewer rows."""
    run = finished(tmp_path / "run")
    with (run.folder / "results.csv").open("a") as stream:
        stream.write("evaluate,,age,feder")
    with pytest.raises(FolderError, match=r"results\.csv, line \d+ is not a measurement"):
        write_report(run)


def test_a_run_that_has_just_begun_gives_a_page(tmp_path: Path) -> None:
    """No round, no census, no results: each place says so."""
    page = read(start(tmp_path / "run"))
    assert "The run is unfinished: 0 of 4 rounds are done" in page.text
    assert "No round is finished" in page.text
    assert "The sites have not been asked yet" in page.text
    assert "There is no out-of-site finding" in page.text


def test_a_run_in_the_middle_gives_a_page(tmp_path: Path) -> None:
    """Rounds without results, and a site that could not take part."""
    run = start(tmp_path / "run")
    put_record(run, record(1))
    write_json(run.folder / "census.json", census(cedar="COHORT_TOO_SMALL"))
    page = read(run)
    assert "1 of 4 rounds are done" in page.text
    assert "cedar could not take part: COHORT_TOO_SMALL: Fewer participants" in page.text


def test_a_study_without_heldout_site_or_task_or_rivals_gives_a_page(tmp_path: Path) -> None:
    """Nothing to judge by is a statement, not an empty table."""
    study = STUDY.replace('heldout = ["elm"]\n', "").partition("[[finetuning]]")[0]
    study += "[comparisons]\nsingle_site = false\npooled = false\n"
    run = start(tmp_path / "run", study)
    put_record(run, record(1))
    write_results(run, [])
    page = read(run)
    assert "holds no site out" in page.text
    assert "The study has no fine-tuning task." in page.text
    assert "no held-out site has judged" in format_tables(run)


def test_a_heldout_site_without_labels_gives_a_page(tmp_path: Path) -> None:
    """Held out, judged nothing; rivals that were not asked for; no labelled fine-tuning cell."""
    run = finished(tmp_path / "run")
    write_results(run, [])
    nothing = census()
    for line in nothing.values():
        line["held"]["labels/diagnosis"] = 0
    write_json(run.folder / "census.json", nothing)
    page = read(run)
    assert "elm was to judge the model and has reported nothing" in page.text
    assert "no training site holds a label of diagnosis" in page.text
    write_results(run, [withheld("federated")])
    page = read(run)
    assert "cannot be shown: too few participants" in page.text
    assert "A pooled model, the usual yardstick, was not reported" in page.text
    assert "elm reported no result for sex: it holds 44 labels" in page.text


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"labels/sex": 0}, "it holds no labels."),
        ({"labels/sex": 44}, "it holds 44 labels, and sent no measurement of them."),
        ({}, "its census does not say how many labels it holds."),
    ],
)
def test_why_a_heldout_site_has_no_result_is_what_its_census_tells(
    tmp_path: Path, held: dict[str, int], why: str
) -> None:
    """Too few labels, none, or a broken report are three telephone calls; none is guessed at."""
    run = finished(tmp_path / "run")
    write_results(run, [found for found in rows() if found.target != "sex"])
    told = census()
    told["elm"]["held"] = {"scans": 50, **held}
    write_json(run.folder / "census.json", told)
    assert f"elm reported no result for sex: {why}" in read(run).text


def test_one_class_alone_is_said_to_be_undefined_and_not_withheld(tmp_path: Path) -> None:
    """A ward of women has no AUC for sex: nobody hid it, and another number would mislead."""
    run = finished(tmp_path / "run")
    rest = [found for found in rows() if found.target != "sex" and found.phase == "evaluate"]
    ill = [tuned(site, "pretrained", 0.8) for site in TRAIN[:2]]
    ill.append(tuned("cedar", "pretrained", None, n_participants=30, n_scans=31))
    sex = row("federated", None, target="sex", metric="auc", n_participants=41, n_scans=44)
    write_results(run, [*rest, *ill, sex])
    text = write_report(run).read_text()
    page = Page(text)
    cell = re.search(r'<td data-site="cedar" data-method="pretrained full">.*?</td>', text)
    assert cell
    assert UNDEFINED in cell[0]
    assert "elm reported no result for sex: its 44 labels are of one class." in page.text
    assert "are withheld" not in page.text
    assert "is withheld" not in page.text
    terminal = format_tables(run)
    assert terminal.count(UNDEFINED) == 2
    assert WITHHELD not in terminal


def test_a_site_of_one_class_is_told_in_the_summary(tmp_path: Path) -> None:
    """The first paragraph must not blame a policy that had nothing to do with it."""
    run = finished(tmp_path / "run")
    write_results(run, [row("federated", None, target="sex", metric="auc", n_participants=41)])
    page = read(run)
    assert "AUC for sex cannot be shown: all labels there are of one class." in page.text
    assert "too few participants" not in page.text


def test_a_network_that_predicts_nothing_is_judged_by_its_head(tmp_path: Path) -> None:
    """Learning without labels ends in features; the page must not look as if a site kept silent."""
    run = finished(tmp_path / "run")
    write_results(run, [row("federated+head", 4.5), row("site-linear", 6.0)])
    page = read(run)
    assert (
        "At elm, for a head of the site's own on the federated network, the MAE in years for age is "
        "4.50 (95 % interval 4.00 to 5.12; 60 participants, 72 scans)."
    ) in page.text
    assert "The network predicts no target by itself" in page.text
    assert "elm reported no result" not in page.text


def test_repeats_are_one_value_with_their_range(tmp_path: Path) -> None:
    """Five draws of six patients are no five findings; their median and its luck are one."""
    study = STUDY + "participants = [6, 12]\ndraws = 3\n"
    run = finished(tmp_path / "run", study)
    values = {6: (0.9, 0.5, 0.6), 12: (0.7, 0.75, 0.85)}
    write_results(run, [
        tuned("amber", init, value if init == "pretrained" else value / 2, k=k, repeat=number)
        for k, drawn in values.items()
        for number, value in enumerate(drawn)
        for init in ("pretrained", "scratch")
    ])  # fmt: skip
    [table] = task_tables(run.study, read_results(run))
    assert table.methods == (
        "pretrained full, k = 6", "scratch full, k = 6",
        "pretrained full, k = 12", "scratch full, k = 12",
    )  # fmt: skip
    found = table.cells["amber", "pretrained full, k = 6"]
    assert (found.cell.low, found.cell.value, found.cell.high) == (0.5, 0.6, 0.9)
    assert found.repeats == 3
    found = table.cells["amber", "scratch full, k = 12"]
    assert (found.cell.low, found.cell.value, found.cell.high) == (0.35, 0.375, 0.425)
    terminal = format_tables(run)
    assert "median of repeats (lowest to highest)" in terminal
    assert "0.600 (0.500 to" in terminal
    [heads] = re.findall(
        r'<table data-task="dementia">.*?</thead>', write_report(run).read_text(), re.DOTALL
    )
    assert "k = 12" in heads
    assert "95" not in heads  # what stands in brackets below is no interval of 95 %


def test_one_withheld_repeat_withholds_their_median(tmp_path: Path) -> None:
    """The median of those that happen to be there is another number under the same name."""
    run = finished(tmp_path / "run")
    write_results(run, [
        tuned("amber", "pretrained", value, repeat=number)
        for number, value in enumerate((0.9, None, 0.7))
    ])  # fmt: skip
    [table] = task_tables(run.study, read_results(run))
    cell = table.cells["amber", "pretrained full"].cell
    assert (cell.value, cell.undefined) == (None, False)


def test_the_mean_over_draws_and_differences_between_methods_are_shown(tmp_path: Path) -> None:
    """What a site told with an interval over people stands there, in page and terminal alike."""
    study = STUDY + "participants = [6]\ndraws = 3\n"
    run = finished(tmp_path / "run", study)
    apart = {"k": 6, "metric": "auc_minus_pretrained-full", "ci_low": -0.31, "ci_high": -0.11}
    means = {"k": 6, "metric": "auc_over_draws", "ci_low": 0.51, "ci_high": 0.81}
    write_results(run, [
        *(tuned("amber", init, value, k=6, repeat=n)
          for init in ("pretrained", "scratch") for n, value in enumerate((0.9, 0.5, 0.6))),
        *(tuned(site, init, 0.66, **means)
          for site in ("amber", "all") for init in ("pretrained", "scratch")),
        *(tuned(site, "scratch", -0.21, **apart) for site in ("amber", "all")),
    ])  # fmt: skip
    [table] = task_tables(run.study, read_results(run))
    found = table.cells["amber", "scratch full, k = 6"]
    assert (found.cell.low, found.cell.value, found.cell.high) == (0.51, 0.66, 0.81)
    assert (found.repeats, table.repeated, table.averaged) == (3, False, True)
    [paired] = paired_tables(run.study, read_results(run))
    assert paired.sites == ("amber", "all")
    [pair] = paired.lines
    assert pair.title == "scratch full minus pretrained full, k = 6"
    assert pair.cells["all"].cell.value == -0.21
    page, terminal = read(run), format_tables(run)
    for text in (page.text, terminal):
        assert "scratch full minus pretrained full, k = 6" in " ".join(text.split())
        assert "\N{MINUS SIGN}0.210" in text
    assert "mean of 3 draws" in page.text
    assert "all reported no result" not in page.text
    assert "mean over draws" in terminal


def test_models_that_were_judged_anew_have_a_table_of_their_own(tmp_path: Path) -> None:
    """What a model did on the day and what it does today must not overwrite each other."""
    run = finished(tmp_path / "run", STUDY + 'then = ["judge"]\n')
    again = [tuned(site, "pretrained", 0.65, phase="judge") for site in TRAIN]
    write_results(run, [*rows(), *again])
    first, second = task_tables(run.study, read_results(run))
    assert (first.phase, second.phase) == ("finetune", "judge")
    assert first.cells["amber", "pretrained full"].cell.value == 0.8
    assert second.cells["amber", "pretrained full"].cell.value == 0.65
    page = read(run)
    assert "dementia, tuned models judged anew: diagnosis" in page.text
    assert (
        "Judging tuned models of dementia: amber reported no result for scratch full" in page.text
    )
    assert "tuned models judged anew, dementia" in format_tables(run)


def test_validation_loss_stands_beside_the_training_loss(tmp_path: Path, text: str) -> None:
    """Learning by heart shows where the two part; one curve alone cannot show it."""
    assert "Training loss by term" in text
    assert "Validation loss by term" in text
    run = start(tmp_path / "run")
    put_record(run, record(1, validation_loss={}))  # of sites that keep nobody for validation
    shown = write_report(run).read_text()
    assert "Training loss by term" in shown
    assert "Validation loss by term" not in shown


def test_a_long_run_keeps_a_short_page(tmp_path: Path) -> None:
    """Ten thousand rounds are allowed; the page lists those in which something failed."""
    run = start(tmp_path / "run", STUDY.replace("rounds = 4", "rounds = 150"))
    for number in range(1, 151):
        put_record(run, record(number))
    put_record(run, record(77, degraded=True, refused={"cedar": "TRANSPORT"}))
    text = write_report(run).read_text()
    assert "149 further rounds are not listed" in re.sub(r"\s+", " ", text)
    assert len(text) < 250_000


def test_pictures_are_said_to_be_synthetic(run: Run, page: Page) -> None:
    """Nobody who opens the page may think that a person's scan was mailed around."""
    shown = Page(write_report(run, pictures()).read_text())
    assert "pictures of synthetic scans" in shown.text
    images = [found for tag, found in shown.tags if tag == "img"]
    assert len(images) == 2
    assert all(found.get("alt") for found in images)
    assert "pictures of synthetic" not in page.text


def test_the_terminal_shows_the_same_numbers_in_100_columns(run: Run) -> None:
    """The end of a command and the page must not disagree."""
    text = format_tables(run)
    assert max(len(line) for line in text.splitlines()) <= 100
    for comparison in comparisons(run.study, read_results(run)):
        digits = digits_of(comparison.metric, *(line.cell.value for line in comparison.lines))
        for line in comparison.lines:
            if not line.model.startswith("single-"):
                assert sentence(line.cell, digits) in text
    [task] = task_tables(run.study, read_results(run))
    assert f"fine-tuning {task.task}" in text
