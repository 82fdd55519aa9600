"""A real browser opens the page as a reader would: by mouse, by keyboard, on a phone, at night."""

from __future__ import annotations

import base64
import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from common.protocol.orders import Measurement
from server.report.page import write_report
from server.results import write_results
from tests.server.report.chromium import Tab, browsing
from tests.server.report.made_up_run import STUDY, TRAIN, finished, pictures, row, rows, tuned
from tests.server.report.test_protocols import LIKE_THE_PAPER
from tests.server.report.test_protocols import rows as of_protocol

pytestmark = pytest.mark.whole

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
PROTOCOL = """
participants = [5, 10, 20]
learning_rates = [1e-3, 1e-2, 3e-2]
weight_decays = [0.0, 1e-3, 1e-2]
[[protocols]]
name = "draws"
task = "dementia"
scheme = "resampled"
sizes = [100, 300]
repeats = 20
"""
PHONE, DESK = 390, 1200


def measured() -> list[Measurement]:
    """Two held-out sites, all of them, slopes, five sizes of a task; a model with a hostile name."""
    found = [*rows(), row(HOSTILE, 6.25)]
    found += [one.model_copy(update={"site": "fir", "value": one.value + 0.25})
              for one in rows() if one.phase == "evaluate" and one.value is not None]  # fmt: skip
    found += [row("federated", 5.3, site="all"), row("pooled", 5.0, site="all")]
    found += [row("federated", 0.9, metric="slope", site=site) for site in ("elm", "fir")]
    for k in (5, 10, 20):
        for init in ("pretrained", "scratch"):
            value = 0.5 + k / 100 + (init == "pretrained") / 10
            found += [tuned(site, init, value, k=k, metric="auc_over_draws")
                      for site in (*TRAIN, "all")]  # fmt: skip
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    study = STUDY.replace('["elm"]', '["elm", "fir"]') + PROTOCOL
    run = finished(folder / "run", study)
    drawn = [one.model_copy(update={"site": "amber"}) for one in of_protocol(LIKE_THE_PAPER)]
    write_results(run, [*measured(), *drawn])
    write_report(run, pictures())
    return run.folder


@pytest.fixture(scope="module")
def tab(folder: Path) -> Iterator[Tab]:
    with browsing(folder.parent) as tab:
        tab.open((folder / "report.html").as_uri(), DESK, 900, folder.parent / "downloads")
        yield tab


def told(tab: Tab, *methods: str) -> list[dict[str, Any]]:
    return [event["params"] for event in tab.events if event.get("method") in methods]


def links(tab: Tab) -> dict[str, bytes]:
    """What every download link holds, by the name that it would be saved under."""
    script = "JSON.stringify([...document.querySelectorAll('a[download]')].map(a => [a.download, a.href]))"
    found = dict(json.loads(tab.evaluate(script)))
    return {name: base64.b64decode(href.partition("base64,")[2]) for name, href in found.items()}


def test_nothing_is_asked_of_the_network_and_nothing_fails(tab: Tab) -> None:
    """An error on the console is a page half shown; a request would tell who reads it."""
    asked = [one["request"]["url"] for one in told(tab, "Network.requestWillBeSent")]
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert all(url.startswith(("file:", "data:image/png")) for url in asked)
    assert told(tab, "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []


def test_a_hostile_name_is_text(tab: Tab) -> None:
    """Names come from other people's machines; none may become an element, or run."""
    assert told(tab, "Page.javascriptDialogOpening") == []
    assert tab.evaluate("document.querySelectorAll('script, img[onerror]').length") == 0
    assert tab.evaluate("document.querySelectorAll('table[data-protocol]').length") > 0
    assert "<script>alert(1)</script>" in tab.evaluate("document.body.textContent")


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_never_scrolls_sideways(tab: Tab, width: int) -> None:
    """On a telephone only tables move, inside their boxes, even with all of it unfolded."""
    tab.resize(width, 900)
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = tab.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, svg, .skip') &&"
        f" one.getBoundingClientRect().right > {width} + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    assert outside == []
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    tab.resize(DESK, 900)


def test_every_figure_is_an_svg_file_of_its_own(tab: Tab) -> None:
    """It goes into slides and papers: other programs know neither the page's colours nor HTML."""
    files = {name: text for name, text in links(tab).items() if name.endswith(".svg")}
    assert len(files) == tab.evaluate("document.querySelectorAll('figure[id]').length")
    for name, text in files.items():
        drawn = ET.fromstring(text)
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg", name
        assert float(drawn.attrib["width"]) > 0
        assert not any(word in text for word in (b"var(", b"currentColor", b"href"))


def test_every_number_of_a_figure_is_one_of_results_csv(tab: Tab, folder: Path) -> None:
    """What is drawn again elsewhere must be what was measured, to the last digit."""
    with (folder / "results.csv").open() as stream:
        values = {line[key] for line in csv.DictReader(stream) for key in
                  ("value", "ci_low", "ci_high")}  # fmt: skip
    kinds = set()
    for name, text in links(tab).items():
        if name.endswith(".csv") and name.startswith(("forest", "learning", "calib", "matrix")):
            kinds.add(name.partition("-")[0])
            lines = list(csv.DictReader(io.StringIO(text.decode())))
            assert lines, name
            own = [line for line in lines if line.get("model") != "mean of single-site models"]
            assert {line[key] for line in own for key in ("value", "ci_low", "ci_high")} <= values
    assert kinds == {"forest", "learning", "calibration", "matrix"}


@pytest.mark.parametrize("ending", ["svg", "csv"])
def test_a_click_saves_the_file(tab: Tab, folder: Path, ending: str) -> None:
    """A link that a browser opens, or blocks, is no download."""
    name = f"forest-0.{ending}"
    tab.evaluate(f"document.querySelector('a[download=\"{name}\"]').click()")
    saved, until = folder.parent / "downloads" / name, time.monotonic() + 30
    while not saved.exists() and time.monotonic() < until:
        tab.evaluate("1")
        time.sleep(0.02)
    assert saved.read_bytes() == links(tab)[name]


def test_the_keyboard_reaches_everything(tab: Tab) -> None:
    """Whoever cannot hold a mouse must reach each link, each fold and each wide table, visibly."""
    tab.evaluate(
        "window.wanted = [...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
        ".filter(one => one.checkVisibility()); window.seen = new Set(); window.bare = [];"
        "document.addEventListener('focusin', e => { window.seen.add(e.target);"
        " if (getComputedStyle(e.target).outlineStyle === 'none') window.bare.push(e.target.outerHTML) })"
    )
    count = tab.evaluate("window.wanted.length")
    assert count > 40
    tab.press("Tab", 9)
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the answer"
    for _ in range(count):
        tab.press("Tab", 9)
    missed = (
        "window.wanted.filter(one => !window.seen.has(one)).map(one => one.outerHTML.slice(0, 99))"
    )
    assert tab.evaluate(missed) == []
    assert tab.evaluate("window.bare") == []


def test_a_fold_opens_by_the_keyboard(tab: Tab) -> None:
    """The numbers of a figure are behind one."""
    tab.evaluate("document.querySelector('figure summary').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.evaluate("document.querySelector('figure details').open")


CONTRAST = """
(() => {
  const part = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const ground = one => { for (; one; one = one.parentElement) {
    const c = rgb(getComputedStyle(one).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } return null };
  document.querySelectorAll('details').forEach(one => one.open = true);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || one.closest('title, desc, style')) continue;
    const style = getComputedStyle(one);
    const a = light(rgb(one.closest('svg') ? style.fill : style.color));
    const b = light(ground(one.closest('svg') ? one.closest('svg').parentElement : one));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(ratio.toFixed(2) + ' ' + one.outerHTML.slice(0, 120));
  }
  return bad;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(tab: Tab, scheme: str) -> None:
    """WCAG 2.2 AA, 4.5 to 1, in both: half of all readers of a ward's night shift read in dark."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    tab.ask("Emulation.setEmulatedMedia", features=media)
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert tab.evaluate(CONTRAST) == []
    tab.ask("Emulation.setEmulatedMedia", features=[])


def test_paper_shows_what_is_folded_on_the_screen(tab: Tab) -> None:
    """Nobody can click on paper; links for clicking are left out there."""
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = false)")
    tab.ask("Emulation.setEmulatedMedia", media="print")
    hidden = (
        "[...document.querySelectorAll('table')].filter(one => !one.checkVisibility()"
        " || one.getBoundingClientRect().height === 0).length"
    )
    assert tab.evaluate(hidden) == 0
    assert tab.evaluate("document.querySelector('nav').checkVisibility()") is False
    tab.ask("Emulation.setEmulatedMedia", media="")
    assert tab.evaluate(hidden) > 0


def test_figures_and_tables_have_names(tab: Tab) -> None:
    """What a screen reader says first is what it is; every cell that heads others says so."""
    assert (
        tab.evaluate("[...document.querySelectorAll('th')].filter(one => !one.scope).length") == 0
    )
    assert tab.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].filter(one => !one.ariaLabelledByElements"
        " || !one.ariaLabelledByElements.every(two => two.textContent)).length"
    ) == 0  # fmt: skip
    unnamed = (
        "[...document.querySelectorAll('table')].filter(one => !one.caption)"
        ".map(one => one.outerHTML.slice(0, 99))"
    )
    assert tab.evaluate(unnamed) == []
