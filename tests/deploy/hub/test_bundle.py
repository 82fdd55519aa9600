"""What goes to every hospital is on a list, stands on its own, and is the same from every install."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from deploy.hub.bundle import bundle_files, stage

ROOT = Path(__file__).parents[3]
INSTALLED = sysconfig.get_paths()["purelib"]
COURIER = [
    "client/__init__.py", "client/app.py", "client/kit.py",
    "client/link/__init__.py", "client/link/caller.py", "client/link/frames.py",
]  # fmt: skip


def isolated(code: str, *places: Path) -> Any:
    """Run Python that sees `places` and installed libraries but no checkout; its last line."""
    path = [str(place) for place in places] + [INSTALLED]
    # -S: the checkout is found through a .pth file, which is not looked at then
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path += {path}\n{code}"],
        cwd=places[0], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fab(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stage(tmp_path_factory.mktemp("staged") / "app")


@pytest.fixture(scope="module")
def unpacked(fab: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle as Flower unpacks it, and nothing beside it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        archive.extractall(folder)
    return folder


def test_the_bundle_is_the_courier_the_serverapp_and_what_they_import() -> None:
    """Whoever adds a file to it says so here: it is copied to every hospital."""
    listed = list(bundle_files())
    assert {"server/app.py", "client/app.py"} < set(listed)
    assert [inside for inside in listed if inside.startswith("client/")] == COURIER
    assert {inside.partition("/")[0] for inside in listed} == {"client", "common", "server"}
    server = {inside for inside in listed if inside.startswith("server/")}
    screens = {
        "server/report/page.py",
        "server/report/live_view.py",
        "server/cli.py",
        "server/report/charts.py",
    }
    assert not server & screens
    for inside, file in bundle_files().items():
        assert file == ROOT / inside


def test_the_packed_bundle_holds_the_listed_files_as_they_are(fab: bytes) -> None:
    """Flower adds its own list of contents; a site file or a fixture must not slip in."""
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        names = archive.namelist()
        assert sorted(names) == sorted([*bundle_files(), "pyproject.toml", ".info/CONTENT"])
        for inside, file in bundle_files().items():
            assert archive.read(inside) == file.read_bytes()
        project = tomllib.loads(archive.read("pyproject.toml").decode())
    app = project["tool"]["flwr"]["app"]
    assert app["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}
    assert app["config"].keys() == {"run", "nodes", "key", "books", "peers"}
    assert project["project"]["dependencies"] == []  # nothing is installed at run time


def test_staging_leaves_nothing_of_before(tmp_path: Path, fab: bytes) -> None:
    """A file that an older version had must not be packed with the next."""
    folder = tmp_path / "app"
    (folder / "client" / "data").mkdir(parents=True)
    (folder / "client" / "data" / "old.py").write_text("x = 1")
    (folder / "secret.py").write_text("x = 1")
    assert stage(folder) == fab
    written = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert written == {*bundle_files(), "pyproject.toml"}


def test_the_courier_stands_on_the_bundle_alone_and_without_torch(unpacked: Path) -> None:
    """A hospital's courier needs neither the agent's code nor gigabytes of torch."""
    found = isolated(
        """
import json, importlib.util, client.app
from flwr.clientapp import ClientApp
ours = {n: m.__file__ for n, m in sys.modules.items()
        if n.partition(".")[0] in ("client", "common", "server") and m.__file__}
print(json.dumps({
    "app": isinstance(client.app.app, ClientApp),
    "ours": ours,
    "heavy": sorted({"torch", "opacus", "nibabel", "sklearn"} & set(sys.modules)),
    "agent": [n for n in ("client.service", "client.learning", "client.data", "deploy", "tests")
              if importlib.util.find_spec(n)],
}))""",
        unpacked,
    )
    assert found["app"] is True
    assert found["heavy"] == []
    assert found["agent"] == []
    assert {"client.app", "client.link.caller", "common.protocol.wire"} < found["ours"].keys()
    assert all(Path(place).is_relative_to(unpacked) for place in found["ours"].values())


@pytest.mark.slow
def test_the_serverapp_stands_on_the_bundle_alone(unpacked: Path) -> None:
    """What it imports only when a phase needs it is in the bundle, too."""
    found = isolated(
        """
import json, pkgutil, importlib, server.app
from flwr.serverapp import ServerApp
import client, common, server
for package in (client, common, server):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
ours = [m.__file__ for n, m in sys.modules.items()
        if n.partition(".")[0] in ("client", "common", "server") and m.__file__]
print(json.dumps([isinstance(server.app.app, ServerApp), sorted(ours)]))""",
        unpacked,
    )
    assert found == [True, sorted(str(unpacked / inside) for inside in bundle_files())]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked wheel, made from a copy: building leaves folders beside the source."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("common", "client", "server", "deploy"):
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "callosum_entry.py"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-c",
         f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"],
        cwd=source, capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    [packed] = folder.glob("*.whl")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_an_installed_wheel_stages_the_same_bundle(wheel: Path, fab: bytes, tmp_path: Path) -> None:
    """Coordinators install a wheel in an empty folder; sites compare digests of what they got."""
    digest = isolated(
        f"""
import hashlib, json
from pathlib import Path
from deploy.hub import bundle
assert Path(bundle.__file__).is_relative_to({str(wheel)!r}), bundle.__file__
packed = bundle.stage(Path({str(tmp_path / "app")!r}))
print(json.dumps(hashlib.sha256(packed).hexdigest()))""",
        wheel,
    )
    assert digest == hashlib.sha256(fab).hexdigest()


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_every_template(wheel: Path) -> None:
    """A package that pyproject.toml forgets works in a checkout and nowhere else."""
    wanted = [
        file
        for room in ("common", "client", "server", "deploy")
        for file in (ROOT / room).rglob("*")
        if (file.suffix in (".py", ".j2", ".conf") and (file.parent / "__init__.py").exists())
        or file.parent == ROOT / "deploy" / "studies"
    ]
    wanted.append(ROOT / "callosum_entry.py")
    assert len(wanted) > len(bundle_files())
    for file in wanted:
        inside = wheel / file.relative_to(ROOT)
        assert inside.exists(), f"{file.relative_to(ROOT)} is not in the wheel"
        assert inside.read_bytes() == file.read_bytes()
