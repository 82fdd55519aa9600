"""Both ends share the source that decides how an order is read, and the bundle misses no file."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common import catalogue
from common.protocol.code import agreed_digest, agreed_files, files_behind
from common.study import Study, parse_study, read_resolved
from tests.conftest import FEATURES, overridden

ROOT = Path(__file__).parents[3]
ROOMS = ("common", "client", "server", "deploy")

Ask = Callable[[str], object]


@pytest.fixture
def copied(tmp_path: Path) -> Ask:
    """`copied(script)` runs Python in a copy of our source and gives what it prints as JSON."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "study.json").write_text(json.dumps(study_of().model_dump(mode="json")))

    def ask(script: str) -> object:
        before = "import json; from pathlib import Path; from common.protocol import code\n"
        after = f"\nassert code.__file__ == {str(tmp_path / 'common' / 'protocol' / 'code.py')!r}"
        done = subprocess.run(
            [sys.executable, "-c", before + script + after],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return ask


EACH = """
import tomllib
from common.study import parse_study
study = parse_study(json.loads(Path("study.json").read_text()), Path("study.json"))

def digest():
    code.agreed_digest.cache_clear()
    return code.agreed_digest(study)

def changed(file, content):
    old = file.read_bytes()
    file.write_bytes(content(old))
    try:
        return digest()
    finally:
        file.write_bytes(old)

calm = digest()
"""


def study_of(**changes: Any) -> Study:
    """A small study of tables, so that no digest waits for a network."""
    return parse_study(overridden(FEATURES, changes), Path("study.toml"))


@pytest.mark.slow
def test_one_byte_in_any_agreed_file_is_another_digest(copied: Ask) -> None:
    """A site whose metrics or mask differ in a single digit would give numbers of its own."""
    found = copied(
        EACH
        + """
files = code.agreed_files(study)
seen = {changed(file, lambda old: old[:-1] + b" ") for file in files.values()}
seen.add(changed(files["common/protocol/wire.py"], lambda old: old + b"\\n"))
seen.add(changed(files["common/protocol/wire.py"], lambda old: old[:-1]))
print(json.dumps([list(files), len(seen - {calm}), calm, digest()]))
"""
    )
    files, seen, calm, again = found
    assert files == list(agreed_files(study_of()))
    assert seen == len(files) + 2
    # the place of the source does not count, and nothing is left of the changes
    assert calm == again == agreed_digest(study_of())


def test_no_byte_elsewhere_is_another_digest(copied: Ask) -> None:
    """A newer courier, report, reader, or a network that the study does not use, stops nobody."""
    found = copied(
        EACH
        + """
agreed = set(code.agreed_files(study).values())
other = [file for file in Path().resolve().rglob("*.py") if file not in agreed]
Path("tests").mkdir()
Path("tests/test_new.py").write_text("x = 1")
Path("common/backbones/new.py").write_text("x = 1")
for file in other:
    file.write_bytes(file.read_bytes() + b"\\n# changed")
rooms = sorted({file.relative_to(Path().resolve()).parts[0] for file in other})
names = [file.name for file in other]
print(json.dumps([calm == digest(), len(other) > 50, rooms, "sfcn.py" in names,
                  "catalogue.py" in names]))
"""
    )
    assert found == [True, True, sorted(ROOMS), True, True]


def test_agreed_are_the_core_and_what_the_study_names() -> None:
    """What is left out of the digest may differ unseen; what is in it forces all to update."""
    agreed = set(agreed_files(study_of()))
    assert {inside.partition("/")[0] for inside in agreed} == {"common"}
    assert {
        "common/errors.py", "common/protocol/orders.py", "common/protocol/wire.py",
        "common/protocol/signing.py", "common/study.py", "common/network/building.py", "common/network/plan.py",
        "common/normalisation.py", "common/seams.py", "common/arrays.py", "common/settings.py",
        "common/metrics.py", "common/backbones/mlp.py", "common/objectives/multitask.py",
        "common/kinds/features.py",
    } <= agreed  # fmt: skip
    assert not {"common/backbones/sfcn.py", "common/kinds/t1w.py", "common/catalogue.py"} & agreed


def test_another_study_has_another_digest() -> None:
    """A site that updated one network still takes part in studies of the others."""
    digests = {
        agreed_digest(study_of()),
        agreed_digest(study_of(backbone={"name": "linear"})),
    }
    assert len(digests) == 2
    assert agreed_digest(study_of(seed=1)) == agreed_digest(study_of(seed=2))


OUTSIDE = {
    "lab/__init__.py": "",
    "lab/nets.py": "from . import parts\nfrom lab.deep.more import Thing\nimport numpy\n",
    "lab/parts.py": "import nibabel  # which nobody has to have\nraise SystemExit\n",
    "lab/deep/__init__.py": "from ..far import x\n",
    "lab/deep/more.py": "Thing = 1\n",
    "lab/far.py": "x = 1\n",
    "lab/unused.py": "y = 1\n",
    "other/__init__.py": "",
    "lab-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: lab\nVersion: 1\n",
    "lab-1.dist-info/entry_points.txt": "[callosum.backbones]\nlab-net = lab.nets:Net\n",
}


def test_a_package_from_outside_counts_and_is_not_imported_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sites with two versions of a lab's network would average weights of different things."""
    for name, text in OUTSIDE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    # as a coordinator's server has it: checked elsewhere, no plug-in loaded
    study = read_resolved(
        {**study_of().model_dump(mode="json"), "backbone": {"name": "lab-net"}}, Path("s.json")
    )

    def digest() -> str:
        agreed_digest.cache_clear()
        return agreed_digest(study)

    ours = {
        "lab.py",
        "lab.nets.py",
        "lab.parts.py",
        "lab.deep.py",
        "lab.deep.more.py",
        "lab.far.py",
    }
    assert {name for name in agreed_files(study) if "/" not in name} == ours
    calm = digest()
    for name in ("nets", "parts", "far"):
        file = tmp_path / "lab" / f"{name}.py"
        file.write_text(file.read_text() + "# another version\n")
        assert digest() != calm
        calm = digest()
    (tmp_path / "lab" / "unused.py").write_text("z = 2\n")
    assert digest() == calm
    assert "lab" not in sys.modules


def test_every_way_to_import_a_file_of_ours_is_followed(copied: Ask) -> None:
    """A file that is missed is missing in the bundle, at every hospital."""
    found = copied(
        """
for name, text in {
    "server/one.py": "from common.runtime import durable\\nimport numpy, json.decoder",
    "server/two.py": "import common.kinds.t1w as images",
    "server/three.py": "def late():\\n    if late:\\n        from common.backbones.mlp import Mlp",
    "server/four.py": "try:\\n    import server.one\\nexcept ImportError:\\n    from server import two",
    "server/six/__init__.py": "from server import three",
    "server/six/seven.py": "",
    "server/five.py": "from server import six, nothing\\nfrom server.six import nobody",
    "server/eight.py": "import client.app.sub, common_not, deploy.cli",
    "server/round.py": "from server import round",
}.items():
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
names = ["one", "two", "three", "four", "five", "six.seven", "eight", "round"]
print(json.dumps({name: list(code.files_behind(["server." + name])) for name in names}))
"""
    )
    below = {"common/__init__.py", "common/errors.py", "server/__init__.py"}
    assert isinstance(found, dict)
    seen = {name: set(files) for name, files in found.items()}
    assert seen["one"] == below | {
        "server/one.py",
        "common/runtime/__init__.py",
        "common/runtime/durable.py",
        "common/runtime/private_folder.py",
    }
    assert "common/kinds/t1w.py" in seen["two"]
    assert "common/kinds/__init__.py" in seen["two"]
    assert {"common/backbones/mlp.py", "common/backbones/__init__.py"} <= seen["three"]
    assert {"server/one.py", "server/two.py"} < seen["four"]
    assert seen["five"] == seen["three"] | {"server/five.py", "server/six/__init__.py"}
    assert "server/six/__init__.py" in seen["six.seven"]
    assert seen["eight"] == {"server/__init__.py", "server/eight.py"}
    assert seen["round"] == {"server/__init__.py", "server/round.py"}


def test_whatever_the_catalogue_names_comes_with_it() -> None:
    """Backbones, objectives and kinds are imported by name, which no import statement shows."""
    found = files_behind(["common.catalogue"])
    for module in catalogue.own_modules():
        inside = f"{module.replace('.', '/')}.py"
        assert found[inside] == ROOT / inside
    assert "common/kinds/__init__.py" in found
    assert not [inside for inside in files_behind(["common.errors"]) if "kinds" in inside]


def test_the_list_has_the_files_order_and_nothing_of_others() -> None:
    """The digest and the bundle are made in this order, on every machine."""
    found = files_behind(["server.app", "client.app"])
    assert list(found) == sorted(found)
    assert found == files_behind(["client.app", "server.app", "client.app"])
    assert all(file == ROOT / inside for inside, file in found.items())
    assert files_behind(["numpy", "tests.conftest", "deploy.cli", "common.nothing"]) == {}


def test_no_file_of_ours_imports_relatively() -> None:
    """The list of files follows names from the top; a relative one it would not see."""
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_bytes())):
                assert not isinstance(node, ast.ImportFrom) or node.level == 0, file
