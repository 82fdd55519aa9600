"""Clips as sites have them: what is read, what is refused by name, whose they are."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from client.data.reader import Found
from client.data.readers import clips, frames
from client.data.readers.links import NOWHERE
from client.data.readers.video import VideoReader
from client.data.workers import prepare_one
from common.errors import DataError, ScanError
from common.kinds.video import Video

SHAPE = (4, 8, 12)


def study(**keys: Any) -> Video.Study:
    return Video.Study(kind="video", **{"shape": SHAPE, "intensity": "unit", **keys})


def find(root: Path, agreed: Video.Study | None = None, **keys: Any) -> Found:
    site = Video.Site(kind="video", root="clips", **keys)
    return VideoReader.find(agreed or study(), site, root, frozenset({"folder", "age", "action"}))


def told(found: Found) -> dict[str, str]:
    return {finding.what: finding.problem for finding in found.findings}


def ramp(number: int, size: tuple[int, int] = (24, 16), mode: str = "L") -> Image.Image:
    """A frame whose left half is dark and whose right half is the brighter the later it is."""
    width, height = size
    grey = np.zeros((height, width), dtype=np.uint8)
    grey[:, width // 2 :] = 18 * number + 40
    return Image.fromarray(grey).convert(mode)


def write_frames(folder: Path, count: int = 8, name: str = "frame_{}.png", **keys: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        ramp(number, **keys).save(folder / name.format(number))
    return folder


def write_film(path: Path, count: int = 8, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [ramp(number, mode="RGB") for number in range(count)]
    if path.suffix == ".apng":
        more = {"format": "PNG", **more}
    elif path.suffix == ".webp":
        more = {"lossless": True, **more}
    first.save(path, save_all=True, append_images=rest, **more)
    return path


def sample(found: Found, agreed: Video.Study | None = None, number: int = 0) -> np.ndarray:
    prepared = VideoReader.prepare(agreed or study(), found.sources[number])
    assert prepared.samples.dtype == np.dtype(Video.dtype)
    assert prepared.samples.shape[1:] == Video.shape(agreed or study())
    return prepared.samples[0].astype(np.float32)


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """By letters frame_10 comes before frame_2, and every motion would be another one."""
    write_frames(tmp_path / "clips/push/a", count=12)
    found = find(tmp_path)
    assert [source.scan for source in found.sources] == ["push/a"]
    bright = sample(found)[:, 4, 9] * 255
    np.testing.assert_allclose(bright, [18 * n + 40 for n in (1, 4, 7, 10)], atol=0.1)
    assert sample(found)[0, 4, 1] == 0  # columns from the left
    assert not found.findings


@pytest.mark.parametrize("ending", frames.CLIPS)
def test_a_film_in_one_file_reads_as_its_frames_do(tmp_path: Path, ending: str) -> None:
    """Whatever well-kept format a lab has saved its clips in."""
    write_frames(tmp_path / "clips/push/a")
    write_film(tmp_path / f"clips/push/b{ending}")
    found = find(tmp_path)
    assert [source.scan for source in found.sources] == ["push/a", f"push/b{ending}"]
    np.testing.assert_allclose(sample(found, number=1), sample(found), atol=0.012)
    assert VideoReader.inspect(study(), found.sources[1]) == ()


MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "RGB": lambda grey: grey.convert("RGB"),
    "RGBA": lambda grey: grey.convert("RGBA"),
    "LA": lambda grey: grey.convert("LA"),
    "P": lambda grey: grey.convert("P"),
    "16 bit": lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
}


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_any_mode_are_the_same_grey(tmp_path: Path, mode: str) -> None:
    """16 bits must not wrap around, nor a palette's index be taken for brightness."""
    write_frames(tmp_path / "clips/a")
    folder = tmp_path / "clips/b"
    folder.mkdir()
    for number in range(8):
        MODES[mode](ramp(number)).save(folder / f"{number}.png")
    found = find(tmp_path)
    np.testing.assert_allclose(sample(found, number=1), sample(found), atol=0.01)


def test_cmyk_pictures_and_transparent_palettes_show_what_a_screen_shows(tmp_path: Path) -> None:
    """Printers' inks are inverted light; what is transparent shows black behind it."""
    folder = write_frames(tmp_path / "clips/inks", name="{}.jpg", mode="RGB")
    for number in range(8):
        ramp(number, mode="RGB").convert("CMYK").save(folder / f"{number}.jpg", quality=95)
    folder = tmp_path / "clips/through"
    folder.mkdir()
    for number in range(8):
        grey = np.asarray(ramp(number)).copy()
        grey[:, :6] = 255  # bright, and not to be seen
        picture = Image.fromarray(grey).quantize(4)
        picture.save(folder / f"{number}.png", transparency=int(np.asarray(picture)[0, 0]))
    write_frames(tmp_path / "clips/plain")
    found = find(tmp_path)
    assert [source.scan for source in found.sources] == ["inks", "plain", "through"]
    for number in (0, 2):
        np.testing.assert_allclose(sample(found, number=number), sample(found, number=1), atol=0.03)


def test_a_picture_is_cut_around_its_middle_and_never_squeezed(tmp_path: Path) -> None:
    """A circle stays one, whatever the camera."""
    for name, size in (("wide", (48, 16)), ("high", (24, 64)), ("fits", (24, 16))):
        write_frames(tmp_path / f"clips/{name}", size=size)
    found = find(tmp_path)
    for number in (0, 1):
        np.testing.assert_allclose(sample(found, number=number), sample(found, number=2), atol=0.2)
        assert sample(found, number=number)[0, 4, 2] == 0


def test_a_stride_takes_frames_around_the_middle(tmp_path: Path) -> None:
    """The speed of a motion stays the camera's; a clip that is too short for it is told."""
    write_frames(tmp_path / "clips/long", count=11)
    write_frames(tmp_path / "clips/short", count=6)
    agreed = study(stride=2)
    found = find(tmp_path, agreed)
    bright = sample(found, agreed)[:, 4, 9] * 255
    np.testing.assert_allclose(bright, [18 * n + 40 for n in (2, 4, 6, 8)], atol=0.1)
    assert told(found) == {"short": "has 6 frames; 4 of every 2 need 7"}


def test_grey_values_are_scaled_as_the_study_says(tmp_path: Path) -> None:
    """Mean 0 and deviation 1 over the clip: what gets brighter within it still does."""
    write_frames(tmp_path / "clips/a")
    found = find(tmp_path)
    scaled = sample(found, study(intensity="zscore"))
    assert scaled.mean() == pytest.approx(0, abs=1e-3)
    assert scaled.std() == pytest.approx(1, abs=1e-3)
    assert (np.diff(scaled[:, 4, 9]) > 0).all()


# What cannot be used is named, and the others go on.


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def spoilt(folder: Path, name: str = "frame_1.png") -> Path:
    write_frames(folder)
    return folder / name


def truncated(folder: Path) -> None:
    path = spoilt(folder)
    noise = np.random.default_rng(0).integers(0, 255, (16, 24), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])


def outward(folder: Path) -> None:
    path = spoilt(folder)
    (folder.parents[2] / "secret.png").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(folder.parents[2] / "secret.png")


def flat(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("L", (24, 16), 90).save(folder / f"{number}.png")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a billion pixels": (
        lambda f: spoilt(f).write_bytes(huge_png(100_000, 10_000)), "far more pixels"
    ),
    "a hundred million": (
        lambda f: spoilt(f).write_bytes(huge_png(10_000, 10_000)), "far more pixels"
    ),
    "more than a frame has": (
        lambda f: spoilt(f).write_bytes(huge_png(10_000, 5_000)),
        "has 10000 x 5000 pixels; a frame has at most",
    ),
    "one frame": (lambda f: write_frames(f, count=1), "has 1 frame; a clip needs two"),
    "mixed sizes": (
        lambda f: ramp(1, size=(32, 16)).save(spoilt(f, "frame_3.png")), "has 32 x 16 pixels, the first frame 24"
    ),
    "truncated": (truncated, "frame_1.png cannot be decoded"),
    "no picture": (lambda f: spoilt(f).write_bytes(b"GIF89a" * 20), "is no PNG, JPEG picture"),
    "empty": (lambda f: spoilt(f).write_bytes(b""), "is no PNG, JPEG picture"),
    "postscript": (lambda f: spoilt(f).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "is no PNG"),
    "a link out": (outward, "frame_1.png is a link out of the data folder"),
    "a link to nothing": (
        lambda f: (spoilt(f).unlink(), (f / "frame_1.png").symlink_to("gone")), "link to nothing"
    ),
    "one grey": (flat, "is of one grey throughout"),
    "a clip as a frame": (
        lambda f: write_film(spoilt(f).with_suffix(".apng")).replace(f / "frame_1.png"),
        "is a clip by itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_used_is_left_out_by_name(tmp_path: Path, name: str) -> None:
    """One sentence for one clip, before memory is taken for it; its neighbour is read."""
    spoil, words = HOSTILE[name]
    write_frames(tmp_path / "clips/push/good")
    spoil(tmp_path / "clips/push/bad")
    found = find(tmp_path)
    problems = {what: problem for what, problem in told(found).items() if "link to" not in what}
    outcomes = {}
    for source in found.sources:
        outcome = prepare_one("video", study(), (np.dtype("float16"), SHAPE), source)
        outcomes[source.scan] = outcome.status
        if outcome.status != "ready":
            (problems[source.scan],) = outcome.notes
    assert outcomes.pop("push/good") == "ready"
    assert set(outcomes.values()) <= {"left out"}
    bad = [problem for what, problem in problems.items() if what.startswith("push/bad")]
    assert len(bad) == 1
    assert words in bad[0]


@pytest.mark.parametrize("name", ["a billion pixels", "mixed sizes", "no picture", "one frame"])
def test_headers_tell_what_they_can_at_once(tmp_path: Path, name: str) -> None:
    """`callosum-site check` decodes nothing."""
    spoil, words = HOSTILE[name]
    spoil(tmp_path / "clips/bad")
    found = find(tmp_path)
    if not found.sources:
        assert words in told(found)["bad"]
        return
    with pytest.raises(ScanError, match=words):
        VideoReader.inspect(study(), found.sources[0])


@pytest.mark.parametrize("ending", frames.CLIPS)
def test_a_film_that_ends_early_or_has_one_frame_is_named(tmp_path: Path, ending: str) -> None:
    """Half a download is no clip, and a still picture has no motion."""
    whole = write_film(tmp_path / f"clips/a{ending}", count=8).read_bytes()
    (tmp_path / f"clips/a{ending}").write_bytes(whole[: len(whole) * 2 // 3])
    write_film(tmp_path / f"clips/still{ending}", count=1)
    found = find(tmp_path)
    for source in found.sources:
        with pytest.raises(ScanError):
            VideoReader.prepare(study(), source)
        outcome = prepare_one("video", study(), (np.dtype("float16"), SHAPE), source)
        assert outcome.status == "left out", outcome


def test_few_frames_are_noted_and_stand_twice(tmp_path: Path) -> None:
    """Two frames say something of a motion, but not what the study meant."""
    write_frames(tmp_path / "clips/a", count=2)
    found = find(tmp_path)
    assert VideoReader.inspect(study(), found.sources[0]) == (
        "has 2 frames for the study's 4; some stand twice",
    )
    bright = sample(found)[:, 4, 9]
    assert bright[0] == bright[1] < bright[2] == bright[3]


def test_more_frames_than_are_read_are_counted_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of video in one folder is no clip; nothing of it is opened."""
    monkeypatch.setattr(clips, "MOST_FRAMES", 7)
    write_frames(tmp_path / "clips/a")
    assert told(find(tmp_path))["a"] == "has 8 frames; at most 7 are read"


@pytest.mark.slow
def test_a_hundred_thousand_files_are_looked_through_in_seconds(tmp_path: Path) -> None:
    """In one folder: one finding. In many: a clip each."""
    (tmp_path / "clips/one").mkdir(parents=True)
    for number in range(50_000):
        (tmp_path / f"clips/one/{number}.png").touch()
    for number in range(5_000):
        (tmp_path / f"clips/many/{number}").mkdir(parents=True)
        for frame in range(10):
            (tmp_path / f"clips/many/{number}/{frame}.jpg").touch()
    found = find(tmp_path)
    assert len(found.sources) == 5_000
    assert told(found) == {"one": "has 50,000 frames; at most 20,000 are read"}


def test_other_files_and_films_are_told_once(tmp_path: Path) -> None:
    """Nobody wonders why a folder of MP4 files gives no sample."""
    write_frames(tmp_path / "clips/push/a")
    for name in ("push/b.mp4", "notes.txt", "push/Thumbs.db", ".DS_Store"):
        (tmp_path / "clips" / name).write_bytes(b"x")
    (tmp_path / "clips/push/c").symlink_to("gone")
    write_frames(tmp_path / "clips/.cache")
    assert told(find(tmp_path)) == {
        "push/b.mp4": "is a film; save its frames as PNG or JPEG",
        "push/c": NOWHERE,
        "other files": "2 files are neither frames nor clips and are not read: notes.txt, "
        "push/Thumbs.db",
    }


def test_frames_in_the_root_are_no_clip(tmp_path: Path) -> None:
    """Hundreds of clips would be one."""
    write_frames(tmp_path / "clips")
    found = find(tmp_path)
    assert not found.sources
    assert told(found)["."] == "holds frames; a folder for each clip is needed"


def test_links_lead_where_the_site_file_says_and_nowhere_else(tmp_path: Path) -> None:
    """A folder of somebody else's, a loop, and a store that the site names."""
    write_frames(tmp_path / "store/a")
    write_frames(tmp_path / "clips/b")
    (tmp_path / "clips/away").symlink_to(tmp_path / "store")
    (tmp_path / "clips/again").symlink_to("b")
    (tmp_path / "clips/loop").symlink_to(".")
    found = find(tmp_path)
    assert [source.scan for source in found.sources] == ["b"]
    problems = told(found)
    assert "is a link out of the data folder" in problems["away"]
    assert problems["again"] == problems["loop"] == "is a link to a folder that is read already"
    found = find(tmp_path, links=("store",))
    assert [source.scan for source in found.sources] == ["away/a", "b"]
    with pytest.raises(DataError, match=r"data\.links names .*absent"):
        find(tmp_path, links=("absent",))


def test_names_that_are_no_utf_8_are_kept_under_escaped_ones(tmp_path: Path) -> None:
    """As old shares leave them; nothing that is written down may break on them."""
    write_frames(tmp_path / "clips/Universit\udce4t", name="bild\udce4_{}.png")
    found = find(tmp_path)
    (source,) = found.sources
    assert source.scan == r"Universit\xe4t"
    assert sample(found).shape == SHAPE
    (Path(source.payload.path) / source.payload.frames[0]).write_bytes(b"x")
    with pytest.raises(ScanError) as caught:
        VideoReader.prepare(study(), source)
    str(caught.value).encode()


def test_a_folder_that_is_absent_is_an_error(tmp_path: Path) -> None:
    """Then the site has nothing, and one line says so."""
    with pytest.raises(DataError, match="clips does not exist or is not a folder"):
        find(tmp_path)


# What is known of clips.


def test_a_clip_is_labelled_by_the_folder_it_lies_in(tmp_path: Path) -> None:
    """As Kinetics and its like are laid out."""
    write_frames(tmp_path / "clips/push/a")
    write_film(tmp_path / "clips/pull/b.gif")
    found = find(tmp_path)
    assert {source.scan: source.row["folder"] for source in found.sources} == {
        "pull/b.gif": "pull", "push/a": "push",
    }  # fmt: skip
    assert found.columns == ("folder",)
    assert [source.participant for source in found.sources] == ["pull/b.gif", "push/a"]


def write_table(folder: Path, lines: Sequence[str]) -> None:
    (folder / "clips.tsv").write_text("".join(f"{line}\n" for line in lines).replace(" ", "\t"))


def test_a_table_says_whose_clips_they_are_and_what_they_show(tmp_path: Path) -> None:
    """Two clips of one person must never be trained and tested on."""
    for name in ("a", "b", "c"):
        write_frames(tmp_path / f"clips/push/{name}")
    write_table(tmp_path, ["clip person age", "push/a p1 40", "push/b p1 40", "push/c p2 50"])
    found = find(tmp_path, table="clips.tsv", participant="person")
    assert [(s.participant, s.row["age"]) for s in found.sources] == [
        ("p1", "40"), ("p1", "40"), ("p2", "50"),
    ]  # fmt: skip
    (join,) = found.joins
    assert join.told == "clips.tsv: 3 of 3 rows have scans, 3 of 3 clips have a row"
    assert not found.findings
    assert set(found.columns) == {"clip", "person", "age", "folder"}


def test_rows_and_clips_that_do_not_meet_are_named(tmp_path: Path) -> None:
    """A name that is a path, a row for two, a clip of nobody: each is one finding."""
    for name in ("a", "b", "c", "d", "e"):
        write_frames(tmp_path / f"clips/{name}")
    write_table(tmp_path, ["clip person", "a p1", "../../etc/passwd p2", "b p3", "b p4", "c n/a",
                           "d p007", "e p7", "/ p5"])  # fmt: skip
    found = find(tmp_path, table="clips.tsv", participant="person")
    assert [source.scan for source in found.sources] == ["a"]
    problems = told(found)
    assert problems["clips.tsv, line 6"] == "names nobody in person"
    assert problems["../../etc/passwd"] == "has a row but no clip"
    assert problems["clips.tsv, line 5"] == "names b, as line 4 does; neither is used"
    assert problems["clips.tsv, line 9"] == "names no clip"
    assert "may be one person" in problems["clips.tsv"]


def test_only_the_sites_rows_are_read_and_clips_of_nobody_are_left_out(tmp_path: Path) -> None:
    """One folder may hold several sites' clips."""
    for name in ("a", "b", "c"):
        write_frames(tmp_path / f"clips/{name}")
    write_table(tmp_path, ["clip site", "a here", "b there"])
    found = find(tmp_path, table="clips.tsv", rows={"site": "here"})
    assert [source.scan for source in found.sources] == ["a"]
    assert told(found) == {"c": "has no row in clips.tsv; there are: a"}
    assert [finding.left_out for finding in found.findings] == [True]
    with pytest.raises(ValidationError, match="table is empty; participant and rows are columns"):
        find(tmp_path, rows={"site": "here"})


def test_a_table_that_is_absent_costs_labels_unless_it_says_whose_clips_are(
    tmp_path: Path,
) -> None:
    """Without names of people, two clips of one would count as two people."""
    write_frames(tmp_path / "clips/a")
    found = find(tmp_path, table="clips.tsv")
    assert len(found.sources) == 1
    assert [finding.error for finding in found.findings] == [True]
    with pytest.raises(DataError, match="clips.tsv"):
        find(tmp_path, table="clips.tsv", participant="person")


def test_a_table_of_other_names_is_an_error_with_one_that_is_meant(tmp_path: Path) -> None:
    """Names without the folder, say: no label would be left, and nobody would know why."""
    for name in ("a1", "a2", "a3"):
        write_frames(tmp_path / f"clips/push/{name}")
    write_table(tmp_path, ["clip age", "a1 1", "a2 2", "a3 3"])
    found = find(tmp_path, table="clips.tsv")
    (error,) = [finding.problem for finding in found.findings if finding.error]
    assert "such as push/a1" in error


def test_a_stamp_changes_when_a_frame_that_is_taken_does(tmp_path: Path) -> None:
    """Else a corrected clip would never be prepared again; other frames do not count."""

    def stamp() -> str:
        (source,) = find(tmp_path).sources
        return source.stamp

    write_frames(tmp_path / "clips/a", count=12)  # 1, 4, 7 and 10 are taken
    first = stamp()
    os.utime(tmp_path / "clips/a/frame_0.png", ns=(1, 1))
    assert stamp() == first
    os.utime(tmp_path / "clips/a/frame_4.png", ns=(1, 1))
    assert stamp() != first


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_what_the_disk_refuses_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A stale handle is no damaged picture, whenever it goes stale."""
    write_frames(tmp_path / "clips/a")
    (source,) = find(tmp_path).sources

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(frames, "_fitted", refuse)
    outcome = prepare_one("video", study(), (np.dtype("float16"), SHAPE), source)
    assert (outcome.status, outcome.notes) == (
        "failed", (f"cannot be read: {os.strerror(number)}",),
    )  # fmt: skip
