"""Files whose name and content disagree: each refusal says what it is and what to do, in our words."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import tarfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.data.readers.nifti import read_header, read_voxels
from common.errors import ScanError


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ordinary NIfTI file of noise, which gzip hardly shrinks."""
    path = tmp_path_factory.mktemp("plain") / "a.nii"
    voxels = np.random.default_rng(0).integers(0, 4000, (20, 20, 20)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path.read_bytes()


def problem(path: Path, content: bytes) -> str:
    """What is wrong with a file; nothing if all of it can be read."""
    path.write_bytes(content)
    try:
        read_voxels(read_header(path))
    except ScanError as error:
        return str(error)
    return ""


def test_gzip_that_is_not_named_so_is_told_its_name(tmp_path: Path, plain: bytes) -> None:
    """A download portal that drops the last ending."""
    found = problem(tmp_path / "a.nii", gzip.compress(plain))
    assert found == "its file is gzip; name it .nii.gz, or unpack it"


def test_a_plain_image_that_is_named_gzip_is_told_its_name(tmp_path: Path, plain: bytes) -> None:
    """Renaming is not compressing."""
    assert "is not gzip, whatever its name says; name it .nii" in problem(
        tmp_path / "a.nii.gz", plain
    )


@pytest.mark.parametrize("n", [1, 20, 5000])
@pytest.mark.parametrize("foreign", [b"\xab", b"\0\0\0\0\1", b"<html>"])
def test_foreign_bytes_behind_the_image_are_counted(
    tmp_path: Path, plain: bytes, n: int, foreign: bytes
) -> None:
    """A checksum of some tool's own, or the end of an older and longer file."""
    tail = (foreign * n)[:n]
    found = problem(tmp_path / "a.nii.gz", gzip.compress(plain) + tail)
    if tail.strip(b"\0"):
        assert found.startswith(f"{n:,} bytes follow the image that are no part of it; copy")
    else:
        assert not found  # gzip itself pads with zeros


def test_an_image_in_several_members_is_whole(tmp_path: Path, plain: bytes) -> None:
    """Parallel compressors write so; what is foreign follows the last."""
    packed = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    assert not problem(tmp_path / "a.nii.gz", packed)
    assert problem(tmp_path / "a.nii.gz", packed + b"1234567").startswith("7 bytes follow")


def test_a_wrong_checksum_is_no_foreign_byte(tmp_path: Path, plain: bytes) -> None:
    """A flipped bit on an old disk."""
    packed = bytearray(gzip.compress(plain))
    packed[-6] ^= 1
    assert "checksum" in problem(tmp_path / "a.nii.gz", bytes(packed))


def packed_as_tar(plain: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        about = tarfile.TarInfo("a.nii")
        about.size = len(plain)
        archive.addfile(about, io.BytesIO(plain))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "packed.nii.gz"])
@pytest.mark.parametrize("kind", ["tar", "bzip2", "ZIP", "web page", "DICOM", "gzip", "noise"])
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, plain: bytes, name: str, kind: str
) -> None:
    """Each was renamed, or sent by a portal whose session had ended; plain or within gzip."""
    content = {
        "tar": packed_as_tar(plain),
        "bzip2": bz2.compress(plain),
        "ZIP": b"PK\3\4" + os.urandom(3000),
        "web page": b"<!DOCTYPE html>" + b" " * 3000,
        "DICOM": b"\0" * 128 + b"DICM" + os.urandom(3000),
        "gzip": gzip.compress(plain),
        "noise": bytes(range(256)) * 20,
    }[kind]
    if name == "packed.nii.gz":
        content = gzip.compress(content)
    found = problem(tmp_path / name, content)
    if (kind, name) == ("gzip", "a.nii.gz"):
        assert not found
    else:
        assert found
        assert kind in found or kind == "noise"


@pytest.mark.parametrize("seed", range(40))
def test_no_librarys_words_reach_the_site(tmp_path: Path, plain: bytes, seed: int) -> None:
    """Each failure has a sentence of ours: a stranger's says neither what it means nor what to do."""
    chance = np.random.default_rng(seed)
    content = bytearray(plain)
    for place in chance.integers(0, 352, 12):  # in the header
        content[place] = chance.integers(0, 256)
    packed = bytearray(gzip.compress(plain))
    packed[chance.integers(10, len(packed))] ^= 0xFF
    cut = gzip.compress(plain)[: chance.integers(12, 12000)]
    theirs = ("Cannot work out", "Not a gzipped", "Error -3", "CRC check", "incorrect", "Compressed",
              "invalid", "truncated", "HeaderDataError", "unpack requires", "data code")  # fmt: skip
    for name, damaged in (("a.nii", content), ("b.nii.gz", packed), ("c.nii.gz", cut)):
        found = problem(tmp_path / name, bytes(damaged))
        assert not any(words in found for words in theirs), found


def test_a_file_that_may_not_be_read_is_said_so(tmp_path: Path, plain: bytes) -> None:
    """One such scan must not end the others' preparation."""
    folder = tmp_path / "a.nii"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):  # the disk's own reason; `inspected` tells it
        read_header(folder)


def test_a_packed_bomb_with_a_tail_is_counted_with_little_memory(tmp_path: Path) -> None:
    """Counting unpacks, a block at a time, and keeps nothing."""
    from client.data.readers.compression import _foreign_bytes

    packer = zlib.compressobj(9, wbits=31)
    path = tmp_path / "a.nii.gz"
    with path.open("wb") as stream:
        for _ in range(64):
            stream.write(packer.compress(b"\0" * (1 << 22)))
        stream.write(packer.flush() + b"xyz")
    assert _foreign_bytes(path) == 3
