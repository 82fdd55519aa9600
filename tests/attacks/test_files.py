"""Whoever sends a table or a scan to a hospital: small files that are large, rows without end."""

from __future__ import annotations

import gzip
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.authority.ledger import NOTHING
from client.authority.receipts import verify
from client.data.finding import MOST_FINDINGS, Finding, Findings
from client.data.labels import read_labels
from client.data.readers.features import FeaturesReader
from client.data.readers.nifti import read_header, read_voxels
from client.data.tables import Row, open_table
from client.site import Column
from common.errors import DataError, ScanError, SettingError
from common.kinds.features import Features
from common.sections import Target
from common.study import read_resolved

ROOT = Path(__file__).parents[2]
STUDY = Features.Study(kind="features", columns=("a",))
MEASURED = """
import json, re, sys, time
from pathlib import Path
from client.data.readers.features import FeaturesReader
from client.data.readers.nifti import read_header, read_voxels
from common.errors import CallosumError
from common.kinds.features import Features

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

found = []
for name in sys.argv[1:]:
    before, began, file = peak(), time.monotonic(), Path(name)
    try:
        if ".nii" in name:
            told = str(read_voxels(read_header(file)).shape)
        else:
            site = Features.Site(kind="features", table=file.name)
            study = Features.Study(kind="features", columns=("a",))
            told = f"{len(FeaturesReader.find(study, site, file.parent, frozenset()).findings)} findings"
    except CallosumError as error:
        told = str(error)
    found.append([file.name, told, peak() - before, time.monotonic() - began])
print(json.dumps(found))
"""


def measured(*files: Path) -> dict[str, tuple[str, int, float]]:
    """What reading each file says, MB that it takes beyond those before it, and seconds."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *files],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return {name: (told, mb, s) for name, told, mb, s in json.loads(done.stdout)}


def packed(path: Path, *parts: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for part in parts:
            stream.write(part)
    return path


@pytest.mark.slow
def test_small_tables_that_are_large_take_little_memory(tmp_path: Path) -> None:
    """A csv.gz of 19 kB took 2.3 GB: each of its rows became cells, findings and a dict."""
    head = b"participant_id,a,age\n"
    wide = b"participant_id,a" + b"".join(b",c%d" % n for n in range(100_000)) + b"\n"
    files = [
        packed(tmp_path / "rows.csv.gz", head, b"x,1,2\n" * 3_200_000),
        packed(tmp_path / "faults.csv.gz", head, b"x\n" * 600_000),
        packed(tmp_path / "blank.csv.gz", head, b"\n" * 19_000_000),
        packed(tmp_path / "commas.csv.gz", wide, (b"x,1" + b"," * 100_000 + b"\n") * 20),
        packed(tmp_path / "short.csv.gz", wide, b"x\n" * 2_000),
        packed(tmp_path / "one.csv.gz", head, b'"', b"y" * 60_000_000),
    ]
    assert files[0].stat().st_size < 40_000
    for name, (told, grown_mb, _) in measured(*files).items():
        assert grown_mb < 250, (name, told, grown_mb)
        assert "findings" in told or name in told


def nifti(path: Path, shape: tuple[int, int, int], extension: int = 0, tail: int = 0) -> Path:
    """A float32 volume of zeros, with `extension` bytes behind the header and `tail` at the end."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_sform(np.eye(4), 1)
    raw = bytearray(header.binaryblock)
    raw[344:348] = b"n+1\0"
    raw[108:112] = struct.pack("<f", 352 + extension)
    start = bytes(raw) + (b"\1\0\0\0" if extension else b"\0" * 4)
    if extension:
        start += struct.pack("<ii", extension, 6)
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(start)
        _zeros(stream, extension - 8 if extension else 0)
        _zeros(stream, 4 * int(np.prod(shape)))
        _zeros(stream, tail)
    return path


def _zeros(stream: Any, count: int) -> None:
    while count > 0:
        part = min(count, 1 << 24)
        stream.write(bytes(part))
        count -= part


@pytest.mark.slow
def test_small_scans_that_are_large_take_little_memory(tmp_path: Path) -> None:
    """A header's extension of 1.5 GB was read whole; voxels of nothing, and a tail, likewise."""
    files = [
        nifti(tmp_path / "extension.nii.gz", (32, 32, 32), extension=1_500_000_000 // 16 * 16),
        nifti(tmp_path / "empty.nii.gz", (512, 512, 512)),
        nifti(tmp_path / "tail.nii.gz", (32, 32, 32), tail=1_000_000_000),
    ]
    assert max(file.stat().st_size for file in files) < 2_000_000
    found = measured(*files)
    assert "voxels begin at byte" in found["extension.nii.gz"][0]
    assert "cannot hold them" in found["empty.nii.gz"][0]
    assert "behind the voxels" in found["tail.nii.gz"][0]
    for name, (_, grown_mb, seconds) in found.items():
        assert grown_mb < 150, name
        assert seconds < 20, name


@pytest.mark.parametrize("offset", [0.0, -352.0, 1e30, float("nan"), float("inf"), 348.0])
@pytest.mark.parametrize("magic", [b"n+1\0", b"ni1\0"])
def test_a_header_that_misplaces_its_voxels_is_refused(
    tmp_path: Path, offset: float, magic: bytes
) -> None:
    """From a lower number nibabel reads extensions to the file's end; no number is infinite."""
    path = nifti(tmp_path / "a.nii.gz", (16, 16, 16))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[344:348], raw[108:112] = magic, struct.pack("<f", offset)
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(ScanError):
        read_header(path)


@pytest.mark.parametrize("stored", ["<i2", ">f4", "<f8", "<u1"])
def test_voxels_read_by_blocks_are_those_of_the_file(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way in which they are unpacked must change no bit."""
    from client.data.readers import nifti as reader

    voxels = np.random.default_rng(0).integers(0, 200, (16, 17, 18)).astype(stored)
    image = nibabel.Nifti1Image(voxels.astype(stored.replace(">", "<")), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii.gz")
    monkeypatch.setattr(reader, "_BLOCK", 1000)
    np.testing.assert_array_equal(read_voxels(read_header(tmp_path / "a.nii.gz")), voxels)


def rows_of_one(folder: Path, count: int) -> float:
    """Seconds to find `count` rows of one participant."""
    table = folder / "table.csv"
    table.write_text("participant_id,a\n" + "".join(f"x,{n}\n" for n in range(count)))
    began = time.process_time()
    site = Features.Site(kind="features", table="table.csv")
    found = FeaturesReader.find(STUDY, site, folder, frozenset({"age"}))
    assert len(found.sources) == count
    assert len({source.scan for source in found.sources}) == count
    return time.process_time() - began


def test_one_participant_with_many_rows_takes_linear_time(tmp_path: Path) -> None:
    """40,000 rows of one person were compared each with each."""
    few, many = rows_of_one(tmp_path, 5_000), rows_of_one(tmp_path, 40_000)
    assert many < 8 * few * 3


def test_many_wrong_labels_take_linear_time() -> None:
    """A hint compares a cell with every word; forty thousand cells had one each."""
    classes = tuple(f"class number {n}" for n in range(500))
    target = Target(kind="categorical", classes=classes)
    rows = [{"stage": f"class numbr {n}"} for n in range(20_000)]
    began = time.process_time()
    labels = read_labels(
        {"stage": target}, {"stage": Column(column="stage")}, rows, [str(n) for n in range(20_000)]
    )
    assert time.process_time() - began < 5
    assert len(labels.findings) == MOST_FINDINGS + 2
    assert labels.findings[-2].error
    assert labels.findings[-1].problem.startswith("and 19,000 more")
    assert "did you mean" in labels.findings[0].problem


def test_scans_without_rows_take_linear_time(tmp_path: Path) -> None:
    """Five thousand scans beside another table's five thousand names: a hint for the first few."""
    from client.data.readers import bids, phenotypes

    people = phenotypes.People(columns=("participant_id",))
    people.rows = {f"sub-{n:05d}": {} for n in range(5_000)}
    scans = bids.Scans()
    scans.files = [
        bids.ScanFile(participant=f"sub-x{n:05d}", session="", name="", path=tmp_path, entities={})
        for n in range(5_000)
    ]
    began = time.process_time()
    join, found = phenotypes.joined(people, scans, filtered=False)
    assert time.process_time() - began < 10
    assert join.hardly
    assert len(found.told()) == MOST_FINDINGS + 2


def test_findings_beyond_a_thousand_are_counted() -> None:
    """Nothing is dropped in silence; what was left out is still known to be."""
    findings = Findings()
    assert findings.told() == ()
    for number in range(MOST_FINDINGS + 5):
        findings.append(Finding(what=str(number), problem="", left_out=number % 2 == 0))
    *told, last = findings.told()
    assert [finding.what for finding in told] == [str(n) for n in range(MOST_FINDINGS)]
    assert last.problem == "and 5 more, of which 3 were left out"
    assert last.left_out


def test_a_table_that_is_a_bomb_is_named(tmp_path: Path) -> None:
    """Whoever has to find it among a hundred files reads which one."""
    path = packed(tmp_path / "bomb.csv.gz", b"a,b\n", b"\n" * 30_000_000)
    with pytest.raises(DataError, match=r"bomb\.csv\.gz holds over 4,194,304 bytes"):
        list(open_table(path))


def test_a_row_is_the_mapping_that_it_was(tmp_path: Path) -> None:
    """Readers from outside unpack, compare and pickle it; a name that stands twice is no key."""
    import pickle

    table = tmp_path / "t.csv"
    table.write_text("id,a,b,a,\nx,1,2,3,4\ny,,,,\n")
    opened = open_table(table)
    first, second = map(opened.picker(), opened)
    assert isinstance(first, Row)
    assert {**first} == dict(first) == {"id": "x", "b": "2", "": "4"} == first
    assert first != second
    assert pickle.loads(pickle.dumps(first)) == first
    assert first.get("a", "none") == "none"
    assert re.fullmatch(r"\w+", first["id"])


def test_a_file_of_many_small_things_is_not_gone_through(tmp_path: Path) -> None:
    """Lists of lists in a few MB kept a site busy for half a minute before it said no."""
    nested: object = 1
    for _ in range(3):
        nested = [nested] * 120
    began = time.process_time()
    with pytest.raises(SettingError, match=r"holds over 300,000 values"):
        read_resolved({"name": "tiny", "backbone": {"name": nested}}, tmp_path / "study.json")
    entry = {"number": 1, "previous": "0" * 64, "hash": "0" * 64, "numbers": [[]] * 10**6}
    (tmp_path / "2026-01.jsonl").write_text(json.dumps(entry) + "\n")
    assert "no receipt" in verify(tmp_path, lambda: NOTHING).faults[0].what
    assert time.process_time() - began < 2
