"""The sheet shows every scan and everything that was left out; it obeys nobody and goes nowhere."""

from __future__ import annotations

import itertools
import os
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.contact_sheet import page
from client.contact_sheet.thumbnails import thumbnail
from client.data.finding import Finding
from client.data.generation import INDEX, SAMPLES, Record, line_of
from client.site import load_site
from common.errors import SettingError
from tests.client.data.test_prepare import STUDY, site_in, study_of

SHAPE = (12, 14, 10)
VOLUMES = study_of({"kind": "t1w", "shape": list(SHAPE), "spacing_mm": 16.0})


def generation(folder: Path, records: list[Record]) -> Path:
    folder.mkdir()
    chance = np.random.default_rng(0)
    with (folder / SAMPLES).open("wb") as samples, (folder / INDEX).open("wb") as index:
        for record in records:
            samples.write(chance.normal(size=(record.n, *SHAPE)).astype(np.float16).tobytes())
            index.write(line_of(record))
    return folder


def record(scan: str, n: int = 1, **keys: Any) -> Record:
    status = "ready" if n else "left out"
    return Record(participant="sub-1", scan=scan, stamp="", n=n, status=status, **keys)


def sheet(tmp_path: Path, records: list[Record], findings: tuple[Finding, ...] = ()) -> str:
    made = generation(tmp_path / "generation", records)
    path = tmp_path / "sheet.html"
    page.write_sheet(VOLUMES, load_site(site_in(tmp_path / "site").file), made, findings, path)
    return path.read_text()


class Read(HTMLParser):
    """What a browser would take for tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


TEN = [record(f"sub-{n:02d}/anat/a", quality={"overlap": 0.95 + n / 1000}) for n in range(10)]


def test_every_scan_is_shown_and_the_odd_ones_first(tmp_path: Path) -> None:
    """Nobody looks at the four-thousandth picture: what differs most must be the first."""
    records = [*TEN, record("sub-99/anat/odd", quality={"overlap": 0.91}, notes=("look at it",))]
    text = sheet(tmp_path, records)
    shown = re.findall(r"<h3>(.*?)</h3>", text)
    assert shown[0] == "sub-99/anat/odd"
    assert sorted(shown) == sorted(each.scan for each in records)
    assert text.count("(odd)") == 1
    assert "look at it" in text
    pictures = Read(text).all("img")
    assert len(pictures) == 11
    assert all("sub-" in (picture["alt"] or "") for picture in pictures)


def test_what_was_left_out_stands_there_with_its_reason(tmp_path: Path) -> None:
    """Also what was never read, and a scan that is no picture."""
    gone = Finding(what="sub-02/anat/x", problem="its file is empty (0 bytes)", left_out=True)
    note = Finding(what="versions", problem="3 scans are there in several versions")
    text = sheet(tmp_path, [record("sub-01/anat/a"), record("sub-02/anat/x", n=0)], (gone, note))
    assert "its file is empty (0 bytes)" in text
    assert "Left out (1)" in text
    assert "3 scans are there in several versions" in text
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["sub-01/anat/a"]


def test_the_page_is_this_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    """Faces are on it."""
    before = os.umask(0)
    try:
        sheet(tmp_path, TEN)
    finally:
        os.umask(before)
    assert (tmp_path / "sheet.html").stat().st_mode & 0o777 == 0o600


HOSTILE = '"><script>alert(1)</script><img src=http://x.example/\x1b[2J\u202e.png>'


def test_nothing_is_run_and_nothing_is_loaded_whatever_a_scan_is_called(tmp_path: Path) -> None:
    """A name from a stranger's archive must not tell anybody that this page is open."""
    finding = Finding(what=HOSTILE, problem=HOSTILE, left_out=True)
    text = sheet(tmp_path, [record(HOSTILE, notes=(HOSTILE,), quality={HOSTILE: 1.0})], (finding,))
    assert not {"\x1b", "\u202e"} & set(text)
    read = Read(text)
    assert not {"script", "iframe", "object", "link", "form", "base"} & {
        tag for tag, _ in read.tags
    }
    assert all((one["src"] or "").startswith("data:image/png;base64,") for one in read.all("img"))
    assert all((one["href"] or "").startswith("#") for one in read.all("a"))
    assert not [name for _, found in read.tags for name in found if name.startswith("on")]
    (policy,) = [one for one in read.all("meta") if one.get("http-equiv")]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_page_can_be_read_without_seeing_it(tmp_path: Path) -> None:
    """A language, headings in order, a row's head for each row, places that links lead to."""
    text = sheet(tmp_path, TEN, (Finding(what="a", problem="b", left_out=True),))
    read = Read(text)
    assert read.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(next_ - level <= 1 for level, next_ in itertools.pairwise(levels))
    assert {one["href"] for one in read.all("a")} <= {
        f"#{found.get('id')}" for _, found in read.tags
    }
    assert all(one.get("scope") for one in read.all("th"))


def test_thousands_of_scans_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    """Pictures are made while the page is written: a large site must not run out of memory."""
    records = [record(f"sub-{n:04d}", quality={"overlap": 0.9 + n % 7 / 100}) for n in range(300)]
    made = generation(tmp_path / "generation", records)
    site = load_site(site_in(tmp_path / "site").file)
    thumbnail(np.zeros((4, 4, 4)))  # what Python loads at first use
    tracemalloc.start()
    page.write_sheet(VOLUMES, site, made, (), tmp_path / "sheet.html")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert (tmp_path / "sheet.html").read_text().count("<img") == 300


def test_a_thumbnail_is_small_and_black_outside() -> None:
    """10 kB a scan: 5,000 of them are a page that a browser opens."""
    volume = np.zeros((160, 192, 160), np.float32)
    volume[40:120, 40:150, 40:120] = np.random.default_rng(0).normal(size=(80, 110, 80))
    small = thumbnail(volume)
    assert len(small.address) < 16_000
    assert max(small.width, small.height) < 240
    assert thumbnail(np.zeros((4, 4, 4))).address  # a volume of nothing is a black picture


def test_a_kind_without_pictures_is_refused() -> None:
    """Before hours of preparing, not after."""
    with pytest.raises(SettingError, match='samples of kind "features" are none'):
        page.check_shows(STUDY)
    page.check_shows(VOLUMES)
