"""What people write and scanners make: study and site files, tables, NIfTI."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np

from client.data.labels import read_labels
from client.data.readers.features import FeaturesReader
from client.data.readers.nifti import read_header, read_voxels
from client.data.tables import open_table
from client.site import Column, load_site
from common.errors import CallosumError
from common.explain import explain
from common.kinds.features import Features
from common.protocol.bounded_json import parsed
from common.study import load_study, read_resolved
from tests.fuzz.border import Border
from tests.fuzz.made import SCANS_TABLE, SITE_TABLE, STUDY, STUDY_TABLE, folder
from tests.fuzz.mutation import SCALARS, as_json, as_toml, mutated

ROWS = "participant_id,thickness,volume,age,sex,site\n" + "".join(
    f"p{n},{n}.5,{n * 7},{40 + n},{'fm'[n % 2]},a\n" for n in range(6)
)


def study(random: Random) -> bytes:
    return as_toml(random, random.choice((STUDY_TABLE, SCANS_TABLE)))


def read_study(data: bytes) -> None:
    path = folder("texts") / "study.toml"
    path.write_bytes(data)
    found = load_study(path)
    found.digest, found.shape, explain(found)


def resolved(random: Random) -> bytes:
    return as_json(random, STUDY.model_dump(mode="json"))


def read_resolved_study(data: bytes) -> None:
    try:
        table = parsed(data)
    except ValueError:
        return
    if isinstance(table, dict):
        read_resolved(table, Path("study.json")).digest  # noqa: B018


def site(random: Random) -> bytes:
    return as_toml(random, SITE_TABLE)


def read_site(data: bytes) -> None:
    path = folder("texts") / "site.toml"
    path.write_bytes(data)
    found = load_site(path)
    found.policy.largest_report_bytes, found.state  # noqa: B018


def table(random: Random) -> bytes:
    text = ROWS.replace(",", random.choice((",", ";", "\t")))
    cells = text.split(random.choice((",", "\n")))
    for _ in range(random.choice((0, 1, 3))):
        cells[random.randrange(len(cells))] = str(random.choice(SCALARS))
    data = ",".join(cells).encode(errors="surrogatepass") if len(cells) > 12 else text.encode()
    if random.random() < 0.7:
        data = mutated(random, data)
    if random.random() < 0.2:
        data = gzip.compress(data, 1)
        data = mutated(random, data) if random.random() < 0.5 else data
    return data


COLUMNS = {
    "age": Column(column="age", missing=("-9999",)),
    "sex": Column(column="sex", codes={"m": "male", "f": "female"}),
}
WANTED = Features.Study(kind="features", columns=("thickness", "volume"))
HELD = Features.Site(kind="features", table="table.csv", rows={"site": "a"})


def read_table(data: bytes) -> None:
    path = folder("texts") / "table.csv"
    path.write_bytes(data)
    opened = open_table(path)
    rows = list(map(opened.picker(), opened))
    try:
        read_labels(STUDY.targets, COLUMNS, rows, [str(n) for n in range(len(rows))])
    except CallosumError:
        pass
    for source in FeaturesReader.find(WANTED, HELD, path.parent, frozenset({"age", "sex"})).sources:
        FeaturesReader.prepare(WANTED, source)


def _scans() -> list[bytes]:
    """Small volumes in the forms that scanners and pipelines write."""
    found = []
    for image, dtype in ((nibabel.Nifti1Image, np.int16), (nibabel.Nifti2Image, np.float32)):
        voxels = np.arange(9 * 10 * 8).reshape(9, 10, 8).astype(dtype)
        made: Any = image(voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
        made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello"))
        found.append(made.to_bytes())
    return found


SCANS = _scans()


def scan(random: Random) -> tuple[str, bytes]:
    """Most of what can be wrong is in the header, so most changes are there."""
    data = random.choice(SCANS)
    cut = random.choice((352, 560, len(data)))
    data = mutated(random, data[:cut]) + data[cut:]
    packed = random.random() < 0.3
    if packed:
        data = gzip.compress(data, 1)
        data = mutated(random, data) if random.random() < 0.3 else data
    return f"scan.nii{'.gz' if packed else ''}", data


def read_scan(value: tuple[str, bytes]) -> None:
    name, data = value
    path = folder("texts") / name
    path.write_bytes(data)
    read_voxels(read_header(path))


def borders() -> Iterator[Border]:
    yield Border(name="study", share=2, make=study, read=read_study)
    yield Border(name="resolved", share=3, make=resolved, read=read_resolved_study)
    yield Border(name="site", share=3, make=site, read=read_site)
    yield Border(name="table", share=6, make=table, read=read_table)
    yield Border(name="nifti", share=4, make=scan, read=read_scan)
